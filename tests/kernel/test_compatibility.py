"""usb-remote 2.3.2, as it is deployed, on the other side."""

import hashlib
from pathlib import Path

from tests.kernel.lab import until
from tests.kernel.product import (
    CONFIG,
    attach,
    devices,
    plug_disk,
    ports_in_use,
    run,
    serve,
    wait_until_untouched,
)
from tests.kernel.vm import VM

OLD = "usb-remote-2x {} --host 10.55.0.1"


def digest_of_disk(machine: VM) -> str:
    return machine.sh("sha256sum /dev/sda").ok().out.split()[0]


def test_a_2x_client_lists_finds_attaches_and_detaches(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    plug_disk(server, disk)
    server.usb_add("usb-kbd", "kbd", "2")
    serve(server)
    client.sh("modprobe vhci_hcd").ok()
    listed = client.sh(OLD.format("list")).ok().out
    assert "serial=SER-0001" in listed
    assert "id=46f4:0001 bus=2-1" in listed
    assert "0627:0001" in listed
    found = client.sh(OLD.format("find --bus 2-1")).ok().out
    assert "serial=SER-0001" in found
    attached = client.sh(OLD.format("attach --serial SER-0001")).ok().out
    assert "Attached to device on 10.55.0.1" in attached
    until(lambda: client.sh("test -b /dev/sda").rc == 0)
    assert digest_of_disk(client) == hashlib.sha256(disk.read_bytes()).hexdigest()
    assert devices(server)["2-1"]["holder"]["address"] == client.ip
    client.sh(OLD.format("detach --bus 2-1")).ok()
    assert ports_in_use(client) == []
    assert devices(server)["2-1"]["state"] == "available"
    wait_until_untouched(server, "/dev/sda")


def serve_as_2x(server: VM, disk: Path) -> None:
    plug_disk(server, disk)
    server.sh("modprobe usbip_host && usbipd -D").ok()
    until(lambda: server.sh("test -b /dev/sda").rc == 0)
    server.start("exec usb-remote-2x server")
    until(lambda: ":5055" in server.sh("ss -Hltn").out)


def test_a_2x_server_with_stock_usbipd_serves_our_client(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    serve_as_2x(server, disk)
    client.put(CONFIG, "servers: [10.55.0.1]\ntimeout: 60\n")  # 2.x needs 3 s for an attach
    found = run(client, "find --serial SER-0001").ok().out
    assert found.startswith("10.55.0.1 (10.55.0.1, usb-remote 2.x)"), found
    assert "QEMU USB HARDDRIVE" in found
    port, nodes = attach(client, "--serial SER-0001")
    assert ports_in_use(client) == [port]
    assert "/dev/sda" in nodes
    assert digest_of_disk(client) == hashlib.sha256(disk.read_bytes()).hexdigest()
    assert "detached: 10.55.0.1/2-1" in run(client, "detach --serial SER-0001").ok().out
    assert ports_in_use(client) == []
    wait_until_untouched(server, "/dev/sda")


def test_a_device_of_a_2x_server_has_a_label_and_is_not_attached_twice(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    serve_as_2x(server, disk)
    client.put(CONFIG, "servers: [10.55.0.1]\ntimeout: 60\n")  # 2.x needs 3 s for an attach
    _, nodes = attach(client, "2-1")
    again = run(client, "attach 2-1").ok().out
    assert "already attached" in again
    assert nodes[-1] in again  # /dev/bus/usb/004/002: it was not detached meanwhile
    assert "46f4:0001:SER-0001" in run(client, "list").ok().out
