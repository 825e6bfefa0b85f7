"""usbip-host and the bus below it, in memory; for whatever takes a `lease.ExportHost`.

What belongs here: what the kernel of a server does with devices, as far as this process can see it;
tests/contracts/exporting.py holds it to that. The sockets of sessions are real ones. Time is that
of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from usb_remote import errors
from usb_remote.model import Device, State, with_ids
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId

FREE, USED = 1, 2
"""``usbip_status`` (enum usbip_device_status, drivers/usb/usbip/usbip_common.h)."""
OWN, USBIP = "own", "usbip-host"
RESET = 0.1
"""Seconds in which the kernel resets a device after a session; 50 to 150 ms were measured."""
_LOOK_AGAIN = 0.005


@dataclass
class FakeHost:
    """What is plugged in, which driver has it, and whose socket.

    Attributes:
        plugged: what is at each place.
        drivers: which driver has it; None for none.
        sessions: the kernel's own descriptor of each session's socket.
        delay: seconds that each step of the kernel takes; 0 for one turn of the event loop.
        reset: seconds that the reset after a session takes.
        free: cleared while no reset comes to its end.
        room: devices for which usbip-host has an entry (MAX_BUSID of drivers/usb/usbip/stub.h).
        fails: what the kernel refuses, with which number: "bind", "export".
        broken: places where `unbind` meets a bug of the kernel.
        fault: what :meth:`check` objects.
        wrongs: what nobody should have asked of the kernel.
        calls: what was asked of it, and for which place.

    """

    plugged: dict[BusId, Device] = field(default_factory=dict)
    drivers: dict[BusId, str | None] = field(default_factory=dict)
    sessions: dict[BusId, socket.socket] = field(default_factory=dict)
    delay: float = 0.0
    reset: float = RESET
    free: asyncio.Event = field(default_factory=asyncio.Event)
    room: int = 16
    fails: dict[str, int] = field(default_factory=dict)
    broken: set[BusId] = field(default_factory=set)
    fault: errors.SystemFault | None = None
    wrongs: list[str] = field(default_factory=list)
    calls: list[tuple[str, BusId]] = field(default_factory=list)
    devnum: int = 1

    def __post_init__(self) -> None:
        self.free.set()
        self._entries: set[BusId] = set()
        self._resets: dict[BusId, float] = {}
        self._leaving: set[BusId] = set()

    # -- a hand at the bus

    def plug(
        self,
        bus_id: BusId,
        serial: str,
        state: State = State.AVAILABLE,
        driver: str | None = OWN,
    ) -> Device:
        """Whatever was there is pulled out."""
        if bus_id in self.plugged:
            self.pull(bus_id)
        self.devnum += 1
        device = self.plugged[bus_id] = Device(
            bus_id=bus_id,
            vendor_id="1209",
            product_id="0001",
            serial=serial,
            devnum=self.devnum,
            state=state,
            reason=None if state is State.AVAILABLE else "sda1 is mounted at /",
        )
        self.drivers[bus_id] = driver
        return device

    def pull(self, bus_id: BusId) -> None:
        self.begin_pull(bus_id)
        self.end_pull(bus_id)

    def begin_pull(self, bus_id: BusId) -> None:
        """The driver lets go: its session ends and its status vanishes; sysfs has it still."""
        self._leaving.add(bus_id)
        self._drop(bus_id)
        self._resets.pop(bus_id, None)

    def end_pull(self, bus_id: BusId) -> None:
        self._leaving.discard(bus_id)
        del self.plugged[bus_id], self.drivers[bus_id]

    def leave_behind(self, bus_id: BusId) -> socket.socket:
        """A server was killed in the middle of a session, and the kernel goes on with it.

        Returns the client's end.
        """
        client, self.sessions[bus_id] = socket.socketpair()
        self._entries.add(bus_id)
        self.drivers[bus_id] = USBIP
        return client

    def notice_end(self, bus_id: BusId) -> None:
        """The kernel reads the end of a session's connection, and resets the device."""
        if self._drop(bus_id):
            self._resets[bus_id] = self._time() + self.reset

    def close(self) -> None:
        while self.sessions:
            self.sessions.popitem()[1].close()

    def _drop(self, bus_id: BusId) -> bool:
        session = self.sessions.pop(bus_id, None)
        if session is None:
            return False
        with contextlib.suppress(OSError):  # the peer may have been faster
            session.shutdown(socket.SHUT_RDWR)
        session.close()
        return True

    # -- as a source of devices

    def list_devices(self) -> tuple[Device, ...]:
        return with_ids(self.plugged.values())

    def find(self, bus_id: BusId) -> Device | None:
        return next((d for d in self.list_devices() if d.bus_id == bus_id), None)

    def record(self, bus_id: BusId) -> Record | None:
        if bus_id not in self.plugged:
            return None
        return Record("", bus_id, 1, self.plugged[bus_id].devnum, 3, 4, 5, 6, (0, 0, 0), 1, 1, ())

    # -- what one can see

    @property
    def bound(self) -> set[BusId]:
        return {bus_id for bus_id, driver in self.drivers.items() if driver == USBIP}

    def status(self, bus_id: BusId) -> int | None:
        """None while it is not bound, and from the moment in which it is pulled."""
        if bus_id not in self.bound or bus_id in self._leaving:
            return None
        return USED if bus_id in self.sessions or self._is_reset(bus_id) else FREE

    def look(self, bus_id: BusId) -> None:
        """The kernel sees by itself that a client has hung up."""
        session = self.sessions.get(bus_id)
        if session is not None:
            poll = select.poll()
            poll.register(session, select.POLLRDHUP)
            if poll.poll(0):
                self.notice_end(bus_id)

    def _is_reset(self, bus_id: BusId) -> bool:
        ready = self._resets.get(bus_id)
        if ready is None:
            return False
        if self.free.is_set() and self._time() >= ready:
            del self._resets[bus_id]
            return False
        return True

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    # -- as usbip-host, which goes on with what it was told even if nobody waits for it any more

    async def _kernel(self, *work: Callable[[], None]) -> None:
        async def later() -> None:
            for step in work:
                await asyncio.sleep(self.delay)
                step()
            await asyncio.sleep(self.delay)

        await asyncio.shield(asyncio.ensure_future(later()))

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def load(self) -> None: ...

    def list_bound(self) -> list[BusId]:
        return sorted(self.bound)

    async def bind(self, bus_id: BusId) -> None:
        self.calls.append(("bind", bus_id))
        if bus_id in self.bound:
            return
        self.check()
        if bus_id in self.plugged and self.plugged[bus_id].state is State.PROTECTED:
            self.wrongs.append(f"{bus_id} is protected, and was to be bound")
        await self._kernel(
            lambda: self._enter(bus_id),
            lambda: self._unbind_own(bus_id),
            lambda: self._bind_to_usbip(bus_id),
        )

    def _enter(self, bus_id: BusId) -> None:
        full = len(self._entries - {bus_id}) >= self.room
        if full or self.fails.get("bind") == errno.ENOMEM:
            raise errors.SystemFault(
                f"cannot bind {bus_id}: usbip-host has room for 16 devices, and all are taken"
            )
        self._entries.add(bus_id)

    def _unbind_own(self, bus_id: BusId) -> None:
        if self.drivers.get(bus_id) == OWN:
            self.drivers[bus_id] = None

    def _bind_to_usbip(self, bus_id: BusId) -> None:
        number = self.fails.get("bind", 0 if bus_id in self.plugged else errno.ENODEV)
        if number:
            self._probe(bus_id)
            raise errors.SystemFault(f"cannot bind {bus_id}: {os.strerror(number)} (bind)")
        if self.plugged[bus_id].state is State.PROTECTED:  # what guards it came meanwhile
            self._probe(bus_id)
            raise errors.Refused(f"{bus_id} is protected")
        self.drivers[bus_id] = USBIP

    def _probe(self, bus_id: BusId) -> None:
        if bus_id in self.plugged and self.drivers[bus_id] is None:
            self.drivers[bus_id] = OWN

    async def unbind(self, bus_id: BusId) -> None:
        self.calls.append(("unbind", bus_id))
        if bus_id in self.broken:
            raise OSError("a bug of the kernel")
        await self._kernel(lambda: self._unbind(bus_id))

    def _unbind(self, bus_id: BusId) -> None:
        if bus_id in self.bound:
            if self.status(bus_id) == USED:
                self.wrongs.append(f"{bus_id} was unbound while it was in a session or a reset")
            self._drop(bus_id)
            self._resets.pop(bus_id, None)
            self._entries.discard(bus_id)
            self.drivers[bus_id] = None
        self._probe(bus_id)

    async def export(self, bus_id: BusId, fd: int) -> None:
        """The write waits for the end of a reset."""
        self.calls.append(("export", bus_id))
        self.look(bus_id)
        while bus_id in self.plugged and self._is_reset(bus_id):  # noqa: ASYNC110 - as above
            await asyncio.sleep(_LOOK_AGAIN)
        await self._kernel(lambda: self._export(bus_id, fd))

    def _export(self, bus_id: BusId, fd: int) -> None:
        if bus_id in self.sessions:
            self.wrongs.append(f"{bus_id} was exported to a second one")
            raise errors.Busy(f"{bus_id} is in use")
        number = self.fails.get("export", 0 if self.status(bus_id) == FREE else errno.ENOENT)
        if number:
            raise errors.SystemFault(f"cannot export {bus_id}: {os.strerror(number)}")
        self.sessions[bus_id] = socket.socket(fileno=os.dup(fd))

    async def release(self, bus_id: BusId) -> None:
        self.calls.append(("release", bus_id))
        await self._kernel(lambda: self.notice_end(bus_id))

    async def wait_free(self, bus_id: BusId, timeout: float) -> None:
        """Until it is reset, or out; a device that is bound, but has no status, is on its way."""
        self.calls.append(("wait_free", bus_id))
        await asyncio.sleep(self.delay)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._is_in_between(bus_id):  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(_LOOK_AGAIN)

    def _is_in_between(self, bus_id: BusId) -> bool:
        self.look(bus_id)
        status = self.status(bus_id)
        return status == USED or (status is None and bus_id in self.bound)
