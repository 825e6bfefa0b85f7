"""The kernel's usbip-host driver on a server: bind, unbind, hand over sockets, all by sysfs.

Rule of this file: no device is ever left without a driver. Why not the `usbip` command:
docs/explanations/decisions/0002-sysfs-instead-of-usbip-bind.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from usb_remote import errors, programs
from usb_remote.values import BusId

SYSFS = Path("/sys")
Guard = Callable[[BusId], AbstractContextManager[None]]
Write = Callable[[Path, str], None]
USED = 2
"""``usbip_status``: enum usbip_device_status of drivers/usb/usbip/usbip_common.h, SDEV_ST_USED."""


def write_attribute(path: Path, text: str) -> None:
    """Write to a file of the kernel; an error names it, though the failing call has only an fd."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


class Host:
    """The usbip-host driver of this machine.

    Args:
        sysfs: usually /sys.
        guard: what has to be so while a device is taken from its own driver; raises if it is not.
        write: writes an attribute of sysfs; raises an OSError that names it if the kernel refuses.

    """

    def __init__(
        self,
        sysfs: Path = SYSFS,
        guard: Guard = lambda bus_id: nullcontext(),
        write: Write = write_attribute,
    ) -> None:
        self._guard = guard
        self._write = write
        self._devices = sysfs / "bus/usb/devices"
        self._bus = sysfs / "bus/usb"
        self._driver = sysfs / "bus/usb/drivers/usbip-host"

    def check(self) -> None:
        """See whether devices can be exported.

        Raises:
            SystemFault: the module or a permission is missing; the hint mends it.

        """
        if not self._driver.is_dir():
            raise errors.SystemFault(
                "the kernel module usbip_host is not loaded, so nothing can be exported",
                hint="type: sudo modprobe usbip_host",
            )
        if not os.access(self._driver / "bind", os.W_OK):
            raise errors.SystemFault(
                "no permission to bind devices to usbip-host", hint="run the server as root (sudo)"
            )

    async def load(self) -> None:
        """Load the module, if that is needed and allowed; :meth:`check` says how it ended."""
        if not self._driver.is_dir() and os.geteuid() == 0:
            await programs.modprobe("usbip_host")

    def list_bound(self) -> list[BusId]:
        return [BusId(p.name) for p in self._driver.glob("*-*") if p.is_symlink()]

    def is_bound(self, bus_id: BusId) -> bool:
        driver = self._devices / bus_id / "driver"
        return driver.is_symlink() and driver.readlink().name == "usbip-host"

    async def bind(self, bus_id: BusId) -> None:
        """Give the device to usbip-host; on failure its own driver has it again.

        Raises:
            SystemFault: the kernel refuses.
            Refused: it is guarded.

        """
        if not self.is_bound(bus_id):
            self.check()
            await asyncio.to_thread(self._bind_guarded, bus_id, self._guard(bus_id))

    def _bind_guarded(self, bus_id: BusId, guarded: AbstractContextManager[None]) -> None:
        with guarded:
            self._bind(bus_id)

    def _bind(self, bus_id: BusId) -> None:
        """The entry first: if there is no module or no free entry, nothing has happened yet."""
        try:
            self._write(self._driver / "match_busid", f"add {bus_id}")
        except OSError as error:
            raise _bind_failure(bus_id, error) from error
        try:
            if (self._devices / bus_id / "driver").exists():
                self._write(self._devices / bus_id / "driver/unbind", bus_id)
            self._write(self._driver / "bind", bus_id)
        except OSError as error:
            self._probe(bus_id)
            raise _bind_failure(bus_id, error) from error

    async def unbind(self, bus_id: BusId) -> None:
        """Give the device back to its own driver; what was pulled or never bound is left alone."""
        await asyncio.to_thread(self._unbind, bus_id)

    def _unbind(self, bus_id: BusId) -> None:
        """`unbind`, then at once `rebind`, which also frees the entry of match_busid.

        Nothing else does, and in any other state `rebind` may crash the kernel, so it is written
        only after an `unbind` that worked; `del` poisons the entry (kernel 6.1, decision 0002).
        """
        if not self.is_bound(bus_id):
            self._probe(bus_id)
            return
        with contextlib.suppress(OSError):  # pulled at this very moment
            self._write(self._driver / "unbind", bus_id)
            if (self._devices / bus_id).exists():
                self._write(self._driver / "rebind", bus_id)
        self._probe(bus_id)

    def _probe(self, bus_id: BusId) -> None:
        """See that a device which is there has a driver."""
        if (self._devices / bus_id).exists() and not (self._devices / bus_id / "driver").exists():
            self._try(self._bus / "drivers_probe", bus_id)

    async def export(self, bus_id: BusId, fd: int) -> None:
        """Hand a connected socket to the kernel: from now on it carries the device.

        The write waits while the kernel resets the device after a session (about 150 ms).

        Raises:
            Busy: another socket has it.
            SystemFault: the device is in an error state or gone.

        """
        try:
            await asyncio.to_thread(self._write, self._devices / bus_id / "usbip_sockfd", str(fd))
        except OSError as error:
            if self.status(bus_id) == USED:
                raise errors.Busy(f"{bus_id} is in use") from error
            raise errors.SystemFault(f"cannot export {bus_id}: {error.strerror}") from error

    async def release(self, bus_id: BusId) -> None:
        """End the session, whoever has it; nothing happens if there is none."""
        await asyncio.to_thread(self._try, self._devices / bus_id / "usbip_sockfd", "-1")

    def _try(self, path: Path, text: str) -> None:
        """Write where the device may just have gone, or the entry may not exist."""
        with contextlib.suppress(OSError):
            self._write(path, text)

    def status(self, bus_id: BusId) -> int | None:
        """1 if it is free, USED, 3 for an error; None while the device is not bound."""
        try:
            return int((self._devices / bus_id / "usbip_status").read_text())
        except (OSError, ValueError):
            return None

    async def wait_free(self, bus_id: BusId, timeout: float) -> None:
        """Wait until the kernel has reset the device, or has it out; it tells nobody when (FACTS).

        A device that is bound, but has no status, is being unplugged.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._is_in_between(bus_id):  # noqa: ASYNC110 - no event exists
                    await asyncio.sleep(0.01)

    def _is_in_between(self, bus_id: BusId) -> bool:
        status = self.status(bus_id)
        return status == USED or (status is None and self.is_bound(bus_id))


def _bind_failure(bus_id: BusId, error: OSError) -> errors.SystemFault:
    if error.errno == errno.ENOMEM:  # MAX_BUSID of drivers/usb/usbip/stub.h
        return errors.SystemFault(
            f"cannot bind {bus_id}: usbip-host has room for 16 devices, and all are taken",
            hint="detach one, or if fewer are in use: sudo modprobe -r usbip_host, then modprobe",
        )
    return errors.SystemFault(f"cannot bind {bus_id}: {error.strerror} ({error.filename})")
