"""The device nodes that drivers make of one USB device: which they are, and when all are there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple, Protocol

import pyudev

from usb_remote.udev.devices import SYSFS, read_text
from usb_remote.udev.monitor import Monitor, context

SETTLE, SLOW_SETTLE = 1.0, 3.0
"""Seconds without any event after which an interface without a driver will not get one, and one
whose driver has made no node will not get that (a Bluetooth adapter never does)."""
LOOK_AGAIN = 0.25
"""Seconds after which we look even without an event: udev may lag, or not run at all."""
MASS_STORAGE, CDC_DATA = "08", "0a"
"""bInterfaceClass (usb.org/defined-class-codes). A disk may take many seconds to spin up; the data
interface of a serial port only helps the other one (USB CDC 1.2, 3.3.1)."""


class Changes(Protocol):
    """What hears of changes: udev.Monitor."""

    async def wait(self, timeout: float) -> bool | None: ...


class Arrival:
    """Follows a device as it appears on this machine; make it before the device can appear.

    Args:
        monitor: by default one that hears of everything.
        sysfs: usually /sys.
        is_initialized: whether udev is done with what is at a path of sysfs.

    """

    def __init__(
        self,
        monitor: Changes | None = None,
        sysfs: Path = SYSFS,
        is_initialized: Callable[[str], bool] = lambda path: _is_initialized(path),
    ) -> None:
        self._monitor = monitor or Monitor()
        self._sysfs = sysfs
        self._is_initialized = is_initialized
        self._heard: set[bool | None] = set()

    async def until(self, look: Callable[[], str | None], timeout: float) -> str | None:
        """Look now and after each change until something is there, for at most so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (seen := look()) is None and loop.time() < deadline:
            self._heard.add(await self._monitor.wait(LOOK_AGAIN))
        return seen

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        """Wait until the drivers have made the device's nodes, and list them, best first.

        Ready is when each interface has a driver that has made what it makes (a disk its block
        device, a serial adapter its tty …), or when udev has been quiet for so long that nothing
        will come.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        has_begun = False in self._heard and True not in self._heard
        patience, heard = inf if has_begun else self._patience(bus_id), loop.time()
        while patience > 0 and (now := loop.time()) < deadline and now - heard < patience:
            news = await self._monitor.wait(min(patience, SETTLE, deadline - now))
            if news is not None:
                heard = loop.time()
            if news is not False:  # looking costs more than an event without a node is worth
                patience = self._patience(bus_id)
        return list_nodes(bus_id, self._sysfs)

    def _patience(self, bus_id: str) -> float:
        """Seconds of silence after which the device is as ready as it gets; 0 if it is ready."""
        device = _path(bus_id, self._sysfs)
        with contextlib.suppress(FileNotFoundError):  # not there yet
            interfaces = [f"{device}/{n}" for n in os.listdir(device) if n.startswith(f"{bus_id}:")]
            return max(map(self._interface_patience, interfaces), default=inf)
        return inf

    def _interface_patience(self, interface: str) -> float:
        kind = read_text(f"{interface}/bInterfaceClass")
        if not os.path.exists(f"{interface}/driver"):
            return SETTLE
        if kind == CDC_DATA or self._is_served(interface, kind):
            return 0
        return inf if kind == MASS_STORAGE else SLOW_SETTLE

    def _is_served(self, interface: str, kind: str) -> bool:
        """Whether the driver has made a node or a network interface, and udev has seen it."""
        made = [part for part in _below(interface) if part.node or part.subsystem == "net"]
        if kind == MASS_STORAGE:
            made = [part for part in made if part.subsystem == "block"]
        return bool(made) and all(self._is_initialized(part.path) for part in made)


def _path(bus_id: str, sysfs: Path) -> str:
    return os.path.realpath(f"{sysfs}/bus/usb/devices/{bus_id}")


class _Part(NamedTuple):
    """A device below another one."""

    path: str
    subsystem: str
    node: str | None


def _below(path: str) -> Iterator[_Part]:
    """Devices below one in sysfs; libudev would look through all of the machine for them."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:  # it may just have gone
        found = {entry.name: entry for entry in entries}
        if "uevent" in found and "subsystem" in found:
            subsystem = os.path.basename(os.readlink(found["subsystem"]))
            yield _Part(path, subsystem, _node(f"{path}/uevent"))
        for name, entry in found.items():
            if name != "power" and entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)


def _node(uevent: str) -> str | None:
    _, has_one, rest = read_text(uevent).partition("DEVNAME=")
    return f"/dev/{rest.partition(chr(10))[0]}" if has_one else None


def _is_initialized(path: str) -> bool:
    try:
        device = pyudev.Devices.from_sys_path(context(), path)
    except pyudev.DeviceNotFoundError:
        return False
    initialized: bool = device.is_initialized
    return initialized


def list_parts(bus_id: str, sysfs: Path = SYSFS) -> list[tuple[str, str]]:
    """Subsystem and node of each part of a local USB device, in the order of its interfaces."""
    parts = [part for part in _below(_path(bus_id, sysfs)) if part.node and part.subsystem != "bsg"]
    ordered = sorted(parts, key=lambda part: [_natural(p) for p in part.path.split("/")])
    return [(part.subsystem, part.node) for part in ordered if part.node]


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """So that ``1-1:1.10`` comes after ``1-1:1.9``."""
    return tuple((int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", name))


def list_nodes(bus_id: str, sysfs: Path = SYSFS) -> tuple[str, ...]:
    """Device nodes of a local USB device: tty, disk, video … first, /dev/bus/usb last."""
    order = ["tty", "block", "video4linux", "usbmisc", "hidraw", "input", "sound"]
    parts = [part for part in _below(_path(bus_id, sysfs)) if part.node and part.subsystem != "bsg"]
    ranks = {name: rank for rank, name in enumerate([*order, "", "usb"])}
    ranked = sorted(
        (ranks.get(part.subsystem, len(order)), part.node) for part in parts if part.node
    )
    return tuple(dict.fromkeys(node for _, node in ranked))
