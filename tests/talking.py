"""The control port as it is on the wire: bytes out, lines of JSON in.

What belongs here: what says to a server of serving.py what no client of ours would.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from tests.patience import patience
from tests.serving import HOST, Running
from tests.waiting import eventually

PING = {"event": "ping"}


class Line:
    """A raw client: sends bytes, reads lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> dict[str, Any]:
        """The next message that is no ping, which may come at any time."""
        while (message := await self.hear_any()) == PING:
            pass
        return message

    async def hear_any(self) -> dict[str, Any]:
        async with asyncio.timeout(patience(20)):
            message: dict[str, Any] = json.loads(await self.reader.readline())
        return message

    async def ask(self, data: bytes) -> dict[str, Any]:
        await self.say(data)
        return await self.hear()

    async def at_end(self) -> bool:
        async with asyncio.timeout(patience(20)):
            return await self.reader.read() == b""


@asynccontextmanager
async def talk(bench: Running) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(HOST, bench.control.port, limit=2**24)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Deaf:
    """A client that reads nothing until it is told to, with little room on the way to it.

    Attributes:
        socket: the client's end; it never blocks.
        connection: the server's view of it.

    """

    ROOM = 2048
    """Bytes that each kernel keeps; it takes twice as many."""

    def __init__(self, bench: Running, request: bytes) -> None:
        self.bench = bench
        self.request = request
        self.socket = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, self.ROOM)
        self.socket.connect((HOST, bench.control.port))
        self.socket.setblocking(False)

    async def __aenter__(self) -> Self:
        await eventually(self._admitted)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            ours = self.connection._transport.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, option, self.ROOM)
        self.socket.sendall(self.request)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    def _admitted(self) -> bool:
        ours = self.socket.getsockname()
        for connection in self.bench.control._connections:
            if connection._transport.get_extra_info("peername") == ours:
                self.connection = connection
                return True
        return False

    async def read_lines(self, until: bytes) -> list[bytes]:
        """All lines up to one that has this in it."""
        loop = asyncio.get_running_loop()
        data = b""
        async with asyncio.timeout(patience(20)):
            while until not in data or not data.endswith(b"\n"):
                part = await loop.sock_recv(self.socket, 1 << 16)
                assert part, "hung up"
                data += part
        return data.splitlines()
