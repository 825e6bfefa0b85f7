"""A made-up /sys with USB devices on a file system in memory, as udev.Devices reads it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY = Path("/dev/shm")
CONTROLLER = "devices/pci0000:00/0000:00:14.0/usb1"
CONFIGURATION = bytes([9, 2, 18, 0, 1, 1, 0, 0x80, 50, 9, 4, 0, 0, 2, 8, 6, 0x50, 0])
"""A configuration with one interface, a disk (USB 2.0, 9.6.3 and 9.6.5)."""


class Tree:
    """A machine with some devices; `root` is its /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._links = root / "bus/usb/devices"

    def fill(self, count: int) -> None:
        """Make the devices, and a usbip-host driver that does nothing."""
        self._links.mkdir(parents=True)
        driver = self.root / "bus/usb/drivers/usbip-host"
        driver.mkdir(parents=True)
        for name in ("bind", "unbind", "match_busid", "rebind"):
            (driver / name).touch()
        for number in range(count):
            self._make(f"1-{1 + number // 7}.{1 + number % 7}", number)

    def _make(self, name: str, number: int) -> None:
        path = self.root / CONTROLLER / name
        path.mkdir(parents=True)
        for key, value in attributes(number).items():
            (path / key).write_text(value + "\n")
        (path / "descriptors").write_bytes(bytes([18, 1]) + bytes(16) + CONFIGURATION)
        self.plug(name)

    def plug(self, name: str) -> None:
        """Let a device appear, in one step, as the kernel does."""
        (self._links / name).symlink_to(f"../../../{CONTROLLER}/{name}")

    def pull(self, name: str) -> None:
        (self._links / name).unlink()


def attributes(number: int) -> dict[str, str]:
    return {
        "idVendor": "0403", "idProduct": f"{0x6001 + number:04x}", "bcdDevice": "0600",
        "busnum": "1", "devnum": str(number + 2), "speed": "480", "bDeviceClass": "00",
        "bDeviceSubClass": "00", "bDeviceProtocol": "00", "bConfigurationValue": "1",
        "bNumConfigurations": "1", "manufacturer": "Future Technology Devices International, Ltd",
        "product": "FT232R USB UART", "serial": f"FT{number:06d}",
    }  # fmt: skip


@contextlib.contextmanager
def tree(count: int) -> Iterator[Tree]:
    """A tree as old as the block."""
    root = Path(tempfile.mkdtemp(prefix="usb-remote-bench-", dir=MEMORY))
    try:
        made = Tree(root)
        made.fill(count)
        yield made
    finally:
        shutil.rmtree(root)
