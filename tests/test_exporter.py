"""The exporter and its leases over real loopback sockets, with devices that are programs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from usbip import protocol as reference

from tests.patience import patience
from tests.serving import HOST, Running, running_server
from tests.waiting import eventually
from usb_remote import errors, exporter, usbip_wire, virtual
from usb_remote.exporter import HandshakeLimits
from usb_remote.history import History
from usb_remote.lease import Times
from usb_remote.leases import Leases
from usb_remote.model import Device, Holder, State
from usb_remote.rules import Networks
from usb_remote.state import StateFile
from usb_remote.values import BusId
from usb_remote.waiting import Wish

SERIAL, DISK = BusId("1-1"), BusId("1-2")
ANN = Holder(user="ann", host="pc1", client="c1", address=HOST)
BOB = Holder(user="bob", host="pc2", client="c2", address="10.0.0.2")

DEVLIST = usbip_wire.pack_devlist_request()
DEVLIST_REPLY = b"\x00\x05"
IMPORT = bytes.fromhex("0111800300000000") + SERIAL.encode().ljust(32, b"\0")
NO_IMPORT = IMPORT.replace(b"1-1", b"1-9")
ACCEPTED = bytes.fromhex("0111000300000000")
BUS_IDS = re.compile(rb"/[0-9-]+\0+([0-9-]+)\0")
PATIENT = HandshakeLimits(timeout=3600)
"""Nothing ends because it takes long."""


def device(bench: Running, bus_id: BusId) -> Device:
    return next(d for d in bench.control.snapshot.devices if d.bus_id == bus_id)


async def import_it(bench: Running, bus_id: BusId) -> socket.socket:
    """Import as an independent client does, and stay connected."""
    connection = socket.create_connection((HOST, bench.exporter.port))
    connection.settimeout(patience(10))
    try:
        await asyncio.to_thread(reference.client_import, connection, bus_id.encode())
    except BaseException:
        connection.close()
        raise
    return connection


async def test_an_imported_device_works(bench: Running) -> None:
    def use() -> None:
        port = bench.exporter.port
        with virtual.import_device(HOST, port, SERIAL) as handle:
            assert virtual.echo(handle, b"hello") == b"hello"
        with virtual.import_device(HOST, port, DISK) as handle:
            assert virtual.first_sector(handle).startswith(virtual.DISK_TEXT)

    await asyncio.to_thread(use)


async def test_a_session_is_seen_with_its_holder_until_it_ends(bench: Running) -> None:
    await bench.leases.reserve(device(bench, SERIAL), Wish(ANN))
    connection = await import_it(bench, SERIAL)
    held = device(bench, SERIAL)
    assert held.state is State.IN_USE
    assert held.holder is not None
    assert (held.holder.user, held.holder.host) == ("ann", "pc1")
    assert held.holder.since is not None
    connection.close()
    await eventually(lambda: device(bench, SERIAL).state is State.AVAILABLE)


@contextlib.contextmanager
def no_file_left() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.closing(socket.socket()) as newest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest.fileno(), hard))
    try:
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_stock_client_is_named_by_its_address(bench: Running) -> None:
    with await import_it(bench, SERIAL):
        assert str(device(bench, SERIAL).holder) == HOST


async def test_a_second_client_never_steals(bench: Running) -> None:
    with await import_it(bench, SERIAL):
        with pytest.raises(reference.core.NotFound, match="status 2"):
            await import_it(bench, SERIAL)
        with pytest.raises(errors.Busy, match=r"in use by 127\.0\.0\.1 since"):
            await bench.leases.reserve(device(bench, SERIAL), Wish(BOB))
        with pytest.raises(errors.Busy):
            await bench.leases.release(device(bench, SERIAL), BOB)
        assert device(bench, SERIAL).state is State.IN_USE


async def test_a_copy_of_the_same_machine_is_another_client(bench: Running) -> None:
    copy = ANN.model_copy(update={"host": "pc2", "address": "10.0.0.2"})
    await bench.leases.reserve(device(bench, SERIAL), Wish(ANN))
    with pytest.raises(errors.Busy, match="ann@pc1"):
        await bench.leases.reserve(device(bench, SERIAL), Wish(copy))
    with pytest.raises(errors.Busy):
        await bench.leases.release(device(bench, SERIAL), copy)
    moved = ANN.model_copy(update={"address": "10.0.0.2"})
    await bench.leases.reserve(device(bench, SERIAL), Wish(moved))


async def test_a_reservation_keeps_others_out_until_it_expires() -> None:
    async with running_server("serial", times=Times(reservation=0.3)) as bench:
        await bench.leases.reserve(device(bench, SERIAL), Wish(BOB))
        with pytest.raises(errors.Busy, match="bob@pc2"):
            await bench.leases.reserve(device(bench, SERIAL), Wish(ANN))
        with pytest.raises(reference.core.NotFound, match="status 2"):
            await import_it(bench, SERIAL)
        await eventually(lambda: device(bench, SERIAL).state is State.AVAILABLE)
        await bench.leases.reserve(device(bench, SERIAL), Wish(ANN))


async def test_a_client_may_give_its_reservation_back(bench: Running) -> None:
    await bench.leases.reserve(device(bench, SERIAL), Wish(ANN))
    await bench.leases.release(device(bench, SERIAL), ANN)
    assert device(bench, SERIAL).state is State.AVAILABLE


async def test_a_client_is_known_by_its_id_whatever_its_address(bench: Running) -> None:
    by_ipv6 = ANN.model_copy(update={"address": "fd00::1"})
    neighbour = BOB.model_copy(update={"address": ANN.address})
    await bench.leases.reserve(device(bench, SERIAL), Wish(ANN))
    with pytest.raises(errors.Busy):
        await bench.leases.reserve(device(bench, SERIAL), Wish(neighbour))
    with pytest.raises(errors.Busy):
        await bench.leases.release(device(bench, SERIAL), neighbour)
    await bench.leases.release(device(bench, SERIAL), by_ipv6)
    assert device(bench, SERIAL).state is State.AVAILABLE


async def test_a_pulled_device_ends_its_session(bench: Running) -> None:
    with await import_it(bench, SERIAL) as connection:
        bench.devices.pull("serial")
        assert await asyncio.to_thread(connection.recv, 1) == b""
    bench.devices.plug("serial")
    await eventually(lambda: len(bench.control.snapshot.devices) == 3)
    await eventually(lambda: device(bench, SERIAL).state is State.AVAILABLE)
    with await import_it(bench, SERIAL):
        assert device(bench, SERIAL).state is State.IN_USE


async def test_a_stopping_server_drops_its_clients(bench: Running) -> None:
    with await import_it(bench, SERIAL) as connection:
        await bench.leases.stop()
        assert await asyncio.to_thread(connection.recv, 1) == b""


@pytest.mark.parametrize("bus_id", ["1-9", "9-1.2.3"])
async def test_what_is_not_there_is_not_found(bench: Running, bus_id: str) -> None:
    with pytest.raises(reference.core.NotFound, match="status 4"):
        await import_it(bench, BusId(bus_id))
    assert bench.leases._leases == {}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\x11\x80\x03",
        b"\x01\x11\x80\x03\0\0\0\0" + b"1-1",
        b"\x01\x11\x80\x03\0\0\0\0" + b"../../x".ljust(32, b"\0"),
        b"\x01\x11\x80\x03\0\0\0\0" + b"-r evil".ljust(32, b"\0"),
        b"\x01\x06\x80\x05\0\0\0\0",
        b"\xff" * 10_000,
        b"",
    ],
)
async def test_a_malformed_handshake_ends_only_itself(data: bytes) -> None:
    async with running_server("disk", handshakes=HandshakeLimits(timeout=0.1)) as bench:
        address = (HOST, bench.exporter.port)
        with await import_it(bench, DISK), socket.create_connection(address) as bad:
            bad.sendall(data)
            bad.settimeout(patience(10))
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(bad.recv, 1) == b""
            assert device(bench, DISK).state is State.IN_USE


# -- limits -------------------------------------------------------------------------------------


class Caller:
    """A raw USB/IP client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def hear(self, size: int) -> bytes:
        async with asyncio.timeout(patience(10)):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        async with asyncio.timeout(patience(10)):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def finish(self, request: bytes) -> list[str]:
        """Say the rest of a request for the list; returns the bus ids of the answer."""
        self.writer.write(request)
        header = await self.hear(usbip_wire.HEADER_SIZE)
        assert usbip_wire.parse_devlist_reply(header) == usbip_wire.VERSION
        return [bus_id.decode() for bus_id in BUS_IDS.findall(await self.rest())]


