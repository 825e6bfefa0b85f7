"""Whatever clients, hands and rules do, and in whatever order: no device is lost, none given twice.

A machine of hypothesis plays clients, the bus and the clock against real leases. Sockets are real
ones; each step of the kernel takes a turn of the event loop, and a reset its time, so that each
step of one thing may fall into the middle of another. Time is put forward, never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network
from math import inf
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes.clock import Clock
from tests.fakes.export_host import OWN, FakeHost
from tests.patience import patience
from usb_remote import errors
from usb_remote.events import Event, Kind
from usb_remote.lease import Lease, Times
from usb_remote.leases import Leases
from usb_remote.model import Cause, Device, Ended, Holder, Request, State, with_ids
from usb_remote.rules import Networks
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId
from usb_remote.waiting import Tell, Wish

HOST = "127.0.0.1"
BUS_IDS = (BusId("1-1"), BusId("1-2"))
TIMES = Times()
LONG = TIMES.reservation + TIMES.grace + 1
A_WHILE = 5.0
"""Seconds after which some sessions shall end by themselves."""
NOTICE = A_WHILE / 10
SETTLED = 3.0
"""Seconds after which everything that was begun is done: resets, and what is pulled."""
UNPLUGGING = 0.02
"""Seconds in which a device that is pulled is still in sysfs."""
TCP_ESTABLISHED = 1

bus_ids = st.sampled_from(BUS_IDS)
serials = st.sampled_from(["same", "same", "twin", "other"])
states = st.sampled_from([State.AVAILABLE, State.AVAILABLE, State.PROTECTED])
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
FAILURES = {
    "refuse to bind": {"bind": errno.EBUSY},
    "refuse an entry": {"bind": errno.ENOMEM},
    "refuse to export": {"export": errno.EIO},
}
MODULE_MISSING = "the kernel module usbip_host is not loaded"


class Bus(FakeHost):
    """Remembers what was given away, and why it could not be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.exported: dict[BusId, Device] = {}
        self.exported_at: dict[str, float] = {}
        self.not_bound_since: set[str] = set()
        self.reserved: Callable[[BusId], Device | None] = lambda bus_id: None
        self.faults: list[errors.UsbRemoteError] = []

    def has(self, device: Device) -> bool:
        """Whether it has been there all the time."""
        now = self.plugged.get(device.bus_id)
        return now is not None and now.devnum == device.devnum

    async def bind(self, bus_id: BusId) -> None:
        self.not_bound_since.discard(bus_id)
        meant, now = self.reserved(bus_id), self.plugged.get(bus_id)
        if meant is not None and now is not None and not now.is_same(meant):
            self.wrongs.append(f"{meant} was asked for, {now} bound")
        with self._remembered():
            await super().bind(bus_id)

    async def export(self, bus_id: BusId, fd: int) -> None:
        with self._remembered():
            await super().export(bus_id, fd)

    def _export(self, bus_id: BusId, fd: int) -> None:
        super()._export(bus_id, fd)
        self.exported[bus_id] = self.plugged[bus_id]
        self.exported_at[bus_id] = self._time()

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except errors.UsbRemoteError as error:
            self.faults.append(error)
            raise


@dataclass
class Shared:
    """What others may see of the bus."""

    bus: Bus
    hidden: set[BusId] = field(default_factory=set)

    def list_devices(self) -> tuple[Device, ...]:
        plugged = self.bus.plugged.items()
        return with_ids(device for bus_id, device in plugged if bus_id not in self.hidden)

    def find(self, bus_id: BusId) -> Device | None:
        return next((d for d in self.list_devices() if d.bus_id == bus_id), None)

    def record(self, bus_id: BusId) -> Record | None:
        return None if bus_id in self.hidden else self.bus.record(bus_id)


@dataclass(eq=False)
class Connection:
    """One connection of a client, and how that ended it."""

    ours: socket.socket
    theirs: socket.socket
    bus_id: BusId
    since: datetime | None = None
    end: str | None = None

    def close(self, end: str) -> None:
        """Returns when the server could know of it."""
        self.end = end
        if end == "reset":
            self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.ours.close()
        deadline = time.monotonic() + patience(10)
        while self._is_up():
            assert time.monotonic() < deadline
            time.sleep(0.0001)

    def _is_up(self) -> bool:
        if self.theirs.fileno() < 0:
            return False
        info = self.theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0] == TCP_ESTABLISHED


