"""How a device gets from one client to the next: let go, reset, recorded, passed on, given back.

Rule of this file: every session ends here, once, with the cause that was observed; and whoever
waits is called before a device is given back to its driver.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from math import inf
from typing import Any

from usb_remote import errors, events
from usb_remote.events import Kind
from usb_remote.lease import (
    ExportHost,
    Journal,
    Lease,
    Times,
    refuse_another,
    refuse_protected,
)
from usb_remote.model import Cause, Device, Holder
from usb_remote.sessions import End, EndWatch
from usb_remote.sharing import DeviceSource
from usb_remote.survivors import Keeper
from usb_remote.values import BusId
from usb_remote.waiting import Wish

log = logging.getLogger(__name__)

GONE = "the device was unplugged while you waited, or is not shared any more"


class HandOver:
    """Ends sessions, and passes devices on.

    Args:
        source: which devices others may see, asked afresh at each decision.
        host: binds and exports them.
        journal: is told of sessions.
        times: how long things may take.
        plugged: all devices, also hidden ones; the same as ``source`` if none is hidden.

    Attributes:
        on_change: called when the holder of a device, or who waits for it, has changed.
        keeper: is told of sessions that may go on without this process; None if none may.

    """

    def __init__(
        self,
        source: DeviceSource,
        host: ExportHost,
        journal: Journal,
        times: Times = Times(),
        plugged: DeviceSource | None = None,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.keeper: Keeper | None = None
        self._source = source
        self._plugged = plugged or source
        self._host = host
        self._journal = journal
        self._times = times
        self._leases: dict[BusId, Lease] = {}
        self._ends = EndWatch(self._on_end)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- sessions that end by themselves

    def _on_end(self, connection: socket.socket, end: End) -> None:
        for bus_id, lease in self._leases.items():
            if lease.session is connection:
                self._spawn(self._ended(bus_id, connection, end))

    async def _ended(self, bus_id: BusId, session: socket.socket, end: End) -> None:
        """The connection is down: the client let go, vanished, or the device was unplugged."""
        lease = self._lease(bus_id)
        async with lease.lock:
            device = lease.device
            if lease.session is session and not await self._end(bus_id, lease, end):
                grace = self._times.grace if self._is_there(device) else 0
                await self._pass_on(bus_id, lease, grace)

    def _limit(self, seconds: float, bus_id: BusId, lease: Lease) -> None:
        """End the session by itself, and tell a little before."""
        loop, session = asyncio.get_running_loop(), lease.session
        notice = min(self._times.notice, seconds / 10)
        lease.timers = [
            loop.call_later(seconds - notice, self._give_notice, lease),
            loop.call_later(seconds, lambda: self._spawn(self._time_up(bus_id, session))),
        ]

    def _give_notice(self, lease: Lease) -> None:
        if lease.holder is not None:
            lease.holder = lease.holder.model_copy(update={"ends_soon": True})
            self.on_change()

    async def _time_up(self, bus_id: BusId, session: socket.socket | None) -> None:
        lease = self._lease(bus_id)
        async with lease.lock:
            if lease.session is session:
                await self._end(bus_id, lease, Cause.TIME_UP)
                await self._pass_on(bus_id, lease)

    # -- what an end is

    async def _end(
        self,
        bus_id: BusId,
        lease: Lease,
        why: Cause | End,
        by: str | None = None,
        *,
        call_next: bool = True,
    ) -> bool:
        """Close a session and wait for the kernel to have the device ready again.

        Returns whether the next one has it already: who let go has not unplugged it, so the next
        client imports it meanwhile, see :meth:`leases.Leases.begin`. If not, the lease is the
        caller's to give to somebody, or to clear, at once.
        """
        session, holder, device = lease.session, lease.holder, lease.device
        if session is None or holder is None or device is None:
            return False
        self._ends.remove(session)
        lease.stop_timers()
        lease.leaving = holder  # so that nobody sees it end without its cause
        may_call = call_next and why is End.BY_PEER
        is_called = lease.is_called = may_call and self._call_next(bus_id, lease)
        await self._host.release(bus_id)
        await self._host.wait_free(bus_id, self._times.reset)
        session.close()
        if self.keeper is not None:
            self.keeper.forget(device)
        lease.session, lease.is_called = None, False
        # not before: while a device is pulled, its connection goes first
        cause = why if isinstance(why, Cause) else self._cause(device, why)
        self._record_end(device, holder, cause, by)
        lease.leaving = None
        if is_called:
            self.on_change()
        return is_called

    def _cause(self, device: Device, end: End) -> Cause:
        """What TCP and the bus together tell: a device that is gone was unplugged."""
        is_there = self._is_there(device)
        if end is End.BY_KERNEL or not is_there:
            return Cause.DEVICE_RESET if is_there else Cause.UNPLUGGED
        return Cause.DETACHED if end is End.BY_PEER else Cause.CLIENT_LOST

    def _record_end(self, device: Device, holder: Holder, cause: Cause, by: str | None) -> None:
        now = datetime.now(UTC)
        event = events.of_device(Kind.ENDED, device, now, holder=holder, cause=cause, by=by)
        log.info("%s is free again (was with %s): %s", device.bus_id, holder, cause)
        self._journal.record(event)

    def _is_there(self, device: Device | None) -> bool:
        """Whether it has not been pulled since; hidden or not."""
        now = self._plugged.find(device.bus_id) if device is not None else None
        return now is not None and device is not None and now.devnum == device.devnum

    # -- the next one

    async def _pass_on(self, bus_id: BusId, lease: Lease, grace: float = 0) -> None:
        """Reserve a device that has just become free for the next one, else free it."""
        lease.clear()
        if self._call_next(bus_id, lease):
            self.on_change()
            return
        if grace:
            self._expire_in(grace, bus_id, lease)
            self.on_change()
        else:
            await self._free(bus_id, lease)

    def _call_next(self, bus_id: BusId, lease: Lease) -> bool:
        """Reserve the device for whoever is first in the queue; False if there is nobody."""
        while waiter := lease.queue.next():
            if waiter.turn.done():
                continue
            device: Device | None
            try:
                device = self._find(bus_id)
                refuse_protected(device)
            except errors.NotFound:
                device = None
            except errors.UsbRemoteError as error:
                waiter.turn.set_exception(error)
                continue
            if device is None or not device.is_same(waiter.device):
                waiter.turn.set_exception(errors.NotFound(GONE))
                continue
            waiter.turn.set_result(None)
            self._hold(device, lease, waiter.wish)
            return True
        return False

    def _hold(self, device: Device, lease: Lease, wish: Wish) -> None:
        lease.hold(wish, device)
        self._expire_in(self._times.reservation, device.bus_id, lease)
        lease.queue.tell(lease.holder)
        self._spawn(self._bind_ahead(device.bus_id, lease))

    async def _bind_ahead(self, bus_id: BusId, lease: Lease) -> None:
        """Once whoever has reserved it has got the answer: it starts its tool meanwhile."""
        async with lease.lock:
            self.on_change()
            if lease.holder is not None and lease.session is None:
                try:
                    device = self._find(bus_id)  # it may have been pulled since
                    refuse_protected(device)
                    refuse_another(device, lease.device)
                    await lease.bind(self._host, bus_id)
                except errors.UsbRemoteError as error:
                    lease.fault = error  # for release, or who imports
                    log.warning("%s", error)

    def _expire_in(self, seconds: float, bus_id: BusId, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        lease.expires = loop.time() + seconds
        loop.call_at(lease.expires, self._look_whether_expired, bus_id)

    def _look_whether_expired(self, bus_id: BusId) -> None:
        if not self._ends.closed:  # or nobody would wait for the task any more
            self._spawn(self._expire(bus_id))

    async def _expire(self, bus_id: BusId) -> None:
        """Nobody came (back) in time; if somebody did, the moment was moved."""
        lease = self._lease(bus_id)
        async with lease.lock:
            if asyncio.get_running_loop().time() >= lease.expires and not self._ends.closed:
                await self._pass_on(bus_id, lease)

    async def _free(self, bus_id: BusId, lease: Lease) -> None:
        lease.expires = inf
        lease.clear()
        lease.fault = None
        if lease.bound:
            lease.bound = False
            await self._host.unbind(bus_id)
        self.on_change()

    # -- parts

    def _queue_changed(self, lease: Lease) -> None:
        lease.queue.tell(lease.holder)
        self.on_change()

    def _lease(self, bus_id: BusId) -> Lease:
        return self._leases.setdefault(bus_id, Lease())

    def _find(self, bus_id: BusId) -> Device:
        device = self._source.find(bus_id)
        if device is None:
            raise errors.NotFound(f"no device at {bus_id}")
        return device

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """One device that fails keeps no other one from being given back."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a device could not be freed", exc_info=error)
