"""Who has which device, from when, and until when: the one arbiter of a server.

Rule of this file: the USB/IP connection is the lease. Every session that begins here ends here,
once, with the cause that was observed.

A device goes  free -> reserved (a client asked, `usbip attach` is on its way) -> session -> the
next one who waits, or grace (its driver waits a moment for the same client) -> free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from usb_remote import errors, events
from usb_remote.events import Event, Kind
from usb_remote.lease import ExportHost, Journal, Lease, Times, busy, refuse_protected
from usb_remote.model import BusId, Cause, Device, Holder, Request, State
from usb_remote.sessions import End, EndWatch, Ports, make_mortal
from usb_remote.sharing import DeviceSource
from usb_remote.usbip_wire import Record
from usb_remote.waiting import Tell, Waiter, Wish

log = logging.getLogger(__name__)

GONE = "the device was unplugged while you waited, or is not shared any more"


class Leases:
    """Decides, and keeps the sessions.

    Args:
        source: which devices there are, asked afresh at each decision.
        host: binds and exports them.
        journal: is told of sessions.
        times: how long things may take.

    Attributes:
        on_change: called when the holder of a device, or who waits for it, has changed.
        takeover: whether a client may take a device from another one.

    """

    def __init__(
        self, source: DeviceSource, host: ExportHost, journal: Journal, times: Times = Times()
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.takeover = True
        self._source = source
        self._host = host
        self._journal = journal
        self._times = times
        self._leases: dict[BusId, Lease] = {}
        self._ends = EndWatch(self._on_end)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life

    async def start(self) -> None:
        """Give devices that a crashed server left bound back to their drivers."""
        self._ends.start()
        for bus_id in self._host.list_bound():
            log.warning("%s was still bound; giving it back to its driver", bus_id)
            await self._host.release(bus_id)
            await self._host.wait_free(bus_id, self._times.reset)
            await self._host.unbind(bus_id)

    async def stop(self) -> None:
        """Drop all clients, give all devices back to their drivers."""
        if self._ends.closed:
            return
        self._ends.stop()
        self.send_away()
        await asyncio.gather(*self._tasks)  # each ends within Times.reset
        await asyncio.gather(*(self._give_back(bus_id) for bus_id in list(self._leases)))
        self._ends.close()

    def send_away(self) -> None:
        """Tell everybody who waits that there is nothing to wait for."""
        for lease in self._leases.values():
            lease.queue.dismiss(errors.Unreachable("the server is being stopped"))

    async def _give_back(self, bus_id: BusId) -> None:
        lease = self._leases[bus_id]
        await self._end(bus_id, lease, Cause.SERVER_STOPPED)
        await self._free(bus_id, lease)

    # -- what others want to know

    def with_holders(self, devices: Iterable[Device]) -> tuple[Device, ...]:
        """The same devices, with who holds them, who waits, and how it was before."""
        return tuple(self._described(device) for device in devices)

    def _described(self, device: Device) -> Device:
        lease = self._leases.get(device.bus_id)
        known: dict[str, Any] = {}
        if last := self._journal.last_session(device.id):
            known["last_session"] = last
        if lease is not None and lease.holder is not None:
            known |= {"state": State.IN_USE, "holder": lease.holder}
        if lease is not None and len(lease.queue):
            known["waiting"] = len(lease.queue)
        return device.model_copy(update=known) if known else device

    # -- what clients ask for on the control port

    async def reserve(self, device: Device, wish: Wish, tell: Tell | None = None) -> None:
        """Keep the device for this client until its `usbip attach` arrives; begin to bind it.

        Binding goes on while the client starts its tool. If the kernel refuses, the import fails,
        and :meth:`release` says why.

        Args:
            device: as it was listed.
            wish: who wants it, and how.
            tell: if given, wait for the device instead of being refused; called with the place.

        Raises:
            Busy: somebody else holds it.
            Refused: it is protected, or must not be taken over.
            SystemFault: no device can be bound here.

        """
        lease = self._lease(device.bus_id)
        async with lease.lock:
            device = self._find(device.bus_id)
            refuse_protected(device)
            self._host.check()
            if lease.is_open_to(wish.holder) or wish.force:
                await self._take(device, lease, wish)
                return
            if tell is None:
                raise busy(device, lease)
            waiter = Waiter(wish, device.id, tell)
            lease.queue.enter(waiter)
            self._queue_changed(lease)
        await self._turn_of(waiter, device.bus_id, lease)

    async def _take(self, device: Device, lease: Lease, wish: Wish) -> None:
        """To the end, also if the client goes away meanwhile: no session is left half ended."""
        taking = asyncio.ensure_future(self._take_now(device, lease, wish))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            while not taking.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([taking])
            self._spawn(self._lapse(device.bus_id, lease, wish))
            raise

    async def _take_now(self, device: Device, lease: Lease, wish: Wish) -> None:
        if lease.is_open_to(wish.holder):
            await self._end(device.bus_id, lease, Cause.CLIENT_LOST)
        else:
            await self._take_over(device, lease, wish.holder)
        self._hold(device.bus_id, lease, wish)

    async def _take_over(self, device: Device, lease: Lease, by: Holder) -> None:
        if not self.takeover:
            raise errors.Refused(
                f"{device.label} is in use by {lease.holder}, and this server does not allow "
                "taking it over",
                hint=f"ask for it: usb-remote release {device.label}",
            )
        log.warning("%s is taken over from %s by %s", device.label, lease.holder, by)
        await self._end(device.bus_id, lease, Cause.TAKEN_OVER, str(by))

    async def _turn_of(self, waiter: Waiter, bus_id: BusId, lease: Lease) -> None:
        """Wait for the turn; who goes away, at whatever moment, leaves nothing behind."""
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if lease.queue.leave(waiter):
                self._queue_changed(lease)
            elif waiter.turn.done() and not waiter.turn.cancelled():
                self._spawn(self._lapse(bus_id, lease, waiter.wish))
            raise

    async def _lapse(self, bus_id: BusId, lease: Lease, wish: Wish) -> None:
        async with lease.lock:
            if lease.wish is wish and lease.session is None:
                await self._pass_on(bus_id, lease)

    def _queue_changed(self, lease: Lease) -> None:
        lease.queue.tell(lease.holder)
        self.on_change()

    async def release(self, device: Device, holder: Holder) -> None:
        """Give a device back now, without grace; nothing happens if nobody has it.

        Raises:
            Busy: somebody else has it.
            SystemFault: it was reserved, but could not be bound.

        """
        lease = self._leases.get(device.bus_id)
        if lease is None:
            return
        async with lease.lock:
            if lease.holder is not None and not lease.holder.is_same_client(holder):
                raise busy(device, lease)
            fault = lease.fault
            await self._end(device.bus_id, lease, Cause.DETACHED)
            await self._pass_on(device.bus_id, lease)
        if fault is not None:
            raise fault

    def ask(self, device: Device, request: Request) -> Holder | None:
        """Ask the holder to let a device go; returns who that is."""
        lease = self._leases.get(device.bus_id)
        if lease is None or lease.holder is None:
            return None
        log.info("%s is asked for by %s: %s", device.label, request.by, request.message or "-")
        lease.holder = lease.holder.model_copy(update={"asked": request})
        self.on_change()
        return lease.holder

    # -- what the server's own rules say

    async def enforce(self, is_allowed: Callable[[str], bool]) -> None:
        """End every session that the rules do not allow any more."""
        shared = {device.bus_id for device in self._source.list_devices()}
        for bus_id, lease in list(self._leases.items()):
            async with lease.lock:
                holder = lease.holder
                if bus_id not in shared or (holder and not is_allowed(holder.address)):
                    await self._end(bus_id, lease, Cause.FORBIDDEN)
                    await self._pass_on(bus_id, lease)

    def forget_unplugged(self, devices: Iterable[Device]) -> None:
        """Send away who waits for a device that is not there any more."""
        there = {device.id for device in devices}
        for lease in list(self._leases.values()):
            if any(waiter.device_id not in there for waiter in lease.queue.waiters):
                lease.queue.dismiss(errors.NotFound(GONE))

    # -- sessions

    async def begin(self, connection: socket.socket, bus_id: BusId, address: str) -> Record:
        """Start a session on a connection whose client wants this device.

        From now on the connection is ours and the kernel's.

        Raises:
            NotFound, Busy, Refused, SystemFault.

        """
        if bus_id not in self._leases:
            self._find(bus_id)  # so that no lease is made for what never was
        lease = self._lease(bus_id)
        async with lease.lock:
            return await self._begin(connection, bus_id, lease, address)

    async def _begin(
        self, connection: socket.socket, bus_id: BusId, lease: Lease, address: str
    ) -> Record:
        device = self._find(bus_id)
        refuse_protected(device)
        if lease.session is not None or (lease.holder and lease.holder.address != address):
            raise busy(device, lease)
        await lease.bind(self._host, bus_id)
        try:
            record = self._source.record(bus_id)
            if record is None:
                raise errors.NotFound(f"{bus_id} has just been unplugged")
            make_mortal(connection)
            ports = Ports.of(connection)
            await self._host.export(bus_id, connection.fileno())
        except (errors.UsbRemoteError, OSError):
            if lease.holder is None:  # a reservation would end by itself
                self._expire_in(self._times.grace, bus_id, lease)
            raise
        self._ends.add(connection, ports)
        self._begin_session(connection, device, lease, address)
        return record

    def _begin_session(
        self, connection: socket.socket, device: Device, lease: Lease, address: str
    ) -> None:
        now = datetime.now(UTC)
        wish = lease.wish or Wish(Holder(host=address, address=address))
        until = now + timedelta(seconds=wish.duration) if wish.duration else None
        asked = lease.holder.asked if lease.holder else None
        lease.expires, lease.fault = inf, None
        lease.session, lease.device = connection, device
        lease.holder = wish.holder.model_copy(update={"since": now, "until": until, "asked": asked})
        if wish.duration:
            self._limit(wish.duration, device.bus_id, lease)
        event = events.of_device(Kind.ATTACHED, device, now, holder=lease.holder)
        asyncio.get_running_loop().call_soon(self._tell_attached, event)  # the client goes first

    def _tell_attached(self, event: Event) -> None:
        self._journal.record(event)
        log.info("%s attached by %s (%s)", event.bus_id, event.holder, event.name or event.device)
        self.on_change()

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

    def has(self, connection: socket.socket) -> bool:
        """Whether a session owns this connection."""
        return any(lease.session is connection for lease in self._leases.values())

    # -- how sessions end

    def _on_end(self, connection: socket.socket, end: End) -> None:
        for bus_id, lease in self._leases.items():
            if lease.session is connection:
                self._spawn(self._ended(bus_id, connection, end))

    async def _ended(self, bus_id: BusId, session: socket.socket, end: End) -> None:
        """The connection is down: the client let go, vanished, or the device was unplugged."""
        lease = self._lease(bus_id)
        async with lease.lock:
            if lease.session is session:
                await self._end(bus_id, lease, end)
                await self._pass_on(bus_id, lease, self._times.grace)

    async def _end(
        self, bus_id: BusId, lease: Lease, why: Cause | End, by: str | None = None
    ) -> None:
        """Close a session and wait for the kernel to have the device ready again."""
        session, holder, device = lease.session, lease.holder, lease.device
        if session is None or holder is None or device is None:
            lease.holder = lease.wish = None
            return
        self._ends.remove(session)
        lease.stop_timers()
        await self._host.release(bus_id)
        await self._host.wait_free(bus_id, self._times.reset)
        session.close()
        lease.session = lease.holder = lease.wish = lease.device = None
        cause = why if isinstance(why, Cause) else self._cause(device, why)
        self._record_end(device, holder, cause, by)

    def _cause(self, device: Device, end: End) -> Cause:
        """What TCP and the bus together tell: a device that is gone was unplugged."""
        try:
            is_there = self._find(device.bus_id).devnum == device.devnum
        except errors.NotFound:
            is_there = False
        if end is End.BY_KERNEL or not is_there:
            return Cause.DEVICE_RESET if is_there else Cause.UNPLUGGED
        return Cause.DETACHED if end is End.BY_PEER else Cause.CLIENT_LOST

    def _record_end(self, device: Device, holder: Holder, cause: Cause, by: str | None) -> None:
        now = datetime.now(UTC)
        seconds = (now - holder.since).total_seconds() if holder.since else 0.0
        event = events.of_device(
            Kind.ENDED, device, now, holder=holder, cause=cause, by=by, seconds=seconds
        )
        log.info("%s is free again (was with %s): %s", device.bus_id, holder, cause)
        self._journal.record(event)

    async def _pass_on(self, bus_id: BusId, lease: Lease, grace: float = 0) -> None:
        """Reserve a device that has just become free for the next one, else free it."""
        lease.holder = lease.wish = None
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
            if device is None or device.id != waiter.device_id:
                waiter.turn.set_exception(errors.NotFound(GONE))
                continue
            waiter.turn.set_result(None)
            self._hold(bus_id, lease, waiter.wish)
            return
        if grace:
            self._expire_in(grace, bus_id, lease)
            self.on_change()
        else:
            await self._free(bus_id, lease)

    def _hold(self, bus_id: BusId, lease: Lease, wish: Wish) -> None:
        lease.wish, lease.holder = wish, wish.holder
        lease.fault = None
        self._expire_in(self._times.reservation, bus_id, lease)
        self._spawn(self._bind_ahead(bus_id, lease))
        self._queue_changed(lease)

    async def _bind_ahead(self, bus_id: BusId, lease: Lease) -> None:
        async with lease.lock:
            if lease.holder is not None and lease.session is None:
                try:
                    await lease.bind(self._host, bus_id)
                except errors.UsbRemoteError as error:  # for release, or who imports
                    log.warning("%s", error)

    def _expire_in(self, seconds: float, bus_id: BusId, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        lease.expires = loop.time() + seconds
        loop.call_at(lease.expires, lambda: self._spawn(self._expire(bus_id)))

    async def _expire(self, bus_id: BusId) -> None:
        """Nobody came (back) in time; if somebody did, the moment was moved."""
        lease = self._lease(bus_id)
        async with lease.lock:
            if asyncio.get_running_loop().time() >= lease.expires and not self._ends.closed:
                await self._pass_on(bus_id, lease)

    async def _free(self, bus_id: BusId, lease: Lease) -> None:
        lease.expires = inf
        lease.holder = lease.wish = lease.fault = None
        if lease.bound:
            lease.bound = False
            await self._host.unbind(bus_id)
        self.on_change()

    # -- parts

    def _lease(self, bus_id: BusId) -> Lease:
        return self._leases.setdefault(bus_id, Lease())

    def _find(self, bus_id: BusId) -> Device:
        for device in self._source.list_devices():
            if device.bus_id == bus_id:
                return device
        raise errors.NotFound(f"no device at {bus_id}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
