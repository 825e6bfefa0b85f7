"""Who waits until one device is attached: people and programs, each for as long as they say.

Rule of this file: it knows how long each of them may wait, and attaches nothing.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import NamedTuple

from usb_remote import errors
from usb_remote.agent_protocol import Attached
from usb_remote.client import How
from usb_remote.model import Match
from usb_remote.replies import WatchEvent


class Waiter(NamedTuple):
    """One of them.

    Attributes:
        how: with what they want it attached.
        until: on the loop's clock, how long they wait if another machine has it.
        outcome: what is attached, or why it is not.

    """

    how: How
    until: float
    outcome: asyncio.Future[Attached]


class Waiters:
    """All who wait for the same device."""

    def __init__(self) -> None:
        self._all: list[Waiter] = []
        self._queue: WatchEvent | None = None
        self._what = "the device"

    def __bool__(self) -> bool:
        return any(not waiter.outcome.done() for waiter in self._all)

    @property
    def count(self) -> int:
        """How many there are, with those who are just being told the outcome."""
        return len(self._all)

    @property
    def want_force(self) -> bool:
        return any(waiter.how.force for waiter in self._all if not waiter.outcome.done())

    def how(self, own: How) -> How:
        """How to attach for all of them.

        Args:
            own: how it is attached if nobody waits.

        """
        asked = [waiter.how for waiter in self._all if not waiter.outcome.done()]
        waits = [how.wait for how in (own, *asked) if how.wait is not None]
        return own._replace(
            wait=None if not waits else 0 if 0 in waits else max(waits),
            duration=next((how.duration for how in asked if how.duration), None),
            force=any(how.force for how in asked),
            user=next((how.user for how in asked), own.user),
        )

    # -- those who wait

    def join(self, how: How) -> Waiter:
        loop = asyncio.get_running_loop()
        patience = 0.0 if how.wait is None else how.wait or inf
        waiter = Waiter(how, loop.time() + patience, loop.create_future())
        self._all.append(waiter)
        if self._queue is not None and not how.force:
            self._tell(waiter, self._queue)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self._all.remove(waiter)

    async def outcome(self, waiter: Waiter) -> Attached:
        """What is attached; raises why it is not, Busy if another machine has it for too long."""
        await asyncio.wait({waiter.outcome}, timeout=waiter.how.wait or None)
        if not waiter.outcome.done() and self._queue is not None:
            raise self._busy(self._queue)
        return await waiter.outcome

    # -- what they hear

    def begin(self, match: Match) -> None:
        """A try begins: for this device."""
        self._what = match.device.label

    def leave_queue(self) -> None:
        """The try has ended, in whatever way."""
        self._queue = None

    def queued(self, event: WatchEvent) -> None:
        """Another machine has it: some of them wait no longer."""
        self._queue = event
        for waiter in self._all:
            self._tell(waiter, event)

    def succeed(self, attached: Attached) -> None:
        for waiter in self._all:
            if not waiter.outcome.done():
                waiter.outcome.set_result(attached)

    def fail(self, error: errors.UsbRemoteError, tried: How = How()) -> None:
        """The try has failed; whoever may wait waits on if it did not wait for the device."""
        may_wait = isinstance(error, errors.Busy) and tried.wait is None
        for waiter in self._all:
            if not (may_wait and _is_patient(waiter)):
                _refuse(waiter, error)

    def _tell(self, waiter: Waiter, event: WatchEvent) -> None:
        if _is_patient(waiter):
            waiter.how.tell(event)
        else:
            _refuse(waiter, self._busy(event))

    def _busy(self, event: WatchEvent) -> errors.Busy:
        holder = event.holder
        who = f"in use by {holder}" if holder else "being handed over"
        return errors.Busy(
            f"{self._what} is {who}; this machine is in the queue already, at place {event.place}",
            hint="--wait waits for it, usb-remote release asks for it",
            holder=holder.model_dump(mode="json") if holder else None,
        )


def _is_patient(waiter: Waiter) -> bool:
    return asyncio.get_running_loop().time() < waiter.until


def _refuse(waiter: Waiter, error: errors.UsbRemoteError) -> None:
    if not waiter.outcome.done():
        waiter.outcome.set_exception(error)
