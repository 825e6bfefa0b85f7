"""The kernel's vhci-hcd on a client, and the `usbip` command that fills its ports.

Rule of this file: sysfs for everything that sysfs says; the command only for attach and detach, one
at a time on this machine, and never without a time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from usb_remote import errors, programs
from usb_remote.model import Attachment, BusId, clean

PORT = 3240
SYSFS = Path("/sys")
STATE_DIR = Path("/var/run/vhci_hcd")
LOCK = Path("/sys/devices/platform/vhci_hcd.0/status")
"""The driver's own file: there as soon as an attach is possible, readable by everybody, while
/run/lock is writable for everybody on Debian only."""
FREE, USED = "004", "006"
"""``sta``: enum usbip_device_status of drivers/usb/usbip/usbip_common.h, VDEV_ST_NULL and _USED;
between the two an import is connected, but not enumerated yet."""
ATTACH_TRIES = 3
"""``open vhci_driver`` alone is transient: 2 of 75 back-to-back attaches (FACTS, FINDINGS 4)."""

INSTALL_USBIP = (
    "install it: apt install usbip (Debian), apt install linux-tools-generic (Ubuntu), "
    "dnf install usbip-utils (Fedora), pacman -S usbip (Arch)"
)


class Vhci:
    """The virtual host controllers of this machine, and the `usbip` command that fills them."""

    def __init__(
        self,
        sysfs: Path = SYSFS,
        state_dir: Path = STATE_DIR,
        lock: Path = LOCK,
        sudo: Sequence[str] = ("sudo", "-n"),
    ) -> None:
        self._platform = sysfs / "devices/platform"
        self._devices = sysfs / "bus/usb/devices"
        self._state_dir = state_dir
        self._lock = lock
        self._prefix = [] if os.geteuid() == 0 else list(sudo)
        self._files: list[Path] = []

    @property
    def is_loaded(self) -> bool:
        return bool(self._status_files())

    def _status_files(self) -> list[Path]:
        """One for each controller; looked for again when the module was unloaded."""
        if not self._files or not self._files[0].exists():
            self._files = sorted(self._platform.glob("vhci_hcd.*/status*"))
        return self._files

    def list_attachments(self) -> list[Attachment]:
        """What is imported here now, by vhci port; without nodes."""
        rows = [row for row in self._rows() if row[2] != FREE]
        return [self._attachment(row) for row in sorted(rows, key=lambda row: int(row[1]))]

    def _rows(self) -> Iterator[list[str]]:
        """Rows ``hub port sta spd dev sockfd local_busid`` (vhci_sysfs.c, port_show_vhci)."""
        for file in self._status_files():
            for line in file.read_text().splitlines():
                row = line.split()
                if len(row) == 7 and row[1].isdigit():
                    yield row

    def _attachment(self, row: list[str]) -> Attachment:
        port = int(row[1])
        address, usbip_port, bus_id = self._remote(port)
        local = row[6] if row[2] == USED and row[6] != "0-0" else None
        device = self._devices / (local or "none")
        words = [_read(device / key) for key in ("manufacturer", "product")]
        ids = [_read(device / key) for key in ("idVendor", "idProduct")]
        return Attachment(
            vhci_port=port,
            address=address,
            usbip_port=usbip_port,
            bus_id=bus_id,
            local_bus_id=local,
            devid=int(row[4], 16),
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
            rows = list(self._rows())
            before = {row[1] for row in rows if row[2] != FREE}
            if len(before) == len(rows):
                raise errors.SystemFault(
                    f"all {len(before)} vhci ports are in use",
                    hint="usb-remote ports lists them; detach one",
                )
            await self._run_attach(command, f"{address}:{usbip_port}", timeout)
            for row in self._rows():  # the tool does not say which one it took
                if row[1] not in before and row[2] != FREE:
                    found = self._attachment(row)
                    return found.model_copy(update={"bus_id": found.bus_id or bus_id})
        raise _dropped(bus_id)

    def local_bus_id(self, attachment: Attachment) -> str | None:
        """Where the kernel has put it; None until it has enumerated the device.

        Raises:
            Unreachable: the import has ended already.

        """
        row = next((row for row in self._rows() if int(row[1]) == attachment.vhci_port), None)
        if row is None or row[2] == FREE:
            raise _dropped(attachment.bus_id)
        return row[6] if row[2] == USED and row[6] != "0-0" else None

    async def prepare(self) -> None:
        """See that this machine can import, before a server is asked for anything.

        Raises:
            SystemFault: tool, module or permission is missing; the hint mends it.

        """
        self._tool()
        if not self.is_loaded:
            await programs.modprobe("vhci_hcd", self._prefix)
        if not self.is_loaded:
            raise errors.SystemFault(
                "the kernel module vhci_hcd is not loaded, so nothing can be attached",
                hint="type: sudo modprobe vhci_hcd",
            )
        if self._prefix:
            status, text = await self._usbip(["version"], 5.0, "usbip")
            if status != 0:
                raise _attach_failure(text, "usbip")

    async def _run_attach(self, command: list[str], remote: str, timeout: float) -> None:
        for attempt in range(1, ATTACH_TRIES + 1):
            status, text = await self._usbip(command, timeout, remote)
            if status == 0:
                return
            transient = "open vhci_driver" in text and "subsystem" not in text
            if not transient or attempt == ATTACH_TRIES:
                raise _attach_failure(text, remote)
            await asyncio.sleep(0.2 * attempt)

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
        fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while not _has_lock(fd):  # noqa: ASYNC110 - flock has no event, a thread no cancel
                await asyncio.sleep(0.02)
            yield
        finally:
            os.close(fd)


def _has_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
        ("Request Failed", errors.Refused(f"{remote} refuses to export this device")),
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
