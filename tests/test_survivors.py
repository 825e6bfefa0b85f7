"""A session outlives its server: systemd keeps the socket, the next server goes on with it.

systemd is a datagram socket that keeps what it is sent, the kernel a set of what is bound; the
connections are real ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.export_host import FakeHost
from tests.serving import HOST
from tests.waiting import eventually
from usb_remote.cli import serving
from usb_remote.events import Event, Kind
from usb_remote.history import History
from usb_remote.leases import Leases
from usb_remote.model import Cause, Device, Holder
from usb_remote.notify import FD_NAMES, FDS, FDS_PID, SOCKET, Service
from usb_remote.rules import Criteria, Rule
from usb_remote.sharing import NameBook, SharedDevices
from usb_remote.state import StateFile
from usb_remote.survivors import Keeper, Survivor, is_restart, own_unit, says_restart
from usb_remote.values import BusId
from usb_remote.waiting import Wish

STICK, CAMERA = BusId("2-1"), BusId("1-2")
ANN = Holder(user="ann", host="pc9", client="c" * 32, address=HOST)
FIRST_FD = 300
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: the connection is reset."""


class Systemd:
    """Keeps descriptors for one service (sd_notify(3), FDSTORE)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
                name = data.decode().rpartition("FDNAME=")[2]
                if data.startswith(b"FDSTORE=1\n"):
                    self.kept[name] = fds[0]
                if data.startswith(b"FDSTOREREMOVE=1\n"):
                    os.close(self.kept.pop(name))

    def start_service(self) -> Service:
        """The next process of the service, with what was kept for the one before."""
        self.listen()
        for number, fd in enumerate(self.kept.values(), FIRST_FD):
            os.dup2(fd, number)
        environment = {
            SOCKET: str(self.path),
            FDS: str(len(self.kept)),
            FDS_PID: str(os.getpid()),
            FD_NAMES: ":".join(self.kept),
        }
        return Service(environment, FIRST_FD)

    def close(self) -> None:
        self.listen()
        for fd in self.kept.values():
            os.close(fd)
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with contextlib.closing(Systemd(tmp_path / "notify")) as one:
        yield one


class Server:
    """One process after the other of a server, on the same kernel, systemd and disk."""

    def __init__(self, kernel: FakeHost, systemd: Systemd, folder: Path) -> None:
        self.kernel, self.systemd = kernel, systemd
        self.past = History(StateFile(folder / "history.jsonl"))
        self.leases = Leases(kernel, kernel, self.past)
        self.leases.keeper = Keeper(systemd.start_service())

    async def start(self) -> list[Survivor]:
        assert self.leases.keeper is not None
        found = self.leases.keeper.survivors(
            self.past.open_sessions(), self.kernel.list_devices(), self.kernel.list_bound()
        )
        self.past.close_open_sessions(datetime.now(UTC), {one.device.id for one in found})
        await self.leases.start(found)
        return found

    async def attach(self, bus_id: BusId, duration: float | None = None) -> socket.socket:
        """Returns the client's end."""
        with socket.create_server((HOST, 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            connection, _ = listener.accept()
        await self.leases.reserve(self.device(bus_id), Wish(ANN, duration=duration))
        await self.leases.begin(connection, bus_id, HOST, lambda record: None)
        await eventually(lambda: self.past.open_sessions())
        return client

    async def restart(self, folder: Path) -> Server:
        self.leases.leaves = True
        await self.leases.stop()
        return Server(self.kernel, self.systemd, folder)

    def device(self, bus_id: BusId) -> Device:
        found = self.leases.with_holders(self.kernel.list_devices())
        return next(device for device in found if device.bus_id == bus_id)

    def holder(self, bus_id: BusId) -> Holder | None:
        return self.device(bus_id).holder

    @property
    def causes(self) -> list[Cause | None]:
        return [e.cause for e in self.past.events if e.kind is Kind.ENDED]


@pytest.fixture
def first(systemd: Systemd, tmp_path: Path) -> Iterator[Server]:
    """Its kernel outlives all servers."""
    kernel = FakeHost(reset=0)
    kernel.plug(STICK, "A")
    kernel.plug(CAMERA, "B")
    yield Server(kernel, systemd, tmp_path)
    kernel.close()
    assert kernel.wrongs == []


async def test_a_session_goes_on_and_ends_as_any_other(first: Server, tmp_path: Path) -> None:
    await first.start()
    client = await first.attach(STICK)
    before = first.holder(STICK)
    second = await first.restart(tmp_path)
    await second.start()
    assert second.holder(STICK) == before
    assert ("release", STICK) not in second.kernel.calls
    assert second.kernel.bound == {STICK}
    with client:
        pass
    await eventually(lambda: second.holder(STICK) is None)
    assert second.causes == [Cause.DETACHED]
    await second.leases.stop()
    assert second.kernel.bound == set()
    second.systemd.listen()
    assert second.systemd.kept == {}


async def test_what_has_no_session_is_given_back_at_a_restart(
    first: Server, tmp_path: Path
) -> None:
    await first.start()
    with await first.attach(STICK):
        await first.leases.reserve(first.device(CAMERA), Wish(ANN))
        await eventually(lambda: CAMERA in first.kernel.bound)
        second = await first.restart(tmp_path)
        assert second.kernel.bound == {STICK}
        await second.start()
        await second.leases.stop()


async def test_a_stop_that_is_no_restart_leaves_nothing(first: Server) -> None:
    await first.start()
    with await first.attach(STICK):
        await first.leases.stop()
    first.systemd.listen()
    assert (first.systemd.kept, first.kernel.bound) == ({}, set())
    assert first.causes == [Cause.SERVER_STOPPED]


async def test_the_time_of_a_session_goes_on_as_well(first: Server, tmp_path: Path) -> None:
    await first.start()
    with await first.attach(STICK, duration=0.3):
        second = await first.restart(tmp_path)
        await second.start()
        await eventually(lambda: second.holder(STICK) is None)
        assert second.causes == [Cause.TIME_UP]
        assert first.causes == [], "the server before has nothing to do with it any more"
        await second.leases.stop()


@pytest.mark.parametrize("wrong", ["another device", "history", "binding", "connection"])
async def test_in_doubt_a_session_ends(first: Server, tmp_path: Path, wrong: str) -> None:
    await first.start()
    client = await first.attach(STICK)
    second = await first.restart(tmp_path / "lost" if wrong == "history" else tmp_path)
    if wrong == "another device":
        second.kernel.plug(STICK, "A")
    if wrong == "binding":
        await second.kernel.release(STICK)
        await second.kernel.unbind(STICK)
    if wrong == "connection":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        client.close()
    assert await second.start() == []
    assert second.holder(STICK) is None
    assert second.kernel.bound == set()
    assert second.causes == ([] if wrong == "history" else [Cause.SERVER_STOPPED])
    await second.leases.stop()
    second.systemd.listen()
    assert second.systemd.kept == {}
    client.close()


async def test_a_session_goes_on_beside_a_twin_that_came_meanwhile(
    first: Server, tmp_path: Path
) -> None:
    await first.start()
    with await first.attach(STICK):
        second = await first.restart(tmp_path)
        second.kernel.plug(CAMERA, "A")
        assert len(await second.start()) == 1
    await eventually(lambda: second.causes == [Cause.DETACHED])
    assert second.past.open_sessions() == []
    await second.leases.stop()


async def test_what_the_rules_of_the_next_server_deny_ends_as_forbidden(
    first: Server, tmp_path: Path
) -> None:
    await first.start()
    with await first.attach(STICK):
        second = await first.restart(tmp_path)
        shared = SharedDevices(second.kernel, NameBook(StateFile(None)))
        shared.configure([Rule(deny=Criteria(bus=STICK))], {})
        held = Leases(shared, second.kernel, second.past, plugged=second.kernel)
        held.keeper = second.leases.keeper
        await serving.go_on(held, second.past, shared, second.kernel)
    assert second.causes == [Cause.FORBIDDEN]
    assert second.kernel.bound == set()
    await held.stop()
    await second.leases.stop()


def test_only_what_systemd_passes_to_this_process_is_taken() -> None:
    passed = {FDS: "1", FD_NAMES: "2-1@5", FDS_PID: "1"}
    assert Service(passed).stored() == {}
    assert passed == {}


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/usb-remote-server.service\n", "usb-remote-server.service"),
        ("12:cpu:/\n1:name=systemd:/system.slice/x.service\n", "x.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_the_unit_that_this_process_is(cgroups: str, unit: str | None) -> None:
    assert own_unit(cgroups) == unit


@pytest.mark.parametrize(
    ("jobs", "is_restart"),
    [
        ("123 x.service restart running\n", True),
        ("123 x.service stop    running\n", False),
        ("122 y.service restart waiting\n123 x.service stop running\n", False),
        ("", False),
    ],
)
def test_what_systemd_is_about_to_do(jobs: str, is_restart: bool) -> None:
    assert says_restart(jobs, "x.service") == is_restart


async def test_where_systemd_says_nothing_it_is_the_end() -> None:
    assert not await is_restart()


# -- what can go on -----------------------------------------------------------------------------


def begun(**more: object) -> Event:
    facts = {
        "at": "2026-01-01T00:00:00Z", "kind": "attached", "device": "1209:0001:A", "bus_id": "2-1",
        "serial": "A", "holder": ANN.model_dump(),
    }  # fmt: skip
    return Event.model_validate(facts | more)


@pytest.mark.parametrize(
    ("event", "goes_on"),
    [
        (begun(), True),
        (begun(device="1209:0001@2-1"), True),
        (begun(device="1209:0002:A"), False),
        (begun(serial="B"), False),
        (begun(bus_id="2-2"), False),
        (begun(holder=None), False),
    ],
)
def test_a_session_goes_on_only_if_its_device_is_surely_the_same(
    systemd: Systemd, event: Event, goes_on: bool
) -> None:
    kernel = FakeHost()
    device = kernel.plug(STICK, "A")
    with socket.create_server((HOST, 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    with client, connection:
        Keeper(systemd.start_service()).keep(device, connection)
    keeper = Keeper(systemd.start_service())
    found = keeper.survivors([event], kernel.list_devices(), [STICK])
    assert [(one.device.id, one.holder) for one in found] == [(event.device, ANN)] * goes_on
    for one in found:
        one.connection.close()
    systemd.listen()
    assert list(systemd.kept) == [f"2-1@{device.devnum}"] * goes_on
