"""Plug, see, attach, use, pull out, give back: with nothing configured anywhere."""

import hashlib
import re
import socket
from pathlib import Path

from tests.kernel.lab import until
from tests.kernel.product import (
    attach,
    clock,
    devices,
    disk_of,
    ended_at,
    plug_disk,
    plug_serial,
    ports_in_use,
    refused,
    run,
    serve,
    wait_until_untouched,
    watch,
    watch_port,
)
from tests.kernel.vm import VM
from tests.patience import patience

PROMISE = 10.0
"""Seconds within which a client that vanished frees its device (README)."""
TALK = """exec 3<>/dev/ttyUSB0; stty -F /dev/ttyUSB0 raw -echo
echo to the device >&3; head -n 1 <&3"""


def digest(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()).hexdigest()


def digest_of_disk(machine: VM, node: str = "/dev/sda") -> str:
    return machine.sh(f"sha256sum {node}").ok().out.split()[0]


def test_a_disk_is_seen_attached_yanked_and_given_back(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    serve(server)
    seen = watch(client)
    seen.until(lambda now: True)
    plug_disk(server, disk)
    seen.until_state("2-1", "available")
    wait_until_untouched(server, "/dev/sda")
    listed = run(client, "list").ok().out
    assert re.match(r"server \((10\.55\.0\.1|fe80::5054:ff:fe00:1%eth0), usb-remote \d", listed)
    assert "SER-0001" in listed

    port, nodes = attach(client, "--serial SER-0001")
    assert "/dev/sda" in nodes
    assert ports_in_use(client) == [port]
    assert digest_of_disk(client) == digest(disk)
    holder = seen.until_state("2-1", "in_use")["holder"]
    assert (holder["user"], holder["host"]) == ("root", "client")

    server.usb_del("stick")
    seen.until_state("2-1", None)
    until(lambda: ports_in_use(client) == [])
    plug_disk(server, disk)
    seen.until_state("2-1", "available")
    again, nodes = attach(client, "server/2-1")
    node = disk_of(nodes)
    assert digest_of_disk(client, node) == digest(disk)
    assert re.match(rf"vhci port {again}: \S+/2-1  {node}", run(client, "ports").ok().out)

    assert "detached: server/2-1" in run(client, "detach SER-0001").ok().out
    assert ports_in_use(client) == []
    seen.until_state("2-1", "available")
    wait_until_untouched(server, "/dev/sda")
    assert digest_of_disk(server) == digest(disk)


def test_a_serial_adapter_talks_and_plain_usbip_gets_a_keyboard(
    pair: tuple[VM, VM], tmp_path: Path
) -> None:
    server, client = pair
    plug_serial(server, tmp_path / "wire")
    server.usb_add("usb-kbd", "kbd", "3")
    wait_until_untouched(server, "/dev/ttyUSB0")
    program = serve(server)
    client.sh("modprobe vhci_hcd").ok()
    remote = client.sh("usbip list -r 10.55.0.1").ok().out
    assert "1-2:" in remote
    assert "1-3:" in remote
    client.sh("usbip attach -r 10.55.0.1 -b 1-3").ok()
    program.wait_for("1-3 attached by 10.55.0.2")
    until(lambda: client.sh("test -c /dev/input/event1").rc == 0)

    port, nodes = attach(client, "1-2")
    assert nodes[0] == "/dev/ttyUSB0"
    assert len(ports_in_use(client)) == 2
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(tmp_path / "wire"))
        wire.settimeout(patience(120))
        talk = client.start(f"bash -c '{TALK}'")
        assert wire.makefile("rb").readline() == b"to the device\n"
        wire.sendall(b"from the device\n")
        talk.wait_for("from the device")
    client.sh(f"usbip detach -p {port}").ok()
    program.wait_for("1-2 is free again")


def test_a_second_client_is_refused_until_the_first_one_loses_power(
    trio: tuple[VM, VM, VM], disk: Path
) -> None:
    server, client, other = trio
    plug_disk(server, disk)
    program = serve(server)
    attach(client, "SER-0001")

    complaint = refused(other, "attach SER-0001", 4)
    assert "in use by root@client since 20" in complaint
    assert "hint: " in complaint
    assert ports_in_use(other) == []
    stock = other.sh("usbip attach -r 10.55.0.1 -b 2-1")
    assert (stock.rc, "Device busy" in stock.err) == (1, True), stock
    assert "in use by root@client since" in run(other, "list").ok().out
    assert digest_of_disk(client) == digest(disk)
    holder = devices(server)["2-1"]["holder"]
    assert (holder["user"], holder["host"]) == ("root", "client")
    assert holder["address"] in (client.ip, "fe80::5054:ff:fe00:2")

    states = watch_port(server)
    states.until_state("2-1", "in_use")
    cut = clock(server)
    client.power_off()
    states.until_state("2-1", "available")
    assert ended_at(server) - cut < patience(PROMISE)
    program.wait_for("2-1 is free again")
    attach(other, "SER-0001")
    assert digest_of_disk(other) == digest(disk)


def test_four_attaches_at_the_same_time_all_succeed(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    plug_disk(server, disk)
    for number, kind in enumerate(("usb-kbd", "usb-mouse", "usb-tablet"), 2):
        server.usb_add(kind, kind, str(number))
    serve(server)
    names = ("2-1", "1-2", "1-3", "1-4")
    attaching = [client.start(f"usb-remote attach --host 10.55.0.1 {name}") for name in names]
    ports = [int(one.wait_for(r"vhci port (\d+)")[1]) for one in attaching]
    assert [one.wait() for one in attaching] == [0, 0, 0, 0]
    assert ports_in_use(client) == sorted(ports)
    assert len(set(ports)) == 4
    assert client.sh("pgrep -x usbip").out == ""
    assert digest_of_disk(client) == digest(disk)


def test_the_demo_imports_with_the_kernel(vm: VM) -> None:
    vm.sh("modprobe vhci_hcd").ok()
    result = run(vm, "demo")
    assert result.rc == 0, result
    assert "The kernel imports" in result.out
    assert "/dev/ttyACM0" in result.out
    assert "/dev/sda" in result.out
    assert ports_in_use(vm) == []
