"""What clients and agents import with instead of this machine's kernel and udev.

What belongs here: importers over real USB/IP that end in this process, and the events of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.nodes import Nodes
from usb_remote import errors
from usb_remote.model import Attachment
from usb_remote.values import BusId
from usb_remote.virtual import import_device


class UserSpaceImporter:
    """Imports over real USB/IP, but into this process instead of the kernel.

    Args:
        broken: what every attach fails with, before anything is asked.
        enumeration: seconds in which an import is connected, but not known by a local bus id yet.

    """

    def __init__(
        self, broken: errors.UsbRemoteError | None = None, enumeration: float = 0.005
    ) -> None:
        self.broken = broken
        self._enumeration = enumeration
        self._handles: dict[int, tuple[Attachment, object]] = {}

    async def prepare(self) -> None:
        """This process can always import."""

    def list_attachments(self) -> list[Attachment]:
        return [attachment for attachment, _ in self._handles.values()]

    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int, timeout: float
    ) -> Attachment:
        if self.broken:
            raise self.broken
        work = asyncio.create_task(
            asyncio.to_thread(import_device, address, usbip_port, bus_id, timeout)
        )
        try:
            handle = await asyncio.shield(work)
        except asyncio.CancelledError:  # as with the real one, what is under way is undone
            with contextlib.suppress(Exception):
                (await work).close()
            raise
        except Exception as error:
            raise as_vhci_says(bus_id, error) from error
        port = next(number for number in itertools.count() if number not in self._handles)
        attachment = Attachment(
            vhci_port=port,
            address=address,
            usbip_port=usbip_port,
            bus_id=bus_id,
            devid=handle.conn.devid,
            serial=f"VIRTUAL000{bus_id[-1]}",
        )
        self._handles[port] = attachment, handle
        asyncio.get_running_loop().call_later(self._enumeration, self._enumerate, port, handle)
        return attachment

    def _enumerate(self, port: int, handle: object) -> None:
        """From now on the kernel says where it has put it, unless it is gone."""
        attachment, now = self._handles.get(port, (None, None))
        if attachment is not None and now is handle:
            known = attachment.model_copy(update={"local_bus_id": f"9-{port + 1}"})
            self._handles[port] = known, handle
            self.enumerated(known)

    def enumerated(self, attachment: Attachment) -> None:
        """For who does more, then."""

    def local_bus_id(self, attachment: Attachment) -> str | None:
        if attachment.vhci_port not in self._handles:
            raise errors.Unreachable(f"the import of {attachment.bus_id} ended before")
        return self._handles[attachment.vhci_port][0].local_bus_id

    async def detach(self, vhci_port: int) -> None:
        """A port that is free already is a success."""
        if vhci_port in self._handles:
            _, handle = self._handles.pop(vhci_port)
            handle.close()  # type: ignore[attr-defined]

    def lose(self, vhci_port: int) -> None:
        """The other side has gone, and this one does not know yet."""
        self._handles[vhci_port][1].close()  # type: ignore[attr-defined]


def as_vhci_says(bus_id: BusId, error: Exception) -> errors.UsbRemoteError:
    """What is usbip's own, in the classes of `vhci.attach`."""
    if "rejected (status 2)" in str(error):
        return errors.Busy(f"{bus_id} is in use")
    if "rejected (status 4)" in str(error):
        return errors.NotFound(f"no device at {bus_id}")
    if "rejected" in str(error):
        return errors.SystemFault(f"{bus_id} could not be exported just now")
    return errors.Unreachable(f"the import of {bus_id} has ended already")


class Bell:
    """Rings when what is imported here has changed, as udev does."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK)
        self._is_closed = False

    def ring(self) -> None:
        if not self._is_closed:
            os.write(self._write, b".")

    def fileno(self) -> int:
        return self._read

    def drain(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        return True

    def is_silent(self) -> bool:
        """Whether somebody has heard all of it."""
        return not select.select([self._read], [], [], 0)[0]

    def close(self) -> None:
        self._is_closed = True
        os.close(self._read)
        os.close(self._write)


class NoticingImporter(UserSpaceImporter):
    """A kernel that notices when the other side hangs up, and frees the port.

    Args:
        bell: rings with each change.
        folder: has a folder for the nodes of what is attached.

    """

    def __init__(self, bell: Bell, folder: Path) -> None:
        super().__init__()
        self.count = 0
        self.nodes = Nodes(folder / "nodes")
        self._bell = bell

    async def attach(self, *args: Any, **more: Any) -> Attachment:
        attachment = await super().attach(*args, **more)
        self.count += 1
        self._bell.ring()
        return attachment

    def enumerated(self, attachment: Attachment) -> None:
        self.nodes.appear(attachment.local_bus_id or "")
        self._bell.ring()

    async def detach(self, vhci_port: int) -> None:
        if vhci_port in self._handles:
            self._vanish(vhci_port)
            await super().detach(vhci_port)
        self._bell.ring()

    def list_attachments(self) -> list[Attachment]:
        for port, (_, handle) in list(self._handles.items()):
            connection: socket.socket = handle.conn.sock  # type: ignore[attr-defined]
            readable, _, _ = select.select([connection], [], [], 0)
            if readable and connection.recv(1, socket.MSG_PEEK) == b"":
                self._vanish(port)
                self._handles.pop(port)[1].close()  # type: ignore[attr-defined]
        return super().list_attachments()

    def _vanish(self, vhci_port: int) -> None:
        self.nodes.vanish(self._handles[vhci_port][0].local_bus_id or "")


class ArrivedAtOnce:
    """No udev: what is imported is ready as soon as it is enumerated."""

    async def until(self, look: Callable[[], str | None], timeout: float) -> str | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (seen := look()) is None and loop.time() < deadline:  # noqa: ASYNC110 - no udev
            await asyncio.sleep(0.001)
        return seen

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        return ("/dev/ttyUSB0",)
