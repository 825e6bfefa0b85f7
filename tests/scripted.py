"""A server of this process that says what a test wants, connection by connection.

What belongs here: servers that are mute, hang up or lie. A real one is in serving.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from tests.serving import HOST
from usb_remote import replies
from usb_remote.model import Device, Server, Snapshot
from usb_remote.values import BusId

ID = "5" * 32
INFO = replies.Info(id=ID, name="scripted", version="3.0.0")


class Scripted:
    """Answers each connection with the next act; with the last one from then on.

    Attributes:
        port: where it listens.
        requests: the first line of each connection.

    """

    def __init__(self, acts: Sequence[Act]) -> None:
        self.port = 0
        self.requests: list[bytes] = []
        self._acts = list(acts)

    @property
    def calls(self) -> int:
        return len(self.requests)

    @property
    def server(self) -> Server:
        """As mDNS finds it."""
        return Server(id=ID, name="scripted", addresses=(HOST,), port=self.port, version="3.0.0")

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        act = self._acts[min(self.calls, len(self._acts) - 1)]
        self.requests.append(b"")
        here = self.calls - 1
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            self.requests[here] = await reader.read(65536)
            await act(writer)


Act = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted(*acts: Act, host: str = HOST, port: int = 0) -> AsyncIterator[Scripted]:
    """A server of these acts, while the block runs."""
    there = Scripted(acts)
    playing: set[asyncio.Task[None]] = set()

    def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        playing.add(asyncio.create_task(there.play(reader, writer)))

    listening = await asyncio.start_server(admit, host, port)
    there.port = listening.sockets[0].getsockname()[1]
    try:
        async with listening:
            yield there
    finally:
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        await asyncio.sleep(0)  # so that the sockets are closed


def snapshot(*bus_ids: str, revision: int = 1, info: replies.Info = INFO) -> bytes:
    """The line of a watch that says that these devices are there."""
    plugged = [Device(bus_id=BusId(b), vendor_id="0403", product_id="6001") for b in bus_ids]
    return replies.snapshot_event(Snapshot(revision=revision, devices=tuple(plugged)), info)


def says(*lines: bytes) -> Act:
    """These lines, and then it hangs up."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.writelines(lines)
        await writer.drain()

    return act


def stays(*lines: bytes, ping: float | None = None) -> Act:
    """These lines, and then it stays: mute, or with a ping every so many seconds."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.writelines(lines)
        while True:
            await asyncio.sleep(3600 if ping is None else ping)
            writer.write(replies.PING)
            await writer.drain()

    return act


hangs_up = says()
mute = stays()
