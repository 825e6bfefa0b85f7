"""enumerate: 30 USB devices listed inside a virtual machine.

Ours is `udev.Devices(protection.Protection()).list_devices()` in a process that is warm, as a
server is: with a fresh Devices, which looks every name up in udev's database, and with one that
knows the names. The other is `usbip list -p -l`, its whole process, as there is no other way to
have it say so. What runs in the guest is guest_enumerate.py.
"""

from __future__ import annotations

import json

from tests.kernel.lab import until
from tests.kernel.vm import VM

from bench import report
from bench.machines import PYTHON, machines, obstacle

__all__ = ["obstacle", "run"]

DEVICES = 30
HUBS = (5, 6, 7, 8)
KINDS = ("usb-kbd", "usb-mouse", "usb-tablet")
TARGET = report.Target(0.1)


def run(pairs: int) -> list[report.Row]:
    with machines("many") as (vm,):
        plug(vm)
        measured = vm.sh(f"{PYTHON} -m bench.guest_enumerate {pairs}", timeout=600).ok()
    numbers = json.loads(measured.out)
    if numbers["found"] != [DEVICES, DEVICES]:
        raise RuntimeError(f"devices found by us and by usbip: {numbers['found']}")
    what = f"enumerate: {DEVICES} devices, names"
    return [
        row(f"{what} known", numbers["known"], TARGET),
        row(f"{what} looked up", numbers["fresh"]),  # the first listing of a server
    ]


def row(
    what: str, numbers: tuple[list[float], list[float]], target: report.Target | None = None
) -> report.Row:
    ours, theirs = numbers
    return report.compare(what, ours, theirs, "ms", target)


def plug(vm: VM) -> None:
    for hub in HUBS:
        vm.usb_add("usb-hub", f"hub{hub}", str(hub))
    for number in range(DEVICES):
        kind, port = KINDS[number % 3], f"{HUBS[number // 8]}.{1 + number % 8}"
        vm.usb_add(kind, f"device{number}", port)
    count = "ls -d /sys/bus/usb/devices/1-*.* | grep -vc :"
    until(lambda: vm.sh(count).out.strip() == str(DEVICES), 120)
    vm.sh("udevadm settle", 120).ok()
