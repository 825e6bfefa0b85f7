"""Who has vanished, and who only does not read: on real connections, and as a table."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.patience import patience
from tests.serving import HOST, Running, running_server
from tests.waiting import eventually
from usb_remote.control import ControlConnection, Limits
from usb_remote.peer import Delivery, Presence

WATCH = b'{"command":"watch","v":1}\n'
ROOM = 4096
"""Receive buffer of a client that does not read: soon full."""
DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""Classic BPF, `ret #0`: the kernel drops each packet for the socket, as if its machine was off."""
SO_ATTACH_FILTER = 26


@contextlib.contextmanager
def watching(bench: Running) -> Iterator[socket.socket]:
    """A raw client that watches, and reads only when it is told to."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        client.connect((HOST, bench.control.port))
        client.sendall(WATCH)
        client.setblocking(False)
        yield client


def vanish(client: socket.socket) -> None:
    """Nothing reaches this client any more, and nothing of it answers."""
    program = ctypes.create_string_buffer(DROP_ALL)
    packed = struct.pack("HL", 1, ctypes.addressof(program))
    client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, packed)


async def read_to(client: socket.socket, revision: int) -> None:
    """Read until that snapshot has come."""
    loop = asyncio.get_running_loop()
    data = b""
    while b'"revision":%d,' % revision not in data:
        data = data[-100:] + await loop.sock_recv(client, 1 << 16)


async def change(bench: Running) -> None:
    """Have two snapshots pushed."""
    bench.devices.pull("disk")
    bench.control.refresh()
    bench.devices.plug("disk")
    bench.control.refresh()
    await asyncio.sleep(0.001)  # time for the kernel to deliver them


def narrow(bench: Running) -> ControlConnection:
    """The one watcher, for which our kernel keeps little."""
    (watcher,) = bench.control._watchers
    connection = watcher._transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    return watcher


async def fill(bench: Running) -> None:
    """Change things until there is no room for what the watcher does not read."""
    watcher = narrow(bench)
    while delivery_to(watcher).window:
        await change(bench)


def delivery_to(watcher: ControlConnection) -> Delivery:
    return Delivery.of(watcher._transport.get_extra_info("socket"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a connection ends silently for root only")
async def test_a_watcher_that_vanished_is_forgotten() -> None:
    limits = Limits(silent_seconds=0.3)
    async with running_server("disk", limits=limits) as bench:
        with watching(bench) as client:
            await read_to(client, 1)
            vanish(client)
            bench.devices.pull("disk")
            await eventually(lambda: not bench.control._watchers)
            assert not bench.control._connections


async def test_a_watcher_that_is_stopped_stays_and_gets_the_newest_when_it_reads_again() -> None:
    limits = Limits(silent_seconds=0.3)
    async with running_server("disk", limits=limits) as bench:
        with watching(bench) as client:
            await eventually(lambda: bench.control._watchers)
            await fill(bench)
            (watcher,) = bench.control._watchers
            since = asyncio.get_running_loop().time()
            silence = 4 * limits.silent_seconds
            await eventually(lambda: asyncio.get_running_loop().time() > since + silence)
            assert watcher in bench.control._watchers
            bench.devices.pull("disk")
            bench.control.refresh()
            await read_to(client, bench.control.snapshot.revision)


@pytest.mark.skipif(os.geteuid() != 0, reason="a connection ends silently for root only")
async def test_a_watcher_that_was_stopped_and_then_vanished_is_forgotten() -> None:
    limits = Limits(silent_seconds=3, probe_seconds=0.5)
    async with running_server("disk", limits=limits) as bench:
        with watching(bench) as client:
            await eventually(lambda: bench.control._watchers)
            await fill(bench)
            vanish(client)
            await eventually(lambda: not bench.control._watchers)


async def test_a_watcher_that_reads_nothing_for_too_long_is_closed() -> None:
    limits = Limits(unread_bytes=1024, unread_seconds=0.2)
    async with running_server("disk", limits=limits) as bench:
        with watching(bench):
            await eventually(lambda: bench.control._watchers)
            watcher = narrow(bench)
            was_full = False
            while bench.control._connections:
                await change(bench)
                was_full |= watcher._full
            assert was_full


@pytest.mark.soak
async def test_a_watcher_that_is_stopped_for_ten_minutes_stays_and_gets_the_newest() -> None:
    async with running_server("disk") as bench:
        with watching(bench) as client:
            await eventually(lambda: bench.control._watchers)
            await fill(bench)
            (watcher,) = bench.control._watchers
            await asyncio.sleep(600)  # this is the promise, not a wait for something
            assert watcher in bench.control._watchers
            bench.devices.pull("disk")
            bench.control.refresh()
            await read_to(client, bench.control.snapshot.revision)


@pytest.mark.skipif(os.geteuid() != 0, reason="a connection ends silently for root only")
@pytest.mark.soak
@pytest.mark.parametrize(("is_stopped", "promise"), [(False, 10), (True, 130)])
async def test_a_watcher_that_vanished_is_forgotten_in_time(is_stopped: bool, promise: int) -> None:
    async with running_server("disk") as bench:
        with watching(bench) as client:
            await read_to(client, 1)
            if is_stopped:
                await fill(bench)
            since = time.monotonic()
            vanish(client)
            await eventually(lambda: not bench.control._watchers, patience(promise))
            assert time.monotonic() - since < patience(promise)


def test_a_connection_without_anything_under_way_is_delivered() -> None:
    with (
        socket.create_server((HOST, 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as peer,
    ):
        client.sendall(b"x")
        assert peer.recv(1) == b"x"
        delivery = Delivery.of(client)
    assert (delivery.in_flight, delivery.unsent, delivery.is_stopped) == (0, 0, False)
    assert delivery.window > 0
    assert delivery.silence < 60


FLYING = {"in_flight": 1}
STOPPED = {"unsent": 9, "window": 0}


@pytest.mark.parametrize(
    ("looks", "gone"),
    [
        ([(5.9, {"silence": 99, **FLYING})], False),  # it was sent at 0: nothing was due before
        ([(6, {"silence": 99, **FLYING})], True),
        ([(6, {"silence": 0.5, **FLYING})], False),  # a slow network, but it answers
        ([(3, {"silence": 0, **FLYING}), (8.9, {"silence": 5.9, **FLYING})], False),
        ([(3, {"silence": 0, **FLYING}), (9, {"silence": 6, **FLYING})], True),
        ([(3, {}), (9, {"silence": 9, **FLYING})], False),  # delivered meanwhile, sent again
        ([(3, {}), (9, {"silence": 9, **FLYING}), (15, {"silence": 15, **FLYING})], True),
        ([(124.9, {"silence": 124.9, **STOPPED})], False),
        ([(125, {"silence": 125, **STOPPED})], True),
        ([(125, {"silence": 119, **STOPPED})], False),  # a probe was answered
        ([(9, {"silence": 9, "unsent": 9})], False),  # no segment in flight: a probe is
        ([(9, {"silence": 9, "unsent": 9, **FLYING})], True),
        ([(9, {"silence": 9, "window": 0, **FLYING})], False),
    ],
)
def test_who_is_gone(looks: list[tuple[float, dict[str, float]]], gone: bool) -> None:
    presence = Presence(silence=6, probe_silence=125)
    presence.expect(0)
    for now, delivery in looks:
        verdict = presence.is_gone(Delivery(**delivery), now)  # type: ignore[arg-type]
    assert verdict is gone
