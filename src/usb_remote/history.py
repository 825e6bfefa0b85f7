"""What happened to the devices of this server: recorded, bounded, kept over restarts.

Rule of this file: an event is recorded by whoever observed it, once; a disk that is full costs the
file, never the server.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Container
from datetime import datetime, timedelta
from math import inf
from typing import NamedTuple

from pydantic import ValidationError

from usb_remote import errors
from usb_remote.events import Event, Kind
from usb_remote.model import Cause, Ended
from usb_remote.state import StateFile

log = logging.getLogger(__name__)

MAX_EVENTS = 2000
"""Events that are kept in all; the oldest go first."""
MAX_PER_DEVICE = 200
"""Events that are kept of one device, so that one that flaps does not push out the others."""
_OF_SESSIONS = {Kind.ATTACHED, Kind.ENDED}
FLAPPING = 5
FLAPPING_WITHIN = timedelta(minutes=10)
"""So many plugs in so short a time are a loose cable, or too little power."""


class _Entry(NamedTuple):
    """An event, and which one it was: the clock of a server may step, also back."""

    number: int
    event: Event


class History:
    """All events, oldest first.

    Args:
        file: where they are kept.
        clock: by which sessions are measured, in seconds.

    Attributes:
        on_event: called with each new event.

    """

    def __init__(self, file: StateFile, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_event: Callable[[Event], None] = lambda event: None
        self._file = file
        self._clock = clock
        self._began: dict[str, float] = {}
        self._of: dict[str, deque[_Entry]] = {}
        self._numbers = itertools.count()
        self._ended: dict[str, Ended] = {}
        self._lines = 0
        self._full = False
        for event in self._load():
            self._keep(event)
        self._full = file.was_broken and bool(self._of)
        self.flush()

    def _load(self) -> list[Event]:
        lines = self._file.read_lines()
        self._lines = len(lines)
        events = []
        for line in lines:
            try:
                events.append(Event.model_validate(line))
            except ValidationError as error:
                self._file.set_aside(str(error.errors()[0]["msg"]))
                break
        return events

    @property
    def events(self) -> list[Event]:
        """Everything that is kept, in the order in which it happened."""
        return [entry.event for entry in sorted(itertools.chain(*self._of.values()))]

    def _events_of(self, device: str) -> list[Event]:
        return [entry.event for entry in self._of.get(device, ())]

    def last_session(self, device: str) -> Ended | None:
        """How the last session of a device (by its device id) ended."""
        return self._ended.get(device)

    def open_sessions(self) -> list[Event]:
        """How those began that have no end."""
        lasts = []
        for device in self._of:
            sessions = [e for e in self._events_of(device) if e.kind in _OF_SESSIONS]
            lasts += [e for e in sessions[-1:] if e.kind is Kind.ATTACHED]
        return lasts

    def close_open_sessions(self, at: datetime, but_not: Container[str] = ()) -> None:
        """After a crash: what the file says is attached has ended with the server.

        Args:
            at: when.
            but_not: device ids of sessions that go on all the same.

        """
        for last in self.open_sessions():
            if last.device not in but_not:
                ended = {
                    "at": at,
                    "kind": Kind.ENDED,
                    "cause": Cause.SERVER_STOPPED,
                    "note": "the server was killed or lost power",
                }
                self.record(last.model_copy(update=ended))

    def record(self, event: Event) -> None:
        """Keep an event, with what only the past can tell of it."""
        if event.kind is Kind.PLUGGED:
            event = event.model_copy(update={"note": self._note(event)})
        if event.kind is Kind.ATTACHED:
            self._began[event.device] = self._clock()
        if event.kind is Kind.ENDED:
            event = event.model_copy(update={"seconds": self._length(event)})
        self._keep(event)
        self._write(event)
        self.on_event(event)

    def _length(self, event: Event) -> float:
        """Of a session that has ended; by the wall clock only if another process saw it begin."""
        began = self._began.pop(event.device, None)
        if began is not None:
            return self._clock() - began
        since = event.holder.since if event.holder else None
        return max((event.at - since).total_seconds(), 0) if since else 0

    def _note(self, event: Event) -> str | None:
        before = [e for e in self._events_of(event.device) if e.speed]
        notes = []
        if before and (event.speed or inf) < (before[-1].speed or 0):
            notes.append(f"came back at {event.speed:g} Mbit/s, before {before[-1].speed:g}")
        plugs = [e for e in before if e.kind is Kind.PLUGGED]
        recent = [e for e in plugs if abs(event.at - e.at) < FLAPPING_WITHIN]
        if len(recent) + 1 >= FLAPPING:
            minutes = max(1, round((event.at - recent[0].at).total_seconds() / 60))
            notes.append(f"flapping: plugged {len(recent) + 1} times in {minutes} min")
        return "; ".join(notes) or None

    def _keep(self, event: Event) -> None:
        kept = self._of.setdefault(event.device, deque(maxlen=MAX_PER_DEVICE))
        kept.append(_Entry(next(self._numbers), event))
        if event.kind is Kind.ENDED and event.holder and event.cause:
            self._ended[event.device] = Ended(
                holder=event.holder, at=event.at, cause=event.cause, by=event.by
            )
        while sum(map(len, self._of.values())) > MAX_EVENTS:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        device = min(self._of, key=lambda device: self._of[device][0].number)
        self._of[device].popleft()
        if not self._of[device]:
            del self._of[device]
            self._ended.pop(device, None)

    def _write(self, event: Event) -> None:
        """Append; now and then, and after a failure, write all anew."""
        try:
            if self._full or self._lines >= 2 * MAX_EVENTS:
                self._rewrite()
            else:
                self._file.append(_line(event))
                self._lines += 1
        except errors.SystemFault as error:
            if not self._full:
                log.warning("the history is not kept over a restart: %s", error)
            self._full = True

    def _rewrite(self) -> None:
        events = self.events
        self._file.replace(map(_line, events))
        self._lines, self._full = len(events), False

    def flush(self) -> None:
        """A last try to write what a full disk has refused."""
        if self._full:
            with contextlib.suppress(errors.SystemFault):  # said when it began
                self._rewrite()


def _line(event: Event) -> dict[str, object]:
    return event.model_dump(mode="json", exclude_none=True)
