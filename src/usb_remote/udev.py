"""pyudev and sysfs: the USB devices of this machine now, and a wake-up when they may have changed.

Rule of this file: the only importer of pyudev. A listing is read from sysfs as it is at that
moment (2-3 ms for 30 devices; 26 ms through pyudev); udev's database is asked once for each
plugged device.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

import pyudev

from usb_remote.model import BusId, Device, State, with_ids
from usb_remote.usbip_wire import SPEEDS, Record, interfaces_of

SYSFS = Path("/sys")
HUB_CLASS = "09"
SETTLE, SLOW_SETTLE = 1.0, 3.0
"""Seconds without any event after which an interface without a driver will not get one, and one
whose driver has made no node will not get that (a Bluetooth adapter never does)."""
MASS_STORAGE, CDC_DATA = "08", "0a"
"""bInterfaceClass (usb.org/defined-class-codes). A disk may take many seconds to spin up; the data
interface of a serial port only helps the other one (USB CDC 1.2, 3.3.1)."""

USED = (Path("/proc/self/mountinfo"), Path("/proc/swaps"))
"""What changes when the machine begins or ends to use a disk (proc(5): poll for POLLPRI)."""

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

    def list_devices(self) -> tuple[Device, ...]:
        """Every device with its state as far as the machine itself is concerned."""
        self._known = {path: self._look(path) for path in self._paths()}
        found = {Path(p): k.device for p, k in self._known.items() if k.device is not None}
        reasons = self._protected_by(found)
        return with_ids(
            device.model_copy(update={"state": State.PROTECTED, "reason": reasons[path]})
            if path in reasons
            else device
            for path, device in found.items()
        )

    def record(self, bus_id: BusId) -> Record | None:
        """What the USB/IP handshake says of a device; None if it is not there (any more)."""
        path = self._root / bus_id
        try:
            return _read_record(path.resolve(strict=True), bus_id)
        except (OSError, ValueError):
            return None

    def _paths(self) -> Iterator[str]:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # a machine without USB has no such folder
            names = os.listdir(self._root)
        for name in names:
            if "-" in name and ":" not in name:
                with contextlib.suppress(OSError):  # pulled since then; the others are there
                    link = os.readlink(f"{self._root}/{name}")
                    yield os.path.normpath(os.path.join(self._root, link))

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
        return self._read(Path(path), inode)

    def _read(self, path: Path, inode: int) -> _Known:
        """No device for a hub, for an imported device, and for one that went away meanwhile."""
        if "/vhci_hcd" in str(path) or _text(path / "bDeviceClass") == HUB_CLASS:
            return _Known(inode, None)
        try:
            description = self._describe(str(path))
            device = self._device(path, BusId(path.name), description)
            return _Known(inode, device, is_complete=description is not None)
        except (OSError, ValueError):
            return _Known(0, None)

    def _device(self, path: Path, bus_id: BusId, description: str | None) -> Device:
        vendor_id, product_id = _need(path / "idVendor"), _need(path / "idProduct")
        busnum, devnum = int(_need(path / "busnum")), int(_need(path / "devnum"))
        manufacturer, product = _text(path / "manufacturer"), _text(path / "product")
        own = " ".join(filter(None, (manufacturer, product)))
        return Device(
            bus_id=bus_id,
            vendor_id=vendor_id,
            product_id=product_id,
            bus=busnum,
            port_numbers=bus_id.port_numbers,
            device_name=f"/dev/bus/usb/{busnum:03d}/{devnum:03d}",
            serial=_text(path / "serial") or None,
            description=description or own or f"{vendor_id}:{product_id}",
            manufacturer=manufacturer or None,
            product=product or None,
            classes=tuple("{:02x}/{:02x}/{:02x}".format(*i) for i in _interfaces(path)),
            speed=float(_text(path / "speed") or 0) or None,
            devnum=devnum,
        )


def _read_record(path: Path, bus_id: BusId) -> Record:
    return Record(
        path=str(path),
        bus_id=bus_id,
        busnum=int(_need(path / "busnum")),
        devnum=int(_need(path / "devnum")),
        speed=SPEEDS.get(_text(path / "speed"), 0),
        vendor=int(_need(path / "idVendor"), 16),
        product=int(_need(path / "idProduct"), 16),
        bcd_device=int(_need(path / "bcdDevice"), 16),
        device_class=(
            int(_need(path / "bDeviceClass"), 16),
            int(_need(path / "bDeviceSubClass"), 16),
            int(_need(path / "bDeviceProtocol"), 16),
        ),
        configuration=int(_text(path / "bConfigurationValue") or 0),
        configurations=int(_text(path / "bNumConfigurations") or 1),
        interfaces=_interfaces(path),
    )


def _interfaces(path: Path) -> tuple[tuple[int, int, int], ...]:
    with contextlib.suppress(OSError):
        configuration = int(_text(path / "bConfigurationValue") or 0)
        return interfaces_of((path / "descriptors").read_bytes(), configuration)
    return ()


def _need(path: Path | str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode(errors="replace").strip()
    finally:
        os.close(fd)


def _text(path: Path) -> str:
    try:
        return _need(path)
    except OSError:
        return ""


@functools.cache
def _context() -> pyudev.Context:
    """One for all: each new one makes ctypes search for libudev again (tens of ms)."""
    return pyudev.Context()


def _describe(sys_path: str) -> str | None:
    """Vendor and model from udev's hardware database, empty if it has none.

    None while udev is not yet done with the device.
    """
    try:
        device = pyudev.Devices.from_sys_path(_context(), sys_path)
    except pyudev.DeviceNotFoundError:
        return None
    words = [device.properties.get(f"ID_{key}_FROM_DATABASE") for key in ("VENDOR", "MODEL")]
    if words[1]:
        return " ".join(filter(None, words))
    return "" if device.is_initialized else None


class Monitor:
    """A file descriptor that becomes readable when the devices of a subsystem may have changed.

    Args:
        subsystems: of udev; none means all.
        files: of /proc, which says so by EPOLLPRI: a mount or swapon makes no uevent.

    """

    def __init__(self, *subsystems: str, files: Iterable[Path] = ()) -> None:
        source = "udev" if Path("/run/udev/control").exists() else "kernel"
        self._monitor = pyudev.Monitor.from_netlink(_context(), source=source)
        for subsystem in subsystems:
            self._monitor.filter_by(subsystem)
        self._monitor.start()
        self._files = [file.open("rb") for file in files if file.exists()]
        self._epoll = select.epoll()
        self._epoll.register(self._monitor.fileno(), select.EPOLLIN)
        for file in self._files:
            self._epoll.register(file.fileno(), select.EPOLLPRI)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> None:
        """Forget what has arrived; what the devices are now is for a listing to say."""
        self._epoll.poll(0)  # /proc's files forget a change when it is asked for
        while self._monitor.poll(timeout=0) is not None:
            pass


async def wait_for_change(monitor: Monitor, timeout: float) -> bool:
    """Wait until something may have changed; False if nothing did in time."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    loop.add_reader(monitor.fileno(), woken.set)
    try:
        async with asyncio.timeout(timeout):
            await woken.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(monitor.fileno())
    monitor.drain()
    return True


