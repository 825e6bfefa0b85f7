"""`python -m bench.serving TREE`: a real ControlServer on a made-up tree, in a process of its own.

The names of the devices do not come from udev's database, which does not know them; but each new
one costs the same look-up there as a real one.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pyudev

from usb_remote import leases, protection, protocol, server, usbip_host
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
    arbiter = leases.Leases(devices, usbip_host.Host(root))
    info = protocol.Info(id="0" * 32, name="bench", version="3.0.0")
    control = server.ControlServer(devices, Monitor("usb"), arbiter, info)
    await control.start(["127.0.0.1"], 0)
    print(control.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
