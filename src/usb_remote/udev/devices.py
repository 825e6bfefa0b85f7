"""The USB devices of this machine now.

Rule of this file: a listing is read from sysfs as it is at that moment (2-3 ms for 30 devices;
26 ms through pyudev); udev's database is asked once for each plugged device. Paths are plain
strings here: pathlib would cost as much as the reading.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyudev

from usb_remote.model import Device, State, with_ids
from usb_remote.udev.monitor import context
from usb_remote.usbip_wire import SPEEDS, Record, interfaces_of
from usb_remote.values import BusId

SYSFS = Path("/sys")
HUB_CLASS = "09"

Describe = Callable[[str], str | None]
ProtectedBy = Callable[[Iterable[Path]], dict[Path, str]]


class _Known(NamedTuple):
    """What was read at a path; incomplete until udev has looked the device up."""

    inode: int
    device: Device | None
    is_complete: bool = True


class Devices:
    """What is plugged in here, hubs and imported (vhci) devices left out."""

    def __init__(
        self,
        protected_by: ProtectedBy = lambda paths: {},
        describe: Describe | None = None,
        sysfs: Path = SYSFS,
    ) -> None:
        self._root = sysfs / "bus/usb/devices"
        self._protected_by = protected_by
        self._describe = describe or _describe
        self._known: dict[str, _Known] = {}
        self._made_of: tuple[dict[Path, Device], dict[Path, str]] = ({}, {})
        self._listed: tuple[Device, ...] = ()

    def list_devices(self) -> tuple[Device, ...]:
        """Every device with its state as far as the machine itself is concerned.

        As long as nothing changes, it is the very same tuple: others keep what they made of it.
        """
        self._known = {path: self._look(path) for path in self._paths()}
        found = {Path(p): k.device for p, k in self._known.items() if k.device is not None}
        reasons = self._protected_by(found)
        if (found, reasons) != self._made_of:
            self._made_of = (found, reasons)
            self._listed = with_ids(
                device.model_copy(update={"state": State.PROTECTED, "reason": reasons[path]})
                if path in reasons
                else device
                for path, device in found.items()
            )
        return self._listed

    def find(self, bus_id: BusId) -> Device | None:
        """One device as it is now; if nothing of it has changed, the very same as was listed."""
        found = self._listed if self._is_as_listed(bus_id) else self.list_devices()
        return next((device for device in found if device.bus_id == bus_id), None)

    def _is_as_listed(self, bus_id: BusId) -> bool:
        """Whether it is the same device, and as free; a fifth of the work of a listing."""
        with contextlib.suppress(OSError):
            path = self._path(bus_id)
            known = self._known.get(path)
            reasons = self._protected_by([Path(path)])
            was = self._made_of[1].get(Path(path))
            return (
                known is not None and self._look(path) is known and reasons.get(Path(path)) == was
            )
        return False

    def record(self, bus_id: BusId) -> Record | None:
        """What the USB/IP handshake says of a device; None if it is not there (any more)."""
        try:
            return _read_record(self._path(bus_id), bus_id)
        except (OSError, ValueError):
            return None

    def _paths(self) -> Iterator[str]:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # a machine without USB has no such folder
            names = os.listdir(self._root)
        for name in names:
            if "-" in name and ":" not in name:
                with contextlib.suppress(OSError):  # pulled since then; the others are there
                    yield self._path(name)

    def _path(self, name: str) -> str:
        link = os.readlink(f"{self._root}/{name}")
        return os.path.normpath(os.path.join(self._root, link))

    def _look(self, path: str) -> _Known:
        """What is there; a device that we know is not read again, for nothing of it can change.

        The kernel gives each newly enumerated device a new sysfs node, also in the same position.
        """
        try:
            inode = os.stat(path).st_ino
        except OSError:
            return _Known(0, None)
        known = self._known.get(path)
        if known is not None and known.inode == inode and known.is_complete:
            return known
        return self._read(path, inode)

    def _read(self, path: str, inode: int) -> _Known:
        """No device for a hub, for an imported device, and for one that went away meanwhile."""
        if "/vhci_hcd" in path or read_text(f"{path}/bDeviceClass") == HUB_CLASS:
            return _Known(inode, None)
        try:
            description = self._describe(path)
            device = self._device(path, BusId(os.path.basename(path)), description)
            return _Known(inode, device, is_complete=description is not None)
        except (OSError, ValueError):
            return _Known(0, None)

    def _device(self, path: str, bus_id: BusId, description: str | None) -> Device:
        vendor_id, product_id = _need(f"{path}/idVendor"), _need(f"{path}/idProduct")
        busnum, devnum = int(_need(f"{path}/busnum")), int(_need(f"{path}/devnum"))
        manufacturer, product = read_text(f"{path}/manufacturer"), read_text(f"{path}/product")
        own = " ".join(filter(None, (manufacturer, product)))
        return Device(
            bus_id=bus_id,
            vendor_id=vendor_id,
            product_id=product_id,
            bus=busnum,
            port_numbers=bus_id.port_numbers,
            device_name=f"/dev/bus/usb/{busnum:03d}/{devnum:03d}",
            serial=read_text(f"{path}/serial") or None,
            description=description or own or f"{vendor_id}:{product_id}",
            manufacturer=manufacturer or None,
            product=product or None,
            classes=tuple("{:02x}/{:02x}/{:02x}".format(*i) for i in _interfaces(path)),
            speed=float(read_text(f"{path}/speed") or 0) or None,
            devnum=devnum,
        )


def _read_record(path: str, bus_id: BusId) -> Record:
    return Record(
        path=path,
        bus_id=bus_id,
        busnum=int(_need(f"{path}/busnum")),
        devnum=int(_need(f"{path}/devnum")),
        speed=SPEEDS.get(read_text(f"{path}/speed"), 0),
        vendor=int(_need(f"{path}/idVendor"), 16),
        product=int(_need(f"{path}/idProduct"), 16),
        bcd_device=int(_need(f"{path}/bcdDevice"), 16),
        device_class=(
            int(_need(f"{path}/bDeviceClass"), 16),
            int(_need(f"{path}/bDeviceSubClass"), 16),
            int(_need(f"{path}/bDeviceProtocol"), 16),
        ),
        configuration=int(read_text(f"{path}/bConfigurationValue") or 0),
        configurations=int(read_text(f"{path}/bNumConfigurations") or 1),
        interfaces=_interfaces(path),
    )


def _interfaces(path: str) -> tuple[tuple[int, int, int], ...]:
    with contextlib.suppress(OSError):
        configuration = int(read_text(f"{path}/bConfigurationValue") or 0)
        return interfaces_of(_read_bytes(f"{path}/descriptors", 65536), configuration)
    return ()


def _need(path: Path | str) -> str:
    return _read_bytes(path).decode(errors="replace").strip()


def _read_bytes(path: Path | str, limit: int = 4096) -> bytes:
    """A file of sysfs: never longer than a page, but for descriptors."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


def read_text(path: Path | str) -> str:
    try:
        return _need(path)
    except OSError:
        return ""


def _describe(sys_path: str) -> str | None:
    """Vendor and model from udev's hardware database, empty if it has none.

    None while udev is not yet done with the device.
    """
    try:
        device = pyudev.Devices.from_sys_path(context(), sys_path)
    except pyudev.DeviceNotFoundError:
        return None
    words = words_of(device.properties)
    return words or ("" if device.is_initialized else None)


def words_of(properties: Mapping[str, str]) -> str:
    """What udev's database calls a device; a vendor alone says nothing of it."""
    words = [properties.get(f"ID_{key}_FROM_DATABASE") for key in ("VENDOR", "MODEL")]
    return " ".join(filter(None, words)) if words[1] else ""
