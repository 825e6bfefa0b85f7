"""All servers for ever: what they have now, and again after each change.

Rule of this file: one server is followed once, however many entries lead to it; when it is lost,
that is said once, and it is asked again until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from usb_remote import errors, protocol, protocol_2x, replies
from usb_remote.config import Config
from usb_remote.connection import Connection, connect, list_devices
from usb_remote.matching import called, is_called, merge
from usb_remote.model import Listing, Server, Snapshot

log = logging.getLogger(__name__)

RECONNECT = 2.0
"""Seconds before a lost server is asked again."""
LATER = ((600.0, 15.0), (60.0, 5.0))
"""Seconds after which it is asked less often, and how often then: mDNS tells when it is back."""
GONE, GONE_PAUSE = 3600.0, 300.0
"""The same for a server that only mDNS has named: it may never come back."""
NEVER_HEARD = 60.0
"""Seconds after which an address at which nobody has ever answered is tried again."""
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
        host: only the server that is called so.
        later: the same for one that has been lost for longer than some seconds, the longest first.
        never_heard: seconds before an address is tried again at which nobody has ever answered.
        legacy_interval: seconds between two looks at a 2.x server.
        silence: seconds after which a server that says nothing at all is lost.

    """

    def __init__(
        self,
        config: Config,
        found: AsyncIterator[Server],
        reconnect: float = RECONNECT,
        host: str | None = None,
        *,
        later: Sequence[tuple[float, float]] = LATER,
        never_heard: float = NEVER_HEARD,
        legacy_interval: float = LEGACY_INTERVAL,
        silence: float = protocol.WATCH_TIMEOUT,
    ) -> None:
        self._host = host
        self._later = later
        self._never_heard = never_heard
        self._legacy_interval = legacy_interval
        self._silence = silence
        self._config = config
        self._found = found
        self._reconnect = reconnect
        self._owners: dict[str, Server] = {}  # server id -> the entry by which it is followed
        self._newest: dict[str, Server] = {}  # server id -> where mDNS has heard it last
        self._heard: dict[str, asyncio.Event] = {}  # server id -> mDNS has just heard it

    async def watch(self) -> AsyncGenerator[Change, None]:
        """Every server's newest listing, again after each change, for ever."""
        changes: asyncio.Queue[Change] = asyncio.Queue()
        watching = asyncio.create_task(self._watch_all(changes))
        getting = asyncio.create_task(changes.get())
        try:
            while True:
                await asyncio.wait({getting, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    watching.result()
                    return
                change, getting = getting.result(), asyncio.create_task(changes.get())
                yield change
        finally:
            getting.cancel()
            watching.cancel()
            await asyncio.gather(getting, watching, return_exceptions=True)

    async def _watch_all(self, changes: asyncio.Queue[Change]) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        named, quiet = self._known()
        async with asyncio.TaskGroup() as group:
            for server in merge([*named, *quiet]):
                group.create_task(self._follow(server, changes, server in named))
            async for server in self._found:
                if self._host is not None and not is_called(server, self._host):
                    continue
                key = server.id or f"{server.name} {sorted(server.addresses)}"
                self._newest[key] = server
                if key in self._heard:
                    self._heard[key].set()
                if key not in tasks or tasks[key].done():
                    tasks[key] = group.create_task(self._follow(server, changes, False))

    def _known(self) -> tuple[list[Server], list[Server]]:
        """Whom to follow from the start: who must be there, and who may well not exist."""
        config = self._config
        if self._host is not None:
            return self._named(self._host)
        if config.configured_servers or config.range_servers:
            return config.configured_servers, config.range_servers
        return [], [replies.default_server(config.server_port)]

    def _named(self, host: str) -> tuple[list[Server], list[Server]]:
        """One server, as finder.py looks for it: a mere name may be one that mDNS brings."""
        if configured := called(self._config.configured_servers, host):
            return configured[:1], []
        if not self._config.discovery or "." in host or ":" in host:
            return [self._config.server_at(host)], []
        return [], [] if " " in host else [self._config.server_at(host)]

    async def _follow(self, server: Server, changes: asyncio.Queue[Change], loud: bool) -> None:
        """Follow one server; when it is lost, say so once and ask again until it is back.

        Once more is said when a server that has hung up is then not heard of at all.

        An id that another entry follows already is followed enough: that one goes where mDNS has
        heard the server last.
        """
        told, silent = server, None
        loop, since = asyncio.get_running_loop(), 0.0
        while True:
            target = _at(server, self._newest.get(told.id or ""))
            failure: errors.UsbRemoteError | None = None
            try:
                async with aclosing(self._listings_of(target, key_of(told))) as listings:
                    async for listing in listings:
                        told = listing.server
                        if self._owners.setdefault(key_of(told), server) is not server:
                            return
                        loud, silent, since = True, None, 0.0
                        changes.put_nowait(Change(told, listing))
            except errors.UsbRemoteError as error:
                failure = error
            except Exception as error:  # a fault of ours: it costs this server, and no other
                log.exception("%s cannot be followed", told.name)
                failure = errors.SystemFault(f"{told.name} cannot be followed: {error!r}")
            if failure is not None:
                if loud or (silent is False and isinstance(failure, errors.Silent)):
                    silent = isinstance(failure, errors.Silent)
                    changes.put_nowait(Change(told, None, failure))
                loud = False
                if self._owners.get(key_of(told)) is server:
                    del self._owners[key_of(told)]
            since = since or loop.time()
            await self._until_heard(told, self._pause(told, loop.time() - since))

    def _pause(self, server: Server, lost_for: float) -> float:
        """Seconds until a server that was lost for so long is asked again."""
        if server.id is None and server.version is None and not self._is_named(server):
            return max(self._never_heard, self._reconnect)
        if lost_for > GONE and not self._is_named(server):
            return GONE_PAUSE
        return next((pause for after, pause in self._later if lost_for > after), self._reconnect)

    def _is_named(self, server: Server) -> bool:
        named = self._config.configured_servers
        return self._host is not None or any(server.name == known.name for known in named)

    async def _until_heard(self, server: Server, pause: float) -> None:
        """Some seconds, or less if mDNS hears the server meanwhile."""
        heard = self._heard.setdefault(key_of(server), asyncio.Event())
        heard.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await heard.wait()

    async def _listings_of(self, server: Server, key: str) -> AsyncGenerator[Listing, None]:
        async with await self._connected(server, key) as connection:
            try:
                async for event in connection.watch(self._silence):
                    if event.event == "snapshot":
                        told = replies.server_of(event.server, server, connection.address)
                        yield Listing(server=told, snapshot=event.snapshot)
            except errors.UsbRemoteError as error:
                if not protocol_2x.is_rejection(error):
                    raise
        async for listing in self._polled(server):
            yield listing

    async def _connected(self, server: Server, key: str) -> Connection:
        """Connect; once anew if mDNS hears the server meanwhile.

        What was sent while it was away is lost, and TCP sends that again only seconds later.
        """
        heard = self._heard.setdefault(key, asyncio.Event())
        heard.clear()
        connecting = asyncio.create_task(connect(server, self._config.timeout))
        hearing = asyncio.create_task(heard.wait())
        try:
            await asyncio.wait({connecting, hearing}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            connecting.cancel()
            (opened,) = await asyncio.gather(connecting, return_exceptions=True)
            if not isinstance(opened, BaseException):
                await opened.close()
            raise
        finally:
            hearing.cancel()
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait({connecting})
        if connecting.cancelled():
            return await connect(server, self._config.timeout)
        return connecting.result()

    async def _polled(self, server: Server) -> AsyncGenerator[Listing, None]:
        """A 2.x server pushes nothing: look again and again, and tell what is new."""
        last: Snapshot | None = None
        while True:
            async with await connect(server, self._config.timeout) as connection:
                listing = await list_devices(connection)
            if listing.snapshot != last:
                last = listing.snapshot
                yield listing
            await asyncio.sleep(self._legacy_interval)


def key_of(server: Server) -> str:
    """What a server is known by: its id, its name for 2.x."""
    return server.id or server.name


def _at(server: Server, newest: Server | None) -> Server:
    """The server where mDNS has heard it last, a configured one also where it is configured."""
    if newest is None:
        return server
    addresses = newest.addresses if server.id else (*server.addresses, *newest.addresses)
    return server.model_copy(update={"addresses": tuple(dict.fromkeys(addresses))})
