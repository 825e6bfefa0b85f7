"""The control port as it is on the wire: bytes out, lines of JSON in.

What belongs here: what says to a server of serving.py what no client of ours would.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.patience import patience
from tests.serving import HOST, Running

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
