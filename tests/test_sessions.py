"""Who ended a session, by what TCP still knows; real connections, no kernel that has devices."""

from __future__ import annotations

import socket

import pytest

from usb_remote.sessions import End, Ports, observe

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