# -- the nodes of one device, on a client ------------------------------------------------------


async def wait_until_usable(bus_id: str, timeout: float) -> tuple[str, ...]:
    """Wait until the drivers have made the device's nodes, and list them, best first.

    Ready is when each interface has a driver that has made what it makes (a disk its block device,
    a serial adapter its tty …), or when udev has been quiet for so long that nothing will come.
    """
    monitor = Monitor()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while (patience := _patience(bus_id)) > 0:
        left = deadline - loop.time()
        if left <= 0 or not await wait_for_change(monitor, min(left, patience)):
            break
    return list_nodes(bus_id)


def _patience(bus_id: str) -> float:
    """Seconds of silence after which the device is as ready as it gets; 0 if it is ready."""
    device = (SYSFS / "bus/usb/devices" / bus_id).resolve()
    interfaces = sorted(device.glob(f"{bus_id}:*"))
    return max(map(_interface_patience, interfaces), default=inf)


def _interface_patience(interface: Path) -> float:
    kind = _text(interface / "bInterfaceClass")
    if not (interface / "driver").exists():
        return SETTLE
    if kind == CDC_DATA or _is_served(interface, kind):
        return 0
    return inf if kind == MASS_STORAGE else SLOW_SETTLE


def _is_served(interface: Path, kind: str) -> bool:
    """Whether the driver has made a node or a network interface, and udev has seen it."""
    made = [part for part in _below(interface) if part.node or part.subsystem == "net"]
    if kind == MASS_STORAGE:
        made = [part for part in made if part.subsystem == "block"]
    return bool(made) and all(_is_initialized(part.path) for part in made)


class _Part(NamedTuple):
    """A device below another one."""

    path: str
    subsystem: str
    node: str | None


def _below(path: Path) -> Iterator[_Part]:
    """Devices below one in sysfs; libudev would look through all of the machine for them."""
    for folder, names, files in os.walk(path):
        names[:] = [
            n for n in names if n != "power" and not os.path.islink(os.path.join(folder, n))
        ]
        link = os.path.join(folder, "subsystem")
        if "uevent" in files and os.path.islink(link):
            yield _Part(folder, os.path.basename(os.readlink(link)), _node(folder))


def _node(folder: str) -> str | None:
    lines = _text(Path(folder, "uevent")).splitlines()
    name = next((line[8:] for line in lines if line.startswith("DEVNAME=")), None)
    return f"/dev/{name}" if name else None


def _is_initialized(path: str) -> bool:
    try:
        device = pyudev.Devices.from_sys_path(_context(), path)
    except pyudev.DeviceNotFoundError:
        return False
    initialized: bool = device.is_initialized
    return initialized


def list_nodes(bus_id: str) -> tuple[str, ...]:
    """Device nodes of a local USB device: tty, disk, video … first, /dev/bus/usb last."""
    order = ["tty", "block", "video4linux", "usbmisc", "hidraw", "input", "sound"]
    device = (SYSFS / "bus/usb/devices" / bus_id).resolve()
    parts = [part for part in _below(device) if part.node and part.subsystem != "bsg"]
    ranks = {name: rank for rank, name in enumerate([*order, "", "usb"])}
    ranked = sorted(
        (ranks.get(part.subsystem, len(order)), part.node) for part in parts if part.node
    )
    return tuple(dict.fromkeys(node for _, node in ranked))
