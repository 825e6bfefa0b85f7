"""`python -m bench.serving TREE`: a real ControlServer on a made-up tree, in a process of its own.

The names of the devices do not come from udev's database, which does not know them; but each new
one costs the same look-up there as a real one.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pyudev

from usb_remote import history, leases, protection, replies, server, sharing, usbip_host
from usb_remote.state import StateFile
from usb_remote.udev.devices import Devices
from usb_remote.udev.monitor import Monitor

KNOWN = "/sys/devices/virtual/mem/null"
"""A device that every machine has."""


class Describe:
    def __init__(self) -> None:
        self._context = pyudev.Context()

    def __call__(self, _path: str) -> str:
        device = pyudev.Devices.from_sys_path(self._context, KNOWN)
        for key in ("ID_VENDOR_FROM_DATABASE", "ID_MODEL_FROM_DATABASE"):
            device.properties.get(key)
        return "Future Technology Devices International, Ltd FT232 Serial (UART) IC"


async def serve(root: Path) -> None:
    devices = Devices(protection.Protection(), Describe(), root)
    past, names = history.History(StateFile(None)), sharing.NameBook(StateFile(None))
    shared = sharing.SharedDevices(devices, names)
    arbiter = leases.Leases(shared, usbip_host.Host(root), past)
    info = replies.Info(id="0" * 32, name="bench", version="3.0.0")
    control = server.ControlServer(shared, Monitor("usb"), arbiter, past, info)
    await control.start(["127.0.0.1"], 0)
    print(control.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
