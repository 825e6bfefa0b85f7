"""One client's control connection, on the server: bytes, deadlines, and never waiting for it.

Rule of this file: whatever a client sends or leaves unread, it costs no more than Limits says and
disturbs nobody else. What a request means is for server.py.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

from usb_remote import errors, protocol
from usb_remote.framing import RequestFramer

log = logging.getLogger(__name__)

MAX_AHEAD = 16
"""Requests that a connection may send ahead while it waits for a device."""
DEAD_PEER_MS = 10_000
"""TCP_USER_TIMEOUT of control connections: a watcher that vanished is forgotten."""


@dataclass(frozen=True)
class Limits:
    """What one client, or a thousand, may cost this server.

    Attributes:
        connections: control connections in all; beyond that the oldest one that does not watch
            gives way.
        connections_per_address: the same for one address.
        request_timeout: seconds for a request to arrive, from the connection or its first byte.
        idle_timeout: seconds that a connection may be quiet between two requests.
        linger_bytes, linger_seconds: how much of a bad request is read away, so that its sender
            gets to see the error line.
        unread_bytes: what a connection may leave unread before it gets nothing more.

    """

    connections: int = 4096
    connections_per_address: int = 2048
    request_timeout: float = 10.0
    idle_timeout: float = 300.0
    linger_bytes: int = 32 * 1024 * 1024
    linger_seconds: float = 3.0
    unread_bytes: int = 1024 * 1024


class Host(Protocol):
    """Who answers requests: server.ControlServer."""

    @property
    def limits(self) -> Limits: ...
    @property
    def allowed(self) -> Container[str]: ...
    def answer(self, line: bytes, connection: ControlConnection) -> None: ...
    def admit(self, connection: ControlConnection) -> None: ...
    def forget(self, connection: ControlConnection) -> None: ...


@functools.lru_cache(maxsize=1024)
def say_forbidden(address: str) -> None:
    """Log once for each address that it may not talk to us."""
    log.info("closed the connections of %s, which is not in server.allow_from", address)


class ControlConnection(asyncio.Protocol):
    """One client: cuts its bytes into requests, keeps its deadlines, never waits for it."""

    def __init__(self, server: Host) -> None:
        self.address = ""
        self.watches = False
        self.waits = False
        self._server = server
        self._limits = server.limits
        self._framer = RequestFramer()
        self._waiting: list[bytes] = []
        self._paused = False
        self._half_closed = False
        self._full = False
        self._missed = b""
        self._linger_left = 0
        self._timer: asyncio.TimerHandle | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.address = str(transport.get_extra_info("peername")[0]).removeprefix("::ffff:")
        if self.address not in self._server.allowed:
            say_forbidden(self.address)
            transport.abort()
            return
        transport.set_write_buffer_limits(high=self._limits.unread_bytes)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
        self._deadline(self._limits.request_timeout)
        self._server.admit(self)

    def data_received(self, data: bytes) -> None:
        if self.address not in self._server.allowed:
            return
        if self._linger_left:
            self._discard(len(data))
            return
        if self.waits and len(self._waiting) >= MAX_AHEAD:
            self._transport.pause_reading()
        was_pending = self._framer.pending
        try:
            for request in self._framer.feed(data):
                was_pending = False
                self._waiting.append(request)
                self._answer_waiting()
        except errors.InvalidRequest as error:
            self._reject(error, data)
            return
        if self._framer.pending and not was_pending:
            self._deadline(self._limits.request_timeout)

    def eof_received(self) -> bool:
        """Whether to keep our half open: yes, while an answer or a watch is under way."""
        self._half_closed = True
        if self._framer.pending and not self._linger_left:
            self._transport.write(_failed("the request is incomplete"))
        return (self._paused and not self.waits) or self.watches

    def connection_lost(self, _error: Exception | None) -> None:
        self._stop_timer()
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._missed:
            missed, self._missed = self._missed, b""
            self.push(missed)

    # what the server calls

    def send(self, line: bytes) -> None:
        """Send a reply."""
        if self._transport.is_closing():
            return
        self._transport.write(line)
        if self._full and not self.watches:
            self._transport.pause_reading()
        self._deadline(self._limits.idle_timeout)

    def push(self, line: bytes) -> None:
        """Send an event; one that is not read in time is replaced by the next."""
        if self._transport.is_closing():
            return
        if not self._full:
            self._transport.write(line)
        elif line is not protocol.PING:
            self._missed = line

    def pause(self, *, waits: bool = False) -> None:
        """An answer takes time: the next request of this connection waits.

        Who only waits for others is read from, for that alone shows that it has gone.
        """
        self._paused, self.waits = True, waits
        if not waits:
            self._transport.pause_reading()

    def resume(self) -> None:
        self._paused = self.waits = False
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        self._answer_waiting()
        if self._half_closed and not self._paused:
            self.close()

    def close(self) -> None:
        self._transport.close()

    # parts

    def _answer_waiting(self) -> None:
        while self._waiting and not self._paused:
            self._server.answer(self._waiting.pop(0), self)

    def _reject(self, error: errors.InvalidRequest, data: bytes) -> None:
        """Say what was wrong, once, and read the rest away: a reset would eat the answer."""
        log.info("bad request from %s: %s", self.address, error)
        self._transport.write(protocol.failure(error, legacy=protocol.is_legacy_line(data)))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._linger_left = self._limits.linger_bytes
        self._deadline(self._limits.linger_seconds)

    def _discard(self, size: int) -> None:
        self._linger_left -= size
        if self._linger_left <= 0:
            self._transport.abort()

    def _deadline(self, seconds: float) -> None:
        """Close at that time, unless a later call moves it."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _too_late(self) -> None:
        if self.watches or self._paused:
            return
        if self._framer.pending and not self._linger_left:
            limit = f"{self._limits.request_timeout:g} s"
            self._transport.write(_failed(f"no complete request within {limit}"))
        self._transport.close()


def _failed(message: str) -> bytes:
    return protocol.failure(errors.InvalidRequest(message), legacy=True)
