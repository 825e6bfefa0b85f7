"""What others see of a wish: its status, and the directory of its device.

Rule of this file: it shows what it is told, and decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from usb_remote import errors
from usb_remote.agent import backoff
from usb_remote.agent.links import Access
from usb_remote.agent.parts import Parts
from usb_remote.agent.wishes import Wish
from usb_remote.agent_protocol import Attached, Loss, Stage, Status, Told

MAX_LOSSES = 16
"""Losses that a wish remembers."""


class Display:
    """Shows one wish.

    Args:
        wish: what is wanted.
        name: of its directory.
        parts: what makes that, and how long losses count.
        on_change: called with each change of the status.

    Attributes:
        status: how it goes.

    """

    def __init__(self, wish: Wish, name: str, parts: Parts, on_change: Callable[[], None]) -> None:
        self._links = parts.links
        self._within = parts.times.within
        self._on_change = on_change
        self._losses: deque[Loss] = deque(maxlen=MAX_LOSSES)
        self.status = Status(
            wish=str(wish),
            query=wish.query,
            name=name,
            kind=wish.kind,
            by=wish.by,
            stage=Stage.TRYING,
            since=datetime.now(UTC),
        )

    @property
    def attached(self) -> Attached | None:
        return self.status.attached

    def set(
        self,
        stage: Stage,
        *,
        error: errors.UsbRemoteError | None = None,
        note: str | None = None,
        retry_at: datetime | None = None,
        attached: Attached | None = None,
    ) -> None:
        """It is at a stage, and this is all there is to say of that."""
        since = self.status.since if stage is self.status.stage else datetime.now(UTC)
        told = Told.of(error) if error else None
        self._show(
            stage=stage, since=since, error=told, note=note, retry_at=retry_at, attached=attached
        )

    def note(self, note: str | None) -> None:
        """There is more to say, at the same stage."""
        self._show(note=note)

    def _show(self, **changes: Any) -> None:
        now = self.status.model_copy(update={**changes, "losses": tuple(self._losses)})
        if now != self.status:
            self.status = now
            self._on_change()

    def rename(self, wish: Wish, name: str) -> None:
        """It is another wish now, or under another name."""
        if name != self.status.name and self.attached is not None:
            self.remove_links()
        self._show(wish=str(wish), kind=wish.kind, by=wish.by, name=name)

    # -- the directory

    def arrive(self, attached: Attached, access: Access) -> Attached:
        """It is attached: make its directory."""
        attached = self._described(attached, access)
        self.set(Stage.ATTACHED, attached=attached)
        return attached

    def update(self, access: Access) -> Attached | None:
        """Drivers may make and take nodes as long as it is attached; returns what is new."""
        if self.attached is None:
            return None
        now = self._described(self.attached, access)
        if now == self.attached:
            return None
        self._show(attached=now)
        return now

    def _described(self, attached: Attached, access: Access) -> Attached:
        name = self.status.name
        paths = self._links.update(name, attached.attachment.local_bus_id, access)
        directory = self._links.directory(name)
        return attached.model_copy(update={"name": name, "directory": directory, "paths": paths})

    def remove_links(self) -> None:
        self._links.remove(self.status.name)

    # -- losses

    def note_loss(self, loss: Loss) -> None:
        """It was lost; that is shown with the next stage."""
        self._losses.append(loss)

    @property
    def last_loss(self) -> Loss | None:
        return self._losses[-1] if self._losses else None

    @property
    def recent_losses(self) -> int:
        """How often it was lost within the last minute."""
        return backoff.count_recent(self._losses, datetime.now(UTC), self._within)
