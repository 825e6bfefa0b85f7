"""Who has which device, from when, and until when: the one arbiter of a server.

Rule of this file: the USB/IP connection is the lease. What clients and rules want is decided here;
how a device then gets from one to the next is for handover.py.

A device goes  free -> reserved (a client asked, `usbip attach` is on its way) -> session -> the
next one who waits, or grace (its driver waits a moment for the same client) -> free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from usb_remote import errors, events
from usb_remote.events import Event, Kind
from usb_remote.handover import GONE, HandOver
from usb_remote.lease import Lease, busy, refuse_another, refuse_protected
from usb_remote.model import Cause, Device, Holder, Request, State
from usb_remote.rules import Networks
from usb_remote.sessions import Ports, make_mortal
from usb_remote.survivors import Survivor
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId
from usb_remote.waiting import Tell, Waiter, Wish

log = logging.getLogger(__name__)

Accept = Callable[[Record], None]


class Leases(HandOver):
    """Decides, and keeps the sessions.

    Attributes:
        allowed: networks whose clients may have devices.
        takeover: whether a client may take a device from another one.
        leaves: whether, when this server stops, its sessions go on, for the next one to adopt.

    """

    takeover = True
    leaves = False
    allowed = Networks()

    # -- life

    async def start(self, survivors: Iterable[Survivor] = ()) -> None:
        """Take up what outlived the server before; give what else is bound back to its driver."""
        self._ends.start()
        for survivor in survivors:
            self._adopt(*survivor)
        for bus_id in set(self._host.list_bound()) - set(self._leases):
            async with self._lease(bus_id).lock:
                log.warning("%s was still bound; giving it back to its driver", bus_id)
                await self._host.release(bus_id)
                await self._host.wait_free(bus_id, self._times.reset)
                await self._host.unbind(bus_id)

    async def stop(self) -> None:
        """Drop all clients, give all devices back to their drivers; except what is left."""
        if self._ends.closed:
            return
        self._ends.stop()
        self.send_away()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # each ends within Times.reset
        for bus_id in self._without_left():
            self._spawn(self._give_back(bus_id))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ends.close()

    def _without_left(self) -> list[BusId]:
        """Those to be given back; of the others we close our end, and the kernel has its own."""
        left = {b: lease for b, lease in self._leases.items() if self.leaves and lease.session}
        for lease in left.values():
            assert lease.session is not None
            lease.stop_timers()
            self._ends.remove(lease.session)
            lease.session.close()
        return [bus_id for bus_id in self._leases if bus_id not in left]

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
        if lease is not None and (holder := lease.leaving or lease.holder):
            known |= {"state": State.IN_USE, "holder": holder}
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
            NotFound: another device is in its place by now.
            Refused: it is protected, or must not be taken over.
            SystemFault: no device can be bound here.

        """
        lease = self._lease(device.bus_id)
        async with lease.lock:
            listed, device = device, self._find(device.bus_id)
            refuse_another(device, listed)
            refuse_protected(device)
            self._host.check()
            is_open = await self._is_open(lease, wish.holder)
            if is_open or wish.force:
                await self._take(device, lease, wish, is_open)
                return
            if tell is None:
                raise busy(device, lease)
            waiter = Waiter(wish, device, tell)
            lease.queue.enter(waiter)
            self._queue_changed(lease)
        await self._turn_of(waiter, device.bus_id, lease)

    async def _take(self, device: Device, lease: Lease, wish: Wish, is_open: bool) -> None:
        """To the end, also if the client goes away meanwhile: no session is left half ended."""
        taking = asyncio.ensure_future(self._take_now(device, lease, wish, is_open))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            while not taking.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([taking])
            self._spawn(self._lapse(device.bus_id, lease, wish))
            raise

    async def _take_now(self, device: Device, lease: Lease, wish: Wish, is_open: bool) -> None:
        if not is_open:
            await self._take_over(device, lease, wish.holder)
        elif lease.session is not None:
            how = self._ends.how(lease.session)
            await self._end(device.bus_id, lease, how, call_next=False)
        self._hold(device, lease, wish)

    async def _is_open(self, lease: Lease, holder: Holder) -> bool:
        """Nobody has it; or the same client, which lost what it had: its machine was restarted."""
        if not lease.is_open_to(holder):
            return False
        return lease.session is None or not await self._ends.is_alive(lease.session)

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

    async def release(self, device: Device, holder: Holder, since: datetime | None = None) -> None:
        """Give a device back now, without grace; nothing happens if nobody has it.

        Args:
            device: which one.
            holder: who gives it back.
            since: if given, when the session began that shall end; one after it goes on.

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
            if since is not None and lease.holder is not None and lease.holder.since != since:
                return
            fault = lease.fault
            await self._end(device.bus_id, lease, Cause.DETACHED)
            await self._pass_on(device.bus_id, lease)
        if fault is not None:
            raise fault

    def ask(self, device: Device, request: Request) -> None:
        """Ask the holder, if there is one, to let a device go."""
        lease = self._leases.get(device.bus_id)
        if lease is None or lease.holder is None:
            return
        log.info("%s is asked for by %s: %s", device.label, request.by, request.message or "-")
        lease.holder = lease.holder.model_copy(update={"asked": request})
        self.on_change()

    # -- what the server's own rules say

    async def enforce(self) -> None:
        """End every session that the rules do not allow any more."""
        for bus_id, lease in list(self._leases.items()):
            async with lease.lock:
                if self._is_forbidden(bus_id, lease):
                    await self._end(bus_id, lease, Cause.FORBIDDEN)
                    await self._pass_on(bus_id, lease)

    def _is_forbidden(self, bus_id: BusId, lease: Lease) -> bool:
        """What was pulled is not forbidden: its session ends by itself."""
        if lease.holder is None or not self._is_there(lease.device):
            return False
        is_hidden = self._source.find(bus_id) is None
        return is_hidden or lease.holder.address not in self.allowed

    def forget_unplugged(self, devices: Iterable[Device]) -> None:
        """Send away who waits for a device that is not there any more."""
        there = {device.bus_id: device for device in devices}
        for bus_id, lease in self._leases.items():
            if lease.queue.dismiss(errors.NotFound(GONE), there.get(bus_id)):
                lease.queue.tell(lease.holder)

    # -- sessions

    async def begin(
        self, connection: socket.socket, bus_id: BusId, address: str, accept: Accept
    ) -> None:
        """Start a session on a connection whose client wants this device.

        From now on the connection is ours and the kernel's.

        Args:
            connection: on which nothing was read beyond the request.
            bus_id: of the device.
            address: of the client.
            accept: called once, with what the client is told of the device that it gets. That is
                when the kernel has it; but whoever waited for it is told while the kernel resets
                the device, because theirs needs longer to look at its port, and what it sends is
                kept in the connection.

        Raises:
            NotFound, Busy, Refused, SystemFault: also after ``accept``, should the reset fail.

        """
        if bus_id not in self._leases:
            self._find(bus_id)  # so that no lease is made for what never was
        lease = self._lease(bus_id)
        wish = lease.wish
        early = self._known_record(bus_id, lease, address) if lease.is_called else None
        if early is not None:
            accept(early)
        async with lease.lock:
            try:
                record = await self._begin(connection, bus_id, lease, address)
            except errors.UsbRemoteError as error:
                if early is not None and lease.wish is wish and lease.session is None:
                    lease.fault = error  # its client will ask
                raise
        if early is None:
            accept(record)

    def _known_record(self, bus_id: BusId, lease: Lease, address: str) -> Record | None:
        """What the client before was told, if it is the same plug of the device.

        To ask sysfs again (manufacturer_show …) would mean to wait for the end of the reset.
        """
        device = self._admitted(bus_id, lease, address)
        known = lease.record
        return known if known is not None and known.devnum == device.devnum else None

    def _admitted(self, bus_id: BusId, lease: Lease, address: str) -> Device:
        """The device, if it may go to this client."""
        if address not in self.allowed:  # since it connected
            raise errors.Refused(f"{address} may not have devices of this server any more")
        device = self._find(bus_id)
        refuse_protected(device)
        if lease.holder and lease.holder.address != address:
            raise busy(device, lease)
        refuse_another(device, lease.device)
        return device

    async def _begin(
        self, connection: socket.socket, bus_id: BusId, lease: Lease, address: str
    ) -> Record:
        device = self._admitted(bus_id, lease, address)
        if lease.session is not None:
            raise busy(device, lease)
        await lease.bind(self._host, bus_id)
        try:
            record = self._source.record(bus_id)
            if record is None or record.devnum != device.devnum:
                raise errors.NotFound(f"{bus_id} has just been unplugged")
            make_mortal(connection)
            ports = Ports.of(connection)
            await self._host.export(bus_id, connection.fileno())
        except (errors.UsbRemoteError, OSError):
            if lease.holder is None:  # a reservation would end by itself
                self._expire_in(self._times.grace, bus_id, lease)
            raise
        lease.record = record
        self._ends.add(connection, ports)
        self._begin_session(connection, device, lease, address)
        return record

    def _adopt(self, connection: socket.socket, device: Device, holder: Holder) -> None:
        """Go on with a session that another process has begun."""
        try:
            self._ends.add(connection, Ports.of(connection))
        except errors.Unreachable:
            connection.close()
            return  # it ended at this very moment; the device is given back as any other
        lease = self._lease(device.bus_id)
        lease.expires = inf
        lease.session, lease.device, lease.holder, lease.bound = connection, device, holder, True
        if holder.until:
            left = (holder.until - datetime.now(UTC)).total_seconds()
            self._limit(max(left, 0), device.bus_id, lease)
        log.info("%s goes on with %s", device.bus_id, holder)

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
        if self.keeper is not None:
            self.keeper.keep(device, connection)
        event = events.of_device(Kind.ATTACHED, device, now, holder=lease.holder)
        asyncio.get_running_loop().call_soon(self._tell_attached, event)  # the client goes first

    def _tell_attached(self, event: Event) -> None:
        self._journal.record(event)
        log.info("%s attached by %s (%s)", event.bus_id, event.holder, event.name or event.device)
        self.on_change()

    def has(self, connection: socket.socket) -> bool:
        """Whether a session owns this connection."""
        return any(lease.session is connection for lease in self._leases.values())
