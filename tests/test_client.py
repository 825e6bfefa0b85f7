"""The client against real servers on loopback; only the kernel's import is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.importing import ArrivedAtOnce, UserSpaceImporter
from tests.patience import patience
from tests.serving import HOST, Running, at, found, knowing, running_server, state_of
from tests.waiting import eventually
from usb_remote import errors, protocol
from usb_remote.client import Client, How
from usb_remote.config import Config
from usb_remote.connection import connect
from usb_remote.finder import Failure, Finder
from usb_remote.matching import Query
from usb_remote.model import Attachment, Device, Server, State, with_ids
from usb_remote.values import BusId
from usb_remote.virtual import KINDS, VirtualDevices
from usb_remote.watcher import Change, Watcher

DATA = Path(__file__).parent / "data" / "2x"


def finder(
    *configured: str,
    browse: Callable[[], AsyncIterator[Server]] | None = None,
    timeout: float = 20.0,
) -> Finder:
    return Finder(knowing(*configured, timeout=timeout), browse or found())


def client(
    *configured: str,
    importer: UserSpaceImporter | None = None,
    arrival: ArrivedAtOnce = ArrivedAtOnce(),
    me: str = "me",
) -> Client:
    here = importer or UserSpaceImporter()
    return Client(knowing(*configured), found(), here, lambda: arrival, me, lambda: {HOST})


async def test_a_server_in_yaml_and_mdns_is_listed_once_under_its_configured_name(
    bench: Running,
) -> None:
    by_mdns = bench.server.model_copy(update={"id": bench.control.info.id, "name": "pi"})
    search = await finder(at(bench), browse=found(by_mdns)).search()
    (listing,) = search.listings
    assert listing.server.name == at(bench)
    assert len(listing.snapshot.devices) == 3


async def test_a_dead_server_is_one_failure_and_hides_nothing(bench: Running) -> None:
    search = await finder("127.0.0.1:1", at(bench)).search()
    assert len(search.listings) == 1
    ((server, error),) = search.failures
    assert server.name == "127.0.0.1:1"
    assert isinstance(error, errors.Unreachable)
    assert "connection refused" in error.message


async def test_what_is_said_to_be_at_a_dead_server_is_out_of_reach(bench: Running) -> None:
    for query in (Query(handle="127.0.0.1:1/scope"), Query(host="127.0.0.1:1", serial="x")):
        search = await finder("127.0.0.1:1", at(bench)).search()
        with pytest.raises(errors.Unreachable, match="connection refused"):
            search.choose(query)


async def test_a_mute_server_costs_no_more_than_the_timeout(bench: Running) -> None:
    with contextlib.ExitStack() as stack:
        mutes = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(4)]
        names = [f"{HOST}:{mute.getsockname()[1]}" for mute in mutes]
        loop = asyncio.get_running_loop()
        start = loop.time()
        search = await finder(*names, at(bench), timeout=3).search()
        assert loop.time() - start < 2 * 3, "they are asked at the same time"
    assert (len(search.listings), len(search.failures)) == (1, 4)
    assert "did not answer within 3 s" in search.failures[0].error.message


async def test_answers_come_as_they_are_ready(bench: Running) -> None:
    with socket.create_server((HOST, 0)) as mute:
        slow = f"{HOST}:{mute.getsockname()[1]}"
        async with aclosing(finder(slow, at(bench), timeout=30).listings()) as answers:
            assert not isinstance(await anext(answers), Failure)
            mute.close()
            assert isinstance(await anext(answers), Failure)


async def test_discovery_that_fails_does_not_hide_configured_servers(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> AsyncIterator[Server]:
        raise OSError("no multicast")
        yield

    search = await finder(at(bench), browse=broken).search()
    assert len(search.listings) == 1
    assert "no multicast" in caplog.text


async def test_somebody_else_on_the_port_is_a_clear_failure() -> None:
    async def web(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 \x1b[2JBad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(web, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        ((_, error),) = (await finder(f"{HOST}:{port}").search()).failures
    assert "not one of usb-remote" in error.message
    assert error.message.isprintable()


async def test_of_several_addresses_the_one_that_answers_is_used(bench: Running) -> None:
    many = bench.server.model_copy(update={"addresses": ("127.0.0.77", "::1", HOST)})
    bench.server.model_copy()
    (listing,) = (await finder(browse=found(many)).search()).listings
    assert listing.server.addresses[0] == HOST


async def test_nobody_at_all_is_explained() -> None:
    with pytest.raises(errors.NotFound, match="no usb-remote server found") as caught:
        await finder().find(Query(serial="x"))
    assert "usb-remote server" in (caught.value.hint or "")


async def test_attach_use_detach(bench: Running) -> None:
    here = UserSpaceImporter()
    one = client(at(bench), importer=here)
    done = await one.attach(Query(handle="VIRTUAL0001"))
    assert not done.already
    assert done.attachment.nodes == ("/dev/ttyUSB0",)
    again = await one.attach(Query(serial="VIRTUAL0001"))
    assert again.already
    held = await finder(at(bench)).find(Query(serial="VIRTUAL0001"))
    assert held.device.state is State.IN_USE
    assert held.device.holder is not None
    assert held.device.holder.host == socket.gethostname()
    gone = await one.detach(Query(serial="VIRTUAL0001"))
    assert gone.match is not None
    assert gone.match.device.state is State.AVAILABLE
    assert here.list_attachments() == []


async def test_what_is_not_attached_is_detached_with_success(bench: Running) -> None:
    done = await client(at(bench)).detach(Query(serial="VIRTUAL0001"))
    assert done.attachment is None


async def test_ambiguity_lists_the_matches_and_the_way_out(bench: Running) -> None:
    one = client(at(bench))
    with pytest.raises(errors.Ambiguous, match="matches 3 devices") as caught:
        await one.attach(Query(id="1209:*"))
    assert f"{at(bench)}/1-2" in caught.value.message
    assert "--first" in (caught.value.hint or "")
    first = await finder(at(bench)).find(Query(id="1209:*", first=True))
    assert first.device.bus_id == "1-1"


async def test_a_failed_import_gives_the_reservation_back(bench: Running) -> None:
    broken = UserSpaceImporter(errors.Unreachable("port 3240 is blocked"))
    with pytest.raises(errors.Unreachable, match="3240"):
        await client(at(bench), importer=broken).attach(Query(serial="VIRTUAL0001"))
    assert bench.control.snapshot.devices[0].state is State.AVAILABLE


class Hanging(UserSpaceImporter):
    """A tool that does not come to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def attach(self, *args: Any, **more: Any) -> Attachment:
        self.begun.set()
        await asyncio.Event().wait()
        raise AssertionError("it never ends")


