"""attach: a device of one virtual machine made usable in another.

Ours is `Client.attach`, which asks the server, which binds the device, then imports it and waits
until udev has finished with it. The other is the stock tool with stock usbipd: `usbip attach` of a
device that was bound before the clock started. The first row is the time until the node exists,
for both; the second the time until udev has finished with it, which is when ours returns.
Both run in one process of the client that was there before (guest_attach.py).
Detaching, and giving the device back to its driver on the server, is not timed.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.kernel.guest import Running
from tests.kernel.lab import until
from tests.kernel.vm import VM

from bench import report
from bench.machines import PYTHON, machines, obstacle

__all__ = ["obstacle", "run"]

USBIPD_PORT = 3241
ORDERS = "/run/bench-orders"
TARGET = report.Target(1.3)
NO_TERMINAL: dict[str, Any] = {"chardev": {"type": "null", "data": {}}, "always-plugged": True}


class Thing(NamedTuple):
    """A device, and the node that makes it usable."""

    what: str
    node: str
    bus_id: str


class Pair(NamedTuple):
    """Two machines, and the process on the client that does as it is told."""

    server: VM
    client: VM
    process: Running

    def order(self, *words: str) -> str:
        """Tell the process what to do; what it says when that is done."""
        self.begin(*words)
        return self.done()

    def begin(self, *words: str) -> None:
        """Tell the process what to do, and do not wait for it."""
        self.client.sh(f"echo {' '.join(words)} > {ORDERS}").ok()

    def done(self) -> str:
        return self.process.wait_for("^done (.*)", 60)[1]


def run(pairs: int) -> list[report.Row]:
    with TemporaryDirectory() as place, machines("server", "client") as (server, client):
        plug(server, Path(place))
        start_servers(server)
        pair = Pair(server, client, start_client(client))
        return [row for thing in things(server) for row in rows(pair, thing, pairs)]


def plug(server: VM, place: Path) -> None:
    image = place / "disk.img"
    image.write_bytes(bytes(1 << 20))
    server.usb_add("usb-storage", "disk", "1", image=image, serial="BENCH1")
    server.usb_add("usb-serial", "serial", "2", serial="BENCH2", **NO_TERMINAL)


def things(server: VM) -> list[Thing]:
    return [
        Thing("serial adapter", "/dev/ttyUSB0", bus_id_of(server, "BENCH2")),
        Thing("disk", "/dev/sda", bus_id_of(server, "BENCH1")),
    ]


def bus_id_of(server: VM, serial: str) -> str:
    command = f"grep -lx {serial} /sys/bus/usb/devices/*/serial"
    return until(lambda: server.sh(command).out.strip()).split("/")[-2]


def start_servers(server: VM) -> None:
    start_ours(server)
    server.start(f"usbipd --tcp-port {USBIPD_PORT}")
    until(lambda: f":{USBIPD_PORT} " in server.sh("ss -tln").out)


def start_ours(server: VM, before: str = "") -> Running:
    server.sh("modprobe usbip_host").ok()
    running = server.start(f"exec usb-remote {before} server")
    running.wait_for(" serves ", 60)
    return running


def start_client(client: VM) -> Running:
    client.sh(f"modprobe vhci_hcd && mkfifo {ORDERS}").ok()
    process = client.start(f"{PYTHON} -m bench.guest_attach {ORDERS}")
    process.wait_for("^ready", 60)
    return process


def rows(pair: Pair, thing: Thing, pairs: int) -> list[report.Row]:
    ours, theirs = partial(attach_ours, pair, thing), partial(attach_theirs, pair, thing)
    a, b = report.in_turns(pairs, ours, theirs)
    ours_there, ours_settled = zip(*a, strict=True)
    there, settled = zip(*b, strict=True)
    return [
        report.compare(f"attach: {thing.what}, the node exists", ours_there, there, "ms", TARGET),
        report.compare(f"attach: {thing.what}, udev is done", ours_settled, settled, "ms"),
    ]


def attach_ours(pair: Pair, thing: Thing) -> tuple[float, float]:
    """Milliseconds until the node is there, and until our client says so."""
    answer = json.loads(pair.order("ours", thing.bus_id, thing.node))
    if thing.node not in answer["nodes"]:
        raise RuntimeError(f"{thing}: the nodes are {answer['nodes']}")
    pair.order("ours_back", thing.bus_id)
    until(lambda: not is_bound(pair.server, thing))
    restored(pair, thing)
    return answer["ms"], answer["settled"]


def attach_theirs(pair: Pair, thing: Thing) -> tuple[float, float]:
    """Milliseconds until the node is there, and until udev has finished with it."""
    pair.server.sh(f"usbip bind -b {thing.bus_id}").ok()
    answer = json.loads(pair.order("theirs", thing.bus_id, thing.node))
    pair.order("theirs_back")
    # the kernel resets the device after a session: unbinding during that would be refused
    until(lambda: status(pair.server, thing) == "1")
    pair.server.sh(f"usbip unbind -b {thing.bus_id}").ok()
    restored(pair, thing)
    return answer["ms"], answer["settled"]


def status(server: VM, thing: Thing) -> str:
    return server.sh(f"cat /sys/bus/usb/devices/{thing.bus_id}/usbip_status").out.strip()


def is_bound(server: VM, thing: Thing) -> bool:
    return server.sh(f"test -e /sys/bus/usb/drivers/usbip-host/{thing.bus_id}").rc == 0


def restored(pair: Pair, thing: Thing) -> None:
    """The server's own driver has the device, and nothing of it is left on the client."""
    until(lambda: pair.server.sh(f"test -e {thing.node}").rc == 0)
    until(lambda: pair.client.sh(f"test -e {thing.node}").rc != 0)
    for machine in (pair.server, pair.client):
        machine.sh("udevadm settle").ok()
