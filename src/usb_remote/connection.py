"""One connection to one server: requests and replies, or a watch.

Rule of this file: whatever goes wrong on the way is Unreachable (or InvalidReply), with the
server's name in it; no other exception leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from usb_remote import errors, protocol
from usb_remote.model import Listing, Server, Snapshot

HEAD_START = 0.1
"""Seconds that the first of several addresses has for itself."""


Tell = Callable[[protocol.WatchEvent], None]


def _ignore(_event: protocol.WatchEvent) -> None:
    """Events before an answer are for those who wait."""


class Connection:
    """An open connection; use :func:`connect` to make one.

    Attributes:
        server: whom we asked for.
        address: which of its addresses answered.
        local_address: our own address on this connection, as the server sees it.
        hung_up: whether the other side has closed it.

    """

    def __init__(
        self,
        server: Server,
        address: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        timeout: float,
    ) -> None:
        self.server = server
        self.address = address
        self.local_address = str(writer.get_extra_info("sockname")[0])
        self.hung_up = False
        self._reader = reader
        self._writer = writer
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def request(self, request: protocol.Request, tell: Tell = _ignore) -> protocol.Reply:
        """Ask and wait for the answer; a 2.x server is asked again in its own words.

        Args:
            request: what to ask.
            tell: called with each event that comes before the answer.

        Raises:
            Unreachable, InvalidReply: nobody, or somebody else, is there.
            UsbRemoteError: what the server answers.

        """
        try:
            line = await self._ask(protocol.request_line(request), protocol.time_for(request))
            while protocol.is_event(line):
                tell(protocol.parse_event(line))
                line = await self._read_line(protocol.WATCH_TIMEOUT)
            return protocol.parse_reply(line)
        except errors.UsbRemoteError as error:
            if not protocol.is_legacy_rejection(error):
                raise
        if not protocol.is_known_to_2x(request):
            raise errors.Refused(f"{self.server.name} is usb-remote 2.x and cannot do that")
        legacy = await connect(self.server, self._timeout, only=self.address)
        async with legacy:
            return protocol.parse_reply(await legacy._ask(protocol.legacy_request(request)))

    async def watch(self) -> AsyncIterator[protocol.WatchEvent]:
        """Every change from now on, the current state first, pings included.

        Raises:
            Unreachable: the server has gone, or was silent for WATCH_TIMEOUT seconds.

        """
        line = await self._ask(protocol.request_line(protocol.WatchRequest()))
        while True:
            yield protocol.parse_event(line)
            line = await self._read_line(protocol.WATCH_TIMEOUT)

    async def _ask(self, line: bytes, extra: float = 0) -> bytes:
        try:
            self._writer.write(line)
            await self._writer.drain()
        except OSError as error:
            raise self._lost(error) from error
        return await self._read_line(self._timeout + extra)

    async def _read_line(self, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                line = await self._reader.readline()
        except TimeoutError:
            raise errors.Unreachable(
                f"{self.server.name} did not answer within {timeout:g} s"
            ) from None
        except OSError as error:
            raise self._lost(error) from error
        except ValueError:
            raise errors.InvalidReply(
                f"{self.server.name} answers more than {protocol.MAX_REPLY} bytes"
            ) from None
        if not line:
            raise self._hung_up(f"{self.server.name} closed the connection")
        return line

    def _lost(self, error: OSError) -> errors.Unreachable:
        return self._hung_up(f"connection to {self.server.name} lost: {error.strerror}")

    def _hung_up(self, message: str) -> errors.Unreachable:
        self.hung_up = True
        hint = "does server.allow_from in its configuration let this machine in?"
        return errors.Unreachable(message, hint=hint)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def list_devices(connection: Connection) -> Listing:
    """Everything that this server has; raises as :meth:`Connection.request`."""
    reply = await connection.request(protocol.ListRequest())
    devices = protocol.parse_devices(reply.data)
    if reply.server and connection.server.id not in (None, reply.server.id):
        raise errors.Unreachable(
            f"{connection.server.name}: another server answers at {connection.address}"
        )
    return Listing(
        server=protocol.server_of(reply.server, connection.server, connection.address),
        snapshot=Snapshot(revision=reply.revision, devices=devices),
    )


async def connect(server: Server, timeout: float, *, only: str | None = None) -> Connection:
    """Connect to whichever address of the server answers first.

    Raises:
        Unreachable: none does; the message says why.

    """
    addresses = [only] if only else list(server.addresses)
    try:
        async with asyncio.timeout(timeout):
            address, reader, writer = await _first(addresses, server.port)
    except TimeoutError:
        raise errors.Unreachable(
            f"{server.name} did not answer within {timeout:g} s (TCP port {server.port})",
            hint="is it switched on, and does a firewall let the port through?",
        ) from None
    except OSError as error:
        raise errors.Unreachable(
            f"{server.name}: {_reason(error)} (TCP port {server.port})",
            hint="is `usb-remote server` running there?",
        ) from error
    _notice_death(writer, timeout)
    return Connection(server, address, reader, writer, timeout)


_Streams = tuple[str, asyncio.StreamReader, asyncio.StreamWriter]


async def _first(hosts: list[str], port: int) -> _Streams:
    """The first connection that stands; the others are dropped. Raises the last OSError.

    The first address has a head start: it is where the server was heard, while another of its
    addresses (172.17.0.1 of a container bridge) may be one of our own.
    """
    addresses = [a for answer in [await _resolve(host) for host in hosts] for a in answer]
    delays = [0.0, *[HEAD_START] * (len(addresses) - 1)]
    pending = {
        asyncio.create_task(_open(address, port, delay))
        for address, delay in zip(addresses, delays, strict=False)
    }
    failure: BaseException = socket.gaierror("no such host")
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            standing = [task.result() for task in done if not task.exception()]
            for _, _, writer in standing[1:]:
                writer.close()
            if standing:
                return standing[0]
            failure = done.pop().exception() or failure
        raise failure
    finally:
        await _drop(pending)


async def _drop(tasks: set[asyncio.Task[_Streams]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, BaseException):
            result[2].close()


async def _open(address: str, port: int, delay: float) -> _Streams:
    await asyncio.sleep(delay)
    reader, writer = await asyncio.open_connection(address, port, limit=protocol.MAX_REPLY)
    return address, reader, writer


async def _resolve(host: str) -> list[str]:
    """IP addresses of a host, none if there is no such host; an address is its own.

    The look-up has a daemon thread of its own: a dead DNS server must not hold up our exit, as it
    would in asyncio's pool, which is joined.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()
    threading.Thread(target=_look_up, args=(host, loop, answer), daemon=True).start()
    return await answer


def _look_up(host: str, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[str]]) -> None:
    found: list[str] = []
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys(str(info[4][0]) for info in infos))
    except (OSError, UnicodeError):
        found = []
    with contextlib.suppress(RuntimeError):  # nobody waits any more, the loop is closed
        loop.call_soon_threadsafe(_settle, answer, found)


def _settle(answer: asyncio.Future[list[str]], found: list[str]) -> None:
    if not answer.done():
        answer.set_result(found)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _notice_death(writer: asyncio.StreamWriter, timeout: float) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout * 1000))
