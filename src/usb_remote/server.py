"""The server: the latest snapshot, the control protocol on TCP 5055, its watchers.

Rule of this file: data flows one way. Something may have changed -> list again -> if it differs,
a new snapshot with the next revision -> every watcher gets the whole list. Level-triggered: a
watcher that reads slowly skips to the newest.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from usb_remote import errors, events, protocol, protocol_2x, replies
from usb_remote.answers import Answers
from usb_remote.control import Complaints, ControlConnection, Limits
from usb_remote.history import History
from usb_remote.leases import Leases
from usb_remote.model import Device, Snapshot
from usb_remote.rules import Networks
from usb_remote.sharing import SharedDevices

log = logging.getLogger(__name__)

OWN_ECHO = 0.5
"""Seconds in which events after a binding of our own are taken together: each listing would be
in the way of the import that is under way."""


class Wakeup(Protocol):
    """A file descriptor that is readable when devices may have changed: udev.monitor, virtual."""

    def fileno(self) -> int: ...
    def drain(self) -> bool: ...


class ControlServer:
    """One process's server.

    Args:
        source: lists the devices.
        wakeup: says when they may have changed.
        leases: says who holds them, and gives them to those who ask.
        history: what happened to them.
        info: who we are.
        limits: what clients may cost.
        echo: seconds after a binding of our own in which its events wait.
        ping: seconds between two pings.

    Attributes:
        allowed: networks whose connections are not closed at once.
        complaints: logs what is no request.

    """

    def __init__(
        self,
        source: SharedDevices,
        wakeup: Wakeup,
        leases: Leases,
        history: History,
        info: replies.Info,
        limits: Limits = Limits(),
        echo: float = OWN_ECHO,
        ping: float = protocol.PING_INTERVAL,
    ) -> None:
        self.info = info
        self.limits = limits
        self.snapshot = Snapshot()
        self.port = 0
        self._source = source
        self._wakeup = wakeup
        self._leases = leases
        self._history = history
        self._answers = Answers(leases, source, history, lambda: self.snapshot, self.refresh)
        self.allowed = Networks()
        self.complaints = Complaints()
        self._listed: tuple[Device, ...] = ()
        self._lines: dict[str, bytes] = {}
        self._told_events: list[events.Event] = []
        self._history_lines: dict[bool, bytes] = {}
        self._twins: set[str] = set()
        self._connections: dict[ControlConnection, None] = {}
        self._watchers: set[ControlConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: dict[asyncio.Task[None], ControlConnection] = {}
        self._ping: asyncio.TimerHandle | None = None
        self._echo = echo
        self._ping_interval = ping
        self._quiet_until = 0.0
        self._later: asyncio.TimerHandle | None = None

    # -- life

    async def start(self, addresses: Iterable[str], port: int) -> None:
        """Monitor before the first listing, listing before the first client.

        Raises:
            SystemFault: the port is taken.

        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._wakeup.fileno(), self._woken)
        self.refresh_by_new_rules()
        self.port = port
        for address in addresses:
            await self._listen(loop, address)
        self._ping_watchers()

    async def _listen(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        try:
            server = await loop.create_server(
                lambda: ControlConnection(self),
                address,
                self.port,
                reuse_address=True,
                backlog=1024,
            )
        except OSError as error:
            raise errors.SystemFault(
                f"cannot listen on port {self.port} of {address}: {os.strerror(error.errno or 0)}",
                hint=f"who has it? type: sudo ss -tlnp 'sport = :{self.port}'",
            ) from error
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        asyncio.get_running_loop().remove_reader(self._wakeup.fileno())
        for timer in (self._ping, self._later):
            if timer is not None:
                timer.cancel()
        for server in self._servers:
            server.close()
        self._leases.send_away()
        await asyncio.sleep(0)  # so that those who waited get to hear it
        for connection in list(self._connections):
            connection.close()  # which ends what waits, see `dismiss`
        await asyncio.gather(*self._tasks, return_exceptions=True)  # bounded, see lease.Times
        for server in self._servers:
            await server.wait_closed()

    # -- the snapshot and its watchers

    def _woken(self) -> None:
        """List again, at once unless it is our own binding that we hear."""
        has_moved = self._wakeup.drain()
        loop = asyncio.get_running_loop()
        if has_moved or loop.time() >= self._quiet_until:
            self.refresh()
        elif self._later is None:
            self._later = loop.call_at(self._quiet_until, self._refresh_later)

    def _refresh_later(self) -> None:
        self._later = None
        self.refresh()

    def holders_changed(self) -> None:
        """Tell it at once; what udev says of the binding that goes with it can wait a little."""
        self._quiet_until = asyncio.get_running_loop().time() + self._echo
        self.show_holders()

    def refresh(self) -> None:
        """List again; if anything differs, tell every watcher and record it."""
        before = self._list_again()
        self.show_holders()
        for event in events.plugs(before, self._listed, datetime.now(UTC)):
            self._history.record(event)

    def refresh_by_new_rules(self) -> None:
        """List again, when what comes and goes is shown or hidden, but not plugged."""
        self._list_again()
        self.show_holders()

    def _list_again(self) -> tuple[Device, ...]:
        """Returns what was listed before; who waits for what has gone is sent away."""
        before, self._listed = self._listed, self._source.list_devices()
        self._leases.forget_unplugged(self._listed)
        return before

    def show_holders(self) -> None:
        """The same devices, with whoever holds them now."""
        devices = self._leases.with_holders(self._listed)
        if self.snapshot.revision and devices == self.snapshot.devices:
            return
        self._warn_of_twins(devices)
        self.snapshot = Snapshot(revision=self.snapshot.revision + 1, devices=devices)
        self._lines.clear()
        for watcher in self._watchers:
            watcher.push(self._line("event"))

    def _warn_of_twins(self, devices: tuple[Device, ...]) -> None:
        """Devices with one serial number are told apart by their position: say so once."""
        for device in devices:
            if device.serial and "@" in device.id and device.id not in self._twins:
                self._twins.add(device.id)
                log.warning("%s shares its serial number %s", device.id, device.serial)

    def _line(self, kind: str) -> bytes:
        """The current snapshot, encoded once for each kind of receiver."""
        if kind not in self._lines:
            self._lines[kind] = self._encoded(kind)
        return self._lines[kind]

    def _encoded(self, kind: str) -> bytes:
        if kind == "event":
            return replies.snapshot_event(self.snapshot, self.info)
        request = protocol.ListRequest(v=None if kind == "legacy" else 1)
        devices = replies.devices_json(self.snapshot.devices, legacy=request.legacy)
        return replies.success(devices, request, self.info, self.snapshot.revision)

    def _ping_watchers(self) -> None:
        """Watchers, and those who wait: so both ends notice a dead one."""
        loop = asyncio.get_running_loop()
        self._ping = loop.call_later(self._ping_interval, self._ping_watchers)
        for connection in (*self._watchers, *(c for c in self._tasks.values() if c.waits)):
            connection.push(replies.PING)

    # -- requests

    def answer(self, line: bytes, connection: ControlConnection) -> None:
        """Answer one request, now or when it is done."""
        legacy = protocol_2x.is_line(line)
        try:
            request = protocol.parse_request(line)
            if isinstance(request, protocol.WhichDevice):
                waits = isinstance(request, protocol.AttachRequest) and request.wait is not None
                connection.pause(waits=waits)
                self._spawn(self._answer_device(request, connection), connection)
            else:
                connection.send(self._answer_now(request, connection))
        except errors.UsbRemoteError as error:
            connection.send(replies.failure(error, legacy=legacy))

    def _answer_now(
        self,
        request: protocol.ListRequest
        | protocol.HistoryRequest
        | protocol.InfoRequest
        | protocol.WatchRequest,
        connection: ControlConnection,
    ) -> bytes:
        match request:
            case protocol.ListRequest():
                return self._line("legacy" if request.legacy else "list")
            case protocol.HistoryRequest():
                return self._history_line(request)
            case protocol.InfoRequest():
                known = replies.info_json(self.info, request, datetime.now(UTC))
                return replies.success(known, request)
            case protocol.WatchRequest():
                connection.watches = True
                self._watchers.add(connection)
                return self._line("event")

    def _history_line(self, request: protocol.HistoryRequest) -> bytes:
        """All events, encoded once for each kind of receiver as long as they are the same."""
        events = self._history.events
        if events != self._told_events:
            self._told_events = events
            self._history_lines.clear()
        if request.legacy not in self._history_lines:
            line = replies.success(self._answers.history(), request, self.info)
            self._history_lines[request.legacy] = line
        return self._history_lines[request.legacy]

    async def _answer_device(
        self, request: protocol.WhichDevice, connection: ControlConnection
    ) -> None:
        """Who is left without an answer must not take the next one for it."""
        try:
            connection.send(await self._device_reply(request, connection))
        except Exception:  # a fault of ours: it ends this connection, and nobody else's
            log.exception("%s for %s failed unexpectedly", request.command, connection.address)
            connection.close()
        finally:
            connection.resume()

    async def _device_reply(
        self, request: protocol.WhichDevice, connection: ControlConnection
    ) -> bytes:
        address = connection.address
        try:
            data = await self._answers.device(request, address, connection.push)
        except errors.UsbRemoteError as error:
            log.info("%s for %s: %s", request.command, address, error)
            return replies.failure(error, legacy=request.legacy)
        except OSError as error:
            log.exception("%s for %s", request.command, address)
            fault = errors.SystemFault(f"{request.command} failed on the server: {error}")
            return replies.failure(fault, legacy=request.legacy)
        return replies.success(data, request, self.info)

    def _spawn(self, work: Coroutine[Any, Any, None], connection: ControlConnection) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = connection
        task.add_done_callback(self._tasks.pop)

    # -- connections

    def admit(self, connection: ControlConnection) -> None:
        """Keep within the limits by closing those that say nothing, the oldest first."""
        self._connections[connection] = None
        peers = [c for c in self._connections if c.address == connection.address]
        if len(peers) > self.limits.connections_per_address:
            self._close_one(peers)
        elif len(self._connections) > self.limits.connections:
            self._close_one(list(self._connections))

    def _close_one(self, connections: list[ControlConnection]) -> None:
        """The newest is idle, so there is always one: what is busy never gives way."""
        oldest = next(c for c in connections if c.is_idle)
        oldest.close()
        del self._connections[oldest]  # or the next of many at once would close it again

    def forget(self, connection: ControlConnection) -> None:
        """It is closed."""
        self._connections.pop(connection, None)
        self.dismiss(connection)

    def dismiss(self, connection: ControlConnection) -> None:
        """It takes part in nothing any more: no event, and no place in a queue."""
        self._watchers.discard(connection)
        for task, owner in self._tasks.items():
            if owner is connection and connection.waits:
                task.cancel()

    def close_forbidden(self) -> None:
        """Close the connections of those who may not talk to this server any more."""
        for connection in list(self._connections):
            if connection.address not in self.allowed:
                connection.close()
