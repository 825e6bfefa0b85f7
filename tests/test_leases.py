"""Who has which device, where a hand at the bus, rules and clients come in between.

The kernel is a fake whose steps can be held up; the connections of sessions are real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from tests.fakes.export_host import FakeHost
from tests.serving import HOST, QUICK
from tests.waiting import eventually
from usb_remote import errors
from usb_remote.events import Event, Kind
from usb_remote.history import History
from usb_remote.lease import Times
from usb_remote.leases import Leases
from usb_remote.model import Cause, Device, Holder, State
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

TCP_REPAIR = 19
"""tcp(7): a socket that is closed in this state says nothing to its peer."""


class Server:
    """The arbiter of one server."""

    def __init__(self, kernel: FakeHost | None = None, times: Times = QUICK) -> None:
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
    await asyncio.sleep(0.6)
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
