"""A file descriptor that becomes readable when devices may have changed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import select
import socket
from collections.abc import Iterable
from pathlib import Path

import pyudev

UDEV = Path("/run/udev/control")
"""There as long as udev runs; without it, we hear the kernel itself."""
USED = (Path("/proc/self/mountinfo"), Path("/proc/swaps"))
"""What changes when the machine begins or ends to use a disk (proc(5): poll for POLLPRI)."""

DEVICES = ("usb", "block")
"""Subsystems of whoever lists USB devices, and has to know which of them this machine uses."""
NODES = ("usb", "block", "tty", "hidraw", "input", "media", "sound", "usbmisc", "video4linux")
"""Subsystems of whoever follows the nodes of USB devices. Other nodes that a driver makes are there
before the ``bind`` of its interface, which is of usb; of batteries and networks we hear nothing."""
MESSAGE = 8192
"""Bytes that udev's longest message has (libudev-monitor.c, udev_monitor_receive_device)."""
ROUTES = 0x1 | 0x40 | 0x400
"""RTMGRP_LINK, _IPV4_ROUTE and _IPV6_ROUTE of linux/rtnetlink.h: neither makes a uevent."""


@functools.cache
def context() -> pyudev.Context:
    """One for all: each new one makes ctypes search for libudev again (tens of ms)."""
    return pyudev.Context()


class Monitor:
    """Hears of changes from the moment it is made.

    Args:
        subsystems: of udev; none means all.
        files: of /proc, which says so by EPOLLPRI: a mount or swapon makes no uevent.
        routes: whether to hear of routes and network interfaces, too.
        udev: a file that is there as long as udev runs.

    """

    def __init__(
        self,
        *subsystems: str,
        files: Iterable[Path] = (),
        routes: bool = False,
        udev: Path = UDEV,
    ) -> None:
        source = "udev" if udev.exists() else "kernel"
        self._monitor = pyudev.Monitor.from_netlink(context(), source=source)
        for subsystem in subsystems:
            self._monitor.filter_by(subsystem)
        self._monitor.start()
        self._files = [file.open("rb") for file in files if file.exists()]
        self._epoll = select.epoll()
        self._epoll.register(self._monitor.fileno(), select.EPOLLIN)
        for file in self._files:
            self._epoll.register(file.fileno(), select.EPOLLPRI)
        self._routes = _hear_of_routes() if routes else None
        if self._routes is not None:
            self._epoll.register(self._routes.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> bool:
        """Forget what has arrived; what the devices are now is for a listing to say.

        Returns whether a device may have been plugged or pulled: it may only have been bound.
        """
        self._epoll.poll(0)  # /proc's files forget a change when it is asked for
        has_moved = any(map(is_of_a_plug, read_all(self._monitor.fileno())))
        if self._routes is not None:
            read_all(self._routes.fileno())
        return has_moved

    def _has_made_one(self) -> bool:
        """Read what has arrived: has a driver made (or lost) a node or a network interface?

        The node that each USB device has by itself does not count.
        """
        made = False
        while (device := self._monitor.poll(timeout=0)) is not None:
            made = made or _is_made_by_a_driver(device)
        return made

    async def wait(self, timeout: float) -> bool | None:
        """Wait for a change: whether it was a node or network interface, of a driver.

        None if there is no change in time (seconds).
        """
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(self.fileno(), woken.set)
        try:
            async with asyncio.timeout(timeout):
                await woken.wait()
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(self.fileno())
        return self._has_made_one()


def _hear_of_routes() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    netlink.setblocking(False)
    netlink.bind((0, ROUTES))
    return netlink


def read_all(fd: int) -> list[bytes]:
    """All messages that have arrived; an empty one for those that the socket had no room for."""
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            try:
                messages.append(os.read(fd, MESSAGE))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                messages.append(b"")
    return messages


def is_of_a_plug(message: bytes) -> bool:
    """Binding makes neither of these for a device, only for its interfaces (FACTS)."""
    is_plug = b"ACTION=add\0" in message or b"ACTION=remove\0" in message
    return not message or (is_plug and b"DEVTYPE=usb_device\0" in message)


def _is_made_by_a_driver(device: pyudev.Device) -> bool:
    if device.subsystem == "usb":
        return False
    return device.subsystem == "net" or device.device_node is not None