@dataclass
class Done:
    """What was done that may end a session."""

    hidden: set[BusId] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)
    released: list[tuple[BusId, Holder]] = field(default_factory=list)
    forced: set[str] = field(default_factory=set)
    connections: list[Connection] = field(default_factory=list)
    stopped: bool = False

    def explains(self, event: Event, bus: Bus, length: float) -> bool:
        """Whether the cause of an end is one that has been there."""
        holder, bus_id = event.holder, BusId(event.bus_id)
        assert holder is not None
        ends = {c.end for c in self.connections if (c.bus_id, c.since) == (bus_id, holder.since)}
        released = any(b == bus_id and by.is_same_client(holder) for b, by in self.released)
        return {
            Cause.DETACHED: "close" in ends or released,
            Cause.UNPLUGGED: not bus.has(bus.exported[bus_id]),
            Cause.DEVICE_RESET: False,
            Cause.CLIENT_LOST: "reset" in ends,
            Cause.TIME_UP: holder.until is not None and length >= A_WHILE - 0.001,
            Cause.TAKEN_OVER: event.by in self.forced,
            Cause.FORBIDDEN: bus_id in self.hidden or holder.address in self.forbidden,
            Cause.SERVER_STOPPED: self.stopped,
        }[event.cause or Cause.DEVICE_RESET]