@contextlib.asynccontextmanager
async def calling(bench: Running, data: bytes = b"") -> AsyncIterator[Caller]:
    """Somebody who connects, and has said this."""
    reader, writer = await asyncio.open_connection(HOST, bench.exporter.port)
    try:
        writer.write(data)
        yield Caller(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_the_oldest_handshake_gives_way_to_the_newest() -> None:
    limits = replace(PATIENT, at_once=2)
    async with (
        running_server("serial", handshakes=limits) as bench,
        calling(bench, DEVLIST[:1]) as first,
        calling(bench, DEVLIST[:2]) as second,
    ):
        await eventually(lambda: bench.exporter.handshakes == 2)
        async with calling(bench, DEVLIST[:3]) as third:
            assert await first.rest() == b""
            assert bench.exporter.handshakes == 2
            assert await second.finish(DEVLIST[2:]) == [SERIAL]
            assert await third.finish(DEVLIST[3:]) == [SERIAL]


async def test_many_silent_connections_do_not_keep_others_out() -> None:
    async with (
        running_server("serial", handshakes=replace(PATIENT, at_once=2)) as bench,
        contextlib.AsyncExitStack() as silent,
    ):
        for _ in range(20):
            await silent.enter_async_context(calling(bench))
        with await import_it(bench, SERIAL):
            assert device(bench, SERIAL).state is State.IN_USE


class SlowlyBound(virtual.VirtualDevices):
    """A kernel that binds when it is told so."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.is_asked = asyncio.Event()
        self.may_bind = asyncio.Event()

    async def bind(self, bus_id: BusId) -> None:
        self.is_asked.set()
        await self.may_bind.wait()
        await super().bind(bus_id)


async def test_an_import_that_is_under_way_is_no_handshake_any_more() -> None:
    """It gives way to nobody, has no time limit, and does not keep others from being read."""
    limits = HandshakeLimits(timeout=0.1, at_once=1)
    async with running_server("serial", handshakes=limits, bus=SlowlyBound) as bench:
        assert isinstance(bench.devices, SlowlyBound)
        async with calling(bench, IMPORT) as client:
            await bench.devices.is_asked.wait()
            assert bench.exporter.handshakes == 0
            async with calling(bench) as late:
                assert await late.rest() == b""  # its time was up, and began after the import's
            async with calling(bench), calling(bench, DEVLIST) as newest:
                assert (await newest.hear(4))[2:] == DEVLIST_REPLY
            bench.exporter.close_forbidden()
            bench.devices.may_bind.set()
            assert await client.hear(8) == ACCEPTED
            await eventually(lambda: not bench.exporter._imports)


async def test_an_import_that_is_under_way_has_its_answer_before_the_exporter_stops() -> None:
    async with running_server("serial", handshakes=PATIENT, bus=SlowlyBound) as bench:
        assert isinstance(bench.devices, SlowlyBound)
        async with calling(bench) as silent, calling(bench, IMPORT) as client:
            await bench.devices.is_asked.wait()
            stopping = asyncio.create_task(bench.exporter.stop())
            assert await silent.rest() == b""
            assert not stopping.done()
            bench.devices.may_bind.set()
            await stopping
            assert await client.hear(8) == ACCEPTED


async def test_a_client_that_says_nothing_in_time_is_hung_up_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running_server("serial", handshakes=HandshakeLimits(timeout=0.05)) as bench:
        for begun in (b"", IMPORT[:8], IMPORT[:39]):
            async with calling(bench, begun) as slow:
                assert await slow.rest() == b""
    assert caplog.text.count("no complete request in time") == 3


@pytest.mark.parametrize("size", [0, 4, 8, 11, 39])
async def test_what_ends_before_it_is_a_whole_request_is_none(size: int) -> None:
    async with (
        running_server("serial", handshakes=PATIENT) as bench,
        calling(bench, IMPORT[:size]) as client,
    ):
        client.writer.write_eof()
        assert await client.rest() == b""
        assert device(bench, SERIAL).state is State.AVAILABLE


async def test_each_byte_in_time_does_not_make_a_request_in_time() -> None:
    async with (
        running_server("serial", handshakes=HandshakeLimits(timeout=0.1)) as bench,
        calling(bench) as slow,
    ):
        for byte in NO_IMPORT:
            slow.writer.write(bytes([byte]))
            await asyncio.sleep(0.01)  # its pace: 0.4 s in all
        assert await slow.rest() == b""


class Crowded(virtual.VirtualDevices):
    """More devices than any buffer of a connection holds, 7 MB."""

    def list_devices(self) -> tuple[Device, ...]:
        return super().list_devices() * 22_000

    @functools.cache  # noqa: B019 - it lives as long as its test
    def record(self, bus_id: BusId) -> usbip_wire.Record | None:
        return super().record(bus_id)


async def test_a_client_that_does_not_take_the_list_is_hung_up_on() -> None:
    devices = Crowded("serial")
    held = Leases(devices, devices, History(StateFile(None)))
    export = exporter.Exporter(devices, held, HandshakeLimits(timeout=0.1))
    await held.start()
    export.bind([HOST], 0)
    export.start()
    try:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((HOST, export.port))
            deaf.sendall(DEVLIST)
            await eventually(lambda: export.handshakes)
            await eventually(lambda: not export.handshakes)
            deaf.settimeout(patience(10))
            assert await asyncio.to_thread(deaf.recv, 4, socket.MSG_WAITALL)
    finally:
        await export.stop()
        await held.stop()
        devices.close()


async def test_the_list_leaves_out_what_nobody_may_have_or_what_has_just_gone(
    bench: Running,
) -> None:
    disk = device(bench, DISK).model_copy(update={"state": State.PROTECTED, "reason": "mounted"})
    gone = device(bench, SERIAL).model_copy(update={"bus_id": BusId("1-7")})
    kept = device(bench, BusId("1-3"))
    bench.devices.list_devices = lambda: (disk, gone, kept)  # type: ignore[method-assign]
    async with calling(bench) as client:
        assert await client.finish(DEVLIST) == ["1-3"]


class OnceReset(virtual.VirtualDevices):
    """A kernel that has a device ready again when it is told so, and then cannot export it."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.is_reset = asyncio.Event()

    async def wait_free(self, bus_id: BusId, timeout: float) -> None:
        await super().wait_free(bus_id, timeout)
        await self.is_reset.wait()

    async def export(self, bus_id: BusId, fd: int) -> None:
        if self.is_reset.is_set():
            raise errors.SystemFault("the kernel refuses")
        await super().export(bus_id, fd)


async def test_who_was_accepted_is_hung_up_on_without_another_answer_if_it_fails() -> None:
    """A second answer would be read as what the device says."""
    neighbour = BOB.model_copy(update={"address": HOST})
    async with running_server("serial", handshakes=PATIENT, bus=OnceReset) as bench:
        assert isinstance(bench.devices, OnceReset)
        with await import_it(bench, SERIAL):
            told: list[int] = []
            reserving = bench.leases.reserve(
                device(bench, SERIAL), Wish(neighbour), lambda place, _: told.append(place)
            )
            turn = asyncio.create_task(reserving)
            await eventually(lambda: told)
        await turn
        async with calling(bench, IMPORT) as client:
            assert await client.hear(8) == ACCEPTED
            bench.devices.is_reset.set()
            assert len(await client.rest()) == usbip_wire.RECORD_SIZE


async def test_who_cannot_be_accepted_waits_until_there_is_room() -> None:
    async with running_server("serial", handshakes=replace(PATIENT, rest=0.05)) as bench:
        with socket.socket() as client:
            client.setblocking(False)
            with no_file_left():
                await asyncio.get_running_loop().sock_connect(client, (HOST, bench.exporter.port))
                await eventually(lambda: bench.exporter._resting)
            client.settimeout(patience(10))
            await asyncio.to_thread(reference.client_import, client, SERIAL.encode())
        assert not bench.exporter._resting


async def test_who_cannot_be_accepted_does_not_keep_us_busy() -> None:
    """The kernel says at each turn of the loop that it is there: nobody listens for a while."""
    async with running_server("serial", handshakes=replace(PATIENT, rest=3600)) as bench:
        with socket.socket() as client:
            client.setblocking(False)
            with no_file_left():
                await asyncio.get_running_loop().sock_connect(client, (HOST, bench.exporter.port))
                await eventually(lambda: bench.exporter._resting)
            for _ in range(10):
                await asyncio.sleep(0)
            assert bench.exporter.handshakes == 0
            (later,) = bench.exporter._resting.values()
            await bench.exporter.stop()
            assert later.cancelled()


async def test_a_listener_that_rests_accepts_nobody_until_it_is_over() -> None:
    async with running_server("serial", handshakes=replace(PATIENT, rest=3600)) as bench:
        (listener,) = bench.exporter._listeners
        bench.exporter._rest(listener)
        async with calling(bench, DEVLIST[:2]) as caller:
            for _ in range(10):
                await asyncio.sleep(0)
            assert bench.exporter.handshakes == 0
            bench.exporter._resting[listener].cancel()
            bench.exporter._listen_again(listener)
            assert await caller.finish(DEVLIST[2:]) == [SERIAL]


async def test_an_exporter_that_has_stopped_leaves_the_loop_nothing_to_look_at(
    quick: Running,
) -> None:
    """A descriptor of the same number will be somebody else's."""
    (listener,) = quick.exporter._listeners
    number = listener.fileno()
    await quick.exporter.stop()
    assert listener.fileno() < 0
    assert not asyncio.get_running_loop().remove_reader(number)


async def test_a_handshake_that_new_networks_forbid_is_closed() -> None:
    async with (
        running_server("serial", handshakes=PATIENT) as bench,
        calling(bench, IMPORT[:2]) as begun,
    ):
        with await import_it(bench, SERIAL):
            bench.exporter.allowed = Networks(["10.0.0.0/8"])
            bench.exporter.close_forbidden()
            assert await begun.rest() == b""
            assert device(bench, SERIAL).state is State.IN_USE  # that is for leases.enforce


async def test_a_handshake_that_new_networks_allow_goes_on() -> None:
    async with (
        running_server("serial", handshakes=PATIENT) as bench,
        calling(bench, DEVLIST[:2]) as begun,
    ):
        await eventually(lambda: bench.exporter.handshakes)
        bench.exporter.allowed = Networks([f"{HOST}/32"])
        bench.exporter.close_forbidden()
        assert await begun.finish(DEVLIST[2:]) == [SERIAL]


async def test_other_networks_are_closed_before_they_have_said_anything() -> None:
    async with running_server("serial", handshakes=PATIENT) as bench:
        bench.exporter.allowed = Networks(["10.0.0.0/8"])
        async with calling(bench) as stranger:
            assert await stranger.rest() == b""


async def test_a_protected_device_is_refused_through_both_doors(bench: Running) -> None:
    protected = device(bench, DISK).model_copy(
        update={"state": State.PROTECTED, "reason": "sda1 is mounted at /"}
    )
    bench.devices.list_devices = lambda: (protected,)  # type: ignore[method-assign]
    with pytest.raises(errors.Refused, match="sda1 is mounted at /"):
        await bench.leases.reserve(protected, Wish(ANN))
    with pytest.raises(reference.core.NotFound, match="status 1"):
        await import_it(bench, DISK)


def test_virtual_devices_leave_no_descriptor_and_no_thread() -> None:
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    virtual.VirtualDevices(*virtual.KINDS).close()
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before


async def test_both_families_have_a_listener_each_at_the_same_port() -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    devices = virtual.VirtualDevices()
    held = Leases(devices, devices, History(StateFile(None)))
    export = exporter.Exporter(devices, held)
    await held.start()
    try:
        export.bind(["0.0.0.0", "::"], 0)
        v4, v6 = export._listeners
        assert v4.getsockname()[1] == v6.getsockname()[1] == export.port
        assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    finally:
        await export.stop()
        await held.stop()
        devices.close()


async def test_a_taken_port_is_named_with_the_command_that_frees_it() -> None:
    devices = virtual.VirtualDevices()
    held = Leases(devices, devices, History(StateFile(None)))
    with socket.create_server((HOST, 0)) as usbipd:
        export = exporter.Exporter(devices, held)
        with pytest.raises(errors.SystemFault, match="cannot listen on USB/IP port") as caught:
            export.bind([HOST], usbipd.getsockname()[1])
        assert "usbipd" in (caught.value.hint or "")
    await held.start()
    await held.stop()
    devices.close()
