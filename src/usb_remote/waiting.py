"""A fair queue for one device: who came first gets it first, who goes away loses the place.

Rule of this file: an entry is there exactly as long as somebody awaits it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from usb_remote import errors
from usb_remote.model import Device, Holder

MAX_WAITING = 64
"""Clients that may wait for one device."""

Tell = Callable[[int, Holder | None], None]
"""Called with the place in the queue (1 is next) and who has the device."""


@dataclass(frozen=True)
class Wish:
    """What a client asks of a device.

    Attributes:
        holder: who it is.
        duration: seconds after which the session shall end by itself, None for never.
        force: take it from whoever has it.

    """

    holder: Holder
    duration: float | None = None
    force: bool = False


@dataclass(eq=False)
class Waiter:
    """One place in a queue. ``turn`` is done when the device is reserved for it."""

    wish: Wish
    device: Device
    tell: Tell
    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Queue:
    """Who waits for one device."""

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def waiters(self) -> list[Waiter]:
        return list(self._waiters)

    def enter(self, waiter: Waiter) -> None:
        """Take the last place.

        Raises:
            Busy: there is none left.

        """
        if len(self) >= MAX_WAITING:
            raise errors.Busy(f"{MAX_WAITING} clients wait for this device already")
        self._waiters.append(waiter)

    def leave(self, waiter: Waiter) -> bool:
        """Give a place up; False if its turn had come, or it was sent away, before."""
        is_there = waiter in self._waiters
        if is_there:
            self._waiters.remove(waiter)
        return is_there

    def next(self) -> Waiter | None:
        """Take out whoever is first."""
        return self._waiters.popleft() if self._waiters else None

    def dismiss(self, error: errors.UsbRemoteError, there: Device | None = None) -> bool:
        """Send away who does not wait for this device; False if there is nobody."""
        leaving = [w for w in self._waiters if there is None or not w.device.is_same(there)]
        for waiter in leaving:
            self._waiters.remove(waiter)
            if not waiter.turn.done():
                waiter.turn.set_exception(error)
        return bool(leaving)

    def tell(self, holder: Holder | None) -> None:
        """Tell everybody the place, and who has the device now."""
        for place, waiter in enumerate(self._waiters, 1):
            waiter.tell(place, holder)
