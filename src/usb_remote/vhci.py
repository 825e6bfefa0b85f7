"""The kernel's vhci-hcd on a client, and the `usbip` command that fills its ports.

Rule of this file: sysfs for everything that sysfs says; the command only for attach and detach, one
at a time on this machine, and never without a time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from usb_remote import errors, programs
from usb_remote.model import Attachment
from usb_remote.values import BusId, clean

PORT = 3240
SYSFS = Path("/sys")
STATE_DIR = Path("/var/run/vhci_hcd")
LOCK = Path("/sys/devices/platform/vhci_hcd.0/status")
"""The driver's own file: there as soon as an attach is possible, readable by everybody, while
/run/lock is writable for everybody on Debian only."""
USED = "006"
"""``sta``: enum usbip_device_status of drivers/usb/usbip/usbip_common.h, VDEV_ST_USED; 004 is free
(VDEV_ST_NULL), and between the two an import is connected, but not enumerated yet."""
_FREE = re.compile(r"^\S+ +\d+ +004 ", re.MULTILINE)
_TAKEN = re.compile(r"^\S+ +(\d+) +(?!004 )(\d+) +\d+ +(\w+) +\d+ +(\S+)$", re.MULTILINE)
"""Rows ``hub port sta spd dev sockfd local_busid`` (vhci_sysfs.c, port_show_vhci): one search for
all, because nearly all are free."""
ATTACH_TRIES = 3
"""``open vhci_driver`` alone is transient: 2 of 75 back-to-back attaches (FACTS, FINDINGS 4)."""

INSTALL_USBIP = (
    "install it: apt install usbip (Debian), apt install linux-tools-generic (Ubuntu), "
    "dnf install usbip (Fedora), pacman -S usbip (Arch)"
)


class _Row(NamedTuple):
    """A vhci port that is not free; ``local`` is None until the kernel has enumerated it."""

    port: int
    devid: int
    local: str | None


class Vhci:
    """The virtual host controllers of this machine, and the `usbip` command that fills them.

    Args:
        sysfs: usually /sys.
        state_dir: where the `usbip` command notes the other side of each import.
        lock: what is locked during an attach.
        sudo: goes before the command; usually `sudo -n`, for root nothing.
        delay: seconds before a second try, after which each takes longer.

    """

    def __init__(
        self,
        sysfs: Path = SYSFS,
        state_dir: Path = STATE_DIR,
        lock: Path = LOCK,
        sudo: Sequence[str] | None = None,
        delay: float = 0.2,
    ) -> None:
        self._platform = sysfs / "devices/platform"
        self._devices = sysfs / "bus/usb/devices"
        self._module = sysfs / "module/vhci_hcd"
        self._state_dir = state_dir
        self._lock = lock
        usually = ["sudo", "-n"] if os.geteuid() != 0 else []
        self._prefix = usually if sudo is None else list(sudo)
        self._delay = delay
        self._files: list[Path] = []

    @property
    def is_loaded(self) -> bool:
        return bool(self._status_files())

    def _status_files(self) -> list[Path]:
        """One for each controller; looked for again when the module was unloaded.

        None while the module is being loaded: reading one then kills the kernel (Debian's 6.1:
        status_show_vhci takes a lock of a controller that has none yet, with interrupts off).
        """
        if _read(self._module / "initstate") not in ("live", ""):  # "": it is built in
            return []
        if not self._files or not self._files[0].exists():
            self._files = sorted(self._platform.glob("vhci_hcd.*/status*"))
        return self._files

    def list_attachments(self) -> list[Attachment]:
        """What is imported here now, by vhci port; without nodes."""
        return [self._attachment(row) for row in sorted(_taken(self._status()))]

    def count_ports(self) -> dict[str, tuple[int, int]]:
        """Free vhci ports, and all: ``hs`` for devices up to USB 2, ``ss`` for faster ones."""
        rows = [line.split() for line in self._status().splitlines()]
        count: dict[str, tuple[int, int]] = {}
        for hub in ("hs", "ss"):
            if states := [row[2] for row in rows if row[:1] == [hub]]:
                count[hub] = states.count("004"), len(states)  # VDEV_ST_NULL
        return count

    def _status(self) -> str:
        """All vhci ports as the kernel tells them, 240 on Debian."""
        return "".join(map(_text, self._status_files()))

    def _attachment(self, row: _Row) -> Attachment:
        address, usbip_port, bus_id = self._remote(row.port)
        device = self._devices / (row.local or "none")
        words = [_read(device / key) for key in ("manufacturer", "product")]
        ids = [_read(device / key) for key in ("idVendor", "idProduct")]
        return Attachment(
            vhci_port=row.port,
            address=address,
            usbip_port=usbip_port,
            bus_id=bus_id,
            local_bus_id=row.local,
            devid=row.devid,
            hardware_id=":".join(ids) if all(ids) else None,
            serial=_read(device / "serial") or None,
            description=" ".join(filter(None, words)),
        )

    def _remote(self, port: int) -> tuple[str, int, BusId | None]:
        """What `usbip attach` noted of the other side; only root may read it."""
        try:
            address, usbip_port, bus_id = (self._state_dir / f"port{port}").read_text().split()
            return address, int(usbip_port), BusId(bus_id)
        except (OSError, ValueError):
            return "", PORT, None

    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int = PORT, timeout: float
    ) -> Attachment:
        """Import a device; :meth:`local_bus_id` says when the kernel has enumerated it.

        Raises:
            SystemFault: tool, module, permission or free vhci port is missing.
            Busy, NotFound, Unreachable: what the server's exporter answered.

        """
        command = ["--tcp-port", str(usbip_port), "attach", "--remote", address, "--busid", bus_id]
        async with self._locked():
            status = self._status()
            before = {row.port for row in _taken(status)}
            if not _FREE.search(status):
                raise errors.SystemFault(
                    f"all {len(before)} vhci ports are in use",
                    hint="usb-remote ports lists them; detach one",
                )
            await self._run_attach(command, f"{address}:{usbip_port}", timeout)
            for row in _taken(self._status()):  # the tool does not say which one it took
                if row.port not in before:
                    found = self._attachment(row)
                    return found.model_copy(update={"bus_id": found.bus_id or bus_id})
        raise _dropped(bus_id)

    def local_bus_id(self, attachment: Attachment) -> str | None:
        """Where the kernel has put it; None until it has enumerated the device.

        Raises:
            Unreachable: the import has ended already.

        """
        row = self._row(attachment.vhci_port)
        if row is None:
            raise _dropped(attachment.bus_id)
        return row.local

    def _row(self, port: int) -> _Row | None:
        """Of one vhci port; None if it is free. The files of other controllers are not read."""
        for file in self._status_files():
            text = _text(file)
            if re.search(rf"^\S+ +0*{port} ", text, re.MULTILINE):
                return next((row for row in _taken(text) if row.port == port), None)
        return None

    async def prepare(self) -> None:
        """See that this machine can import, before a server is asked for anything.

        Raises:
            SystemFault: tool, module or permission is missing; the hint mends it.

        """
        self._tool()
        if not self.is_loaded:
            await programs.modprobe("vhci_hcd", self._prefix)
        if not self.is_loaded:
            raise _not_loaded()
        if self._prefix:
            status, text = await self._usbip(["version"], 5.0, "usbip")
            if status != 0:
                raise _attach_failure(text, "usbip")

    async def _run_attach(self, command: list[str], remote: str, timeout: float) -> None:
        for attempt in itertools.count(1):
            status, text = await self._usbip(command, timeout, remote)
            if status == 0:
                return
            transient = "open vhci_driver" in text and "subsystem" not in text
            if not transient or attempt == ATTACH_TRIES:
                raise _attach_failure(text, remote)
            await asyncio.sleep(self._delay * attempt)

    async def detach(self, vhci_port: int, timeout: float = 10.0) -> None:
        """Let a device go; a port that is free already is a success."""
        status, text = await self._usbip(["detach", "--port", str(vhci_port)], timeout, "")
        if status != 0 and any(a.vhci_port == vhci_port for a in self.list_attachments()):
            raise _attach_failure(text, f"vhci port {vhci_port}")

    async def _usbip(self, arguments: list[str], timeout: float, remote: str) -> tuple[int, str]:
        try:
            return await programs.run([*self._prefix, self._tool(), *arguments], timeout)
        except TimeoutError:
            raise errors.Unreachable(
                f"{remote} (USB/IP) did not answer within {timeout:g} s",
                hint="does a firewall drop that port, or has another program got it? "
                "On that machine, type: sudo ss -tlnp",
            ) from None

    def _tool(self) -> str:
        """Where the usbip command is, and sudo if we need it."""
        for program in [*self._prefix[:1], "usbip"]:
            path = programs.find(program)
            if path is None and program == "sudo":
                raise errors.SystemFault("attaching needs root", hint="run this command as root")
            if path is None:
                raise errors.SystemFault("the usbip command is missing", hint=INSTALL_USBIP)
        return str(path)

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """One attach at a time on this machine: two at once livelock the stock tool (FACTS)."""
        try:
            fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _not_loaded() from None
        try:
            while not _has_lock(fd):  # noqa: ASYNC110 - flock has no event, a thread no cancel
                await asyncio.sleep(0.02)
            yield
        finally:
            os.close(fd)


def _taken(status: str) -> Iterator[_Row]:
    for port, state, devid, local in _TAKEN.findall(status):
        is_enumerated = state == USED and local != "0-0"
        yield _Row(int(port), int(devid, 16), local if is_enumerated else None)


def _text(file: Path) -> str:
    with file.open("rb", buffering=0) as status:
        return status.read().decode()


def _has_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _not_loaded() -> errors.SystemFault:
    return errors.SystemFault(
        "the kernel module vhci_hcd is not loaded, so nothing can be attached",
        hint="type: sudo modprobe vhci_hcd",
    )


def _dropped(bus_id: BusId | None) -> errors.Unreachable:
    return errors.Unreachable(
        f"the import of {bus_id} ended before this machine's kernel had recognised the device",
        hint="is it still plugged in there? usb-remote list shows it; see also: sudo dmesg",
    )


def _read(path: Path) -> str:
    try:
        return clean(path.read_text(errors="replace"))
    except OSError:
        return ""


def _attach_failure(text: str, remote: str) -> errors.UsbRemoteError:
    """One error for each way in which the stock tool fails (texts: usbip-utils 2.0)."""
    for part, error in (
        ("Device not found", errors.NotFound(f"{remote} does not export this device (any more)")),
        ("Device busy", errors.Busy(f"{remote} says that the device is in use")),
        (
            "Request Failed",  # a lost race, or its kernel: it refuses in words, and before
            errors.SystemFault(
                f"{remote} could not export this device just now",
                hint="try again; the log of that server says more: journalctl -u usb-remote-server",
            ),
        ),
        (
            "tcp connect",
            errors.Unreachable(
                f"no connection to {remote} (USB/IP)",
                hint="is the server's exporter running, and does a firewall let the port through?",
            ),
        ),
        (
            "password is required",
            errors.SystemFault(
                "attaching needs root, and sudo wants a password",
                hint="run the command with sudo",
            ),
        ),
        ("import device", errors.SystemFault("attaching needs root", hint="use sudo")),
        ("detach request failed", errors.SystemFault("detaching needs root", hint="use sudo")),
    ):
        if part in text:
            return error
    return errors.SystemFault(f"usbip failed: {clean(text, 300) or 'without a word'}")
