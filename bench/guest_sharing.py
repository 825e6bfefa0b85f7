"""In a virtual machine: listings with and without names and rules; prints milliseconds as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

from bench import report
from bench.guest_enumerate import milliseconds
from usb_remote import protection
from usb_remote.model import Device
from usb_remote.rules import Criteria, Names, Place, Rule
from usb_remote.sharing import NameBook, SharedDevices
from usb_remote.state import StateFile
from usb_remote.udev.devices import Devices
from usb_remote.values import DeviceName

NAMES, RULES = 1000, 100


class Changing(Devices):
    """Each listing is a new one, as after a plug."""

    def list_devices(self) -> tuple[Device, ...]:
        return (*super().list_devices(),)


def main() -> None:
    pairs, devices = int(sys.argv[1]), Devices(protection.Protection())
    results = {}
    for name, source in (("known", devices), ("changed", Changing(protection.Protection()))):
        plain = SharedDevices(source, NameBook(StateFile(None)))
        shared = SharedDevices(source, NameBook(StateFile(None)))
        shared.configure(rules(), names(devices.list_devices()))
        if not all(device.name for device in shared.list_devices()):
            raise RuntimeError("a device has no name")
        ours, theirs = (partial(milliseconds, d.list_devices) for d in (shared, plain))
        results[name] = report.in_turns(pairs, ours, theirs)
    print(json.dumps(results))


def rules() -> list[Rule]:
    """All are looked at, and none of them means a device that is there."""
    return [Rule(deny=Criteria(serial=f"NOBODY-{number}-*")) for number in range(RULES)]


def names(devices: tuple[Device, ...]) -> Names:
    there = {DeviceName(f"there-{d.devnum}"): Place(port=d.bus_id) for d in devices}
    others = range(NAMES - len(there))
    return there | {DeviceName(f"not-{n}"): Place(serial=f"NOBODY{n}") for n in others}


if __name__ == "__main__":
    main()
