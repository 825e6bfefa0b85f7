"""Clients find servers on real networks, and see what happens to them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from tests.network.conftest import MakeNetwork
from tests.network.lab import Host
from tests.network.namespaces import Process
from tests.network.product import (
    READY,
    USB_REMOTE,
    configured,
    filter_ipv4,
    listed,
    name,
    names,
    start_server,
    start_servers,
    start_watch,
    usb_remote,
)
from tests.patience import patience

ECHO = """
import sys
from usb_remote.values import BusId
from usb_remote.virtual import echo, import_device
handle = import_device(sys.argv[1], int(sys.argv[2]), BusId(sys.argv[3]))
print(echo(handle, b"over the network").decode())
handle.close()
"""

GOODBYES = """
import sys, threading
from zeroconf import IPVersion, ServiceBrowser, ServiceListener, Zeroconf
class Listener(ServiceListener):
    def add_service(self, zeroconf, kind, name): print("came", name)
    def update_service(self, zeroconf, kind, name): pass
    def remove_service(self, zeroconf, kind, name): print("went", name)
ServiceBrowser(Zeroconf(interfaces=[sys.argv[1]]), "_usbremote._tcp.local.", Listener())
threading.Event().wait()
"""

NEW_ADDRESS = "10.77.0.50"

ON_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"


def test_every_server_is_found_with_nothing_configured(network: MakeNetwork) -> None:
    *hosts, client = network(4)
    start_servers(*hosts)

    found = usb_remote(client, "list", "--json")

    assert names(found) == [name(host) for host in hosts]
    assert [len(entry["devices"]) for entry in listed(found)] == [3, 3, 3]
    assert not found.stderr


def test_a_server_on_the_client_itself_is_found_once(network: MakeNetwork) -> None:
    here, other = network(2)
    start_servers(here, other)

    assert sorted(names(usb_remote(here, "list", "--json"))) == [name(here), name(other)]


def test_servers_with_the_same_host_name_are_two_servers(network: MakeNetwork) -> None:
    lab = network(1)
    hosts = [lab.add_host("raspberrypi") for _ in range(2)]
    start_servers(*hosts, named=False)

    found = usb_remote(lab[0], "list", "--json")

    assert names(found) == ["raspberrypi", "raspberrypi"]
    used = {entry["server"]["addresses"][0] for entry in listed(found)}
    assert all(used & {host.address, host.address6, f"{host.link_local}%eth0"} for host in hosts)


def test_a_configured_server_is_listed_once_first_and_by_its_configured_name(
    network: MakeNetwork, tmp_path: Path
) -> None:
    one, two, client = network(3)
    start_servers(one, two)

    found = usb_remote(client, *configured(tmp_path, two.address), "list", "--json")

    assert names(found) == [two.address, name(one)]


def test_a_configured_name_wins_when_mdns_is_faster(network: MakeNetwork, tmp_path: Path) -> None:
    one, two, client = network(3)
    start_servers(one, two)
    # The kernel tries a lost connection over IPv4 again after a second; IPv6 is faster.
    filter_ipv4(two, "tcp dport 5055 tcp flags & (syn | ack) == syn numgen inc mod 2 == 0 drop")

    found = usb_remote(client, *configured(tmp_path, two.address), "list", "--json")

    assert names(found) == [two.address, name(one)]


@pytest.mark.parametrize("link_local_only", [False, True])
def test_an_ipv6_network_is_enough_to_find_and_import(
    network: MakeNetwork, link_local_only: bool
) -> None:
    host, client = network(2, ipv4=False)
    if link_local_only:
        host.remove_address(host.address6)
        client.remove_address(client.address6)
    start_servers(host)

    found = usb_remote(client, "find", "VIRTUAL0001", "--json")
    info = usb_remote(client, "info", "--json")

    assert found.returncode == 0, found
    [server] = json.loads(info.stdout)["servers"]
    target = [server["addresses"][0], str(server["usbip_port"])]
    bus_id = json.loads(found.stdout)["device"]["bus_id"]
    echoed = client.run([sys.executable, "-c", ECHO, *target, bus_id])
    assert echoed.stdout == "over the network\n"


def test_a_server_that_changes_its_address_is_found_at_the_new_one(network: MakeNetwork) -> None:
    host, client = network(2, ipv6=False)
    [server] = start_servers(host)

    move(host, NEW_ADDRESS)
    server.wait_for(f"announcing {NEW_ADDRESS}$")

    [entry] = listed(usb_remote(client, "list", "--json"))
    assert entry["server"]["addresses"] == [NEW_ADDRESS]


def test_a_watch_regains_a_server_that_changes_its_address(network: MakeNetwork) -> None:
    host, client = network(2, ipv6=False)
    start_servers(host)
    watch = start_watch(client)
    watch.wait_for(f'"snapshot".*"{host.address}"')

    move(host, NEW_ADDRESS)

    watch.wait_for('"lost"')  # after WATCH_TIMEOUT: nothing says so
    watch.wait_for(f'"snapshot".*"{NEW_ADDRESS}"')
    assert len(watch.lines("stdout")) == 3


def move(host: Host, address: str) -> None:
    host.add_address(address)
    host.remove_address(host.address)


def test_ten_percent_loss_hides_no_server(network: MakeNetwork) -> None:
    lab = network(5)
    *hosts, one, two = lab
    start_servers(*hosts)
    for host in lab:
        host.drop(10)

    runs = [run for _ in range(5) for run in list_at_once(one, two)]

    expected = [name(host) for host in hosts]
    failed = [run for run in runs if run.wait() or names_in(run) != expected]
    assert not failed, "\n\n".join("\n".join(run.lines()) for run in failed)


def list_at_once(*clients: Host) -> list[Process]:
    runs = [client.start([*USB_REMOTE, "list", "--json"]) for client in clients]
    for run in runs:
        run.wait()
    return runs


def names_in(run: Process) -> list[str]:
    [line] = run.lines("stdout")
    return [entry["server"]["name"] for entry in json.loads(line)["servers"]]


def test_a_stopped_server_says_goodbye(network: MakeNetwork) -> None:
    host, client = network(2)
    [server] = start_servers(host)
    watch = start_watch(client)
    browser = client.start([sys.executable, "-c", GOODBYES, client.address])
    watch.wait_for('"snapshot"')
    browser.wait_for(f"came {name(host)}-")

    server.signal(signal.SIGTERM)

    assert server.wait() == 0
    watch.wait_for('"event": "lost"', patience(5))
    browser.wait_for(
        f"went {name(host)}-", patience(5)
    )  # it is not the record's time to live that ended
    assert usb_remote(client, "list").returncode == 3


def test_a_watch_has_one_object_for_each_change(network: MakeNetwork) -> None:
    host, client = network(2)
    server = start_server(host, stdin=True)
    server.wait_for(READY)
    watch = start_watch(client)
    watch.wait_for('"snapshot"')

    server.write("pull disk")
    watch.wait_for('"snapshot"')
    server.write("plug disk")
    watch.wait_for('"snapshot"')

    events = [json.loads(line) for line in watch.lines("stdout")]
    assert [event["event"] for event in events] == ["snapshot"] * 3
    plugged = [[device["bus_id"] for device in event["devices"]] for event in events]
    assert plugged == [["1-1", "1-2", "1-3"], ["1-1", "1-3"], ["1-1", "1-2", "1-3"]]
    first, _, last = ([d["devnum"] for d in event["devices"]] for event in events)
    assert first != last  # a replugged device is another one


def test_a_watch_regains_a_server_that_was_started_again(network: MakeNetwork) -> None:
    host, client = network(2)
    [server] = start_servers(host)
    watch = start_watch(client)
    watch.wait_for('"snapshot"')

    server.stop()
    watch.wait_for('"lost"')
    start_servers(host)

    watch.wait_for('"snapshot"')


def test_a_terminal_shows_a_server_while_a_dead_one_is_pending(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, dead, client = network(3)
    start_servers(host)
    dead.block("tcp", 5055)

    listing = on_a_terminal(client, *configured(tmp_path, dead.address, timeout=10), "list")

    listing.wait_for(f"^{name(host)} ")
    assert listing.returncode is None
    listing.wait_for("VIRTUAL0003")
    assert not [line for line in listing.lines() if "warning" in line]
    listing.wait_for(f"^warning: {dead.address}")
    assert listing.wait() == 0


def on_a_terminal(host: Host, *words: str) -> Process:
    return host.start([sys.executable, "-c", ON_A_TERMINAL, *USB_REMOTE, *words])
