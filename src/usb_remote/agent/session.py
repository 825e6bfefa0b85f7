"""One attachment, as both sides see it: is it still there, and if not, why?

Rule of this file: pure; it is told what is, and says what that means. What a server has observed
counts; what only looks so waits a moment for the server's word.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from usb_remote.agent.times import Times
from usb_remote.agent_protocol import Attached, Loss, View
from usb_remote.events import Event, Kind
from usb_remote.model import Attachment, Device, Ended, Holder, State


class Session:
    """Follows one attachment.

    Args:
        attached: the device, as it was when it was attached.
        is_me: whether a holder is this machine.
        now: a clock, in seconds.
        times: how long a server may take to tell.

    """

    def __init__(
        self,
        attached: Attached,
        is_me: Callable[[Holder], bool],
        now: float,
        times: Times = Times(),
    ) -> None:
        self._attachment = attached.attachment
        self._bus_id = attached.device.bus_id
        self._is_2x = attached.server.version is None
        self._before = attached.device.last_session
        self._is_me = is_me
        self._began = now
        self._times = times
        self._over: float | None = None
        self.since: datetime | None = None

    def loss(
        self, here: Attachment | None, view: View | None, now: float, *, silent: bool = False
    ) -> Loss | None:
        """Why it is over, or None if it is not, or not known to be yet.

        Args:
            here: what is in its vhci port now.
            view: what its server says now.
            now: the same clock.
            silent: whether nothing at all is heard of the server.

        """
        is_here = here is not None and here.devid == self._attachment.devid
        if view is None or view.error is not None:
            return _loss() if silent or not is_here else None
        device = next((d for d in view.devices if d.bus_id == self._bus_id), None)
        if device is None:
            return _loss()  # its history may say more
        if self._is_ours(device, now) and is_here:
            self._over = None
            return None
        if (ended := self._ended(device)) is not None:
            return _loss(ended)
        if self._over is None:
            self._over = now
        return _loss() if now - self._over >= self._times.last_word else None

    @property
    def is_settled(self) -> bool:
        """Whether only an event can change what we say; else time alone may."""
        return self._over is None and (self.since is not None or self._is_2x)

    def _is_ours(self, device: Device, now: float) -> bool:
        if self._is_2x:
            return True
        holder = device.holder
        if device.state is State.IN_USE and holder is not None and self._is_me(holder):
            if self.since is None:
                self.since = holder.since
            return holder.since == self.since
        is_early = self.since is None and now - self._began < self._times.settle
        return is_early and not self._ended(device)

    def _ended(self, device: Device) -> Ended | None:
        """How it ended, if the newest session that has ended there was this one."""
        last = device.last_session
        return last if last is not None and self._was(last.holder) else None

    def _was(self, holder: Holder | None) -> bool:
        """Whether a session that has ended was this one."""
        if holder is None or not self._is_me(holder):
            return False
        if self.since is not None:
            return holder.since == self.since
        return self._before is None or holder.since != self._before.holder.since

    def find_in(self, events: list[Event]) -> Loss | None:
        """The same from a server's history: the device may be gone, or hidden."""
        for event in reversed(events):
            is_it = event.kind is Kind.ENDED and event.bus_id == self._bus_id
            if is_it and self._was(event.holder):
                return Loss(at=datetime.now(UTC), cause=event.cause, by=event.by)
        return None


def news(holder: Holder | None) -> str | None:
    """What a holder should hear while it has a device; None if there is nothing."""
    parts = []
    if holder and holder.ends_soon and holder.until:
        parts.append(f"its time is nearly up: until {holder.until:%H:%M:%S} UTC")
    if holder and (asked := holder.asked):
        parts.append(f"wanted by {asked.by}" + (f": {asked.message}" if asked.message else ""))
    return "; ".join(parts) or None


def _loss(ended: Ended | None = None) -> Loss:
    now = datetime.now(UTC)
    return Loss(at=now, cause=ended.cause, by=ended.by) if ended else Loss(at=now)
