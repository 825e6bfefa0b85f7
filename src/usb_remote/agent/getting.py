"""Attach what is wanted: as soon as it is there, again and again unless that makes no sense.

Rule of this file: it sleeps until the world has changed, somebody is in a hurry, or nobody wants
the device any more. Of two who want what sits in one place, one tries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from usb_remote import errors
from usb_remote.agent import backoff, places
from usb_remote.agent.display import Display
from usb_remote.agent.interests import Interests
from usb_remote.agent.parts import Parts
from usb_remote.agent_protocol import Stage
from usb_remote.client import Attached, How
from usb_remote.model import Match
from usb_remote.replies import WatchEvent

log = logging.getLogger(__name__)

Arrive = Callable[[Attached], None]


class Getting:
    """Gets one device attached.

    Args:
        parts: what keepers work with.
        interests: who wants it.
        display: shows how that goes.
        on_arrival: called with what is attached, before anybody else can try.

    Attributes:
        match: what was tried last.

    """

    def __init__(
        self, parts: Parts, interests: Interests, display: Display, on_arrival: Arrive
    ) -> None:
        self.match: Match | None = None
        self._parts = parts
        self._interests = interests
        self._waiters = interests.waiters
        self._display = display
        self._times = parts.times
        self._on_arrival = on_arrival
        self._tried = How()

    async def get(self) -> bool:
        """Attach it; whether it is, or nobody wants it any more."""
        failures = 0
        while self._interests.are_any:
            match = await self._present()
            if match is None:
                continue
            try:
                await self._damp()
                if await self._try(match):
                    return True
            except errors.UsbRemoteError as error:
                self._waiters.fail(error, self._tried)
                failures += 1
                if self._interests.are_any:
                    await self._after_failure(match, error, failures)
        return False

    async def _present(self) -> Match | None:
        """What is meant; None if it is not there, once it may be, or nobody waits for it."""
        try:
            return self._choose()
        except errors.UsbRemoteError as error:
            self._waiters.fail(error)
            if self._interests.are_any:
                shown = _worth_showing(error)
                self._display.set(Stage.ABSENT, error=shown)
                await self._until(partial(self._is_news, shown))
        return None

    def _is_news(self, shown: errors.UsbRemoteError | None) -> bool:
        """Whether it is there now, or there is something else to say of why it is not."""
        try:
            self._choose()
        except errors.UsbRemoteError as error:
            return str(_worth_showing(error)) != str(shown)
        return True

    def _choose(self) -> Match:
        query = self._interests.wish.query
        return places.choose(self._parts.world, self._parts.client, query)

    def chosen(self) -> Match | None:
        """The one device that is meant now, if it is there."""
        try:
            return self._choose()
        except errors.UsbRemoteError:
            return None

    # -- one try

    async def _try(self, match: Match) -> bool:
        """Whether it is attached; else it is the turn of another device now, or of none."""
        self.match = match
        self._display.set(Stage.TRYING)
        attempt = asyncio.create_task(self._attach(match))
        watching = asyncio.create_task(self._parts.world.until(partial(self._is_moot, match)))
        try:
            await asyncio.wait({attempt, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            attempt.cancel()
            watching.cancel()
            await asyncio.gather(attempt, watching, return_exceptions=True)
            self._waiters.leave_queue()
        return not attempt.cancelled() and attempt.result()

    def _is_moot(self, match: Match) -> bool | None:
        """Whether a try makes no sense any more, at least not in the same way."""
        if not self._interests.are_any:
            return True
        if self._display.status.stage is not Stage.WAITING:
            return None
        if self._waiters.want_force and not self._tried.force:
            return True
        other = self.chosen()
        if other is None or places.is_same(other, match):
            return None
        return places.is_free(other, self._parts.client) or None

    async def _attach(self, match: Match) -> bool:
        """Attach what is meant by the time that it is our turn, if that is still in this place."""
        async with self._parts.lock(match):
            now = self.chosen()
            if now is None or not places.is_same(now, match):
                return False
            self._waiters.begin(now)
            self._tried = self._interests.how(now)
            await self._parts.client.prepare()
            how = self._tried._replace(tell=self._queued)
            done = await self._parts.client.attach_found(now, how)
            if not self._interests.are_any and not done.already:  # whoever waited has just left
                await asyncio.shield(self._parts.client.give_back(done.match, done.attachment))
                return False
            self._on_arrival(done)
            return True

    def _queued(self, event: WatchEvent) -> None:
        if event.event == "queued":
            who = f"in use by {event.holder}" if event.holder else "being handed over"
            self._display.set(Stage.WAITING, note=f"{who}; place {event.place} in the queue")
            self._waiters.queued(event)

    # -- delays

    async def wait(self, seconds: float) -> None:
        """Some seconds, unless somebody is in a hurry, or nobody waits."""
        await self._until(lambda: None, seconds)

    async def _until(self, look: Callable[[], object], timeout: float | None = None) -> None:
        def seen() -> bool | None:
            is_moot = self._waiters or not self._interests.are_any
            return True if is_moot or look() else None

        await self._parts.world.until(seen, timeout)

    async def _after_failure(
        self, match: Match, error: errors.UsbRemoteError, failures: int
    ) -> None:
        """Wait for another device if we were refused, else only for some time."""
        is_other = partial(self.is_other, match)
        if isinstance(error, errors.Refused):
            self._display.set(Stage.STOPPED, error=error)
            await self._until(is_other)
        else:
            delay = backoff.after_failures(failures, self._times)
            self._delayed(delay, error)
            await self._until(is_other, delay)

    async def _damp(self) -> None:
        """Wait a little with a device that comes and goes, unless somebody is in a hurry."""
        count = self._display.recent_losses
        delay = backoff.after_losses(count, self._times)
        if delay and not self._waiters:
            within = f"{self._times.within:g} s"
            self._delayed(delay, errors.SystemFault(f"it was lost {count} times within {within}"))
            await self.wait(delay)

    def _delayed(self, delay: float, error: errors.UsbRemoteError) -> None:
        retry_at = datetime.now(UTC) + timedelta(seconds=delay)
        self._display.set(Stage.DELAYED, error=error, retry_at=retry_at)
        log.info("%s: %s; trying again in %.1f s", self._display.status.name, error, delay)

    def is_other(self, before: Match) -> bool | None:
        """Whether the device is not what it was: plugged again, free to share, or gone."""
        now = self._parts.world.device_at(before.server, before.device.bus_id)
        if now is None:
            return True
        return places.lasting_facts(now) != places.lasting_facts(before.device) or None


def _worth_showing(error: errors.UsbRemoteError) -> errors.UsbRemoteError | None:
    """That a device is not there, its stage says; that several are meant, only the error."""
    return error if isinstance(error, errors.Ambiguous) else None
