"""A session ends: the server stops, is killed, reboots, the cable is cut. Nothing is left."""

import signal
import time
from pathlib import Path

from tests.kernel.lab import until
from tests.kernel.product import (
    attach,
    disk_of,
    plug_disk,
    plug_serial,
    ports_in_use,
    run,
    serve,
    wait_until_untouched,
    watch_port,
)
from tests.kernel.vm import VM

READ = "dd if={} of=/dev/null bs=512 count=1 iflag=direct"
PING = '{"event":"ping"}\n'
NO_IPV4 = """add table inet lab
add chain inet lab input { type filter hook input priority 0; }
add rule inet lab input meta nfproto ipv4 tcp dport 5055 reject with tcp reset
"""
OWN_NODES = ("/dev/sda", "/dev/ttyUSB0")


def test_a_server_that_stops_or_is_killed_gives_everything_back(
    pair: tuple[VM, VM], disk: Path, tmp_path: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    plug_serial(server, tmp_path / "wire")
    program = serve(server)
    attach(client, "2-1")
    attach(client, "1-2")
    assert program.stop(signal.SIGTERM) == 0
    until(lambda: ports_in_use(client) == [])
    wait_until_untouched(server, *OWN_NODES)

    program = serve(server)
    _, nodes = attach(client, "2-1")
    assert program.stop(signal.SIGKILL) == -signal.SIGKILL
    client.sh(READ.format(disk_of(nodes))).ok()  # the kernels go on without us
    program = serve(server)
    wait_until_untouched(server, *OWN_NODES)
    until(lambda: ports_in_use(client) == [])
    client.sh(READ.format(disk_of(attach(client, "2-1")[1]))).ok()


def test_after_the_servers_reboot_one_attach_mends_the_client(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    server.usb_add("usb-kbd", "kbd", "2", serial="KBD-0001")
    serve(server)
    attach(client, "2-1")
    attach(client, "1-2")
    server.power_off()
    assert "/1-2 (vhci port 0)" in run(client, "detach KBD-0001").ok().out
    assert len(ports_in_use(client)) == 1

    server.reboot()
    serve(server)
    port, nodes = attach(client, "2-1")
    assert ports_in_use(client) == [port]
    assert any(node.startswith("/dev/sd") for node in nodes)
    until(lambda: client.sh("lsblk -dno NAME,TRAN").out.count("usb") == 1)


def test_a_cable_cut_for_4_s_ends_nothing_and_for_15_s_frees_the_device(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    serve(server)
    _, nodes = attach(client, "2-1")
    states = watch_port(server)
    states.until_state("2-1", "in_use")
    before = len(states.program.output.replace(PING, ""))

    client.set_link(False)
    reading = client.start(READ.format(disk_of(nodes)))
    time.sleep(4)  # this is the test, not a wait for something
    client.set_link(True)
    assert reading.wait() == 0
    assert len(states.program.output.replace(PING, "")) == before

    client.set_link(False)
    states.until_state("2-1", "available")
    wait_until_untouched(server, "/dev/sda")
    time.sleep(5)
    client.set_link(True)
    assert "detached: server/2-1" in run(client, "detach SER-0001").ok().out
    assert ports_in_use(client) == []


def test_a_client_with_two_addresses_is_one_client(pair: tuple[VM, VM], disk: Path) -> None:
    """IPv4 and an IPv6 link-local address: each machine that is found by mDNS has both."""
    server, client = pair
    plug_disk(server, disk)
    serve(server)
    _, nodes = attach(client, "--host 10.55.0.1 2-1")
    server.sh("nft -f -", stdin=NO_IPV4).ok()
    again = run(client, "attach 2-1").ok().out
    assert "already attached" in again
    assert nodes[0] in again
    assert nodes[-1] in again  # /dev/bus/usb/004/002: it was not detached meanwhile
    server.sh("nft delete table inet lab").ok()
    run(client, "detach --host fe80::5054:ff:fe00:1%eth0 2-1").ok()
    assert ports_in_use(client) == []
