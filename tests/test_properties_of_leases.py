"""Whatever clients, hands and rules do, and in whatever order: no device is lost, none given twice.

A machine of hypothesis plays clients, the bus and the clock against real leases. Sockets are real
ones; the kernel's side is a small bus whose every step takes its time, so that each step of one
thing may fall into the middle of another. The clock can be put forward, so nothing is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from usb_remote import errors
from usb_remote.events import Event, Kind
from usb_remote.lease import Times
from usb_remote.leases import Leases
from usb_remote.model import Cause, Device, Ended, Holder, Request, State, with_ids
from usb_remote.rules import Networks
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId
from usb_remote.waiting import Wish

HOST = "127.0.0.1"
BUS_IDS = (BusId("1-1"), BusId("1-2"))
TIMES = Times()
LONG = TIMES.reservation + TIMES.grace + 1

bus_ids = st.sampled_from(BUS_IDS)
serials = st.sampled_from(["1-1", "1-2", "other"])  # two with one serial number are twins
steps = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 12])
clients = st.sampled_from(
    [
        *(Holder(user=u, host=u, client=u, address=f"10.0.0.{n}") for n, u in enumerate("abc", 1)),
        Holder(host="10.0.0.9", address="10.0.0.9"),  # a stock one
    ]
)
NEWCOMER = Holder(user="new", host="new", client="new", address="10.0.0.99")
EVERYBODY_BUT = {
    f"10.0.0.{n}": Networks(
        str(network)
        for network in IPv4Network("10.0.0.0/24").address_exclude(IPv4Network(f"10.0.0.{n}/32"))
    )
    for n in (1, 2, 3, 9)
}


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@dataclass
class Bus:
    """What is plugged in and what the kernel makes of it; each step takes a while."""

    plugged: dict[BusId, Device] = field(default_factory=dict)
    hidden: set[BusId] = field(default_factory=set)
    bound: set[BusId] = field(default_factory=set)
    sessions: dict[BusId, socket.socket] = field(default_factory=dict)
    exported: dict[BusId, Device] = field(default_factory=dict)
    refuses: str = "nothing"
    wrongs: list[str] = field(default_factory=list)
    devnum: int = 1

    def plug(self, bus_id: BusId, serial: str) -> None:
        self.devnum += 1
        self.plugged[bus_id] = Device(
            bus_id=bus_id, vendor_id="1209", product_id="0001", serial=serial, devnum=self.devnum
        )

    def has(self, device: Device) -> bool:
        """Whether it has been there all the time."""
        now = self.plugged.get(device.bus_id)
        return now is not None and now.devnum == device.devnum

    def pull(self, bus_id: BusId) -> None:
        del self.plugged[bus_id]
        self.bound.discard(bus_id)
        self._drop(bus_id)

    def _drop(self, bus_id: BusId) -> None:
        if session := self.sessions.pop(bus_id, None):
            with contextlib.suppress(OSError):  # the peer may have been faster
                session.shutdown(socket.SHUT_RDWR)
            session.close()

    # as a source of devices

    def list_devices(self) -> tuple[Device, ...]:
        return with_ids(d for b, d in self.plugged.items() if b not in self.hidden)

    def find(self, bus_id: BusId) -> Device | None:
        return next((d for d in self.list_devices() if d.bus_id == bus_id), None)

    def record(self, bus_id: BusId) -> Record | None:
        if bus_id not in self.plugged:
            return None
        return Record("", bus_id, 1, self.plugged[bus_id].devnum, 3, 4, 5, 6, (0, 0, 0), 1, 1, ())

    # as the kernel, which goes on with what it was told even if nobody waits for it any more

    async def _kernel(self, work: Callable[[], None]) -> None:
        async def later() -> None:
            await asyncio.sleep(0)
            work()
            await asyncio.sleep(0)

        await asyncio.shield(asyncio.ensure_future(later()))

    def check(self) -> None: ...
    async def load(self) -> None: ...
    def list_bound(self) -> list[BusId]:
        return []

    async def bind(self, bus_id: BusId) -> None:
        def work() -> None:
            if bus_id in self.bound:
                return
            if bus_id not in self.plugged or self.refuses == "bind":
                raise errors.SystemFault("cannot bind")
            self.bound.add(bus_id)

        await self._kernel(work)

    async def unbind(self, bus_id: BusId) -> None:
        def work() -> None:
            if bus_id in self.sessions:
                self.wrongs.append(f"{bus_id} unbound in a session")
            self.bound.discard(bus_id)

        await self._kernel(work)

    async def export(self, bus_id: BusId, fd: int) -> None:
        def work() -> None:
            if bus_id in self.sessions:
                self.wrongs.append(f"two sessions of {bus_id}")
            if bus_id not in self.bound or self.refuses == "export":
                raise errors.SystemFault("cannot export")
            self.exported[bus_id] = self.plugged[bus_id]
            self.sessions[bus_id] = socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM)

        await self._kernel(work)

    async def release(self, bus_id: BusId) -> None:
        await self._kernel(lambda: self._drop(bus_id))

    async def wait_free(self, bus_id: BusId, timeout: float) -> None:
        await self._kernel(lambda: None)


@dataclass
class AllOf:
    """The bus as it is without any rule."""

    bus: Bus

    def list_devices(self) -> tuple[Device, ...]:
        return with_ids(self.bus.plugged.values())

    def find(self, bus_id: BusId) -> Device | None:
        return self.bus.plugged.get(bus_id)

    def record(self, bus_id: BusId) -> Record | None:
        return self.bus.record(bus_id)


@dataclass
class Done:
    """What was done that may end a session."""

    hidden: set[BusId] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)
    resets: int = 0
    stopped: bool = False

    def explains(self, event: Event, bus: Bus) -> bool:
        """Whether the cause of an end is one that has been there."""
        assert event.holder is not None
        bus_id = BusId(event.bus_id)
        is_there = bus.has(bus.exported[bus_id])
        return {
            Cause.DETACHED: True,
            Cause.UNPLUGGED: not is_there,
            Cause.DEVICE_RESET: False,
            Cause.CLIENT_LOST: self.resets > 0,
            Cause.TIME_UP: event.holder.until is not None,
            Cause.TAKEN_OVER: event.by is not None,
            Cause.FORBIDDEN: bus_id in self.hidden or event.holder.address in self.forbidden,
            Cause.SERVER_STOPPED: self.stopped,
        }[event.cause or Cause.DEVICE_RESET]


@dataclass
class Journal:
    """Events, and whether each session of a device ends before the next one begins."""

    bus: Bus
    done: Done
    open: dict[str, Holder] = field(default_factory=dict)
    last: dict[str, Ended] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)

    def record(self, event: Event) -> None:
        assert event.holder is not None
        if event.kind is Kind.ATTACHED:
            if event.bus_id in self.open:
                self.wrongs.append(f"{event.bus_id}: a second holder")
            self.open[event.bus_id] = event.holder
            return
        began = self.open.pop(event.bus_id, None)
        if not self.done.explains(event, self.bus):
            self.wrongs.append(f"{event.bus_id}: {event.cause}, and nobody has done that")
        if began is None or began.since != event.holder.since:
            self.wrongs.append(f"{event.device}: an end without its beginning")
        if event.cause is None or (event.cause is Cause.TAKEN_OVER) != (event.by is not None):
            self.wrongs.append(f"{event.device}: {event.cause} by {event.by}")
        else:
            self.last[event.device] = Ended(
                holder=event.holder, at=event.at, cause=event.cause, by=event.by
            )

    def last_session(self, device: str) -> Ended | None:
        return self.last.get(device)


@dataclass(eq=False)
class Asked:
    """A client that wants a device, and how that goes."""

    number: int
    device: Device
    wish: Wish
    task: asyncio.Task[None]
    waits: bool
    places: list[int]

    @property
    def bus_id(self) -> BusId:
        return self.device.bus_id

    @property
    def is_granted(self) -> bool:
        return self.task.done() and not self.task.cancelled() and not self.task.exception()


class Sharing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Clock()
        self.runner = asyncio.Runner(loop_factory=lambda: self.loop)
        self.bus, self.done = Bus(), Done()
        self.journal = Journal(self.bus, self.done)
        self.held = Leases(self.bus, self.bus, self.journal, TIMES, AllOf(self.bus))
        self.asked: list[Asked] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.ends: list[socket.socket] = []
        self.unexpected: list[str] = []
        for bus_id in BUS_IDS:
            self.bus.plug(bus_id, bus_id)
        self.runner.run(self._start())

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.unexpected.append(str(context)))
        self.listener = socket.create_server((HOST, 0))
        await self.held.start()

    # -- how things are set off; none is waited for, so each may fall into the middle of another

    def _begin(self, work: Coroutine[Any, Any, None], steps: int) -> asyncio.Task[None]:
        async def start() -> asyncio.Task[None]:
            task = asyncio.ensure_future(work)
            await self._steps(steps)
            return task

        task = self.runner.run(start())
        self.tasks.add(task)
        return task

    async def _steps(self, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        with contextlib.suppress(errors.UsbRemoteError):
            await work

    async def _import(self, connection: socket.socket, bus_id: BusId, address: str) -> None:
        """As the exporter does."""
        await self._quietly(self.held.begin(connection, bus_id, address, lambda record: None))
        if not self.held.has(connection):
            connection.close()
        elif getattr(self.held._leases[bus_id].holder, "address", None) != address:
            self.unexpected.append("a reservation was used by somebody else")
        else:
            wish = self.held._leases[bus_id].wish
            asked = next((a.device for a in self.asked if a.wish is wish), None)
            if asked is not None and not asked.is_same(self.bus.exported[bus_id]):
                self.unexpected.append(f"{asked} was asked for, {self.bus.exported[bus_id]} given")

    def _device(self, bus_id: BusId) -> Device | None:
        return next((d for d in self.bus.list_devices() if d.bus_id == bus_id), None)

    @property
    def waiting(self) -> list[Asked]:
        """Who waits, in the order of asking, and whom a server would give up on if it went away."""
        return [asked for asked in self.asked if asked.waits and not asked.task.done()]

    # -- clients

    @rule(bus_id=bus_ids, client=clients, waits=st.booleans(), steps=steps)
    def attach(self, bus_id: BusId, client: Holder, waits: bool, steps: int) -> None:
        self._attach(bus_id, Wish(client), waits, steps)

    @rule(bus_id=bus_ids, client=clients, steps=steps)
    def wait_for_it(self, bus_id: BusId, client: Holder, steps: int) -> None:
        self._attach(bus_id, Wish(client), True, steps)

    @rule(bus_id=bus_ids, client=clients, waits=st.booleans(), force=st.booleans(), steps=steps)
    def attach_for_a_while(
        self, bus_id: BusId, client: Holder, waits: bool, force: bool, steps: int
    ) -> None:
        self._attach(bus_id, Wish(client, 5.0, force), waits, steps)

    def _attach(self, bus_id: BusId, wish: Wish, waits: bool, steps: int) -> None:
        if (device := self._device(bus_id)) is None:
            return
        places = list[int]()
        tell = (lambda place, holder: places.append(place)) if waits else None
        task = self._begin(self.held.reserve(device, wish, tell), steps)
        self.asked.append(Asked(len(self.asked), device, wish, task, waits, places))

    @rule(bus_id=bus_ids, client=clients, steps=steps)
    def import_it(self, bus_id: BusId, client: Holder, steps: int) -> None:
        self._connect(bus_id, client.address, steps)

    @rule(bus_id=bus_ids, steps=steps)
    def import_what_is_reserved(self, bus_id: BusId, steps: int) -> None:
        lease = self.held._leases.get(bus_id)
        if lease is not None and lease.holder is not None:
            self._connect(bus_id, lease.holder.address, steps)

    def _connect(self, bus_id: BusId, address: str, steps: int) -> None:
        ours = socket.create_connection(self.listener.getsockname())
        theirs, _ = self.listener.accept()
        self.ends.append(ours)
        self._begin(self._import(theirs, bus_id, address), steps)

    @rule(bus_id=bus_ids, client=clients, for_long=st.booleans())
    def attach_and_import(self, bus_id: BusId, client: Holder, for_long: bool) -> None:
        self._attach(bus_id, Wish(client, None if for_long else 5.0), False, 10)
        self._connect(bus_id, client.address, 15)

    @rule(bus_id=bus_ids, steps=steps)
    def detach_by_holder(self, bus_id: BusId, steps: int) -> None:
        lease, device = self.held._leases.get(bus_id), self._device(bus_id)
        if device is not None and lease is not None and lease.holder is not None:
            self._begin(self._quietly(self.held.release(device, lease.holder)), steps)

    @rule(bus_id=bus_ids, client=clients, steps=steps)
    def detach(self, bus_id: BusId, client: Holder, steps: int) -> None:
        if device := self._device(bus_id):
            self._begin(self._quietly(self.held.release(device, client)), steps)

    @precondition(lambda self: self.ends)
    @rule(which=st.integers(0, 9), reset=st.booleans(), steps=steps)
    def end_a_connection(self, which: int, reset: bool, steps: int) -> None:
        ours = self.ends.pop(which % len(self.ends))
        if reset:
            self.done.resets += 1
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.close()
        self.runner.run(self._steps(steps))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 9), steps=steps)
    def stop_waiting(self, which: int, steps: int) -> None:
        """A server does this to whoever waits, when the connection is closed; to nobody else."""
        self.waiting[which % len(self.waiting)].task.cancel()
        self.runner.run(self._steps(steps))

    # -- the hand at the bus, the kernel, the server's owner

    @rule(bus_id=bus_ids, serial=serials, again=st.booleans(), seen=st.booleans())
    def pull_or_plug(self, bus_id: BusId, serial: str, again: bool, seen: bool) -> None:
        """Maybe so fast that the server sees no moment without a device; maybe another one."""
        if bus_id not in self.bus.plugged:
            self.bus.plug(bus_id, serial)
            return
        self.bus.pull(bus_id)
        if again:
            self.bus.plug(bus_id, serial)
        if seen:
            self.held.forget_unplugged(self.bus.list_devices())

    @rule(
        what=st.sampled_from(["forbid", "hide", "show", "no takeover", "takeover", "ask",
                              "refuse to bind", "refuse to export", "refuse nothing"]),
        bus_id=bus_ids, client=clients, steps=steps,
    )  # fmt: skip
    def disturb(self, what: str, bus_id: BusId, client: Holder, steps: int) -> None:
        if what == "ask" and (device := self._device(bus_id)):
            self.held.ask(device, Request(by="somebody"))
        if "takeover" in what:
            self.held.takeover = what == "takeover"
        if "refuse" in what:
            self.bus.refuses = what.split()[-1]
        if what == "hide":
            self.done.hidden.add(bus_id)
        if what == "forbid":
            self.done.forbidden.add(client.address)
        if what in {"forbid", "hide", "show"}:
            self.bus.hidden = {bus_id} if what == "hide" else set()
            self.held.allowed = EVERYBODY_BUT[client.address] if what == "forbid" else Networks()
            self._begin(self._quietly(self.held.enforce()), steps)

    # -- time

    @rule(seconds=st.sampled_from([0, 0, 0.5, 2.5, 6.0, LONG]), steps=st.integers(1, 8))
    def let_time_pass(self, seconds: float, steps: int) -> None:
        self.loop.ahead += seconds
        self.runner.run(self._steps(steps))

    @rule()
    def settle(self) -> None:
        self.runner.run(self._settle())
        self._check_settled()

    async def _settle(self) -> None:
        async with asyncio.timeout(LONG + 10):  # of a clock that is put forward nowhere here
            self.held.forget_unplugged(self.bus.list_devices())
            quiet = 0
            while quiet < 5:
                await asyncio.sleep(0)
                quiet = 0 if self._is_busy() else quiet + 1

    def _is_busy(self) -> bool:
        queued = {id(w.wish) for lease in self.held._leases.values() for w in lease.queue.waiters}
        done = {task for task in self.tasks if task.done()}
        self.tasks -= done
        waiting = {a.task for a in self.asked if id(a.wish) in queued and not a.task.cancelling()}
        return bool(self.held._tasks or self.tasks - waiting)

    # -- what is always so

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.bus.wrongs
        assert not self.journal.wrongs
        assert not self.unexpected

    @invariant()
    def each_request_ends_in_a_device_an_error_or_its_own_end(self) -> None:
        for asked in self.asked:
            if asked.task.done() and not asked.task.cancelled():
                error = asked.task.exception()
                assert error is None or isinstance(error, errors.UsbRemoteError), error

    # -- what is so when nothing is under way

    def _check_settled(self) -> None:
        """Every session is known everywhere; who waits does so in order, and not for nothing."""
        attached = {d.bus_id for d in self._listed() if d.holder and d.holder.since}
        assert attached == set(self.bus.sessions) - self.bus.hidden
        assert len(self.journal.open) == len(self.bus.sessions)
        for bus_id, lease in self.held._leases.items():
            asked = [a for a in self.asked if a.bus_id == bus_id]
            waiting = [a for a in asked if a in self.waiting]
            granted = [a for a in asked if a.is_granted]
            assert [w.wish for w in lease.queue.waiters] == [a.wish for a in waiting]
            assert [a.places[-1] for a in waiting] == list(range(1, len(waiting) + 1))
            assert lease.holder is not None or not waiting, "somebody waits for a free device"
            if lease.holder is not None and lease.session is None:
                assert any(lease.wish is a.wish for a in granted), "reserved for who has gone"
            for one in granted if waiting else ():
                assert not one.places or one.number < waiting[0].number, "got before its turn"

    def _listed(self) -> tuple[Device, ...]:
        return self.held.with_holders(self.bus.list_devices())

    # -- and when everybody has left

    def everybody_leaves(self) -> None:
        for asked in self.waiting:
            asked.task.cancel()
        while self.ends:
            self.ends.pop().close()
        self.bus.hidden, self.bus.refuses, self.held.takeover = set(), "nothing", True
        self.held.allowed = Networks()
        self.runner.run(self._everybody_leaves())

    async def _everybody_leaves(self) -> None:
        await self._settle()
        self.loop.ahead += LONG
        await self._steps(5)
        await self._settle()
        self._check_settled()
        assert not self.bus.sessions
        assert not self.bus.bound, "left without its own driver"
        for device in self._listed():
            assert device.state is State.AVAILABLE
            assert device.waiting == 0
            await self.held.reserve(device, Wish(NEWCOMER))
            await self.held.release(device, NEWCOMER)

    def teardown(self) -> None:
        try:
            self.everybody_leaves()
            self.done.stopped = True
            self.runner.run(self.held.stop())
            assert not self.bus.bound
            assert not self.journal.wrongs
        finally:
            self.runner.run(self._stop())
            self.runner.close()

    async def _stop(self) -> None:
        """Also after a failure nothing is left behind."""
        with contextlib.suppress(BaseException):
            await self.held.stop()
        self.listener.close()
        leases = self.held._leases.values()
        left = (lease.session for lease in leases if lease.session is not None)
        for connection in (*self.ends, *self.bus.sessions.values(), *left):
            connection.close()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(
    max_examples=500,
    stateful_step_count=50,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
