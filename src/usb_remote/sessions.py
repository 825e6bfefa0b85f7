"""The sockets of sessions: given to the kernel, never read, and watched for their end.

Rule of this file: the kernel (or a virtual device) owns the bytes; we only ask TCP how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple, Self

from usb_remote import errors

log = logging.getLogger(__name__)

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 3, 1, 5
USER_TIMEOUT_MS = 8000
"""A peer that vanished is noticed after 8 s at the latest (tcp(7); the promise is 10 s)."""

SILENT_MS = 2500
"""A connection whose peer had been silent for so long when it broke was lost, not closed: an idle
peer acknowledges a keepalive after KEEPALIVE_IDLE seconds, and a FIN or a detach comes at once."""

JUST_NOW_MS = 500
"""Whoever has been heard so recently is there: no machine starts anew in that time."""
PROOF = 4.0
"""Seconds in which a peer that is there answers a probe, also one that was lost once or twice."""
_ASK_AGAIN = 0.02

_ESTABLISHED, _CLOSE_WAIT, _CLOSE, _LAST_ACK = 1, 8, 7, 9
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


def observe(
    connection: socket.socket, ports: Ports, *, asked: bool = False, lost_after: int = SILENT_MS
) -> End:
    """How a connection that is down, or going down, came to that.

    The error that would tell may have been taken by whoever has the bytes.

    Args:
        connection: of which no byte was read.
        ports: its own, from when it was up.
        asked: whether the peer was probed, see :func:`is_alive`: then its reset says that it knows
            nothing of the connection.
        lost_after: milliseconds of silence, see SILENT_MS.

    """
    if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        # EPIPE: it had closed its side before its reset (net/ipv4/tcp_input.c, tcp_reset)
        return End.BY_PEER if error == errno.EPIPE else End.PEER_LOST
    state, silent = _state(connection)
    if state in {_CLOSE_WAIT, _LAST_ACK}:
        return End.BY_PEER
    if state != _CLOSE:
        return End.BY_KERNEL
    if _has_closed_first(ports):
        return End.BY_KERNEL
    return End.PEER_LOST if asked or silent >= lost_after else End.BY_PEER


def _state(connection: socket.socket) -> tuple[int, int]:
    """The state of TCP, and for how many milliseconds the peer has been silent."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (silent,) = struct.unpack_from("=I", info, _LAST_ACK_RECEIVED)
    return info[0], silent


async def is_alive(connection: socket.socket, proof: float = PROOF) -> bool:
    """Whether the peer still knows of this connection: TCP asks it, and a machine that was
    restarted answers with a reset.

    The shorter idle time is what makes the kernel ask now (tcp(7); net/ipv4/tcp.c,
    tcp_sock_set_keepidle).
    """
    clock = asyncio.get_running_loop().time
    begin = clock()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    try:
        while (waited := clock() - begin) < proof:
            state, silent = _state(connection)
            if state != _ESTABLISHED:
                return False
            if silent < max(JUST_NOW_MS, waited * 1000):
                return True
            await asyncio.sleep(_ASK_AGAIN)  # no event tells of an acknowledgement
        return False
    finally:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)


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
        self._told: dict[int, End] = {}
        self._asked: set[int] = set()
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
        self._told.pop(connection.fileno(), None)
        self._asked.discard(connection.fileno())
        if self._sockets.pop(connection.fileno(), None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(connection.fileno())

    def how(self, connection: socket.socket) -> End:
        """How it ended, as far as that can be known now; of one that is up, the peer is lost."""
        known = self._sockets.get(connection.fileno())
        if known is None:
            return self._told.get(connection.fileno(), End.PEER_LOST)
        is_up = _state(connection)[0] == _ESTABLISHED
        return End.PEER_LOST if is_up else self._observed(*known)

    async def is_alive(self, connection: socket.socket) -> bool:
        """As :func:`is_alive`; its end is looked at in that light."""
        self._asked.add(connection.fileno())
        if alive := await is_alive(connection):
            self._asked.discard(connection.fileno())
        return alive

    def _on_ends(self) -> None:
        for fd, _events in self._epoll.poll(0):
            self._epoll.unregister(fd)
            connection, ports = self._sockets.pop(fd)
            end = self._told[fd] = self._observed(connection, ports)
            self._asked.discard(fd)
            self._ended(connection, end)

    def _observed(self, connection: socket.socket, ports: Ports) -> End:
        """A session that has ended is ended, also if nobody can tell how."""
        try:
            return observe(connection, ports, asked=connection.fileno() in self._asked)
        except (OSError, ValueError) as error:
            log.warning("how a session ended cannot be told: %s", error)
            return End.PEER_LOST
