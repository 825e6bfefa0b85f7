"""One wish for whatever sits in some places, such as all ports of a hub.

Rule of this file: it is a record like any other, and attaches nothing: each place has a keeper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from usb_remote import errors
from usb_remote.agent.keeper import Keeper
from usb_remote.agent.wishes import Wish
from usb_remote.agent_protocol import Loss, Stage, Status, Told


class Spread:
    """Shows how such a wish goes.

    Args:
        wish: what is wanted.
        on_change: called with each change of the status.

    Attributes:
        status: how that goes: absent as long as nothing is there.
        ended: why the wish is none any more, until it is asked for again.
        error: why there is nothing for one of the places.

    """

    def __init__(self, wish: Wish, on_change: Callable[[], None]) -> None:
        self.wish = wish
        self.ended: Loss | None = None
        self.error: errors.UsbRemoteError | None = None
        self._on_change = on_change
        self.status = Status(
            wish=str(wish),
            query=wish.query,
            name=wish.name_for(None),
            kind=wish.kind,
            by=wish.by,
            stage=Stage.ABSENT,
            since=datetime.now(UTC),
        )

    @property
    def name(self) -> str:
        return self.status.name

    @property
    def is_over(self) -> bool:
        return self.ended is not None

    def wish_again(self) -> None:
        self.ended = None

    def show(self, children: Sequence[Keeper]) -> None:
        """Say how it goes now, with a keeper for each place."""
        stage = Stage.ENDED if self.ended else Stage.ATTACHED if children else Stage.ABSENT
        names = ", ".join(child.name for child in children)
        note = str(self.ended) if self.ended else f"one wish for each device: {names}"
        old = self.status
        now = old.model_copy(
            update={
                "name": self.wish.name_for(None),
                "kind": self.wish.kind,
                "by": self.wish.by,
                "stage": stage,
                "since": old.since if old.stage is stage else datetime.now(UTC),
                "error": Told.of(self.error) if self.error else None,
                "note": note if children or self.ended else None,
            }
        )
        if now != old:
            self.status = now
            self._on_change()
