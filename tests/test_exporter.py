"""The exporter and its leases over real loopback sockets, with devices that are programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import pytest
from usbip import protocol as reference

from tests.serving import HOST, Running, running_server
from tests.waiting import eventually
from usb_remote import errors, exporter, virtual
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


def device(bench: Running, bus_id: BusId) -> Device:
    return next(d for d in bench.control.snapshot.devices if d.bus_id == bus_id)


async def import_it(bench: Running, bus_id: BusId) -> socket.socket:
    """Import as an independent client does, and stay connected."""
    connection = socket.create_connection((HOST, bench.exporter.port))
    connection.settimeout(10)
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


async def test_who_cannot_be_accepted_waits_without_keeping_us_busy(bench: Running) -> None:
    with socket.socket() as client:
        client.setblocking(False)
        with no_file_left():
            await asyncio.get_running_loop().sock_connect(client, (HOST, bench.exporter.port))
            await eventually(lambda: bench.exporter._resting)
        client.settimeout(10)
        await asyncio.to_thread(reference.client_import, client, SERIAL.encode())
    assert not bench.exporter._resting


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
    async with running_server("disk", handshake_timeout=1) as bench:
        address = (HOST, bench.exporter.port)
        with await import_it(bench, DISK), socket.create_connection(address) as bad:
            bad.sendall(data)
            bad.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(bad.recv, 1) == b""
            assert device(bench, DISK).state is State.IN_USE


async def test_many_silent_connections_do_not_keep_others_out(bench: Running) -> None:
    address = (HOST, bench.exporter.port)
    silent = await asyncio.to_thread(
        lambda: [socket.create_connection(address) for _ in range(200)]
    )
    try:
        with await import_it(bench, SERIAL):
            assert device(bench, SERIAL).state is State.IN_USE
    finally:
        for connection in silent:
            connection.close()


async def test_a_handshake_that_new_networks_forbid_is_closed(bench: Running) -> None:
    with socket.create_connection((HOST, bench.exporter.port)) as silent:
        silent.settimeout(10)
        silent.sendall(b"\x01\x11")
        with await import_it(bench, SERIAL) as session:
            bench.exporter.allowed = Networks(["10.0.0.0/8"])
            bench.exporter.close_forbidden()
            assert await asyncio.to_thread(silent.recv, 1) == b""
            assert session.fileno() >= 0
            assert device(bench, SERIAL).state is State.IN_USE  # that is for leases.enforce


async def test_a_protected_device_is_refused_through_both_doors(bench: Running) -> None:
    protected = device(bench, DISK).model_copy(
        update={"state": State.PROTECTED, "reason": "sda1 is mounted at /"}
    )
    bench.devices.list_devices = lambda: (protected,)  # type: ignore[method-assign]
    with pytest.raises(errors.Refused, match="sda1 is mounted at /"):
        await bench.leases.reserve(protected, Wish(ANN))
    with pytest.raises(reference.core.NotFound, match="status 1"):
        await import_it(bench, DISK)


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
