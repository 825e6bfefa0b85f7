"""Who ended a session, by what TCP still knows; real connections, no kernel that has devices."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from tests.waiting import eventually
from usb_remote.sessions import (
    KEEPALIVE_IDLE,
    End,
    EndWatch,
    Ports,
    is_alive,
    make_mortal,
    observe,
)

Pair = tuple[socket.socket, socket.socket, Ports]


@pytest.fixture
def pair() -> Pair:
    """The server's end, the client's end, and the ports of the server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        return server, client, Ports.of(server)


def test_a_client_that_closed_has_ended_it(pair: Pair) -> None:
    server, client, ports = pair
    with server:
        client.close()
        assert server.recv(1) == b""
        assert observe(server, ports) is End.BY_PEER


def test_also_if_what_the_device_answered_crossed_the_close(pair: Pair) -> None:
    """The client's kernel, which has closed, resets what still comes: EPIPE, not ECONNRESET."""
    server, client, ports = pair
    with server:
        client.close()
        assert server.recv(1) == b""
        server.send(b"an answer")
        assert observe(server, ports) is End.BY_PEER


def test_a_client_that_resets_is_lost(pair: Pair) -> None:
    server, client, ports = pair
    with server:
        server.send(b"unread")
        client.recv(1, socket.MSG_PEEK)
        client.close()
        assert observe(server, ports) is End.PEER_LOST


def test_a_side_that_closes_itself_was_ended_by_the_kernel(pair: Pair) -> None:
    server, client, ports = pair
    with server, client:
        server.shutdown(socket.SHUT_RDWR)
        assert observe(server, ports) is End.BY_KERNEL


def test_also_when_the_client_has_closed_its_side_since(pair: Pair) -> None:
    """Only who closes first keeps the connection in TIME_WAIT for a while."""
    server, client, ports = pair
    with server:
        server.shutdown(socket.SHUT_RDWR)
        client.close()
        assert observe(server, ports) is End.BY_KERNEL


def test_a_client_that_closed_first_has_ended_it_also_when_it_is_all_over(pair: Pair) -> None:
    server, client, ports = pair
    with server:
        client.close()
        server.shutdown(socket.SHUT_RDWR)
        assert observe(server, ports) is End.BY_PEER


@pytest.mark.parametrize(
    ("asked", "lost_after", "end"),
    [(False, 60_000, End.BY_PEER), (True, 60_000, End.PEER_LOST), (False, 0, End.PEER_LOST)],
)
def test_where_the_error_was_taken_by_the_kernel_silence_tells(
    pair: Pair, asked: bool, lost_after: int, end: End
) -> None:
    """Whoever has the bytes has read it; who was heard just now has closed."""
    server, client, ports = pair
    with server:
        reset(client)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert observe(server, ports, asked=asked, lost_after=lost_after) is end


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# -- whether a client is still there ------------------------------------------------------------


async def test_a_client_that_was_heard_just_now_is_there_and_asked_no_more(pair: Pair) -> None:
    server, client, _ = pair
    make_mortal(server)
    with server, client:
        assert await is_alive(server)
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE


@pytest.mark.parametrize("end", [socket.socket.close, reset])
async def test_a_client_that_has_gone_is_not_there(
    pair: Pair, end: Callable[[socket.socket], None]
) -> None:
    server, client, _ = pair
    with server:
        end(client)
        assert not await is_alive(server)


async def test_who_does_not_answer_in_time_is_not_there(pair: Pair) -> None:
    server, client, _ = pair
    with server, client:
        assert not await is_alive(server, proof=0)


# -- the watch for ends -------------------------------------------------------------------------


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    one, wrongs = Watch(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: wrongs.append(str(told)))
    one.start()
    yield one
    one.stop()
    one.close()
    assert wrongs == []


class Watch(EndWatch):
    """Remembers what it told."""

    def __init__(self) -> None:
        self.ended: list[tuple[socket.socket, End]] = []
        super().__init__(lambda connection, end: self.ended.append((connection, end)))


@pytest.mark.parametrize(
    ("end", "how"), [(socket.socket.close, End.BY_PEER), (reset, End.PEER_LOST)]
)
async def test_an_end_is_told_once_and_known_from_then(
    pair: Pair, watch: Watch, end: Callable[[socket.socket], None], how: End
) -> None:
    server, client, ports = pair
    with server:
        watch.add(server, ports)
        assert watch.how(server) is End.PEER_LOST, "it is up"
        end(client)
        await eventually(lambda: watch.ended)
        assert watch.how(server) is how
        for _ in range(3):
            await asyncio.sleep(0)
        assert watch.ended == [(server, how)]
        watch.remove(server)
        assert watch.how(server) is End.PEER_LOST, "its number may be that of another one"


async def test_an_end_can_be_known_before_it_is_told(pair: Pair, watch: Watch) -> None:
    server, client, ports = pair
    with server:
        watch.add(server, ports)
        client.close()
        assert watch.how(server) is End.BY_PEER
        watch.remove(server)
        await asyncio.sleep(0.01)  # in which it would be told
        assert watch.ended == []


async def test_data_is_no_end(pair: Pair, watch: Watch) -> None:
    server, client, ports = pair
    with server, client:
        watch.add(server, ports)
        client.send(b"an URB")
        await asyncio.sleep(0.01)  # in which an end would be told
        assert watch.ended == []
        watch.remove(server)


@pytest.mark.parametrize(("asked", "how"), [(False, End.BY_PEER), (True, End.PEER_LOST)])
async def test_who_resets_when_it_is_asked_knows_nothing_of_the_session(
    pair: Pair, watch: Watch, asked: bool, how: End
) -> None:
    server, client, ports = pair
    with server:
        watch.add(server, ports)
        assert await watch.is_alive(server), "an answer is no sign of that"
        reset(client)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if asked:
            assert not await watch.is_alive(server)
        assert watch.how(server) is how
        watch.remove(server)
