"""A file descriptor that becomes readable when devices may have changed."""

from __future__ import annotations

import asyncio
import functools
import select
from collections.abc import Iterable
from pathlib import Path

import pyudev

USED = (Path("/proc/self/mountinfo"), Path("/proc/swaps"))
"""What changes when the machine begins or ends to use a disk (proc(5): poll for POLLPRI)."""


@functools.cache
def context() -> pyudev.Context:
    """One for all: each new one makes ctypes search for libudev again (tens of ms)."""
    return pyudev.Context()


class Monitor:
    """Hears of changes from the moment it is made.

    Args:
        subsystems: of udev; none means all.
        files: of /proc, which says so by EPOLLPRI: a mount or swapon makes no uevent.

    """

    def __init__(self, *subsystems: str, files: Iterable[Path] = ()) -> None:
        source = "udev" if Path("/run/udev/control").exists() else "kernel"
        self._monitor = pyudev.Monitor.from_netlink(context(), source=source)
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

    def drain(self) -> bool:
        """Forget what has arrived; what the devices are now is for a listing to say.

        Returns whether a driver has made (or lost) a node or a network interface: the node that
        each USB device has by itself does not count.
        """
        self._epoll.poll(0)  # /proc's files forget a change when it is asked for
        made = False
        while (device := self._monitor.poll(timeout=0)) is not None:
            made = made or _is_made_by_a_driver(device)
        return made

    async def wait(self, timeout: float) -> bool | None:
        """Wait for a change and :meth:`drain` it; None if there is none in time (seconds)."""
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
        return self.drain()


def _is_made_by_a_driver(device: pyudev.Device) -> bool:
    if device.subsystem == "usb":
        return False
    return device.subsystem == "net" or device.device_node is not None
