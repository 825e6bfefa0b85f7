"""All servers for ever: what they have now, and again after each change.

Rule of this file: one server is followed once, however many entries lead to it; when it is lost,
that is said once, and it is asked again until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import NamedTuple

from usb_remote import errors, protocol
from usb_remote.config import Config
from usb_remote.connection import connect, list_devices
from usb_remote.matching import merge
from usb_remote.model import Listing, Server, Snapshot

RECONNECT = 2.0
"""Seconds before a lost server is asked again."""
LEGACY_INTERVAL = 5.0
"""Seconds between two looks at a 2.x server; each makes it run a few programs."""


class Change(NamedTuple):
    """A line of a watch: the newest listing of a server, or why there is none any more."""

    server: Server
    listing: Listing | None
    error: errors.UsbRemoteError | None = None


class Watcher:
    """Follows servers.

    Args:
        config: the configured ones.
        found: servers as mDNS finds them, for as long as the watch goes on.
        reconnect: seconds before a lost server is asked again.

    """

    def __init__(
        self, config: Config, found: AsyncIterator[Server], reconnect: float = RECONNECT
    ) -> None:
        self._config = config
        self._found = found
        self._reconnect = reconnect
        self._owners: dict[str, Server] = {}  # server id -> the entry by which it is followed
        self._newest: dict[str, Server] = {}  # server id -> where mDNS has heard it last

    async def watch(self) -> AsyncGenerator[Change, None]:
        """Every server's newest listing, again after each change, for ever."""
        changes: asyncio.Queue[Change] = asyncio.Queue()
        watching = asyncio.create_task(self._watch_all(changes))
        try:
            while True:
                get = asyncio.create_task(changes.get())
                await asyncio.wait({get, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not get.done():
                    get.cancel()
                    watching.result()
                    return
                yield get.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch_all(self, changes: asyncio.Queue[Change]) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        named, quiet = self._config.configured_servers, self._config.range_servers
        if not named and not quiet:
            quiet = [self._config.server_at(protocol.LOCALHOST)]
        async with asyncio.TaskGroup() as group:
            for server in merge([*named, *quiet]):
                group.create_task(self._follow(server, changes, server in named))
            async for server in self._found:
                key = server.id or f"{server.name} {sorted(server.addresses)}"
                self._newest[key] = server
                if key not in tasks or tasks[key].done():
                    tasks[key] = group.create_task(self._follow(server, changes, False))

    async def _follow(self, server: Server, changes: asyncio.Queue[Change], loud: bool) -> None:
        """Follow one server; when it is lost, say so once and ask again until it is back.

        An id that another entry follows already is followed enough: that one goes where mDNS has
        heard the server last.
        """
        told = server
        while True:
            target = _at(server, self._newest.get(told.id or ""))
            try:
                async with aclosing(self._listings_of(target)) as listings:
                    async for listing in listings:
                        told = listing.server
                        if self._owners.setdefault(told.id or told.name, server) is not server:
                            return
                        loud = True
                        changes.put_nowait(Change(told, listing))
            except errors.UsbRemoteError as error:
                if loud:
                    changes.put_nowait(Change(told, None, error))
                loud = False
                if self._owners.get(told.id or told.name) is server:
                    del self._owners[told.id or told.name]
            await asyncio.sleep(self._reconnect)

    async def _listings_of(self, server: Server) -> AsyncGenerator[Listing, None]:
        async with await connect(server, self._config.timeout) as connection:
            try:
                async for event in connection.watch():
                    if event.event == "snapshot":
                        told = protocol.server_of(event.server, server, connection.address)
                        yield Listing(server=told, snapshot=event.snapshot)
            except errors.UsbRemoteError as error:
                if not protocol.is_legacy_rejection(error):
                    raise
        async for listing in self._polled(server):
            yield listing

    async def _polled(self, server: Server) -> AsyncGenerator[Listing, None]:
        """A 2.x server pushes nothing: look again and again, and tell what is new."""
        last: Snapshot | None = None
        while True:
            async with await connect(server, self._config.timeout) as connection:
                listing = await list_devices(connection)
            if listing.snapshot != last:
                last = listing.snapshot
                yield listing
            await asyncio.sleep(LEGACY_INTERVAL)


def _at(server: Server, newest: Server | None) -> Server:
    """The server where mDNS has heard it last, a configured one also where it is configured."""
    if newest is None:
        return server
    addresses = newest.addresses if server.id else (*server.addresses, *newest.addresses)
    return server.model_copy(update={"addresses": tuple(dict.fromkeys(addresses))})
