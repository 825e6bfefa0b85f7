"""All servers at once: ask them, list what they have, find the device that is meant.

Rule of this file: partial failure never hides what worked. Servers are asked concurrently, each
one's answer is passed on the moment it is there, and those that fail are reported beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from usb_remote import errors, replies
from usb_remote.config import Config
from usb_remote.connection import connect, list_devices
from usb_remote.matching import Query, called, is_called, is_same_server, select
from usb_remote.model import Listing, Match, Server

log = logging.getLogger(__name__)

Browse = Callable[[], AsyncIterator[Server]]

RANGE_TIMEOUT = 1.0
"""Seconds that an address of ``server_ranges`` may take: most of them are nobody."""


class Failure(NamedTuple):
    """A server that did not answer as it should."""

    server: Server
    error: errors.UsbRemoteError


@dataclass
class _Candidate:
    """A server to ask. A quiet one may well not exist, so its silence is no failure."""

    server: Server
    quiet: bool = False
    timeout: float | None = None


@dataclass
class Search:
    """What a whole search brought: in the order configuration, name, bus id."""

    listings: list[Listing] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def select(self, query: Query) -> list[Match]:
        return select((m for listing in self.listings for m in listing.matches), query)

    def why_nobody(self, host: str | None) -> errors.UsbRemoteError:
        """What to say when no server has answered."""
        if not self.failures:
            return _no_server(host)
        if len(self.failures) == 1:
            return self.failures[0].error
        reasons = "\n".join(f"  {failure.error.message}" for failure in self.failures)
        return errors.Unreachable(
            f"no server answered:\n{reasons}", hint="usb-remote config show lists whom we asked"
        )

    def choose(self, query: Query) -> Match:
        """The one device that is meant; raises as :meth:`Finder.find`."""
        matches = self.select(query)
        if not matches:
            raise _nothing(self, query)
        if len(matches) > 1 and not query.first:
            listed = "\n".join(f"  {match}" for match in matches)
            raise errors.Ambiguous(
                f"{query} matches {len(matches)} devices:\n{listed}",
                hint="say which one as SERVER/BUS-ID, or take the first one with --first",
            )
        return matches[0]


class Finder:
    """Asks servers.

    Args:
        config: which ones, and how long each may take.
        browse: looks for more by mDNS, once; may fail, which is a warning.
        range_timeout: seconds that an address of a range may take.

    """

    def __init__(
        self, config: Config, browse: Browse, range_timeout: float = RANGE_TIMEOUT
    ) -> None:
        self._config = config
        self._browse = browse
        self._range_timeout = range_timeout

    async def listings(self, host: str | None = None) -> AsyncGenerator[Listing | Failure, None]:
        """Each server's answer, as it arrives; the same server under two addresses once."""
        shown: list[Server] = []
        async with aclosing(self._answers(host)) as answers:
            async for answer in answers:
                if isinstance(answer, Failure):
                    yield answer
                elif not any(is_same_server(answer.server, server) for server in shown):
                    shown.append(answer.server)
                    yield answer

    async def _answers(self, host: str | None) -> AsyncGenerator[Listing | Failure, None]:
        """Answers as they arrive, then those that failed: not who answers at another address."""
        answers: asyncio.Queue[Listing | Failure | None] = asyncio.Queue()
        asking = asyncio.create_task(self._ask_all(host, answers))
        answered: list[Server] = []
        failures: list[Failure] = []
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, Failure):
                    failures.append(answer)
                else:
                    answered.append(answer.server)
                    yield answer
            await asking
            failures.sort(key=lambda failure: self.rank(failure.server))
            for failure in _distinct(failures, answered):
                yield failure
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def search(self, host: str | None = None) -> Search:
        """Every server's answer, merged and ordered; the failures of dead ones beside them."""
        async with aclosing(self._answers(host)) as answers:
            answered = [answer async for answer in answers]
        found = Search(failures=[a for a in answered if isinstance(a, Failure)])
        listings = [answer for answer in answered if isinstance(answer, Listing)]
        for listing in sorted(listings, key=lambda listing: self.rank(listing.server)):
            if not any(is_same_server(listing.server, kept.server) for kept in found.listings):
                found.listings.append(listing)
        return found

    def rank(self, server: Server) -> tuple[int, str]:
        """Configured servers in their order, then the others by name."""
        names = [configured.name for configured in self._config.configured_servers]
        return (names.index(server.name) if server.name in names else len(names), server.name)

    async def _ask_all(
        self, host: str | None, answers: asyncio.Queue[Listing | Failure | None]
    ) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            async for candidate in self._candidates(host):
                tasks.append(asyncio.create_task(self._ask(candidate, answers)))
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            answers.put_nowait(None)

    async def _candidates(self, host: str | None) -> AsyncIterator[_Candidate]:
        """Whom to ask: the configuration at once, then whoever mDNS brings."""
        if host is not None:
            async for candidate in self._named(host):
                yield candidate
            return
        for server in self._config.configured_servers:
            yield _Candidate(server)
        for server in self._config.range_servers:
            yield _Candidate(server, quiet=True, timeout=self._range_timeout)
        if not (self._config.servers or self._config.server_ranges):
            yield _Candidate(replies.default_server(self._config.server_port), quiet=True)
        async for server in self._discovered():
            yield _Candidate(self._as_configured(server))

    def _as_configured(self, server: Server) -> Server:
        """With its name from the configuration, whichever entry answers."""
        same = (c for c in self._config.configured_servers if is_same_server(c, server))
        return server.model_copy(update={"name": next(same, server).name})

    async def _named(self, host: str) -> AsyncIterator[_Candidate]:
        """One server, by address, host name, or the name that it announces."""
        configured = called(self._config.configured_servers, host)
        if configured or not self._config.discovery or " " not in host:
            yield _Candidate(configured[0] if configured else self._config.server_at(host))
        async for server in self._discovered():
            if is_called(server, host):
                yield _Candidate(server)

    async def _discovered(self) -> AsyncIterator[Server]:
        if not self._config.discovery:
            return
        heard = bool(self._config.servers)
        try:
            async for server in self._browse():
                heard = True
                log.debug("heard of %s by mDNS", server.name)
                yield server
            if not heard:  # nobody at all: on a busy machine or network the first look may be short
                async for server in self._browse():
                    yield server
        except OSError as error:
            log.warning("no discovery by mDNS: %s", error)

    async def _ask(
        self, candidate: _Candidate, answers: asyncio.Queue[Listing | Failure | None]
    ) -> None:
        timeout = candidate.timeout or self._config.timeout
        try:
            answers.put_nowait(await _timed_listing(candidate.server, timeout))
        except errors.UsbRemoteError as error:
            if not candidate.quiet:
                answers.put_nowait(Failure(candidate.server, error))

    async def find(self, query: Query) -> Match:
        """The one device that is meant.

        Raises:
            NotFound, Ambiguous, Unreachable: the message lists what there is.

        """
        return (await self.search(query.host)).choose(query)


