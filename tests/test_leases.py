"""Who has which device, where a hand at the bus, rules and clients come in between.

The kernel is a fake whose steps can be held up; the connections of sessions are real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.fakes.clock import run
from tests.fakes.export_host import OWN, FakeHost
from tests.serving import HOST
from tests.waiting import eventually
from usb_remote import errors
from usb_remote.events import Event, Kind
from usb_remote.history import History
from usb_remote.lease import Times
from usb_remote.leases import Leases
from usb_remote.model import Cause, Device, Holder, Request, State
from usb_remote.rules import Criteria, Networks, Rule
from usb_remote.sessions import End, EndWatch, Ports
from usb_remote.sharing import NameBook, SharedDevices
from usb_remote.state import StateFile
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId
from usb_remote.waiting import Wish

PLACE, OTHER = BusId("2-1"), BusId("2-2")
ANN = Holder(user="ann", host="pc1", client="c1", address=HOST)
BOB = Holder(user="bob", host="pc2", client="c2", address=HOST)
CID = Holder(user="cid", host="pc3", client="c3", address=HOST)

PATIENT = Times(grace=0.05, reservation=3600)
"""So that no reservation ends by itself while a test waits for something else to end it."""

TCP_REPAIR = 19
"""tcp(7): a socket that is closed in this state says nothing to its peer."""


class Server:
    """The arbiter of one server."""

    def __init__(self, kernel: FakeHost | None = None, times: Times = PATIENT) -> None:
        self.kernel = kernel or FakeHost(reset=0)
        self.kernel.plug(PLACE, "stick")
        kernel = self.kernel
        self.past = History(StateFile(None))
        self.shared = SharedDevices(kernel, NameBook(StateFile(None)))
        self.leases = Leases(self.shared, kernel, self.past, times, kernel)
        self.leases.on_change = lambda: self.changes.append(None)
        self.changes: list[None] = []
        self.connections = contextlib.ExitStack()
        self.accepted: list[Record] = []

    def device(self, bus_id: BusId = PLACE) -> Device:
        found = self.leases.with_holders(self.kernel.list_devices())
        return next(device for device in found if device.bus_id == bus_id)

    async def reserve(self, who: Holder, bus_id: BusId = PLACE, *, force: bool = False) -> None:
        await self.leases.reserve(self.device(bus_id), Wish(who, force=force))

    async def wait(self, who: Holder, bus_id: BusId = PLACE) -> asyncio.Task[None]:
        """Returns when it has its place in the queue."""
        told = asyncio.Event()
        work = self.leases.reserve(self.device(bus_id), Wish(who), lambda *_: told.set())
        waiting = asyncio.create_task(work)
        await told.wait()
        return waiting

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection, the client's first; closed at the end at the latest."""
        with socket.create_server((HOST, 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        self.connections.enter_context(client)
        return client, server

    async def begin(self, bus_id: BusId = PLACE) -> socket.socket:
        """Import as the exporter does; returns the client's end."""
        client, server = self.connect()
        try:
            await self.leases.begin(server, bus_id, HOST, self.accepted.append)
        except BaseException:
            server.close()
            raise
        return client

    async def attach(self, who: Holder, bus_id: BusId = PLACE) -> socket.socket:
        await self.reserve(who, bus_id)
        return await self.begin(bus_id)

    @property
    def ends(self) -> list[Event]:
        return [event for event in self.past.events if event.kind is Kind.ENDED]


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    """Started, and stopped in the end; nothing may have been done that a kernel minds."""
    await server.leases.start()
    try:
        yield server
    finally:
        server.kernel.free.set()
        await server.leases.stop()
        server.connections.close()
        server.kernel.close()
    assert server.kernel.wrongs == []


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running(Server()) as one:
        yield one


# -- one device, not whatever is in its place ---------------------------------------------------


async def test_what_was_reserved_is_not_another_device_in_its_place(server: Server) -> None:
    await server.reserve(ANN)
    server.kernel.plug(PLACE, "somebody else's")
    with pytest.raises(errors.NotFound, match="1209:0001:stick is not at 2-1 any more"):
        await server.begin()
    assert server.kernel.bound == set()


async def test_what_was_listed_is_not_another_device_in_its_place(server: Server) -> None:
    listed = server.device()
    server.kernel.plug(PLACE, "disk")
    with pytest.raises(errors.NotFound, match="stick is not at 2-1 any more"):
        await server.leases.reserve(listed, Wish(ANN))
    assert server.device().state is State.AVAILABLE


async def test_what_was_reserved_may_be_replugged(server: Server) -> None:
    await server.reserve(ANN)
    server.kernel.plug(PLACE, "stick")
    await server.begin()
    assert str(server.device().holder) == "ann@pc1"


class SwappedWhileBound(FakeHost):
    """A hand is faster than the driver."""

    async def bind(self, bus_id: BusId) -> None:
        self.plug(bus_id, "somebody else's")
        await super().bind(bus_id)


async def test_what_was_swapped_while_it_was_bound_is_not_given_away() -> None:
    async with running(Server(SwappedWhileBound())) as server:
        with pytest.raises(errors.NotFound, match="has just been unplugged"):
            await server.begin()
        await eventually(lambda: server.kernel.bound == set())


@pytest.mark.parametrize(
    ("serial", "state", "reason"),
    [
        ("disk", State.AVAILABLE, "stick is not at 2-1 any more"),
        ("stick", State.PROTECTED, "is mounted at /"),
    ],
)
async def test_who_is_called_during_the_reset_does_not_get_what_is_plugged_in_then_bound(
    server: Server, serial: str, state: State, reason: str
) -> None:
    client = await server.attach(ANN)
    waiting = await server.wait(BOB)
    server.kernel.free.clear()
    client.close()
    await waiting
    server.kernel.plug(PLACE, serial, state)
    server.kernel.free.set()
    await eventually(lambda: server.ends)
    with pytest.raises(errors.UsbRemoteError, match=reason):
        await server.leases.release(server.device(), BOB)
    assert server.kernel.bound == set()


# -- the next one, while the kernel resets the device -----------------------------------------


async def test_the_next_one_is_accepted_while_the_kernel_resets_the_device(server: Server) -> None:
    """Its own kernel looks at the new port meanwhile."""
    beginning = await accepted_early(server)
    assert server.ends == []
    server.kernel.free.set()
    await beginning
    assert len(server.accepted) == 2
    assert [end.cause for end in server.ends] == [Cause.DETACHED]
    assert str(server.device().holder) == str(BOB)


async def test_whoever_was_accepted_too_early_is_told_why_it_failed(server: Server) -> None:
    beginning = await accepted_early(server)
    server.kernel.fails["export"] = errno.EIO
    server.kernel.free.set()
    with pytest.raises(errors.SystemFault, match="cannot export"):
        await beginning
    with pytest.raises(errors.SystemFault, match="cannot export"):
        await server.leases.release(server.device(), BOB)
    await eventually(lambda: server.device().state is State.AVAILABLE)


async def accepted_early(server: Server) -> asyncio.Task[socket.socket]:
    """Ann has let go, and Bob's import is accepted while the kernel resets the device."""
    session = await server.attach(ANN)
    waiting = await server.wait(BOB)
    server.kernel.free.clear()
    session.close()
    await waiting
    beginning = asyncio.create_task(server.begin())
    await eventually(lambda: len(server.accepted) == 2)
    return beginning


async def test_after_a_reset_nobody_is_accepted_before_the_kernel_has_the_device(
    server: Server,
) -> None:
    await server.attach(ANN)
    await server.leases.release(server.device(), ANN)
    server.accepted.clear()
    await server.reserve(BOB)
    server.kernel.fails["export"] = errno.EINVAL
    with pytest.raises(errors.SystemFault, match="cannot export"):
        await server.begin()
    assert server.accepted == []


async def test_nobody_else_is_accepted_during_the_reset(server: Server) -> None:
    session = await server.attach(ANN)
    waiting = await server.wait(BOB.model_copy(update={"address": "192.0.2.1"}))
    server.kernel.free.clear()
    session.close()
    await waiting
    with pytest.raises(errors.Busy):
        await server.begin()
    assert len(server.accepted) == 1
    server.kernel.free.set()


# -- twins: devices with one serial number ------------------------------------------------------


async def test_a_twin_that_is_plugged_in_sends_nobody_away(server: Server) -> None:
    client = await server.attach(ANN)
    waiting = await server.wait(BOB)
    server.kernel.plug(OTHER, "stick")
    server.leases.forget_unplugged(server.kernel.list_devices())
    assert server.device().waiting == 1
    client.close()
    await waiting
    await eventually(lambda: str(server.device().holder) == "bob@pc2")


async def test_who_waits_for_what_was_swapped_goes_and_the_others_move_up(server: Server) -> None:
    await server.reserve(ANN)
    old = await server.wait(BOB)
    server.kernel.plug(PLACE, "new")
    places: list[int] = []
    cid = BOB.model_copy(update={"user": "cid", "client": "c3"})
    work = server.leases.reserve(
        server.device(), Wish(cid), lambda place, holder: places.append(place)
    )
    new = asyncio.create_task(work)
    await eventually(lambda: places == [2])
    server.leases.forget_unplugged(server.kernel.list_devices())
    with pytest.raises(errors.NotFound, match="was unplugged"):
        await old
    assert places == [2, 1]
    new.cancel()


# -- a client that asks for what it has ---------------------------------------------------------


@pytest.mark.parametrize("quiet", [0, 0.6])  # seconds; TCP is asked if nothing was heard just now
async def test_a_client_does_not_take_its_device_from_itself(server: Server, quiet: float) -> None:
    await server.attach(ANN)
    await asyncio.sleep(quiet)
    with pytest.raises(errors.Busy, match="in use by ann@pc1"):
        await server.reserve(ANN.model_copy(update={"user": "another"}))
    assert str(server.device().holder) == "ann@pc1"
    assert server.ends == []


async def test_a_client_may_take_its_device_from_itself_by_force(server: Server) -> None:
    await server.attach(ANN)
    await server.reserve(ANN, force=True)
    assert [(e.cause, e.by) for e in server.ends] == [(Cause.TAKEN_OVER, "ann@pc1")]


async def test_a_client_that_let_go_and_asks_at_once_has_detached(server: Server) -> None:
    (await server.attach(ANN)).close()
    await server.reserve(ANN)
    assert [e.cause for e in server.ends] == [Cause.DETACHED]
    await server.begin()
    assert str(server.device().holder) == "ann@pc1"


@pytest.mark.skipif(os.geteuid() != 0, reason="a connection ends silently for root only")
async def test_a_client_whose_machine_was_restarted_gets_its_device_back(server: Server) -> None:
    client = await server.attach(ANN)
    await asyncio.sleep(0.6)  # or TCP has heard of it just now, and is not asked
    client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    client.close()
    await server.reserve(ANN)
    assert [e.cause for e in server.ends] == [Cause.CLIENT_LOST]
    await server.begin()
    assert str(server.device().holder) == "ann@pc1"


async def test_a_detach_ends_the_session_that_is_meant_and_not_the_next_one(
    server: Server,
) -> None:
    client = await server.attach(ANN)
    first = server.device().holder
    assert first is not None
    again = await server.wait(ANN.model_copy(update={"user": "neighbour"}))
    client.close()
    await again
    await server.leases.release(server.device(), ANN, first.since)
    assert str(server.device().holder) == "neighbour@pc1"
    await server.begin()
    await server.leases.release(server.device(), ANN, first.since)
    assert str(server.device().holder) == "neighbour@pc1"


# -- rules that change --------------------------------------------------------------------------

DENIED = [Rule(deny=Criteria(bus=PLACE))]


async def test_what_was_pulled_before_the_rules_changed_was_unplugged(server: Server) -> None:
    client = await server.attach(ANN)
    server.kernel.pull(PLACE)
    await server.leases.enforce()
    assert server.ends == []
    client.close()
    await eventually(lambda: [e.cause for e in server.ends] == [Cause.UNPLUGGED])


async def test_who_lets_go_of_what_a_new_rule_hides_has_detached(server: Server) -> None:
    client = await server.attach(ANN)
    server.shared.configure(DENIED, {})
    client.close()
    await eventually(lambda: [e.cause for e in server.ends] == [Cause.DETACHED])


async def test_each_device_is_judged_when_its_turn_comes(server: Server) -> None:
    """And not as all of them were when the rules began to be enforced."""
    server.kernel.plug(OTHER, "another")
    await server.attach(ANN, OTHER)
    lock = server.leases._leases[OTHER].lock
    server.shared.configure([Rule(deny=Criteria(bus=OTHER))], {})
    async with lock:
        enforcing = asyncio.create_task(server.leases.enforce())
        await asyncio.sleep(0)
        server.shared.configure([], {})
    await enforcing
    assert server.ends == []


async def test_a_connection_from_before_its_address_was_forbidden_gets_nothing(
    server: Server,
) -> None:
    server.leases.allowed = Networks(["10.0.0.0/8"])
    with pytest.raises(errors.Refused, match=r"127\.0\.0\.1 may not have devices"):
        await server.begin()
    assert server.kernel.bound == set()


# -- starting and stopping ----------------------------------------------------------------------


async def test_who_imports_while_the_server_starts_keeps_the_device() -> None:
    server = Server()
    server.connections.enter_context(server.kernel.leave_behind(PLACE))
    server.kernel.free.clear()
    starting = asyncio.create_task(server.leases.start())
    await eventually(lambda: ("wait_free", PLACE) in server.kernel.calls)
    beginning = asyncio.create_task(server.begin())
    await asyncio.sleep(0)
    server.kernel.free.set()
    await starting
    await beginning
    assert server.kernel.bound == {PLACE}
    assert server.kernel.wrongs == [], "no unbind before the kernel has reset the device"
    assert str(server.device().holder) == HOST
    await server.leases.stop()
    server.connections.close()


@pytest.mark.parametrize("broken", [PLACE, OTHER])
async def test_a_device_that_cannot_be_given_back_keeps_no_other_one(
    server: Server, broken: BusId, caplog: pytest.LogCaptureFixture
) -> None:
    server.kernel.plug(OTHER, "another")
    for bus_id in (PLACE, OTHER):
        await server.attach(ANN, bus_id)
    server.kernel.broken = {broken}
    await server.leases.stop()
    assert server.kernel.bound == {broken}
    assert "a device could not be freed" in caplog.text


async def test_a_session_has_ended_also_if_nobody_can_tell_how() -> None:
    ours, theirs = socket.socketpair()  # no TCP, so it cannot be asked
    ended: list[End] = []
    watch = EndWatch(lambda connection, end: ended.append(end))
    watch.start()
    watch.add(ours, Ports(0, 0))
    theirs.close()
    await eventually(lambda: ended == [End.PEER_LOST])
    watch.stop()
    watch.close()
    ours.close()


# -- what others see of the end of a session ----------------------------------------------------


async def test_nobody_sees_a_session_end_without_its_cause(server: Server) -> None:
    """Also while the next one is the holder already, and the kernel resets the device."""
    beginning = await accepted_early(server)
    during = server.device()
    assert (during.state, str(during.holder), during.last_session) == (
        State.IN_USE,
        "ann@pc1",
        None,
    )
    assert during.holder is not None
    assert during.holder.since is not None
    server.kernel.free.set()
    await beginning
    after = server.device()
    assert str(after.holder) == "bob@pc2"
    assert after.last_session is not None
    assert after.last_session.cause is Cause.DETACHED
    assert after.last_session.holder.since == during.holder.since


async def test_everybody_hears_of_each_change_of_the_holder(server: Server) -> None:
    async def changed() -> None:
        await eventually(lambda: server.changes)
        server.changes.clear()

    await server.reserve(ANN)
    await changed()
    client = await server.begin()
    await changed()
    server.leases.ask(server.device(), Request(by="bob"))
    await changed()
    waiting = await server.wait(BOB)
    await changed()
    client.close()
    await waiting
    await eventually(lambda: server.ends)
    await changed()
    await server.leases.release(server.device(), BOB)
    await changed()


async def test_who_waits_and_leaves_is_told_to_the_others(server: Server) -> None:
    await server.attach(ANN)
    first = await server.wait(BOB)
    places: list[int] = []
    cid = BOB.model_copy(update={"user": "cid", "client": "c3"})
    work = server.leases.reserve(server.device(), Wish(cid), lambda place, _: places.append(place))
    second = asyncio.create_task(work)
    await eventually(lambda: places == [2])
    assert server.device().waiting == 2
    server.changes.clear()
    first.cancel()
    await eventually(lambda: places == [2, 1])
    assert server.changes
    assert server.device().waiting == 1
    second.cancel()
    await eventually(lambda: server.device().waiting == 0)


def test_everybody_hears_that_a_device_is_free_when_its_grace_begins() -> None:
    async def main() -> None:
        async with running(Server(times=Times(grace=3600))) as server:
            client = await server.attach(ANN)
            await asyncio.sleep(1)
            server.changes.clear()
            client.close()
            await asyncio.sleep(1)
            assert server.device().state is State.AVAILABLE
            assert server.changes

    run(main())


async def test_a_session_that_the_kernel_gave_up_was_a_reset_of_the_device(server: Server) -> None:
    await server.attach(ANN)
    server.kernel.notice_end(PLACE)
    await eventually(lambda: [end.cause for end in server.ends] == [Cause.DEVICE_RESET])


async def test_a_device_that_nobody_has_is_shown_as_it_is(server: Server) -> None:
    assert server.device() == server.kernel.list_devices()[0]
    await server.reserve(ANN)
    await eventually(lambda: server.kernel.bound == {PLACE})
    await server.leases.release(server.device(), ANN)
    assert server.device() == server.kernel.list_devices()[0]
    assert server.kernel.drivers == {PLACE: OWN}


# -- why it could not be bound ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOMEM, "room for 16"), (errno.EBUSY, "resource busy")]
)
async def test_who_cannot_have_a_device_asks_why_and_its_driver_has_it_again(
    server: Server, number: int, reason: str
) -> None:
    server.kernel.fails["bind"] = number
    await server.reserve(ANN)
    with pytest.raises(errors.SystemFault, match=f"(?i){reason}"):
        await server.begin()
    with pytest.raises(errors.SystemFault, match=f"(?i){reason}"):
        await server.leases.release(server.device(), ANN)
    assert server.device().state is State.AVAILABLE
    assert server.kernel.drivers == {PLACE: OWN}


async def test_why_one_could_not_have_it_is_not_told_to_the_next(server: Server) -> None:
    await could_not_have_it(server)
    with pytest.raises(errors.SystemFault):
        await server.leases.release(server.device(), ANN)
    await server.reserve(BOB)
    await server.leases.release(server.device(), BOB)


async def test_why_one_could_not_have_it_is_forgotten_when_it_is_taken_over(server: Server) -> None:
    await could_not_have_it(server)
    await server.reserve(BOB, force=True)
    await server.leases.release(server.device(), BOB)


async def test_why_one_could_not_have_it_is_forgotten_when_it_can(server: Server) -> None:
    await could_not_have_it(server)
    await server.begin()
    await server.leases.release(server.device(), ANN)
    assert [end.cause for end in server.ends] == [Cause.DETACHED]


def test_why_one_could_not_have_it_is_forgotten_with_the_reservation() -> None:
    async def main() -> None:
        async with running(Server(times=Times(reservation=15.0))) as server:
            await could_not_have_it(server)
            await asyncio.sleep(16)
            assert server.device().state is State.AVAILABLE
            await server.leases.release(server.device(), BOB)

    run(main())


async def could_not_have_it(server: Server) -> None:
    """Ann has reserved it in vain; by now it could be bound."""
    server.kernel.fails["bind"] = errno.EBUSY
    await server.reserve(ANN)
    lease = server.leases._leases[PLACE]
    await eventually(lambda: lease.fault is not None)
    server.kernel.fails.clear()


async def test_what_a_stock_client_could_not_have_is_nobody_elses_fault(server: Server) -> None:
    server.kernel.fails["bind"] = errno.EBUSY
    with pytest.raises(errors.SystemFault):
        await server.begin()
    await server.leases.release(server.device(), ANN)
    assert server.kernel.drivers == {PLACE: OWN}


async def test_a_machine_that_cannot_export_reserves_nothing(server: Server) -> None:
    server.kernel.fault = errors.SystemFault("the kernel module usbip_host is not loaded")
    with pytest.raises(errors.SystemFault, match="not loaded"):
        await server.reserve(ANN)
    assert server.device().state is State.AVAILABLE


async def test_a_second_import_during_the_reset_leaves_no_fault_with_the_first(
    server: Server,
) -> None:
    first = await accepted_early(server)
    second = asyncio.create_task(server.begin())
    await eventually(lambda: len(server.accepted) == 3)
    server.kernel.free.set()
    await first
    with pytest.raises(errors.Busy, match="in use by bob@pc2"):
        await second
    await server.leases.release(server.device(), BOB)
    assert [end.cause for end in server.ends] == [Cause.DETACHED, Cause.DETACHED]


async def test_a_protected_device_is_reserved_for_nobody(server: Server) -> None:
    server.kernel.plug(PLACE, "stick", State.PROTECTED)
    with pytest.raises(errors.Refused, match="is protected: sda1 is mounted at /"):
        await server.reserve(ANN)
    with pytest.raises(errors.Refused, match="is protected"):
        await server.begin()
    assert server.kernel.bound == set()


async def test_who_waits_does_not_get_what_is_in_its_place_by_now(server: Server) -> None:
    client = await server.attach(ANN)
    queue = [await server.wait(BOB), await server.wait(CID)]
    server.kernel.plug(PLACE, "another")
    client.close()
    for waiting in queue:
        with pytest.raises(errors.NotFound, match="was unplugged while you waited"):
            await waiting
    await eventually(lambda: server.device().state is State.AVAILABLE)


async def test_who_waits_for_what_is_protected_by_now_is_refused(server: Server) -> None:
    client = await server.attach(ANN)
    queue = [await server.wait(BOB), await server.wait(CID)]
    server.kernel.plug(PLACE, "stick", State.PROTECTED)
    client.close()
    for waiting in queue:
        with pytest.raises(errors.Refused, match="is protected"):
            await waiting
    await eventually(lambda: server.device().state is State.PROTECTED)


# -- the kernel's own time ----------------------------------------------------------------------


async def test_a_reset_that_never_ends_does_not_keep_the_end_of_a_session(server: Server) -> None:
    async with running(Server(times=Times(grace=0.01, reset=0.05))) as server:
        client = await server.attach(ANN)
        server.kernel.free.clear()
        client.close()
        await eventually(lambda: [end.cause for end in server.ends] == [Cause.DETACHED])
        server.kernel.free.set()


async def test_a_device_that_is_replugged_during_the_reset_is_not_promised_as_it_was(
    server: Server,
) -> None:
    session = await server.attach(ANN)
    waiting = await server.wait(BOB)
    server.kernel.free.clear()
    session.close()
    await waiting
    device = server.kernel.plug(PLACE, "stick")
    beginning = asyncio.create_task(server.begin())
    await asyncio.sleep(0)
    server.kernel.free.set()
    await beginning
    assert [record.devnum for record in server.accepted][1:] == [device.devnum]


def test_a_device_that_is_being_pulled_while_its_holder_asks_again_was_unplugged() -> None:
    """Its connection goes first, then its status, then the device."""

    async def main() -> None:
        async with running(Server(times=Times())) as server:
            await server.attach(ANN)
            server.kernel.begin_pull(PLACE)
            asyncio.get_running_loop().call_later(0.02, server.kernel.end_pull, PLACE)
            await server.reserve(ANN)
            assert [end.cause for end in server.ends] == [Cause.UNPLUGGED]

    run(main())


def test_a_device_stays_bound_for_the_grace_and_no_longer() -> None:
    async def main() -> None:
        async with running(Server(times=Times(grace=2.0))) as server:
            (await server.attach(ANN)).close()
            await asyncio.sleep(1.9)
            assert (server.device().state, server.kernel.bound) == (State.AVAILABLE, {PLACE})
            await asyncio.sleep(0.2)
            assert server.kernel.drivers == {PLACE: OWN}
            (await server.attach(ANN)).close()
            await asyncio.sleep(1.5)
            client = await server.attach(ANN)
            await asyncio.sleep(5)
            assert server.kernel.bound == {PLACE}, "who comes back in time keeps it"
            client.close()

    run(main())


def test_a_device_that_was_pulled_has_no_grace() -> None:
    async def main() -> None:
        async with running(Server(times=Times(grace=2.0))) as server:
            await server.attach(ANN)
            server.kernel.plug(PLACE, "stick")
            await asyncio.sleep(0.1)
            assert server.kernel.calls[-1] == ("unbind", PLACE)
            assert [end.cause for end in server.ends] == [Cause.UNPLUGGED]

    run(main())


def test_a_stock_client_whose_import_failed_may_try_again_for_the_grace() -> None:
    async def main() -> None:
        async with running(Server(times=Times(grace=2.0))) as server:
            server.kernel.fails["export"] = errno.EIO
            with pytest.raises(errors.SystemFault, match="cannot export"):
                await server.begin()
            await asyncio.sleep(1.9)
            assert server.kernel.bound == {PLACE}
            await asyncio.sleep(0.2)
            assert server.kernel.drivers == {PLACE: OWN}

    run(main())


def test_a_reservation_lasts_as_long_as_it_is_promised() -> None:
    async def main() -> None:
        async with running(Server(times=Times(reservation=15.0))) as server:
            await server.reserve(ANN)
            await asyncio.sleep(14.9)
            with pytest.raises(errors.Busy, match="in use by ann@pc1"):
                await server.reserve(BOB)
            await server.reserve(ANN)
            await asyncio.sleep(14.9)
            assert str(server.device().holder) == "ann@pc1", "asked again: from then"
            await asyncio.sleep(0.2)
            assert server.device().state is State.AVAILABLE
            assert server.kernel.drivers == {PLACE: OWN}

    run(main())


def test_a_session_that_was_asked_for_some_time_ends_then_and_is_announced_before() -> None:
    async def main() -> None:
        async with running(Server(times=Times(notice=60.0))) as server:
            for seconds, notice in ((100, 10), (1000, 60)):
                await server.leases.reserve(server.device(), Wish(ANN, duration=seconds))
                await server.begin()
                holder = server.device().holder
                assert holder is not None
                assert holder.since is not None
                assert holder.until == holder.since + timedelta(seconds=seconds)
                await asyncio.sleep(seconds - notice - 0.5)
                assert not server.device().holder.ends_soon  # type: ignore[union-attr]
                server.changes.clear()
                await asyncio.sleep(1)
                assert server.device().holder.ends_soon  # type: ignore[union-attr]
                assert len(server.changes) == 1, "and everybody hears it"
                await asyncio.sleep(notice - 1)
                assert server.device().state is State.IN_USE
                await asyncio.sleep(1)
                assert server.device().state is State.AVAILABLE
                assert server.kernel.drivers == {PLACE: OWN}
            assert [end.cause for end in server.ends] == [Cause.TIME_UP] * 2

    run(main())


def test_when_time_is_up_the_next_one_has_its_own_time() -> None:
    async def main() -> None:
        async with running(Server(times=Times())) as server:
            await server.leases.reserve(server.device(), Wish(ANN, duration=100))
            await server.begin()
            waiting = await server.wait(BOB)
            await asyncio.sleep(101)
            await waiting
            await server.begin()
            assert str(server.device().holder) == "bob@pc2"

    run(main())


def test_the_time_of_who_let_go_before_it_was_up_is_not_that_of_the_next_one() -> None:
    async def main() -> None:
        async with running(Server(times=Times())) as server:
            await server.leases.reserve(server.device(), Wish(ANN, duration=100))
            (await server.begin()).close()
            await asyncio.sleep(50)
            await server.attach(BOB)
            for _ in range(12):
                await asyncio.sleep(5)
                holder = server.device().holder
                assert holder is not None
                assert not holder.ends_soon
            assert [end.cause for end in server.ends] == [Cause.DETACHED]

    run(main())


# -- who leaves ---------------------------------------------------------------------------------


async def test_who_leaves_when_the_turn_has_come_keeps_nothing(server: Server) -> None:
    client = await server.attach(ANN)
    waiting = await server.wait(BOB)
    (waiter,) = server.leases._leases[PLACE].queue.waiters
    client.close()
    while not waiter.turn.done():  # noqa: ASYNC110 - each turn of the loop counts here
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await eventually(lambda: server.device().state is State.AVAILABLE)


async def test_who_has_just_gone_is_not_called(server: Server) -> None:
    await server.reserve(ANN)
    await eventually(lambda: server.kernel.bound == {PLACE})
    gone = await server.wait(BOB)
    cid = await server.wait(BOB.model_copy(update={"user": "cid", "client": "c3"}))
    gone.cancel()
    await server.leases.release(server.device(), ANN)
    await cid
    assert str(server.device().holder) == "cid@pc2"


async def test_who_leaves_and_has_imported_it_already_keeps_the_session(server: Server) -> None:
    client = await server.attach(ANN)
    waiting = await server.wait(BOB)
    (waiter,) = server.leases._leases[PLACE].queue.waiters
    client.close()
    while not waiter.turn.done():  # noqa: ASYNC110 - each turn of the loop counts here
        await asyncio.sleep(0)
    beginning = asyncio.create_task(server.begin())
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await beginning
    await asyncio.gather(*server.leases._tasks)
    assert str(server.device().holder) == "bob@pc2"
    assert server.kernel.bound == {PLACE}


async def test_who_lost_its_session_and_asks_again_comes_before_who_waits(server: Server) -> None:
    client = await server.attach(ANN)
    waiting = await server.wait(BOB)
    client.close()
    await server.reserve(ANN)
    assert str(server.device().holder) == "ann@pc1"
    assert not waiting.done()
    await server.leases.release(server.device(), ANN)
    await waiting
    assert str(server.device().holder) == "bob@pc2"


async def test_who_leaves_while_a_session_is_ended_for_it_keeps_nothing(server: Server) -> None:
    await server.attach(ANN)
    server.kernel.free.clear()
    taking = asyncio.create_task(server.reserve(BOB, force=True))
    await eventually(lambda: ("wait_free", PLACE) in server.kernel.calls)
    for _ in range(2):  # also who is impatient
        taking.cancel()
        await asyncio.sleep(0)
    assert not taking.done()
    server.kernel.free.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await eventually(lambda: server.device().state is State.AVAILABLE)
    assert [(end.cause, end.by) for end in server.ends] == [(Cause.TAKEN_OVER, "bob@pc2")]


async def test_a_server_that_allows_no_takeover_says_so(server: Server) -> None:
    server.leases.takeover = False
    await server.attach(ANN)
    with pytest.raises(errors.Refused, match="does not allow taking it over"):
        await server.reserve(BOB, force=True)
    assert server.ends == []


async def test_only_the_holder_gives_a_device_back(server: Server) -> None:
    await server.leases.release(server.device(), ANN)
    await server.attach(ANN)
    with pytest.raises(errors.Busy, match="in use by ann@pc1"):
        await server.leases.release(server.device(), BOB)
    assert str(server.device().holder) == "ann@pc1"


async def test_who_is_asked_for_a_reservation_still_knows_in_the_session(server: Server) -> None:
    server.leases.ask(server.device(), Request(by="bob"))
    assert server.device().holder is None
    await server.reserve(ANN)
    server.leases.ask(server.device(), Request(by="bob", message="lunch is over"))
    await server.begin()
    holder = server.device().holder
    assert holder is not None
    assert holder.asked == Request(by="bob", message="lunch is over")


async def test_a_stop_sends_everybody_away_and_ends_every_session(server: Server) -> None:
    await server.attach(ANN)
    waiting = await server.wait(BOB)
    await server.leases.stop()
    with pytest.raises(errors.Unreachable, match="the server is being stopped"):
        await waiting
    assert [end.cause for end in server.ends] == [Cause.SERVER_STOPPED]
    assert server.kernel.drivers == {PLACE: OWN}
    assert server.leases._ends.closed
    await server.leases.stop()  # once more is nothing


async def test_new_rules_end_only_what_they_forbid(server: Server) -> None:
    server.kernel.plug(OTHER, "another")
    await server.attach(ANN)
    await server.attach(ANN, OTHER)
    server.shared.configure(DENIED, {})
    await server.leases.enforce()
    assert [(end.bus_id, end.cause) for end in server.ends] == [(PLACE, Cause.FORBIDDEN)]
    assert server.kernel.bound == {OTHER}
    server.leases.allowed = Networks(["10.0.0.0/8"])
    await server.leases.enforce()
    assert server.kernel.bound == set()
    assert [end.bus_id for end in server.ends] == [PLACE, OTHER]


async def test_who_forbids_a_device_does_not_call_who_waits_for_it(server: Server) -> None:
    await server.attach(ANN)
    waiting = await server.wait(BOB)
    server.shared.configure(DENIED, {})
    await server.leases.enforce()
    with pytest.raises(errors.NotFound, match="not shared any more"):
        await waiting


async def test_a_connection_that_has_gone_already_begins_nothing(server: Server) -> None:
    client, connection = server.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with connection, pytest.raises(errors.Unreachable, match="the client has gone"):
        await server.leases.begin(connection, PLACE, HOST, server.accepted.append)
    assert server.accepted == []
    await eventually(lambda: server.kernel.drivers == {PLACE: OWN})


async def test_the_connection_of_a_session_is_mortal_and_the_kernels(server: Server) -> None:
    await server.reserve(ANN)
    client, connection = server.connect()
    connection.setblocking(False)  # as the exporter has it
    await server.leases.begin(connection, PLACE, HOST, server.accepted.append)
    assert server.leases.has(connection)
    assert not server.leases.has(client)
    assert connection.getblocking()
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 8000),
    ):
        assert connection.getsockopt(level, option) == value
    client.close()
    await eventually(lambda: not server.leases.has(connection))
    assert connection.fileno() < 0


async def test_what_was_given_back_once_is_not_given_back_again(server: Server) -> None:
    await server.attach(ANN)
    await server.leases.release(server.device(), ANN)
    server.kernel.calls.clear()
    await server.reserve(BOB)
    server.shared.configure(DENIED, {})  # before it is bound
    with pytest.raises(errors.NotFound):
        await server.leases.release(server.device(), BOB)
    assert server.kernel.calls == []


async def test_who_is_told_nothing_of_another_place_holds_no_lease(server: Server) -> None:
    with pytest.raises(errors.NotFound, match="no device at 7-7"):
        await server.begin(BusId("7-7"))
    assert server.leases._leases == {}


async def test_what_was_given_back_says_nothing_of_what_is_plugged_in_there_next(
    server: Server,
) -> None:
    await server.attach(ANN)
    await server.leases.release(server.device(), ANN)
    server.kernel.plug(PLACE, "another")
    await server.begin()
    assert str(server.device().holder) == HOST
