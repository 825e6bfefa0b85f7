"""The server: the latest snapshot, the control protocol on TCP 5055, its watchers.

Rule of this file: data flows one way. Something may have changed -> list again -> if it differs,
a new snapshot with the next revision -> every watcher gets the whole list. Level-triggered: a
watcher that reads slowly skips to the newest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from usb_remote import errors, protocol
from usb_remote.exporter import DeviceSource, Exporter
from usb_remote.model import Device, Holder, Match, Query, Server, Snapshot, select

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one client, or a thousand, may cost this server.

    Attributes:
        connections: control connections in all; beyond that the longest idle one gives way.
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


DEAD_PEER_MS = 10_000
"""TCP_USER_TIMEOUT of control connections: a watcher that vanished is forgotten."""


class Wakeup(Protocol):
    """A file descriptor that is readable when devices may have changed: udev.Monitor, virtual."""

    def fileno(self) -> int: ...
    def drain(self) -> None: ...


class ControlServer:
    """One process's server.

    Args:
        source: lists the devices.
        wakeup: says when they may have changed.
        exporter: says who holds them, and is started and stopped by whoever made it.
        info: who we are.
        limits: what clients may cost.

    """

    def __init__(
        self,
        source: DeviceSource,
        wakeup: Wakeup,
        exporter: Exporter,
        info: protocol.Info,
        limits: Limits = Limits(),
    ) -> None:
        self.info = info
        self.limits = limits
        self.snapshot = Snapshot()
        self.port = 0
        self._source = source
        self._wakeup = wakeup
        self._exporter = exporter
        self._lines: dict[str, bytes] = {}
        self._connections: dict[_Connection, None] = {}
        self._watchers: set[_Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ping: asyncio.TimerHandle | None = None

    # -- life

    async def start(self, addresses: Iterable[str], port: int) -> None:
        """Monitor before the first listing, listing before the first client.

        Raises:
            SystemFault: the port is taken.

        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._wakeup.fileno(), self._woken)
        self.refresh()
        self.port = port
        for address in addresses:
            await self._listen(loop, address)
        self._ping_watchers()

    async def _listen(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        try:
            server = await loop.create_server(
                lambda: _Connection(self), address, self.port, reuse_address=True, backlog=1024
            )
        except OSError as error:
            raise errors.SystemFault(
                f"cannot listen on port {self.port} of {address}: {error.strerror}",
                hint=f"who has it? type: sudo ss -tlnp 'sport = :{self.port}'",
            ) from error
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        asyncio.get_running_loop().remove_reader(self._wakeup.fileno())
        if self._ping is not None:
            self._ping.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    # -- the snapshot and its watchers

    def _woken(self) -> None:
        self._wakeup.drain()
        self.refresh()

    def refresh(self) -> None:
        """List again; if anything differs, tell every watcher."""
        devices = self._exporter.with_holders(self._source.list_devices())
        if self.snapshot.revision and devices == self.snapshot.devices:
            return
        self.snapshot = Snapshot(revision=self.snapshot.revision + 1, devices=devices)
        self._lines.clear()
        line = self._line("event")
        for watcher in self._watchers:
            watcher.push(line)

    def _line(self, kind: str) -> bytes:
        """The current snapshot, encoded once for each kind of receiver."""
        if kind not in self._lines:
            self._lines[kind] = self._encoded(kind)
        return self._lines[kind]

    def _encoded(self, kind: str) -> bytes:
        if kind == "event":
            return protocol.snapshot_event(self.snapshot, self.info)
        request = protocol.ListRequest(v=None if kind == "legacy" else 1)
        devices = protocol.devices_json(self.snapshot.devices, legacy=request.legacy)
        return protocol.success(devices, request, self.info, self.snapshot.revision)

    def _ping_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.push(protocol.PING)
        loop = asyncio.get_running_loop()
        self._ping = loop.call_later(protocol.PING_INTERVAL, self._ping_watchers)

    # -- requests

    def answer(self, line: bytes, connection: _Connection) -> None:
        """Answer one request, now or when it is done."""
        legacy = protocol.is_legacy_line(line)
        try:
            request = protocol.parse_request(line)
            if isinstance(request, protocol.DeviceRequest):
                connection.pause()
                self._spawn(self._answer_device(request, connection))
            else:
                connection.send(self._answer_now(request, connection))
        except errors.UsbRemoteError as error:
            connection.send(protocol.failure(error, legacy=legacy))

    def _answer_now(
        self,
        request: protocol.ListRequest | protocol.InfoRequest | protocol.WatchRequest,
        connection: _Connection,
    ) -> bytes:
        match request:
            case protocol.ListRequest():
                return self._line("legacy" if request.legacy else "list")
            case protocol.InfoRequest():
                return protocol.success(self.info.model_dump(), request)
            case protocol.WatchRequest():
                connection.watches = True
                self._watchers.add(connection)
                return self._line("event")

    async def _answer_device(
        self, request: protocol.DeviceRequest, connection: _Connection
    ) -> None:
        try:
            connection.send(await self._device_reply(request, connection.address))
        finally:
            connection.resume()

    async def _device_reply(self, request: protocol.DeviceRequest, address: str) -> bytes:
        try:
            device = await self._act(request, self._find(request.query), address)
        except errors.UsbRemoteError as error:
            log.info("%s for %s: %s", request.command, address, error)
            return protocol.failure(error, legacy=request.legacy)
        except OSError as error:
            log.exception("%s for %s", request.command, address)
            fault = errors.SystemFault(f"{request.command} failed on the server: {error}")
            return protocol.failure(fault, legacy=request.legacy)
        data = protocol.device_json(device, legacy=request.legacy)
        return protocol.success(data, request, self.info)

    async def _act(self, request: protocol.DeviceRequest, device: Device, address: str) -> Device:
        if request.command == "attach":
            holder = Holder(user=request.user, host=request.host or address, address=address)
            await self._exporter.reserve(device, holder)
        elif request.command == "detach":
            await self._exporter.release(device, address)
        return next((d for d in self.snapshot.devices if d.bus_id == device.bus_id), device)

    def _find(self, query: Query) -> Device:
        """The one device that is meant; the words are those of 2.x (usbdevice.py, get_device)."""
        here = Server(name=self.info.name)
        found = [m.device for m in select((Match(here, d) for d in self.snapshot.devices), query)]
        if not found:
            raise errors.NotFound("No matching USB device found.")
        if len(found) > 1 and not query.first:
            listed = "\n".join(
                f"  - {d.description} (id={d.hardware_id}, bus={d.bus_id})" for d in found
            )
            raise errors.Ambiguous(
                "Multiple matching USB devices found. Please refine your criteria.\n"
                f"Matching devices:\n{listed}"
            )
        return found[0]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a request failed unexpectedly", exc_info=error)

    # -- connections

    def admit(self, connection: _Connection) -> None:
        """Keep within the limits by closing those that say nothing, the oldest first."""
        self._connections[connection] = None
        peers = [c for c in self._connections if c.address == connection.address]
        if len(peers) > self.limits.connections_per_address:
            self._close_one(peers)
        elif len(self._connections) > self.limits.connections:
            self._close_one(list(self._connections))

    def _close_one(self, connections: list[_Connection]) -> None:
        idle = [c for c in connections if not c.watches]
        (idle or connections)[0].close()

    def forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        self._watchers.discard(connection)


class _Connection(asyncio.Protocol):
    """One client: cuts its bytes into requests, keeps its deadlines, never waits for it."""

    def __init__(self, server: ControlServer) -> None:
        self.address = ""
        self.watches = False
        self._server = server
        self._limits = server.limits
        self._framer = protocol.RequestFramer()
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
        transport.set_write_buffer_limits(high=self._limits.unread_bytes)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
        self._deadline(self._limits.request_timeout)
        self._server.admit(self)

    def data_received(self, data: bytes) -> None:
        if self._linger_left:
            self._discard(len(data))
            return
        try:
            for request in self._framer.feed(data):
                self._waiting.append(request)
                self._answer_waiting()
        except errors.InvalidRequest as error:
            self._reject(error, data)
            return
        if self._framer.pending:
            self._deadline(self._limits.request_timeout)

    def eof_received(self) -> bool:
        """Whether to keep our half open: yes, while an answer or a watch is under way."""
        self._half_closed = True
        if self._framer.pending and not self._linger_left:
            self._transport.write(_failed("the request is incomplete"))
        return self._paused or self.watches

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
        """Send a snapshot; one that is not read in time is replaced by the next."""
        if self._transport.is_closing():
            return
        if not self._full:
            self._transport.write(line)
        elif line is not protocol.PING:
            self._missed = line

    def pause(self) -> None:
        """An answer takes time: the next request of this connection waits."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
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
