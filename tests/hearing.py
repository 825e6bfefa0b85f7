"""What udev.Monitor hears, as JSON: python3 -m tests.hearing, in namespaces of its own.

What belongs here: events of a real kernel that need no root, because whoever makes a user namespace
has the powers there. Uevents are written to the kernel, which sends them on in this namespace only.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from usb_remote.udev.monitor import DEVICES, NODES, USED, Monitor

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount")
COMMAND = (*NAMESPACES, sys.executable, "-m", "tests.hearing")
Heard = list[bool | None]

PLUG = {"ACTION": "add", "SUBSYSTEM": "usb", "DEVTYPE": "usb_device", "DEVNAME": "bus/usb/001/005"}
BIND = {**PLUG, "ACTION": "bind"}
INTERFACE = {"ACTION": "add", "SUBSYSTEM": "usb", "DEVTYPE": "usb_interface"}
DISK = {"ACTION": "change", "SUBSYSTEM": "block", "DEVTYPE": "disk", "DEVNAME": "sda"}
TTY = {"ACTION": "add", "SUBSYSTEM": "tty", "DEVNAME": "ttyUSB0"}
NETWORK = {"ACTION": "add", "SUBSYSTEM": "net", "INTERFACE": "eth7"}
HOST = {"ACTION": "add", "SUBSYSTEM": "scsi", "DEVTYPE": "scsi_host"}


def tell(*events: dict[str, str]) -> None:
    """Have the kernel tell of these (lib/kobject_uevent.c, uevent_net_rcv); returns when it has."""
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)) as kernel:
        for facts in events:
            body = "".join(f"{key}={value}\0" for key, value in facts.items())
            text = f"{facts['ACTION']}@/devices/x\0DEVPATH=/devices/x\0{body}".encode()
            kernel.send(struct.pack("=IHHII", 16 + len(text), 16, 1 | 4, 1, 0) + text)
            error = struct.unpack("=16xi", kernel.recv(4096)[:20])[0]
            assert error == 0, error


def run(command: str) -> Callable[[], None]:
    def do() -> None:
        subprocess.run(command.split(), check=True)

    return do


CHANGES = (
    run("mount -t tmpfs none /mnt"),
    run("ip link set lo mtu 1400"),
    run("ip route add unreachable 10.0.0.0/8"),
    run("ip -6 route add unreachable fd00::/8"),
)


def hear(monitor: Monitor, *deeds: Callable[[], None]) -> Heard:
    """After each deed: None if nothing was heard, else whether it may have been a plug."""
    heard: Heard = []
    for do in deeds:
        do()
        is_heard = select.select([monitor], [], [], 0)[0]
        heard.append(monitor.drain() if is_heard else None)
        assert not select.select([monitor], [], [], 0)[0], "what was heard is not forgotten"
    return heard


async def wait(monitor: Monitor, *deeds: Callable[[], None]) -> Heard:
    heard: Heard = []
    for do in deeds:
        do()
        heard.append(await monitor.wait(0.01))
    return heard


def events(*facts: dict[str, str]) -> Callable[[], None]:
    return lambda: tell(*facts)


def main() -> None:
    if Path("/run/udev").exists():
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    server = Monitor(*DEVICES, files=USED, routes=True)
    plugs = hear(server, *map(events, (PLUG, BIND, INTERFACE, DISK, TTY)))
    several = hear(server, events(BIND, PLUG, BIND), events(BIND, DISK))
    narrow = Monitor()
    with socket.socket(fileno=os.dup(narrow._monitor.fileno())) as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that there is
    flood = hear(narrow, events(*[BIND] * 50), events(BIND))
    changes = hear(Monitor(files=USED, routes=True), *CHANGES)
    deaf = hear(
        Monitor(files=[Path("/nowhere")]), run("umount /mnt"), run("ip link set lo mtu 1500")
    )
    anything = hear(Monitor(), *map(events, (PLUG, TTY, NETWORK)))
    nodes = Monitor(*NODES)
    arrivals = asyncio.run(wait(Monitor(), *map(events, (PLUG, HOST, TTY, NETWORK, DISK))))
    mixed = asyncio.run(wait(nodes, events(PLUG, TTY, PLUG), events(BIND), lambda: None))
    json.dump(
        {name: value for name, value in locals().items() if isinstance(value, list)}, sys.stdout
    )


if __name__ == "__main__":
    main()
