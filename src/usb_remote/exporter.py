"""The exporter: owns TCP 3240, and answers the USB/IP handshake of clients of any kind.

Rule of this file: 8 or 40 bytes of anybody, then an answer; who gets a device is for leases.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from usb_remote import errors, usbip_wire
from usb_remote.control import is_used_up, say_forbidden
from usb_remote.leases import Leases
from usb_remote.model import State
from usb_remote.rules import Networks
from usb_remote.sharing import DeviceSource
from usb_remote.usbip_wire import Record, Status
from usb_remote.values import BusId

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandshakeLimits:
    """What USB/IP clients may cost before they have a device.

    Attributes:
        timeout: seconds for the 8 or 40 bytes of a request to arrive, and again for a client to
            take the list of devices.
        at_once: connections that are being read, or sent a list, at a time; the oldest gives way.
        rest: seconds until the next try to accept when files or memory are used up.

    """

    timeout: float = 5.0
    at_once: int = 64
    rest: float = 1.0


class Exporter:
    """Listens for USB/IP clients.

    Args:
        source: which devices there are.
        leases: decides about imports; started and stopped by whoever made it.
        limits: what clients may cost.

    Attributes:
        port: TCP port that it listens on.
        allowed: networks whose connections are not closed at once.

    """

    def __init__(
        self, source: DeviceSource, leases: Leases, limits: HandshakeLimits = HandshakeLimits()
    ) -> None:
        self.port = 0
        self.allowed = Networks()
        self._source = source
        self._leases = leases
        self._limits = limits
        self._listeners: list[socket.socket] = []
        self._resting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._handshakes: dict[socket.socket, tuple[str, asyncio.Task[None]]] = {}
        self._imports: set[asyncio.Task[None]] = set()

    @property
    def handshakes(self) -> int:
        """How many connections are being read or sent a list."""
        return len(self._handshakes)

    def bind(self, addresses: Iterable[str], port: int) -> None:
        """Take the port: who connects waits until :meth:`start`.

        Raises:
            SystemFault: the port is taken; the hint frees it.

        """
        self.port = port
        for address in addresses:
            listener = _listen(address, self.port)
            self.port = listener.getsockname()[1]
            self._listeners.append(listener)

    def start(self) -> None:
        """Answer."""
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Close the port, and every connection that is no session yet."""
        for timer in self._resting.values():
            timer.cancel()
        while self._listeners:
            listener = self._listeners.pop()
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        handshakes = [task for _, task in self._handshakes.values()]
        for task in handshakes:
            task.cancel()
        tasks = (*handshakes, *self._imports)
        await asyncio.gather(*tasks, return_exceptions=True)

    def close_forbidden(self) -> None:
        """Close what has begun, and may not talk to this server any more; sessions are leases'."""
        for address, task in list(self._handshakes.values()):
            if address not in self.allowed:
                task.cancel()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, peer = listener.accept()
        except OSError as error:
            if is_used_up(error):
                self._rest(listener)
            return  # or the peer has gone already
        if (address := peer[0]) not in self.allowed:
            say_forbidden(address)
            connection.close()
            return
        connection.setblocking(False)
        while len(self._handshakes) >= self._limits.at_once:
            oldest = next(iter(self._handshakes))
            self._handshakes.pop(oldest)[1].cancel()
        task = asyncio.create_task(self._handshake(connection, address))
        self._handshakes[connection] = address, task
        task.add_done_callback(partial(self._shaken, connection))

    def _rest(self, listener: socket.socket) -> None:
        """Whoever waits to be accepted would wake us again and again until there is room."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._resting[listener] = loop.call_later(self._limits.rest, self._listen_again, listener)

    def _listen_again(self, listener: socket.socket) -> None:
        del self._resting[listener]
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _shaken(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(connection, None)
        self._imports.discard(task)
        if not self._leases.has(connection):
            connection.close()

    async def _handshake(self, connection: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout):
                request = await _read_request(connection)
            if isinstance(request, usbip_wire.ImportRequest):
                self._imports.add(self._handshakes.pop(connection)[1])  # from here to the end
                await self._import(connection, request.bus_id, address)
            else:
                await self._devlist(connection)
        except (TimeoutError, OSError, errors.InvalidRequest) as error:
            log.info("USB/IP from %s: %s", address, str(error) or "no complete request in time")

    async def _devlist(self, connection: socket.socket) -> None:
        shared = [d for d in self._source.list_devices() if d.state is not State.PROTECTED]
        records = [r for d in shared if (r := self._source.record(d.bus_id))]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._limits.timeout):
            await loop.sock_sendall(connection, usbip_wire.pack_devlist(records))

    async def _import(self, connection: socket.socket, bus_id: BusId, address: str) -> None:
        """One decision for ours and stock clients; who got a yes that fails is hung up on."""
        accepted: list[Record] = []

        def accept(record: Record) -> None:
            accepted.append(record)
            _send(connection, usbip_wire.pack_import(record))

        try:
            await self._leases.begin(connection, bus_id, address, accept)
        except errors.UsbRemoteError as error:
            log.info("import of %s by %s refused: %s", bus_id, address, error)
            if not accepted:
                _send(connection, usbip_wire.pack_import(None, _status(error)))


def _send(connection: socket.socket, reply: bytes) -> None:
    """A client that has gone is noticed by whoever has the connection."""
    with contextlib.suppress(OSError):
        connection.send(reply)  # 320 bytes into an empty socket buffer never block


def _status(error: errors.UsbRemoteError) -> Status:
    statuses = {errors.Busy: Status.BUSY, errors.NotFound: Status.NO_DEVICE}
    return statuses.get(type(error), Status.FAILED)


async def _read_request(
    connection: socket.socket,
) -> usbip_wire.DevlistRequest | usbip_wire.ImportRequest:
    header = await _read_exactly(connection, usbip_wire.HEADER_SIZE)
    body = await _read_exactly(connection, usbip_wire.body_size(header))
    return usbip_wire.parse_request(header, body)


async def _read_exactly(connection: socket.socket, size: int) -> bytes:
    """Never a byte more: what follows belongs to the kernel."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(connection, size - len(data))
        if not part:
            raise errors.InvalidRequest(f"closed after {len(data)} of {size} bytes")
        data += part
    return data


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        taken = (
            f"who has it? type: sudo ss -tlnp 'sport = :{port}'   and if that is usbipd: "
            "sudo pkill usbipd (if it is a service: sudo systemctl disable --now usbipd)"
        )
        raise errors.SystemFault(
            f"cannot listen on USB/IP port {port} of {address}: {error.strerror}",
            hint=taken if error.errno == errno.EADDRINUSE else "see the addresses with: ip address",
        ) from error
    return listener
