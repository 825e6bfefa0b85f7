"""The client against real servers on loopback; only the kernel's import is a fake."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.conftest import HOST, Running, eventually, running_server
from usb_remote import errors
from usb_remote.client import Client
from usb_remote.config import Config
from usb_remote.finder import Failure, Finder
from usb_remote.matching import Query
from usb_remote.model import Attachment, BusId, Server, State
from usb_remote.virtual import KINDS, import_device
from usb_remote.watcher import Change, Watcher

DATA = Path(__file__).parent / "data" / "2x"


class UserSpaceImporter:
    """Imports over real USB/IP, but into this process instead of the kernel."""

    def __init__(self, broken: errors.UsbRemoteError | None = None) -> None:
        self.broken = broken
        self._handles: dict[int, tuple[Attachment, object]] = {}

    async def prepare(self) -> None:
        """This process can always import."""

    def list_attachments(self) -> list[Attachment]:
        return [attachment for attachment, _ in self._handles.values()]

    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int, timeout: float
    ) -> Attachment:
        if self.broken:
            raise self.broken
        handle = await asyncio.to_thread(import_device, address, usbip_port, bus_id)
        attachment = Attachment(
            vhci_port=len(self._handles),
            address=address,
            bus_id=bus_id,
            local_bus_id=f"9-{len(self._handles) + 1}",
            devid=handle.conn.devid,
            serial=f"VIRTUAL000{bus_id[-1]}",
        )
        self._handles[attachment.vhci_port] = (attachment, handle)
        return attachment

    def local_bus_id(self, attachment: Attachment) -> str | None:
        return attachment.local_bus_id

    async def detach(self, vhci_port: int) -> None:
        _, handle = self._handles.pop(vhci_port)
        handle.close()  # type: ignore[attr-defined]

    def lose(self, vhci_port: int) -> None:
        """The other side has gone, and this one does not know yet."""
        self._handles[vhci_port][1].close()  # type: ignore[attr-defined]


class ArrivedAtOnce:
    """No kernel: what is imported is there."""

    async def until(self, look: Callable[[], str | None], timeout: float) -> str | None:
        return look()

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        return ("/dev/ttyUSB0",)


def found(*servers: Server) -> Callable[[], AsyncIterator[Server]]:
    async def browse() -> AsyncIterator[Server]:
        for server in servers:
            yield server

    return browse


def at(bench: Running) -> str:
    return f"{HOST}:{bench.control.port}"


def finder(
    *configured: str,
    browse: Callable[[], AsyncIterator[Server]] | None = None,
    timeout: float = 2.0,
) -> Finder:
    return Finder(knowing(*configured, timeout=timeout), browse or found())


def client(*configured: str, importer: UserSpaceImporter | None = None) -> Client:
    here = importer or UserSpaceImporter()
    return Client(knowing(*configured), found(), here, ArrivedAtOnce, "me", lambda: {HOST})


def knowing(*configured: str, timeout: float = 2.0) -> Config:
    return Config(servers=list(configured), timeout=timeout, server_port=1)


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


async def test_a_mute_server_costs_no_more_than_the_timeout(bench: Running) -> None:
    with socket.create_server((HOST, 0)) as mute:
        loop = asyncio.get_running_loop()
        start = loop.time()
        search = await finder(f"{HOST}:{mute.getsockname()[1]}", at(bench), timeout=0.3).search()
        assert loop.time() - start < 3
    assert (len(search.listings), len(search.failures)) == (1, 1)
    assert "did not answer within 0.3 s" in search.failures[0].error.message


async def test_answers_come_as_they_are_ready(bench: Running) -> None:
    with socket.create_server((HOST, 0)) as mute:
        slow = f"{HOST}:{mute.getsockname()[1]}"
        async with aclosing(finder(slow, at(bench), timeout=0.5).listings()) as answers:
            assert not isinstance(await anext(answers), Failure)
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
    async with asyncio.timeout(10):
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


async def test_one_server_under_two_entries_is_watched_once(bench: Running) -> None:
    by_mdns = bench.server.model_copy(update={"id": bench.control.info.id})
    async with aclosing(Watcher(knowing(at(bench)), found(by_mdns)()).watch()) as changes:
        await _next(changes)
        bench.devices.pull("disk")
        assert (await _next(changes)).listing is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(changes)


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
