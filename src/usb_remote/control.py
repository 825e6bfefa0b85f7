"""One client's control connection, on the server: bytes, deadlines, and never waiting for it.

Rule of this file: whatever a client sends or leaves unread, it costs no more than Limits says and
disturbs nobody else. What a request means is for server.py.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import pwd
import socket
import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

from usb_remote import errors, protocol_2x, replies
from usb_remote.framing import RequestFramer
from usb_remote.peer import Delivery, Presence

log = logging.getLogger(__name__)

LOOKS = 6
"""How often, in `Limits.silent_seconds`, we look whether a client has what was sent to it."""


@dataclass(frozen=True)
class Limits:
    """What one client, or a thousand, may cost this server.

    Attributes:
        connections: control connections in all; beyond that the oldest one gives way that neither
            watches nor waits.
        connections_per_address: the same for one address.
        request_timeout: seconds for a request to arrive, from the connection or its first byte.
        idle_timeout: seconds that a connection may be quiet between two requests.
        linger_bytes, linger_seconds: how much of a bad request is read away, so that its sender
            gets to see the error line.
        at_once: requests of one connection that are answered before the others have their turn.
        ahead_bytes: what a connection may send ahead while it waits for a device.
        unread_bytes: what a connection may leave unread before it gets nothing more.
        unread_seconds: how long it may do so before it is closed.
        silent_seconds: how long its machine may leave what is in flight unacknowledged; with a ping
            every 3 s a watcher that vanished is forgotten within 10 s.
        probe_seconds: the same while its program does not read. The kernel's probes are up to 120 s
            apart then, so it is forgotten within 130 s.

    """

    connections: int = 4096
    connections_per_address: int = 2048
    request_timeout: float = 10.0
    idle_timeout: float = 300.0
    linger_bytes: int = 32 * 1024 * 1024
    linger_seconds: float = 3.0
    at_once: int = 16
    ahead_bytes: int = 64 * 1024
    unread_bytes: int = 1024 * 1024
    unread_seconds: float = 900.0
    silent_seconds: float = 6.0
    probe_seconds: float = 125.0


RESERVED_FILES = 256
"""Open files for all that is no control connection: sessions, mDNS, handshakes, sysfs, programs."""


def limits_within(files: int) -> Limits:
    """What clients may cost a process that may have so many open files."""
    room = max(files - RESERVED_FILES, files // 2)
    connections = min(Limits.connections, room)
    return Limits(connections=connections, connections_per_address=(connections + 1) // 2)


class Host(Protocol):
    """Who answers requests: server.ControlServer."""

    @property
    def limits(self) -> Limits: ...
    @property
    def allowed(self) -> Container[str]: ...
    def answer(self, line: bytes, connection: ControlConnection) -> None: ...
    @property
    def complaints(self) -> Complaints: ...
    def admit(self, connection: ControlConnection) -> None: ...
    def dismiss(self, connection: ControlConnection) -> None: ...
    def forget(self, connection: ControlConnection) -> None: ...


@functools.lru_cache(maxsize=1024)
def say_forbidden(address: str) -> None:
    """Log once for each address that it may not talk to us."""
    log.info("closed the connections of %s, which is not in server.allow_from", address)


def is_used_up(error: BaseException | None) -> bool:
    """Whether it is files or memory that keep a connection from being accepted; logged once."""
    used_up = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
    if not isinstance(error, OSError) or error.errno not in used_up:
        return False
    _say_used_up(os.strerror(error.errno))
    return True


@functools.lru_cache(maxsize=8)
def _say_used_up(why: str) -> None:
    log.warning("some connections can only be accepted when others have ended: %s", why)


class Complaints:
    """Bad requests in the log: one line in a while, with the number of those it stands for.

    Args:
        every: seconds between two lines.

    """

    def __init__(self, every: float = 60.0) -> None:
        self._every = every
        self._quiet_until = float("-inf")
        self._left_out = 0

    def note(self, sender: str, error: errors.InvalidRequest, now: float) -> None:
        """Log this one, or count it."""
        if now < self._quiet_until:
            self._left_out += 1
            return
        more = f" (and {self._left_out} more since the last such line)" if self._left_out else ""
        log.info("closed a connection of %s, which is no client: %s%s", sender, error, more)
        self._quiet_until, self._left_out = now + self._every, 0


class ControlConnection(asyncio.Protocol):
    """One client: cuts its bytes into requests, keeps its deadlines, never waits for it.

    Attributes:
        address: IP address of the client, "" on a unix socket.
        user: who it is, "" over TCP.
        watches: whether it gets events for ever.
        waits: whether its request waits for others.
        holds: whether something is kept for it as long as it is open.

    """

    def __init__(self, server: Host) -> None:
        self.address = ""
        self.user = ""
        self.watches = False
        self.waits = False
        self.holds = False
        self._server = server
        self._limits = server.limits
        self._framer = RequestFramer()
        self._unfinished = False
        self._paused = False
        self._half_closed = False
        self._full = False
        self._missed = b""
        self._is_rejected = False
        self._linger_left = 0
        self._presence: Presence | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way on it."""
        return not (self.watches or self.holds or self._paused)

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            self.user = _peer(connection)
        else:
            self.address = transport.get_extra_info("peername")[0]
            limits = self._limits
            self._presence = Presence(limits.silent_seconds, limits.probe_seconds)
        if self.address not in self._server.allowed:
            say_forbidden(self.address)
            transport.abort()
            return
        transport.set_write_buffer_limits(high=self._limits.unread_bytes)
        self._deadline(self._limits.request_timeout)
        self._server.admit(self)

    def data_received(self, data: bytes) -> None:
        if self.address not in self._server.allowed:
            return
        if self._is_rejected:
            self._discard(len(data))
            return
        self._framer.feed(data)
        if self._turn is None:
            self._answer_some()

    def eof_received(self) -> bool:
        """Whether to keep our half open: yes, while answers or a watch are under way."""
        self._half_closed = True
        if self._unfinished and not self._is_rejected:
            self._transport.write(_failed("the request is incomplete"))
        if self._is_rejected:
            return False
        answering = self._full or self._turn or (self._paused and not self.waits)
        return not self.holds and (bool(answering) or self.watches)

    def connection_lost(self, _error: Exception | None) -> None:
        for timer in (self._timer, self._look, self._unread, self._turn):
            if timer is not None:
                timer.cancel()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """What it has asked for stays unread, as does what it asks for next."""
        self._full = True
        self._read_or_not()
        self._look_soon()
        loop = asyncio.get_running_loop()
        self._unread = loop.call_later(self._limits.unread_seconds, self._read_too_late)

    def resume_writing(self) -> None:
        self._full = False
        if self._unread is not None:
            self._unread.cancel()
        if self._missed:
            missed, self._missed = self._missed, b""
            self.push(missed)
        if not self._is_over:  # its time may have been up while there was no room for an answer
            self._deadline(self._limits.idle_timeout)
        self._go_on_soon()

    # what the server calls

    def send(self, line: bytes) -> None:
        """Send a reply."""
        if self._is_over:
            return
        self._transport.write(line)
        self._deadline(self._limits.idle_timeout)

    def push(self, line: bytes) -> None:
        """Send an event; one that is not read in time is replaced by the next. Never raises."""
        if self._is_over:
            return
        if not self._full:
            self._transport.write(line)
            self._look_soon()
        elif line is not replies.PING:
            self._missed = line

    def pause(self, *, waits: bool = False) -> None:
        """An answer takes time: the next request of this connection waits.

        Who only waits for others is read from, for that alone shows that it has gone.
        """
        self._paused, self.waits = True, waits

    def resume(self) -> None:
        """Its answer is sent now, or within this turn of the loop."""
        self._paused = self.waits = False
        self._go_on_soon()

    def close(self) -> None:
        """Close it when what was sent is read, but soon in any case."""
        self._close_within(self._limits.linger_seconds)

    # parts

    @property
    def _who(self) -> str:
        return self.address or self.user

    @property
    def _is_over(self) -> bool:
        """Whether nothing may be sent on it any more."""
        return self._is_rejected or self._transport.is_closing()

    def _go_on_soon(self) -> None:
        if self._turn is None and not self._is_over:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self._answer_some()

    def _answer_some(self) -> None:
        """Answer what has arrived: a few at a time, and only as long as the client reads."""
        try:
            for _ in range(self._limits.at_once):
                if self._paused or self._full or not self._answer_next():
                    break
            else:
                self._go_on_soon()
        except errors.InvalidRequest as error:
            self._reject(error)
        self._read_or_not()

    def _answer_next(self) -> bool:
        """Whether there was a whole request."""
        request = self._framer.take()
        if request is None:
            self._has_answered_all()
            return False
        self._unfinished = False
        try:
            self._server.answer(request, self)
        except Exception:  # a fault of ours: it ends this connection, and nobody else's
            log.exception("a request of %s failed unexpectedly", self._who)
            self._transport.abort()
            return False
        return True

    def _has_answered_all(self) -> None:
        """What is left is the beginning of a request, or nothing."""
        begun = bool(self._framer.rest)
        if self._half_closed and not self.watches:
            if begun:
                self._transport.write(_failed("the request is incomplete"))
            self._close_within(self._limits.unread_seconds)
        elif begun and not self._unfinished:
            self._deadline(self._limits.request_timeout)
        self._unfinished = begun

    def _read_or_not(self) -> None:
        """Read on unless there is enough to do; who waits is read from, to hear of its end."""
        ahead = len(self._framer.rest) > self._limits.ahead_bytes
        if self._full or self._turn or (self._paused and (ahead or not self.waits)):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _reject(self, error: errors.InvalidRequest) -> None:
        """Say what was wrong, once, and read the rest away: a reset would eat the answer.

        From here on it takes part in nothing, least of all in pushes: nothing can be written
        after the end of what we write.
        """
        loop = asyncio.get_running_loop()
        self._server.complaints.note(self._who, error, loop.time())
        legacy = protocol_2x.is_line(self._framer.rest)
        self._transport.write(replies.failure(error, legacy=legacy))
        self._transport.write_eof()
        self._is_rejected = True
        self.watches = self.holds = False
        self._server.dismiss(self)
        self._framer = RequestFramer()
        self._unfinished = False
        self._linger_left = self._limits.linger_bytes
        self._stop_timer()
        self._timer = loop.call_later(self._limits.linger_seconds, self._transport.abort)

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
        if not self.is_idle or self._full:
            return
        if self._unfinished:
            limit = f"{self._limits.request_timeout:g} s"
            self._transport.write(_failed(f"no complete request within {limit}"))
        self.close()

    def _close_within(self, seconds: float) -> None:
        """Close it when what was sent is read; nobody can keep it longer than that."""
        self._transport.close()
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _look_soon(self) -> None:
        """An acknowledgement is due; on a unix socket there is nobody who could vanish."""
        if self._presence is None:
            return
        loop = asyncio.get_running_loop()
        self._presence.expect(loop.time())
        if self._look is None:
            self._look = loop.call_later(self._limits.silent_seconds / LOOKS, self._look_now)

    def _look_now(self) -> None:
        """Abort if the client's machine has vanished; look again while anything is owed."""
        self._look = None
        if self._presence is None:
            return
        delivery = Delivery.of(self._transport.get_extra_info("socket"))
        if self._presence.is_gone(delivery, asyncio.get_running_loop().time()):
            log.info("%s does not acknowledge any more", self.address)
            self._transport.abort()
        elif not delivery.is_complete:
            self._look_soon()

    def _read_too_late(self) -> None:
        log.info("%s has read nothing for %g s", self._who, self._limits.unread_seconds)
        self._transport.abort()


def _peer(connection: socket.socket) -> str:
    """The user at the other end of a unix socket (unix(7), SO_PEERCRED: pid, uid, gid)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _failed(message: str) -> bytes:
    return replies.failure(errors.InvalidRequest(message), legacy=True)
