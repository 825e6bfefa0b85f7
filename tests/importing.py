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
    """Imports over real USB/IP, but into this process instead of the kernel."""

    def __init__(self, broken: errors.UsbRemoteError | None = None) -> None:
        self.broken = broken
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
        work = asyncio.create_task(asyncio.to_thread(import_device, address, usbip_port, bus_id))
        try:
            handle = await asyncio.shield(work)
        except asyncio.CancelledError:  # as with the real one, what is under way is undone
            with contextlib.suppress(Exception):
                (await work).close()
            raise
        except Exception as error:  # usbip's own; vhci.attach says the same in these classes
            if "rejected" in str(error):
                raise errors.NotFound(f"no device at {bus_id}") from error
            raise errors.Unreachable(f"the import of {bus_id} has ended already") from error
        port = next(number for number in itertools.count() if number not in self._handles)
        attachment = Attachment(
            vhci_port=port,
            address=address,
            bus_id=bus_id,
            local_bus_id=f"9-{port + 1}",
            devid=handle.conn.devid,
            serial=f"VIRTUAL000{bus_id[-1]}",
        )
        self._handles[attachment.vhci_port] = (attachment, handle)
        return attachment

    def local_bus_id(self, attachment: Attachment) -> str | None:
        return attachment.local_bus_id

    async def detach(self, vhci_port: int) -> None:
        _, handle = self._handles.pop(vhci_port)
        handle.close()  # type: ignore[attr-defined]

    def lose(self, vhci_port: int) -> None:
        """The other side has gone, and this one does not know yet."""
        self._handles[vhci_port][1].close()  # type: ignore[attr-defined]


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
        self.nodes.appear(attachment.local_bus_id or "")
        self.count += 1
        self._bell.ring()
        return attachment

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
    """No kernel: what is imported is there."""

    async def until(self, look: Callable[[], str | None], timeout: float) -> str | None:
        return look()

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        return ("/dev/ttyUSB0",)
