"""A device that a program has attached: what it is, where its nodes are, when it was lost.

Rule of this file: what is known of it, and waiting for news. Whoever follows the device tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

from usb_remote import errors
from usb_remote.agent_protocol import Attached, Loss
from usb_remote.model import Attachment, Device, Server


class Attachable(ABC):
    """What is known of a device that a program has attached; with and without asyncio."""

    @property
    @abstractmethod
    def now(self) -> Attached:
        """The device as it was attached last."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.now.match}>"

    @property
    def name(self) -> str:
        """What it is called here, and its directory below /dev/usb-remote."""
        return self.now.name

    @property
    def server(self) -> Server:
        return self.now.server

    @property
    def device(self) -> Device:
        return self.now.device

    @property
    def attachment(self) -> Attachment:
        return self.now.attachment

    @property
    def directory(self) -> Path | None:
        """Where links to its nodes are, if there are any."""
        return Path(self.now.directory) if self.now.directory else None

    @property
    def paths(self) -> dict[str, str]:
        """Each node by what it is called: ``tty0``, ``disk``, ``hidraw0``, ``video0``, ``usb``."""
        return dict(self.now.paths)

    @property
    def tty(self) -> str:
        """The first serial port; raises NotFound if it has none."""
        return self.path("tty0")

    @property
    def disk(self) -> str:
        """The whole disk; raises NotFound if it is none."""
        return self.path("disk")

    @property
    def hidraw(self) -> str:
        """The first raw HID interface; raises NotFound if it has none."""
        return self.path("hidraw0")

    @property
    def video(self) -> str:
        """The first camera; raises NotFound if it has none."""
        return self.path("video0")

    @property
    def usb(self) -> str:
        """The device itself, for libusb; raises NotFound if it is not attached just now."""
        return self.path("usb")

    def path(self, name: str) -> str:
        """A node by what it is called.

        Raises:
            NotFound: it has no such node; the message names those that it has.

        """
        try:
            return self.now.paths[name]
        except KeyError:
            known = ", ".join(self.now.paths) or "none"
            raise errors.NotFound(f"{self.name} has no {name} here; it has {known}") from None


class AttachedDevice(Attachable):
    """A device that is attached here until its `attach` block ends.

    It may be lost meanwhile, and come back by itself. Its paths stay the same where an agent, or
    root, makes links to them.

    Args:
        attached: the device.
        soon, late: seconds until one hears why it was lost, if it looks as ever, and if a node of
            it is gone.

    Attributes:
        losses: when and why it was lost, oldest first.
        is_attached: whether it is there now.

    """

    def __init__(self, attached: Attached, *, soon: float = 0.2, late: float = 4.0) -> None:
        self.losses: list[Loss] = []
        self.is_attached = True
        self._now = attached
        self._soon, self._late = soon, late
        self._changed = asyncio.Event()

    @property
    def now(self) -> Attached:
        return self._now

    async def hear_why(self) -> None:
        """After a failure: it may be lost, and the word of that be on its way."""
        looks_well = all(map(os.path.exists, self.paths.values()))
        patience = self._soon if looks_well else self._late
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.wait_lost()

    async def wait_lost(self, count: int = 1) -> Loss:
        """Wait until it was lost so many times in all; returns the newest loss."""
        while len(self.losses) < count:
            await self._next_change()
        return self.losses[-1]

    async def wait_attached(self) -> None:
        """Wait until it is there (again)."""
        while not self.is_attached:
            await self._next_change()

    async def _next_change(self) -> None:
        changed = self._changed
        await changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def note_loss(self, loss: Loss) -> None:
        """It was lost (called by whoever follows it)."""
        self.losses.append(loss)
        self.is_attached = False
        self._tell()

    def note_attached(self, attached: Attached) -> None:
        """It is there (again)."""
        self._now = attached
        self.is_attached = True
        self._tell()
