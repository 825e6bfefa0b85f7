"""What happens to devices: plugged, unplugged, attached, ended; and how to see it in snapshots.

Rule of this file: values and pure functions. The server records what it observes itself
(history.py); a client sees the same by comparing two snapshots, and besides what holders should
hear in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import StrEnum

from usb_remote.model import Cause, Device, Holder, Model
from usb_remote.values import BusId, Moment, OptionalText, Text


class Kind(StrEnum):
    """What happened."""

    PLUGGED = "plugged"
    UNPLUGGED = "unplugged"
    ATTACHED = "attached"
    ENDED = "ended"
    ENDS_SOON = "ends_soon"
    ASKED = "asked"


class Event(Model):
    """One thing that happened to one device.

    Attributes:
        at: when, by the clock of whoever has seen it.
        device: its device id; ``bus_id``, ``name``, ``serial``, ``description`` at that time.
        speed: Mbit/s, when it was plugged in or out.
        holder: whose session began, ended, ends soon, or is asked to end.
        cause: why it ended; None where a client cannot tell, because the device is gone.
        by: who ended it, if that was not the holder; or asks for the device.
        seconds: how long the session was.
        note: what else is worth knowing, for people.

    """

    at: Moment
    kind: Kind
    device: Text
    bus_id: Text
    name: OptionalText = None
    serial: OptionalText = None
    description: Text = ""
    speed: float | None = None
    holder: Holder | None = None
    cause: Cause | None = None
    by: OptionalText = None
    seconds: float | None = None
    note: OptionalText = None

    def __str__(self) -> str:
        words: list[str] = [self.name or self.device, self.kind]
        if self.kind is Kind.ATTACHED:
            words += ["by", str(self.holder)]
        if self.kind is Kind.ENDED:
            cause = f": {self.cause}" if self.cause else ""
            words += ["with", str(self.holder), f"after {duration(self.seconds)}{cause}"]
        if self.kind is Kind.ENDS_SOON:
            words[1:] = ["is with", str(self.holder), "only a little longer"]
        if self.kind is Kind.ASKED:
            words[1:] = ["is asked for"]
        if self.by:
            words += ["by", self.by]
        return " ".join(words) + (f" ({self.note})" if self.note else "")


def duration(seconds: float | None) -> str:
    """``75`` -> ``1 min 15 s``: the two largest units, for people."""
    left = max(round(seconds or 0), 0)
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts += [f"{count} {name}"] if count else []
    return " ".join(parts[:2]) or "0 s"


def of_device(kind: Kind, device: Device, at: datetime, **more: object) -> Event:
    """An event of a device as it is now."""
    return Event.model_validate(
        {
            "at": at,
            "kind": kind,
            "device": device.id,
            "bus_id": str(device.bus_id),
            "name": device.name,
            "serial": device.serial,
            "description": device.description,
            **more,
        }
    )


def changes(before: Iterable[Device], after: Iterable[Device], at: datetime) -> Iterator[Event]:
    """What happened between two snapshots of one server, as far as they tell."""
    old = {_identity(device): device for device in before}
    new = {_identity(device): device for device in after}
    for key, device in old.items():
        if key not in new:
            yield from _session(device, _now_at(device, after), at)
            yield of_device(Kind.UNPLUGGED, device, at, speed=device.speed)
    for key, device in new.items():
        if key not in old:
            yield of_device(Kind.PLUGGED, device, at, speed=device.speed)
        yield from _session(old.get(key), device, at)


def plugs(before: Iterable[Device], after: Iterable[Device], at: datetime) -> Iterator[Event]:
    """Only what was plugged in and out: on a server sessions are recorded by who ends them."""
    for event in changes(before, after, at):
        if event.kind in {Kind.PLUGGED, Kind.UNPLUGGED}:
            yield event


def _identity(device: Device) -> tuple[str, int, str]:
    return device.bus_id, device.devnum, device.hardware_id


def _now_at(device: Device, after: Iterable[Device]) -> Device | None:
    return next((d for d in after if d.id == device.id), None)


def _session(before: Device | None, after: Device | None, at: datetime) -> Iterator[Event]:
    """The end of one session, the beginning of another."""
    old = before.holder if before else None
    new = after.holder if after else None
    if old and old.since and (new is None or new.since != old.since):
        device = after or before
        last = after.last_session if after else None
        assert device is not None
        ended = last if last and last.holder.since == old.since else None
        yield of_device(
            Kind.ENDED,
            device,
            ended.at if ended else at,
            holder=old,
            cause=ended.cause if ended else None,
            by=ended.by if ended else None,
            seconds=max(((ended.at if ended else at) - old.since).total_seconds(), 0),
        )
    if after and new and new.since and (old is None or old.since != new.since):
        yield of_device(Kind.ATTACHED, after, new.since, holder=new)
        old = None
    if after and new and new.since:
        yield from _news(after, new, old, at)


def _news(device: Device, holder: Holder, before: Holder | None, at: datetime) -> Iterator[Event]:
    """What the holder of a session should hear, if that was not so before."""
    if holder.ends_soon and not (before and before.ends_soon):
        yield of_device(Kind.ENDS_SOON, device, at, holder=holder)
    if (asked := holder.asked) and not (before and before.asked == asked):
        more = {"by": asked.by, "note": asked.message}
        yield of_device(Kind.ASKED, device, at, holder=holder, **more)


def about(events: Iterable[Event], word: str | None, now: Iterable[Device] = ()) -> list[Event]:
    """The events of what a word means: a place by its bus id, else one or more devices.

    A device is meant by its name, device id, serial number or the beginning of its id; a name is
    that of a device that is there now, else of the one that had it last.
    """
    kept = list(events)
    if word is None:
        return kept
    lower = word.lower()
    if BusId.is_valid(lower):
        return [event for event in kept if event.bus_id == lower]
    meant = _meant(kept, lower, now)
    return [event for event in kept if event.device in meant]


def _meant(events: list[Event], word: str, now: Iterable[Device]) -> set[str]:
    """Device ids, by the most telling step that finds any."""
    named = [event.device for event in events if (event.name or "").lower() == word]
    steps = (
        {device.id for device in now if (device.name or "").lower() == word},
        set(named[-1:]),
        {event.device for event in events if event.device.lower() == word},
        {event.device for event in events if (event.serial or "").lower() == word},
        {event.device for event in events if event.device.lower().startswith(word)},
    )
    return next(filter(None, steps), set())