@dataclass
class Journal:
    """Events, and whether each session of a device ends before the next one begins."""

    bus: Bus
    done: Done
    clock: Clock
    open: dict[str, Holder] = field(default_factory=dict)
    told_at: dict[str, float] = field(default_factory=dict)
    last: dict[str, Ended] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)

    def record(self, event: Event) -> None:
        assert event.holder is not None
        if event.kind is Kind.ATTACHED:
            if event.bus_id in self.open:
                self.wrongs.append(f"{event.bus_id}: a second holder")
            self.open[event.bus_id] = event.holder
            self.told_at[event.bus_id] = self.clock.time()
            return
        length = self.length(event.bus_id)[1]
        began = self.open.pop(event.bus_id, None)
        if not self.done.explains(event, self.bus, length):
            self.wrongs.append(f"{event.bus_id}: {event.cause}, and nobody has done that")
        if began is None or began.since != event.holder.since:
            self.wrongs.append(f"{event.device}: an end without its beginning")
        if event.cause is Cause.UNPLUGGED:
            self.bus.not_bound_since.add(event.bus_id)
        if event.cause is None or (event.cause is Cause.TAKEN_OVER) != (event.by is not None):
            self.wrongs.append(f"{event.device}: {event.cause} by {event.by}")
        else:
            self.last[event.device] = Ended(
                holder=event.holder, at=event.at, cause=event.cause, by=event.by
            )

    def length(self, bus_id: str) -> tuple[float, float]:
        """Of the session that goes on there, in seconds: at least, at most."""
        now = self.clock.time()
        return now - self.told_at.get(bus_id, now), now - self.bus.exported_at[bus_id]

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
    faults: int
    """How many things had failed before."""

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
        self.shared = Shared(self.bus)
        self.journal = Journal(self.bus, self.done, self.loop)
        self.held = Leases(self.shared, self.bus, self.journal, TIMES, self.bus)
        self.asked: list[Asked] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.unexpected: list[str] = []
        self.bus.reserved = lambda bus_id: self.held._lease(bus_id).device
        for bus_id in BUS_IDS:
            self.bus.plug(bus_id, bus_id)
        self.runner.run(self._start())

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.unexpected.append(str(context)))
        self.listener = socket.create_server((HOST, 0))
        with self.bus.leave_behind(BUS_IDS[1]):
            await self.held.start()
        assert not self.bus.bound

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

    async def _import(self, connection: Connection, address: str) -> None:
        """As the exporter does."""
        bus_id = connection.bus_id
        accepted = list[Record]()

        def accept(record: Record) -> None:
            accepted.append(record)
            is_early = bus_id in self.bus.plugged and self.held._leases[bus_id].is_called
            now = self.bus.plugged[bus_id] if is_early else self.bus.exported[bus_id]
            if record.devnum != now.devnum:
                self.unexpected.append(f"{record} was told of {now}")

        await self._quietly(self.held.begin(connection.theirs, bus_id, address, accept))
        if not self.held.has(connection.theirs):
            connection.theirs.close()
            return
        lease = self.held._leases[bus_id]
        if lease.holder is None or lease.holder.address != address or len(accepted) != 1:
            self.unexpected.append("a reservation was used by somebody else")
        else:
            connection.since = lease.holder.since
        asked = self._asked_with(lease)
        if asked is not None and not asked.device.is_same(self.bus.exported[bus_id]):
            self.unexpected.append(f"{asked} got {self.bus.exported[bus_id]}")

    def _asked_with(self, lease: Lease) -> Asked | None:
        return next((asked for asked in self.asked if asked.wish is lease.wish), None)

    async def _reserve(self, device: Device, wish: Wish, tell: Tell | None) -> None:
        await self.held.reserve(device, wish, tell)
        if self.held._leases[device.bus_id].wish is not wish:
            self.unexpected.append(f"{wish} was told that {device} is reserved")

    def _device(self, bus_id: BusId) -> Device | None:
        return self.shared.find(bus_id)

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
        self._attach(bus_id, Wish(client, A_WHILE, force), waits, steps)

    def _attach(self, bus_id: BusId, wish: Wish, waits: bool, steps: int) -> None:
        if (device := self._device(bus_id)) is None:
            return
        places = list[int]()
        tell = (lambda place, holder: places.append(place)) if waits else None
        if wish.force:
            self.done.forced.add(str(wish.holder))
        faults = len(self.bus.faults)
        task = self._begin(self._reserve(device, wish, tell), steps)
        self.asked.append(Asked(len(self.asked), device, wish, task, waits, places, faults))

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
        connection = Connection(ours, theirs, bus_id)
        self.done.connections.append(connection)
        self._begin(self._import(connection, address), steps)

    @rule(bus_id=bus_ids, client=clients, for_long=st.booleans())
    def attach_and_import(self, bus_id: BusId, client: Holder, for_long: bool) -> None:
        self._attach(bus_id, Wish(client, None if for_long else A_WHILE), False, 10)
        self._connect(bus_id, client.address, 20)

    @rule(bus_id=bus_ids, steps=steps)
    def detach_by_holder(self, bus_id: BusId, steps: int) -> None:
        lease, device = self.held._leases.get(bus_id), self._device(bus_id)
        if device is not None and lease is not None and lease.holder is not None:
            self._release(device, lease.holder, steps)

    @rule(bus_id=bus_ids, client=clients, steps=steps)
    def detach(self, bus_id: BusId, client: Holder, steps: int) -> None:
        if device := self._device(bus_id):
            self._release(device, client, steps)

    def _release(self, device: Device, client: Holder, steps: int) -> None:
        self.done.released.append((device.bus_id, client))
        self._begin(self._quietly(self.held.release(device, client)), steps)

    @property
    def up(self) -> list[Connection]:
        return [c for c in self.done.connections if c.end is None]

    @precondition(lambda self: self.up)
    @rule(
        which=st.integers(0, 9), end=st.sampled_from(["close", "reset"]), noticed=st.booleans(),
        steps=steps,
    )  # fmt: skip
    def end_a_connection(self, which: int, end: str, noticed: bool, steps: int) -> None:
        """The kernel, which has the bytes, may notice it before the server does."""
        connection = self.up[which % len(self.up)]
        connection.close(end)
        if noticed:
            self.runner.run(self._notice(connection.bus_id))
        self.runner.run(self._steps(steps))

    async def _notice(self, bus_id: BusId) -> None:
        self.bus.look(bus_id)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 9), steps=steps)
    def stop_waiting(self, which: int, steps: int) -> None:
        """A server does this to whoever waits, when the connection is closed; to nobody else."""
        self.waiting[which % len(self.waiting)].task.cancel()
        self.runner.run(self._steps(steps))

    # -- what happens at one moment, and is rare by chance

    def _session(self, bus_id: BusId, client: Holder) -> Connection | None:
        """That of whoever has it, this client if nobody else has."""
        if (found := self._find_session(bus_id)) is None:
            self._mend(bus_id)
            self.attach_and_import(bus_id, client, for_long=True)
            found = self._find_session(bus_id)
        return found

    def _mend(self, bus_id: BusId) -> None:
        """Nothing stands in the way of a session but those who have the device."""
        self.bus.fails, self.bus.fault = {}, None
        self.shared.hidden, self.held.allowed = set(), Networks()
        device = self.bus.plugged.get(bus_id)
        if device is None or device.state is State.PROTECTED:
            self._replug(bus_id, "same", State.AVAILABLE)

    def _find_session(self, bus_id: BusId) -> Connection | None:
        lease = self.held._leases.get(bus_id)
        own = lease.session if lease is not None else None
        return next((c for c in self.up if own is c.theirs), None)

    @rule(
        bus_id=bus_ids, client=clients, other=clients, serial=serials, state=states,
        imports=st.integers(0, 2), leaves=st.booleans(), replugged=st.booleans(),
        pause=st.integers(0, 3), steps=steps,
    )  # fmt: skip
    def hand_over(
        self, bus_id: BusId, client: Holder, other: Holder, serial: str, state: State, imports: int,
        leaves: bool, replugged: bool, pause: int, steps: int,
    ) -> None:  # fmt: skip
        """The holder lets go, and much happens while the kernel resets the device."""
        connection = self._session(bus_id, client)
        self._attach(bus_id, Wish(other), True, 2)
        lease = self.held._leases.get(bus_id)
        if connection is None or lease is None or not lease.queue.waiters:
            return
        first = lease.queue.waiters[0]
        asked = next(a for a in self.asked if a.wish is first.wish)
        connection.close("close")
        self.runner.run(self._until_done(first.turn, pause))
        if leaves:
            asked.task.cancel()
        if replugged and bus_id in self.bus.plugged:
            self._replug(bus_id, serial, state)
        for _ in range(imports):
            self._connect(bus_id, first.wish.holder.address, pause)
        self.runner.run(self._steps(steps))

    async def _until_done(self, turn: asyncio.Future[None], more: int) -> None:
        for _ in range(20):
            if turn.done():
                break
            await asyncio.sleep(0)
        await self._steps(more)

    @rule(
        bus_id=bus_ids, client=clients, end=st.sampled_from(["close", "reset", "pull"]),
        pause=st.integers(0, 3), asked_first=st.booleans(), steps=steps,
    )  # fmt: skip
    def ask_again(
        self, bus_id: BusId, client: Holder, end: str, pause: int, asked_first: bool, steps: int
    ) -> None:
        """The holder loses what it has, and asks for it at that moment."""
        connection, lease = self._session(bus_id, client), self.held._leases.get(bus_id)
        if connection is None or lease is None or lease.holder is None:
            return
        holder = lease.holder.model_copy(update={"since": None, "until": None})
        if asked_first:
            self._attach(bus_id, Wish(holder), False, pause)
        if end == "pull":
            self.pull_slowly(bus_id, pause)
        else:
            connection.close(end)
            self.runner.run(self._steps(pause))
        if not asked_first:
            self._attach(bus_id, Wish(holder), False, 0)
        self.runner.run(self._steps(steps))

    # -- the hand at the bus, the kernel, the server's owner

    @rule(bus_id=bus_ids, serial=serials, state=states, again=st.booleans(), seen=st.booleans())
    def pull_or_plug(
        self, bus_id: BusId, serial: str, state: State, again: bool, seen: bool
    ) -> None:
        """Maybe so fast that the server sees no moment without a device; maybe another one."""
        if again or bus_id not in self.bus.plugged:
            self._replug(bus_id, serial, state)
        else:
            self.bus.pull(bus_id)
        if seen:
            self._see()

    def _replug(self, bus_id: BusId, serial: str, state: State) -> None:
        before = self.bus.plugged.get(bus_id)
        same = before.serial if before is not None and before.serial else str(bus_id)
        self.bus.plug(bus_id, {"same": same, "twin": str(BUS_IDS[0])}.get(serial, serial), state)

    @rule(bus_id=bus_ids, steps=steps)
    def pull_slowly(self, bus_id: BusId, steps: int) -> None:
        """The connection goes first, then the device."""
        if bus_id in self.bus.plugged:
            self.bus.begin_pull(bus_id)
            self.loop.call_later(UNPLUGGING, self._end_pull, self.bus.plugged[bus_id])
            self.runner.run(self._steps(steps))

    def _end_pull(self, device: Device) -> None:
        if self.bus.has(device):
            self.bus.end_pull(device.bus_id)

    def _see(self) -> None:
        """As the server does when udev told it something."""
        self.held.forget_unplugged(self.shared.list_devices())

    @rule(
        what=st.sampled_from(["forbid", "hide", "show", "no takeover", "takeover", "ask", "unload",
                              *FAILURES, "refuse nothing"]),
        bus_id=bus_ids, client=clients, steps=steps,
    )  # fmt: skip
    def disturb(self, what: str, bus_id: BusId, client: Holder, steps: int) -> None:
        if what == "ask" and (device := self._device(bus_id)):
            self.held.ask(device, Request(by="somebody"))
        if "takeover" in what:
            self.held.takeover = what == "takeover"
        if "refuse" in what or what == "unload":
            self.bus.fails = FAILURES.get(what, {})
            self.bus.fault = errors.SystemFault(MODULE_MISSING) if what == "unload" else None
        if what == "hide":
            self.done.hidden.add(bus_id)
        if what == "forbid":
            self.done.forbidden.add(client.address)
        if what in {"forbid", "hide", "show"}:
            self.shared.hidden = {bus_id} if what == "hide" else set()
            self.held.allowed = EVERYBODY_BUT[client.address] if what == "forbid" else Networks()
            self._begin(self._quietly(self.held.enforce()), steps)

    # -- time

    @rule(seconds=st.sampled_from([0, 0, 0.06, 0.5, 2.5, 4.6, LONG]), steps=st.integers(1, 8))
    def let_time_pass(self, seconds: float, steps: int) -> None:
        self.loop.let_pass(seconds)
        self.runner.run(self._steps(steps))

    @rule()
    def settle(self) -> None:
        self.runner.run(self._settle())
        self._check_settled()

    async def _settle(self) -> None:
        self._see()
        quiet = turns = 0
        async with asyncio.timeout(SETTLED):
            while quiet < 5:
                turns += 1
                await asyncio.sleep(0 if turns % 20 else 0.01)
                quiet = 0 if self._is_busy() else quiet + 1

    def _is_busy(self) -> bool:
        queued = {id(w.wish) for lease in self.held._leases.values() for w in lease.queue.waiters}
        done = {task for task in self.tasks if task.done()}
        self.tasks -= done
        waiting = {a.task for a in self.asked if id(a.wish) in queued and not a.task.cancelling()}
        return bool(self.held._tasks or self.tasks - waiting)

    # -- what is always so

    @invariant()
    def always(self) -> None:
        self.nothing_went_wrong()
        self.each_request_ends_in_a_device_an_error_or_its_own_end()
        self.nobody_sees_a_session_end_without_its_cause()
        self.a_fault_is_of_whoever_has_reserved_it_now()
        self.nobody_gets_what_is_protected()

    def nothing_went_wrong(self) -> None:
        assert self.bus.wrongs == [], self.bus.wrongs
        assert self.journal.wrongs == [], self.journal.wrongs
        assert self.unexpected == [], self.unexpected

    def each_request_ends_in_a_device_an_error_or_its_own_end(self) -> None:
        for asked in self.asked:
            if asked.task.done() and not asked.task.cancelled():
                error = asked.task.exception()
                assert error is None or isinstance(error, errors.UsbRemoteError), error

    def nobody_sees_a_session_end_without_its_cause(self) -> None:
        """Who has a device is shown until the end is recorded, and then the end."""
        for device in self._listed():
            if holder := self.journal.open.get(device.bus_id):
                assert device.holder is not None, "not shown any more"
                assert device.holder.since == holder.since, "another one is shown already"
                assert device.state is State.IN_USE
            assert device.last_session == self.journal.last.get(device.id)

    def a_fault_is_of_whoever_has_reserved_it_now(self) -> None:
        for lease in self.held._leases.values():
            assert lease.fault is None or lease.session is None
            asked = self._asked_with(lease) if lease.wish else None
            if asked is not None and lease.fault in self.bus.faults:
                assert self.bus.faults.index(lease.fault) >= asked.faults, "an old fault"

    def nobody_gets_what_is_protected(self) -> None:
        for lease in self.held._leases.values():
            assert lease.device is None or lease.device.state is not State.PROTECTED

    # -- what is so when nothing is under way

    def _check_settled(self) -> None:
        """Every session is known everywhere; who waits does so in order, and not for nothing."""
        attached = {d.bus_id for d in self._listed() if d.holder and d.holder.since}
        assert attached == set(self.bus.sessions)
        for bus_id, holder in self.journal.open.items():
            self._check_length(BusId(bus_id), holder)
        assert len(self.journal.open) == len(self.bus.sessions)
        for bus_id, lease in self.held._leases.items():
            asked = [a for a in self.asked if a.bus_id == bus_id]
            waiting = [a for a in asked if a in self.waiting]
            granted = [a for a in asked if a.is_granted]
            assert [w.wish for w in lease.queue.waiters] == [a.wish for a in waiting]
            assert [a.places[-1] for a in waiting] == list(range(1, len(waiting) + 1))
            assert lease.holder is not None or not waiting, "somebody waits for a free device"
            assert lease.fault is None or lease.holder is not None or lease.expires < inf
            assert lease.leaving is None
            assert not lease.is_called
            if lease.holder is None and bus_id in self.bus.not_bound_since:
                assert not lease.bound, "grace for what was pulled"
            if lease.holder is not None and lease.session is None:
                assert any(lease.wish is a.wish for a in granted), "reserved for who has gone"
            for one in granted if waiting else ():
                assert not one.places or one.number < waiting[0].number, "got before its turn"

    def _check_length(self, bus_id: BusId, holder: Holder) -> None:
        """A session for some time has not outlived it, and its holder is told in time."""
        now, (least, most) = self.held._leases[bus_id].holder, self.journal.length(bus_id)
        assert now is not None
        if holder.until is None or most < A_WHILE - NOTICE:
            assert not now.ends_soon
        if holder.until is not None:
            assert now.ends_soon or least < A_WHILE - NOTICE
            assert least < A_WHILE

    def _listed(self) -> tuple[Device, ...]:
        return self.held.with_holders(self.bus.list_devices())

    # -- and when everybody has left

    def everybody_leaves(self) -> None:
        for asked in self.waiting:
            asked.task.cancel()
        for connection in self.up:
            connection.close("close")
        self.shared.hidden, self.held.takeover = set(), True
        self.bus.fails, self.bus.fault = {}, None
        self.held.allowed = Networks()
        self.runner.run(self._everybody_leaves())

    async def _everybody_leaves(self) -> None:
        await self._settle()
        self.loop.let_pass(LONG)
        await self._steps(5)
        await self._settle()
        self._check_settled()
        assert not self.bus.sessions
        assert not self.bus.bound, "left without its own driver"
        assert set(self.bus.drivers.values()) <= {OWN}, "left without any driver"
        for device in self._listed():
            assert device.holder is None
            if device.state is State.PROTECTED:
                continue
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
            self.nothing_went_wrong()
        finally:
            self.runner.run(self._stop())
            self.runner.close()

    async def _stop(self) -> None:
        """Also after a failure nothing is left behind."""
        with contextlib.suppress(BaseException):
            await self.held.stop()
        self.listener.close()
        for connection in self.done.connections:
            connection.ours.close()
            connection.theirs.close()
        self.bus.close()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes minutes: add it by hand
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