async def _timed_listing(server: Server, timeout: float) -> Listing:
    """The same as :func:`_listing`, told to whoever wants to know with --debug."""
    loop, who = asyncio.get_running_loop(), server.name or "this machine"
    start = loop.time()
    log.debug("asking %s at %s, TCP port %s", who, ", ".join(server.addresses), server.port)
    try:
        listing = await _listing(server, timeout)
    except errors.UsbRemoteError as error:
        log.debug("no answer from %s after %.3f s: %s", who, loop.time() - start, error)
        raise
    count, address = len(listing.snapshot.devices), listing.server.addresses[0]
    spent = loop.time() - start
    log.debug("%s answers at %s after %.3f s: %s devices", who, address, spent, count)
    return listing


async def _listing(server: Server, timeout: float) -> Listing:
    """A server that hangs up at one address may let us in at another (`server.allow_from`)."""
    async with await connect(server, timeout) as connection:
        others = tuple(a for a in server.addresses if a != connection.address)
        try:
            return await list_devices(connection)
        except errors.Unreachable:
            if not (connection.hung_up and others):
                raise
    return await _listing(server.model_copy(update={"addresses": others}), timeout)


def _distinct(failures: Iterable[Failure], answered: Iterable[Server]) -> Iterator[Failure]:
    """One for each server that has not answered at any of its addresses."""
    known = list(answered)
    for failure in failures:
        if not any(is_same_server(failure.server, server) for server in known):
            known.append(failure.server)
            yield failure


def _nothing(search: Search, query: Query) -> errors.UsbRemoteError:
    """Why nothing matches: no server at all, only dead ones, that one, or no such device."""
    host = query.host or (query.handle or "").rpartition("/")[0]
    for failure in search.failures:
        if host and is_called(failure.server, host):
            return failure.error
    if search.listings:
        return errors.NotFound(
            f"no device matches {query}", hint="usb-remote list shows what there is"
        )
    return search.why_nobody(query.host)


def _no_server(host: str | None) -> errors.UsbRemoteError:
    """What to say when nobody answered."""
    if host:
        return errors.Unreachable(
            f"no usb-remote server is known as {host}", hint="usb-remote list shows all servers"
        )
    return errors.NotFound(
        "no usb-remote server found on this network",
        hint="start one with: sudo usb-remote server   or name one that mDNS does not reach with: "
        "usb-remote config add-server HOST",
    )
