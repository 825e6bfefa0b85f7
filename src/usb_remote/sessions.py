"""The sockets of sessions: given to the kernel, never read, and watched for their end.

Rule of this file: the kernel (or a virtual device) owns the bytes; we only ask TCP how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple, Self

from usb_remote import errors

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 3, 1, 5
USER_TIMEOUT_MS = 8000
"""A peer that vanished is noticed after 8 s at the latest (tcp(7); the promise is 10 s)."""

SILENT_MS = 2500
"""A connection whose peer had been silent for so long when it broke was lost, not closed: an idle
peer acknowledges a keepalive after KEEPALIVE_IDLE seconds, and a FIN or a detach comes at once."""

_CLOSE_WAIT, _CLOSE, _LAST_ACK = 8, 7, 9
"""tcp_info.tcpi_state (linux/include/net/tcp_states.h)."""
_TIME_WAIT = "06"
TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_LAST_ACK_RECEIVED = 56
"""Offset of tcpi_last_ack_recv, milliseconds, in tcp_info (linux/include/uapi/linux/tcp.h)."""


class End(Enum):
    """Who ended a session, as TCP tells it."""

    BY_PEER = auto()
    """The client closed its side."""
    PEER_LOST = auto()
    """Nothing came from the client any more, or it reset the connection."""
    BY_KERNEL = auto()
    """This side closed: our kernel gave the device up."""


class Ports(NamedTuple):
    """Both ends of a connection; a socket forgets them when it is closed."""

    here: int
    there: int

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Raises Unreachable if the peer has gone already."""
        try:
            return cls(connection.getsockname()[1], connection.getpeername()[1])
        except OSError as error:
            raise errors.Unreachable(f"the client has gone: {error.strerror}") from error


def observe(connection: socket.socket, ports: Ports) -> End:
    """How a connection that is down, or going down, came to that."""
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return End.PEER_LOST
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    state = info[0]
    if state in {_CLOSE_WAIT, _LAST_ACK}:
        return End.BY_PEER
    if state != _CLOSE:
        return End.BY_KERNEL
    if _has_closed_first(ports):
        return End.BY_KERNEL
    (silent,) = struct.unpack_from("=I", info, _LAST_ACK_RECEIVED)
    return End.PEER_LOST if silent >= SILENT_MS else End.BY_PEER


def _has_closed_first(ports: Ports) -> bool:
    """Whether our side has: only that leaves TIME_WAIT behind (RFC 9293, 3.6; proc(5), net/tcp)."""
    here, there = f":{ports.here:04X}", f":{ports.there:04X}"
    for table in TABLES:
        for line in table.read_text().splitlines() if table.exists() else ():
            _, local, remote, state, *_ = line.split()
            if local.endswith(here) and remote.endswith(there) and state == _TIME_WAIT:
                return True
    return False


def make_mortal(connection: socket.socket) -> None:
    """Blocking as the kernel expects it, without delay, and dead when the peer is."""
    connection.setblocking(True)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    ):
        connection.setsockopt(level, option, value)


class EndWatch:
    """Calls back once for each socket, when its connection ends."""

    def __init__(self, ended: Callable[[socket.socket, End], None]) -> None:
        self._ended = ended
        self._sockets: dict[int, tuple[socket.socket, Ports]] = {}
        self._epoll = select.epoll()

    @property
    def closed(self) -> bool:
        return self._epoll.closed

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_ends)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())

    def close(self) -> None:
        self._epoll.close()

    def add(self, connection: socket.socket, ports: Ports) -> None:
        """Watch for its end; never for data, which is not ours."""
        self._sockets[connection.fileno()] = (connection, ports)
        self._epoll.register(
            connection.fileno(), select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        )

    def remove(self, connection: socket.socket) -> None:
        """Watch no more; nothing happens if its end was told already."""
        if self._sockets.pop(connection.fileno(), None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(connection.fileno())

    def _on_ends(self) -> None:
        for fd, _events in self._epoll.poll(0):
            self._epoll.unregister(fd)
            connection, ports = self._sockets.pop(fd)
            self._ended(connection, observe(connection, ports))
