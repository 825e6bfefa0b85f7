"""In a virtual machine: the two ways of listing devices in turns; prints milliseconds as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from bench import report
from usb_remote import protection
from usb_remote.udev.devices import Devices

USBIP = ["usbip", "list", "-p", "-l"]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def list_fresh() -> object:
    return Devices(protection.Protection()).list_devices()


def list_by_usbip() -> str:
    return subprocess.run(USBIP, capture_output=True, text=True, check=True).stdout


def main() -> None:
    pairs, devices = int(sys.argv[1]), Devices(protection.Protection())
    found = [len(devices.list_devices()), list_by_usbip().count("busid=")]
    print(
        json.dumps(
            {
                "found": found,
                "fresh": in_turns(pairs, list_fresh),
                "known": in_turns(pairs, devices.list_devices),
            }
        )
    )


def in_turns(pairs: int, ours: Callable[[], object]) -> tuple[list[float], list[float]]:
    return report.in_turns(pairs, lambda: milliseconds(ours), lambda: milliseconds(list_by_usbip))


if __name__ == "__main__":
    main()