class Unbindable(VirtualDevices):
    async def bind(self, bus_id: BusId) -> None:
        raise errors.SystemFault("the kernel refuses")


async def test_an_attach_that_is_cancelled_is_that_whatever_the_server_says() -> None:
    async with running_server("serial", bus=Unbindable) as bench:
        hanging = Hanging()
        attaching = asyncio.create_task(client(at(bench), importer=hanging).attach(Query()))
        await hanging.begun.wait()
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        assert bench.control.snapshot.devices[0].state is State.AVAILABLE


class NeverUsable(ArrivedAtOnce):
    """Drivers that are still at it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        self.asked.set()
        await asyncio.Event().wait()
        return ()


async def test_whoever_stops_waiting_for_the_drivers_leaves_nothing_attached(
    bench: Running,
) -> None:
    here, arrival = UserSpaceImporter(), NeverUsable()
    one = client(at(bench), importer=here, arrival=arrival)
    attaching = asyncio.create_task(one.attach(Query(bus="1-1")))
    await arrival.asked.wait()
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    assert here.list_attachments() == []
    assert bench.control.snapshot.devices[0].state is State.AVAILABLE


class CancelledOnArrival(UserSpaceImporter):
    """Whoever waits stops doing so just when all is done, and only connections are to be closed."""

    attaching: asyncio.Task[object]

    def local_bus_id(self, attachment: Attachment) -> str | None:
        local = super().local_bus_id(attachment)
        if local is not None:
            asyncio.get_running_loop().call_soon(self.attaching.cancel)
        return local


async def test_whoever_stops_waiting_while_the_connection_is_closed_leaves_nothing_attached(
    bench: Running,
) -> None:
    here = CancelledOnArrival()
    one = client(at(bench), importer=here)
    here.attaching = asyncio.create_task(one.attach(Query(bus="1-1")))
    with pytest.raises(asyncio.CancelledError):
        await here.attaching
    assert here.list_attachments() == []
    await eventually(lambda: state_of(bench, "1-1") is State.AVAILABLE)


class CancelledBefore(CancelledOnArrival):
    """Whoever waits stops doing so before the kernel has enumerated the device."""

    def local_bus_id(self, attachment: Attachment) -> str | None:
        self.attaching.cancel()
        return None


async def test_what_was_only_imported_is_detached_here_whatever_its_server_does(
    bench: Running,
) -> None:
    here = CancelledBefore()
    one = client(at(bench), importer=here)
    here.attaching = asyncio.create_task(one.attach(Query(bus="1-1")))
    with pytest.raises(asyncio.CancelledError):
        await here.attaching
    assert here.list_attachments() == []


async def test_a_stale_import_is_detached_before_the_next(bench: Running) -> None:
    here = UserSpaceImporter()
    one = client(at(bench), importer=here)
    await one.attach(Query(bus="1-1"))
    here.lose(0)
    await eventually(lambda: bench.control.snapshot.devices[0].state is State.AVAILABLE)
    done = await one.attach(Query(bus="1-1"))
    assert not done.already
    assert len(here.list_attachments()) == 1
    await one.detach(Query(bus="1-1"))


async def test_a_dead_server_does_not_keep_a_device_from_being_detached() -> None:
    here = UserSpaceImporter()
    async with running_server(*KINDS) as bench:
        await client(at(bench), importer=here).attach(Query(bus="1-1"))
    done = await client("127.0.0.1:1", importer=here).detach(Query(serial="VIRTUAL0001"))
    assert done.match is None
    assert here.list_attachments() == []


async def _next(changes: AsyncIterator[Change]) -> Change:
    async with asyncio.timeout(patience(10)):
        return await anext(changes)


async def test_watch_follows_a_server_through_plug_loss_and_return() -> None:
    async with running_server("serial") as bench:
        port = bench.control.port
        watching = Watcher(knowing(at(bench)), found()(), reconnect=0.05).watch()
        async with aclosing(watching) as changes:
            first = await _next(changes)
            assert first.listing is not None
            assert len(first.listing.snapshot.devices) == 1
            bench.devices.plug("disk")
            second = await _next(changes)
            assert second.listing is not None
            assert len(second.listing.snapshot.devices) == 2
            await bench.control.stop()
            lost = await _next(changes)
            assert lost.listing is None
            assert lost.error is not None
            bench.control._servers.clear()
            await bench.control.start([HOST], port)
            back = await _next(changes)
            assert back.listing is not None


async def test_a_watch_that_is_cancelled_leaves_no_task(bench: Running) -> None:
    async def follow() -> None:
        async with aclosing(Watcher(knowing(at(bench)), found()()).watch()) as changes:
            async for _ in changes:
                told.set()

    told = asyncio.Event()
    before = asyncio.all_tasks()
    following = asyncio.create_task(follow())
    await told.wait()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_one_server_under_two_entries_is_watched_once(bench: Running) -> None:
    by_mdns = bench.server.model_copy(update={"id": bench.control.info.id})
    async with aclosing(Watcher(knowing(at(bench)), found(by_mdns)()).watch()) as changes:
        await _next(changes)
        bench.devices.pull("disk")
        assert (await _next(changes)).listing is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(changes)


def test_who_may_never_come_back_is_asked_seldom_whom_the_configuration_names_is_not() -> None:
    named, met = (
        Server(name=name, id=name[0] * 32, version="3", addresses=(name,)) for name in ("pi", "tom")
    )
    watcher = Watcher(knowing("pi"), found()())
    pauses = [[watcher._pause(s, after) for after in (1, 100, 1000, 4000)] for s in (named, met)]
    assert pauses == [[2, 5, 15, 15], [2, 5, 15, 300]]


async def test_a_2x_server_is_spoken_to_in_its_own_words() -> None:
    """What the recorded 2.3.2 says, as it says it: one answer a connection."""
    heard: list[bytes] = []

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(1024)
        heard.append(request)
        known = request == (DATA / "list.request").read_bytes()
        writer.write((DATA / f"{'list' if known else 'unknown-key'}.reply").read_bytes())
        writer.close()

    server = await asyncio.start_server(old, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        (listing,) = (await finder(f"{HOST}:{port}").search()).listings
    assert listing.server.id is None
    assert [d.bus_id for d in listing.snapshot.devices] == ["1-1.4", "2-1"]
    assert heard[-1] == b'{"command":"list"}'


async def test_what_was_swapped_since_it_was_listed_is_not_asked_for(bench: Running) -> None:
    one = client(at(bench))
    (match,) = (await finder(at(bench)).search()).select(Query(bus="1-1"))
    for other in ({"serial": "VIRTUAL0009"}, {"serial": None}, {"product_id": "0009"}):
        swapped = match._replace(device=match.device.model_copy(update=other))
        with pytest.raises(errors.NotFound):
            await one.attach_found(swapped)
    assert bench.control.snapshot.devices[0].state is State.AVAILABLE


async def test_a_serial_number_is_never_a_glob() -> None:
    class Odd(VirtualDevices):
        def list_devices(self) -> tuple[Device, ...]:
            (device,) = super().list_devices()
            return with_ids([device.model_copy(update={"serial": "[*" * 64})])

    async with running_server("serial", bus=Odd) as bench:
        done = await client(at(bench)).release(Query(bus="1-1"), None)
        assert done.device.serial == "[*" * 64


async def test_of_two_programs_that_attach_at_once_one_does_and_the_other_is_told_so(
    bench: Running,
) -> None:
    here = UserSpaceImporter()
    both = [client(at(bench), importer=here).attach(Query(bus="1-1")) for _ in range(2)]
    first, second = await asyncio.gather(*both)
    assert {first.already, second.already} == {False, True}
    assert first.attachment == second.attachment
    assert [e.kind for e in bench.history.events if e.kind in {"attached", "ended"}] == ["attached"]
    await client(at(bench), importer=here).detach(Query(bus="1-1"))


async def test_who_waits_in_a_queue_does_not_hold_up_others_of_this_machine(
    bench: Running,
) -> None:
    here, theirs = UserSpaceImporter(), UserSpaceImporter()
    one, other = client(at(bench), importer=here), client(at(bench), importer=theirs, me="you")
    await other.attach(Query(bus="1-1"))
    waiting = asyncio.create_task(one.attach(Query(bus="1-1"), How(wait=0)))
    await eventually(lambda: bench.control.snapshot.devices[0].waiting == 1)
    with pytest.raises(errors.Busy, match="in use by"):
        await one.attach(Query(bus="1-1"))
    forced = await one.attach(Query(bus="1-1"), How(force=True))
    await one.detach(Query(bus="1-1"))
    assert (await waiting).attachment.bus_id == forced.attachment.bus_id
    await one.detach(Query(bus="1-1"))
    await theirs.detach(0)


# -- which server is meant by a name ------------------------------------------------------------


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[Running, Running]]:
    async with running_server("serial") as first, running_server("disk") as second:
        second.control.info = second.control.info.model_copy(update={"id": "2" * 32})
        yield first, second


async def test_a_name_is_looked_up_alike_by_find_list_and_watch(bench: Running) -> None:
    config = Config(server_port=bench.control.port, timeout=2.0)
    for host in ("localhost", "LOCALHOST", HOST, f"localhost:{bench.control.port}"):
        finder = Finder(config, found())
        assert [li.server.name for li in (await finder.search(host)).listings] == [host]
        assert (await finder.find(Query(bus="1-1", host=host))).device.bus_id == "1-1"
        async with aclosing(Watcher(config, found()(), host=host).watch()) as changes:
            assert (await _next(changes)).server.name == host


async def test_the_server_that_nobody_named_has_its_own_name(bench: Running) -> None:
    config = Config(server_port=bench.control.port, timeout=2.0)
    assert (await Finder(config, found()).find(Query(handle="bench/1-1"))).server.name == "bench"
    async with aclosing(Watcher(config, found()()).watch()) as changes:
        assert (await _next(changes)).server.name == "bench"


@pytest.mark.parametrize("turn", [1, -1])
async def test_a_name_goes_before_the_address_of_another_server(turn: int) -> None:
    async with two_servers() as (first, second):
        other = f"localhost:{second.control.port}"
        config = Config(servers=["localhost", other][::turn], server_port=first.control.port)
        search = await Finder(config, found()).search()
        for host, kind in (("localhost", "serial"), (other, "disk")):
            assert kind in search.choose(Query(handle=f"{host}/1209:")).device.description
            assert kind in search.choose(Query(id="1209:*", host=host)).device.description
            (listing,) = (await Finder(config, found()).search(host)).listings
            assert listing.server.name == host
            async with aclosing(Watcher(config, found()(), host=host).watch()) as changes:
                assert (await _next(changes)).server.name == host
        assert search.select(Query(handle="localhost/1-2")) == []


async def test_a_watch_of_one_server_takes_no_notice_of_others(bench: Running) -> None:
    pi = bench.server.model_copy(update={"name": "pi"})
    other = Server(name="other", addresses=(HOST,), port=1)
    async with aclosing(Watcher(knowing("x"), found(other, pi)(), host="pi").watch()) as changes:
        assert (await _next(changes)).server.name == "pi"


# -- what goes wrong half-way -------------------------------------------------------------------


async def test_the_server_says_why_an_import_failed_if_it_knows() -> None:
    """What the tool says of it is less: only that it did not work."""
    failed = UserSpaceImporter(errors.SystemFault("usbip: recv op_common"))

    async with running_server("serial", bus=Unbindable) as bench:
        with pytest.raises(errors.SystemFault, match="the kernel refuses"):
            await client(at(bench), importer=failed).attach(Query(bus="1-1"))


async def test_what_is_held_but_not_imported_here_is_let_go(bench: Running) -> None:
    """As after a crash between the two."""
    one = client(at(bench))
    (match,) = (await finder(at(bench)).search()).select(Query(bus="1-1"))
    async with await connect(match.server, 20) as connection:
        ask = protocol.build(
            protocol.AttachRequest, {"bus": "1-1", "client": "me", "host": socket.gethostname()}
        )
        await connection.request(ask)
    assert state_of(bench, "1-1") is State.IN_USE
    done = await one.detach(Query(bus="1-1"))
    assert done.attachment is None
    assert state_of(bench, "1-1") is State.AVAILABLE


async def test_what_somebody_else_holds_is_not_let_go_by_a_detach(bench: Running) -> None:
    theirs = UserSpaceImporter()
    other = client(at(bench), importer=theirs, me="you")
    await other.attach(Query(bus="1-1"))
    done = await client(at(bench)).detach(Query(bus="1-1"))
    assert done.attachment is None
    assert state_of(bench, "1-1") is State.IN_USE
    await other.detach(Query(bus="1-1"))


async def test_whoever_waited_for_it_has_it_by_the_time_a_detach_is_confirmed(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    here, theirs = UserSpaceImporter(), UserSpaceImporter()
    one, other = client(at(bench), importer=here), client(at(bench), importer=theirs, me="you")
    await one.attach(Query(bus="1-1"))
    waiting = asyncio.create_task(other.attach(Query(bus="1-1"), How(wait=0)))
    await eventually(lambda: bench.control.snapshot.devices[0].waiting == 1)
    done = await one.detach(Query(bus="1-1"))
    assert done.match is not None
    assert done.attachment is not None
    assert (await waiting).attachment.bus_id == "1-1"
    assert "does not confirm it" not in caplog.text
    await other.detach(Query(bus="1-1"))


async def test_a_server_that_does_not_confirm_a_detach_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = UserSpaceImporter()
    one = client("127.0.0.1:1", importer=here)
    async with running_server("serial") as bench:
        done = await client(at(bench), importer=here).attach(Query(bus="1-1"))
    gone = await one.give_back(done.match, done.attachment)
    assert (gone.match, gone.attachment) == (done.match, done.attachment)
    assert here.list_attachments() == []
    (said,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert said.startswith(f"detached here, but {done.match.server.name} does not confirm it: ")


async def test_whoever_stops_waiting_for_what_was_attached_before_leaves_it_so(
    bench: Running,
) -> None:
    here, arrival = UserSpaceImporter(), NeverUsable()
    await client(at(bench), importer=here).attach(Query(bus="1-1"))
    again = client(at(bench), importer=here, arrival=arrival)
    attaching = asyncio.create_task(again.attach(Query(bus="1-1")))
    await arrival.asked.wait()
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    assert len(here.list_attachments()) == 1
    assert state_of(bench, "1-1") is State.IN_USE
    await here.detach(0)


class Unrecognised(UserSpaceImporter):
    """A kernel that cannot enumerate what it imports, and how long it was given for it."""

    given = 0.0

    async def attach(self, *args: Any, **more: Any) -> Attachment:
        self.given = more["timeout"]
        return await super().attach(*args, **more)

    def local_bus_id(self, attachment: Attachment) -> str | None:
        return None


@pytest.mark.parametrize(("timeout", "given"), [(0.5, 5.0), (7.0, 7.0)])
async def test_what_the_kernel_does_not_recognise_in_time_is_given_back(
    bench: Running, timeout: float, given: float
) -> None:
    """The kernel has 5 s at least: they have nothing to do with how soon a server answers."""
    here = Unrecognised()
    config = knowing(at(bench), timeout=timeout)
    one = Client(config, found(), here, ArrivedAtOnce, "me", lambda: {HOST})
    match = (await finder(at(bench)).search()).select(Query(bus="1-1"))[0]
    with pytest.raises(errors.SystemFault, match="kernel did not recognise it"):
        await one.attach_found(match)
    assert here.given == given
    assert here.list_attachments() == []
    await eventually(lambda: state_of(bench, "1-1") is State.AVAILABLE)
