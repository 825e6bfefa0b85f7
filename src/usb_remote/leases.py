"""Who has which device, from when, and until when: the one arbiter of a server.

Rule of this file: the USB/IP connection is the lease. The kernel (or a virtual device) owns its
bytes; we keep the socket, never read it, and wait for its end.

A device goes  free -> reserved (a client asked, `usbip attach` is on its way) -> session -> grace
(its driver waits a moment for the same client) -> free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any, Protocol

from usb_remote import errors
from usb_remote.model import BusId, Device, Holder, State
from usb_remote.usbip_wire import Record

log = logging.getLogger(__name__)

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 3, 1, 5
USER_TIMEOUT_MS = 8000
"""A peer that vanished is noticed after 8 s at the latest (tcp(7); the promise is 10 s)."""


@dataclass(frozen=True)
class Times:
    """How long things may take, in seconds.

    Attributes:
        reservation: between our `attach` reply and the client's `usbip attach`.
        grace: that a device stays bound after its session, for the same client to come back.
        reset: that the kernel may take to reset a device after a session.

    """

    reservation: float = 15.0
    grace: float = 2.0
    reset: float = 5.0


class DeviceSource(Protocol):
    """Where devices come from: udev.Devices or virtual.VirtualDevices."""

    def list_devices(self) -> tuple[Device, ...]: ...
    def record(self, bus_id: BusId) -> Record | None: ...


class ExportHost(Protocol):
    """What exports them: usbip.Host or virtual.VirtualDevices."""

    def check(self) -> None: ...
    async def load(self) -> None: ...
    def list_bound(self) -> list[BusId]: ...
    async def bind(self, bus_id: BusId) -> None: ...
    async def unbind(self, bus_id: BusId) -> None: ...
    async def export(self, bus_id: BusId, fd: int) -> None: ...
    async def release(self, bus_id: BusId) -> None: ...
    async def wait_free(self, bus_id: BusId, timeout: float) -> None: ...


@dataclass
class _Lease:
    """What the exporter knows of one device that is not simply free."""

    holder: Holder | None = None
    session: socket.socket | None = None
    bound: bool = False
    fault: errors.UsbRemoteError | None = None
    expires: float = inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leases:
    """Decides, and keeps the sessions.

    Args:
        source: which devices there are, asked afresh at each decision.
        host: binds and exports them.
        times: how long things may take.

    Attributes:
        on_change: called when the holder of a device has changed.

    """

    def __init__(self, source: DeviceSource, host: ExportHost, times: Times = Times()) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._source = source
        self._host = host
        self._times = times
        self._leases: dict[BusId, _Lease] = {}
        self._ends: dict[int, tuple[BusId, socket.socket]] = {}
        self._epoll = select.epoll()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life

    async def start(self) -> None:
        """Give devices that a crashed server left bound back to their drivers."""
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_ends)
        for bus_id in self._host.list_bound():
            log.warning("%s was still bound; giving it back to its driver", bus_id)
            await self._host.release(bus_id)
            await self._host.wait_free(bus_id, self._times.reset)
            await self._host.unbind(bus_id)

    async def stop(self) -> None:
        """Drop all clients, give all devices back to their drivers."""
        if self._epoll.closed:
            return
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        await asyncio.gather(*self._tasks)  # each ends within Times.reset
        await asyncio.gather(*(self._give_back(bus_id) for bus_id in list(self._leases)))
        self._epoll.close()

    async def _give_back(self, bus_id: BusId) -> None:
        lease = self._leases[bus_id]
        await self._end(bus_id, lease)
        await self._free(bus_id, lease)

    # -- what others want to know

    def with_holders(self, devices: Iterable[Device]) -> tuple[Device, ...]:
        """The same devices, those that somebody holds as in_use."""
        return tuple(
            d.model_copy(update={"state": State.IN_USE, "holder": holder})
            if (holder := self._holder(d.bus_id))
            else d
            for d in devices
        )

    def _holder(self, bus_id: BusId) -> Holder | None:
        lease = self._leases.get(bus_id)
        return lease.holder if lease else None

    # -- what clients ask for on the control port

    async def reserve(self, device: Device, holder: Holder) -> None:
        """Keep the device for this client until its `usbip attach` arrives; begin to bind it.

        Binding goes on while the client starts its tool. If the kernel refuses, the import fails,
        and :meth:`release` says why.

        Raises:
            Busy: somebody else holds it.
            Refused: it is protected.
            SystemFault: no device can be bound here.

        """
        lease = self._lease(device.bus_id)
        async with lease.lock:
            device = self._find(device.bus_id)
            _refuse_protected(device)
            _refuse_others(device, lease, holder)
            await self._end(device.bus_id, lease)
            self._host.check()
            self._hold(device.bus_id, lease, holder)
        self._spawn(self._bind_ahead(device.bus_id, lease))

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
            _refuse_others(device, lease, holder)
            fault = lease.fault
            await self._end(device.bus_id, lease)
            await self._free(device.bus_id, lease)
        if fault is not None:
            raise fault

    def _hold(self, bus_id: BusId, lease: _Lease, holder: Holder) -> None:
        lease.holder = holder
        lease.fault = None
        self._expire_in(self._times.reservation, bus_id, lease)
        self.on_change()

    async def _bind_ahead(self, bus_id: BusId, lease: _Lease) -> None:
        async with lease.lock:
            if lease.holder is not None and lease.session is None:
                with contextlib.suppress(errors.UsbRemoteError):  # kept in the lease, for release
                    await self._bind(bus_id, lease)

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
        self, connection: socket.socket, bus_id: BusId, lease: _Lease, address: str
    ) -> Record:
        device = self._find(bus_id)
        _refuse_protected(device)
        if lease.session is not None or (lease.holder and lease.holder.address != address):
            raise _busy(device, lease.holder)
        await self._bind(bus_id, lease)
        record = self._source.record(bus_id)
        if record is None:
            raise errors.NotFound(f"{bus_id} has just been unplugged")
        _make_mortal(connection)
        await self._host.export(bus_id, connection.fileno())
        self._begin_session(connection, bus_id, lease, address)
        return record

    def _begin_session(
        self, connection: socket.socket, bus_id: BusId, lease: _Lease, address: str
    ) -> None:
        lease.expires = inf
        lease.fault = None
        lease.session = connection
        holder = lease.holder or Holder(host=address, address=address)
        lease.holder = holder.model_copy(update={"since": datetime.now(UTC)})
        self._ends[connection.fileno()] = (bus_id, connection)
        self._epoll.register(
            connection.fileno(), select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        )
        log.info("%s attached by %s", bus_id, lease.holder)
        self.on_change()

    def has(self, connection: socket.socket) -> bool:
        """Whether a session owns this connection."""
        return any(lease.session is connection for lease in self._leases.values())

    # -- how sessions end

    def _on_ends(self) -> None:
        for fd, _events in self._epoll.poll(0):
            self._epoll.unregister(fd)
            self._spawn(self._ended(*self._ends.pop(fd)))

    async def _ended(self, bus_id: BusId, session: socket.socket) -> None:
        """The connection is down: the client let go, vanished, or the device was unplugged."""
        lease = self._lease(bus_id)
        async with lease.lock:
            if lease.session is session:
                await self._end(bus_id, lease)
                self._expire_in(self._times.grace, bus_id, lease)

    async def _end(self, bus_id: BusId, lease: _Lease) -> None:
        """Close a session and wait for the kernel to have the device ready again."""
        session, holder = lease.session, lease.holder
        if session is None:
            return
        with contextlib.suppress(KeyError, OSError):  # not there if its end woke us
            del self._ends[session.fileno()]
            self._epoll.unregister(session.fileno())
        await self._host.release(bus_id)
        await self._host.wait_free(bus_id, self._times.reset)
        session.close()
        lease.session = lease.holder = None
        log.info("%s is free again (was with %s)", bus_id, holder)
        self.on_change()

    def _expire_in(self, seconds: float, bus_id: BusId, lease: _Lease) -> None:
        loop = asyncio.get_running_loop()
        lease.expires = loop.time() + seconds
        loop.call_at(lease.expires, lambda: self._spawn(self._expire(bus_id)))

    async def _expire(self, bus_id: BusId) -> None:
        """Nobody came (back) in time; if somebody did, the moment was moved."""
        lease = self._lease(bus_id)
        async with lease.lock:
            if asyncio.get_running_loop().time() >= lease.expires and not self._epoll.closed:
                await self._free(bus_id, lease)

    async def _free(self, bus_id: BusId, lease: _Lease) -> None:
        lease.expires = inf
        lease.holder = lease.fault = None
        if lease.bound:
            lease.bound = False
            await self._host.unbind(bus_id)
        self.on_change()

    # -- parts

    def _lease(self, bus_id: BusId) -> _Lease:
        return self._leases.setdefault(bus_id, _Lease())

    def _find(self, bus_id: BusId) -> Device:
        for device in self._source.list_devices():
            if device.bus_id == bus_id:
                return device
        raise errors.NotFound(f"no device at {bus_id}")

    async def _bind(self, bus_id: BusId, lease: _Lease) -> None:
        lease.bound = True
        try:
            await self._host.bind(bus_id)
        except errors.UsbRemoteError as error:
            lease.bound = False
            lease.fault = error
            log.warning("%s", error)
            raise

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refuse_protected(device: Device) -> None:
    if device.state is State.PROTECTED:
        raise errors.Refused(f"{device.label} is protected: {device.reason}")


def _refuse_others(device: Device, lease: _Lease, holder: Holder) -> None:
    """The holder may come back (its machine may have crashed); nobody else gets in."""
    if lease.holder and not lease.holder.is_same_client(holder):
        raise _busy(device, lease.holder)


def _busy(device: Device, holder: Holder | None) -> errors.Busy:
    since = f" since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder and holder.since else ""
    return errors.Busy(
        f"{device.label} ({device.description}) is in use by {holder}{since}",
        hint="ask them, or wait until usb-remote watch shows it as available",
        holder=holder.model_dump(mode="json") if holder else None,
    )


def _make_mortal(connection: socket.socket) -> None:
    """Blocking as the kernel expects it, without delay, and dead when the peer is."""
    connection.setblocking(True)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    ):
        connection.setsockopt(level, option, value)
