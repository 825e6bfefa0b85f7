"""Dead servers, hostile neighbours and networks without multicast cost little."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.network.conftest import MakeNetwork
from tests.network.lab import Host
from tests.network.namespaces import Process
from tests.network.product import (
    USB_REMOTE,
    Completed,
    configured,
    filter_ipv4,
    listed,
    name,
    names,
    start_servers,
    take_5353,
    unprintable,
    usb_remote,
    warnings,
)

HERE = Path(__file__).parent

TIMEOUT = 3.0


# -- dead servers


def test_a_dead_server_costs_one_warning_and_no_more_than_the_time_out(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, silent, unplugged, refusing, client = network(5)
    start_servers(host)
    silent.block("tcp", 5055)
    unplugged.link_down()
    dead = [silent.address, unplugged.address, refusing.address]
    words = configured(tmp_path, *dead, timeout=4)

    listing = client.start([*USB_REMOTE, *words, "list", "--json"])

    asked: set[str] = set()
    while listing.returncode is None and len(asked) < 2:  # both at once, not one after the other
        tries = client.run(["ss", "-Htn", "state", "syn-sent", "dport", "=", ":5055"]).stdout
        asked = {address for address in (silent.address, unplugged.address) if address in tries}
    assert listing.wait() == 0
    assert len(asked) == 2, "\n".join(listing.lines())
    [said] = listing.lines("stdout")
    assert [entry["server"]["name"] for entry in json.loads(said)["servers"]] == [name(host)]
    warned = [line for line in listing.lines("stderr") if line.startswith("warning: ")]
    assert sorted(warning.split()[1].rstrip(":") for warning in warned) == dead
    failures = json.loads(said)["failures"]
    assert sorted(failure["server"]["name"] for failure in failures) == dead


def test_a_dead_server_that_mdns_finds_too_costs_one_warning(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, dead, client = network(3)
    start_servers(host, dead)
    dead.block("tcp", 5055)

    words = configured(tmp_path, dead.address, timeout=TIMEOUT)
    found = usb_remote(client, *words, "list", "--json")

    assert names(found) == [name(host)]
    assert len(warnings(found)) == 1, found.stderr


def test_a_server_that_answers_at_another_address_costs_no_warning(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, client = network(2)
    start_servers(host)
    filter_ipv4(host, "tcp dport 5055 drop")

    words = configured(tmp_path, host.address, timeout=TIMEOUT)
    found = usb_remote(client, *words, "list", "--json")

    assert len(listed(found)) == 1
    assert not found.stderr


# -- no mDNS


def test_a_client_whose_mdns_port_is_taken_finds_servers(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    take_5353(client)

    found = usb_remote(client, "list", "--json")

    assert names(found) == [name(host)]
    assert not found.stderr


def test_a_server_whose_mdns_port_is_taken_warns_and_serves(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, client = network(2)
    take_5353(host)

    [server] = start_servers(host)

    [warning] = [line for line in server.lines() if line.startswith("warning: ")]
    assert "mDNS" in warning
    assert len(server.lines()) == 2  # the warning and that it is ready
    assert len(listed(usb_remote(client, "list", "--json", "--host", host.address))) == 1
    words = configured(tmp_path, host.address)
    assert names(usb_remote(client, *words, "list", "--json")) == [host.address]


def test_without_multicast_configured_servers_work(network: MakeNetwork, tmp_path: Path) -> None:
    host, client = network(2)
    start_servers(host)
    for end in (host, client):
        end.block("udp", 5353)

    found = usb_remote(client, *configured(tmp_path, host.address), "list", "--json")

    assert names(found) == [host.address]
    assert_no_server(usb_remote(client, "list"))


def test_a_network_without_servers_is_an_error_with_a_hint(network: MakeNetwork) -> None:
    [client] = network(1)

    assert_no_server(usb_remote(client, "list"))


def test_a_machine_without_a_network_is_no_crash(network: MakeNetwork, tmp_path: Path) -> None:
    [client] = network(1)
    client.ip("link delete eth0")

    assert_no_server(usb_remote(client, "list"))
    client.ip("link set lo down")
    assert_no_server(usb_remote(client, *configured(tmp_path, timeout=TIMEOUT), "list"))


def assert_no_server(done: Completed) -> None:
    assert done.returncode == 3, done
    assert not done.stdout
    *before, error, hint = done.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in before), done.stderr
    assert error.startswith("error: no usb-remote server found")
    assert hint.startswith("hint: ")


# -- hostile neighbours


def test_a_flood_of_malformed_packets_hides_no_server(network: MakeNetwork, tmp_path: Path) -> None:
    host, client, enemy = network(3)
    [server] = start_servers(host)
    words = configured(tmp_path, timeout=TIMEOUT)

    flood = start_hostile(enemy, "flood", "3000", host.address, client.address)
    flood.wait_for("flooding")
    runs = []
    while flood.returncode is None:
        runs.append(usb_remote(client, *words, "list", "--json"))

    assert flood.wait() == 0
    assert runs
    for run in [*runs, usb_remote(client, *words, "list", "--json")]:
        assert name(host) in names(run)
        warnings(run)
    assert server.returncode is None
    assert len(server.lines()) == 1, server.lines()


def test_what_a_hostile_responder_says_is_shown_harmlessly(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, client, enemy = network(3)
    start_servers(host)
    start_hostile(enemy, "lie").wait_for("lying")
    words = configured(tmp_path, timeout=TIMEOUT)

    for form in ([], ["--json"]):
        found = usb_remote(client, *words, "list", *form)
        assert found.returncode == 0
        assert name(host) in found.stdout
        assert any("evil" in line for line in warnings(found))
        assert not unprintable(found.stdout + found.stderr)


def test_a_link_local_address_is_tried_where_it_was_heard(
    network: MakeNetwork, tmp_path: Path
) -> None:
    client, enemy = network(2)
    start_hostile(enemy, "lie").wait_for("lying")

    found = usb_remote(
        client, *configured(tmp_path, timeout=TIMEOUT), "list", "--json", "--wait", "1"
    )

    failures = json.loads(found.stdout)["failures"]
    addresses = {address for failure in failures for address in failure["server"]["addresses"]}
    assert "fe80::77%eth0" in addresses
    assert "fe80::77%lo" not in addresses


def test_a_responder_that_changes_for_ever_does_not_hold_up_a_list(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, client, enemy = network(3)
    start_servers(host)
    start_hostile(enemy, "change").wait_for("changing")
    words = configured(tmp_path, timeout=TIMEOUT)

    found = usb_remote(client, *words, "list", "--json")

    assert name(host) in names(found)
    assert len(warnings(found)) == 1  # of the one that changes, at addresses of nobody


def start_hostile(host: Host, *words: str) -> Process:
    return host.start([sys.executable, str(HERE / "hostile.py"), *words])
