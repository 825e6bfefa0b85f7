"""Find servers: one quick look, or an endless one.

Rule of this file: when to ask, and on which sockets; what the answers say is for heard.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from usb_remote.mdns import ways
from usb_remote.mdns.heard import MAX_SERVERS, Heard, question
from usb_remote.model import Server

log = logging.getLogger(__name__)

SHOTS = (0.0, 0.06, 0.2)
"""Seconds at which the question is asked: at 10 % loss each way three find all of 10 (FACTS)."""
LEAST, QUIET = 0.25, 0.1
"""A browse ends after 250 ms, when nothing has come for 100 ms; without loss gaps are 24 ms."""
ANSWER = LEAST - SHOTS[-1]
"""Seconds that the last question is given, whenever it was asked: a busy machine asks late."""
LONGEST = 3.0
"""A browse ends after 3 s all the same: a neighbour that changes for ever is not waited for."""
BROWSE_INTERVALS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds between the browses of an endless one; announcements are heard in between."""


@dataclass(frozen=True)
class Pace:
    """When a browse asks, and how long it listens: see the constants of these names."""

    shots: tuple[float, ...] = SHOTS
    least: float = LEAST
    quiet: float = QUIET
    answer: float = ANSWER
    longest: float = LONGEST


class Schedule:
    """The moments of one browse, by whatever clock.

    Args:
        start: when it began.
        wait: seconds to look at least; 0 means as long as it takes.
        pace: how often to ask, and how long to listen.

    """

    def __init__(self, start: float, wait: float = 0, pace: Pace = Pace()) -> None:
        self._shots = [start + shot for shot in pace.shots]
        self._least = start + max(pace.least, wait)
        self._longest = start + max(pace.longest, wait)
        self._pace = pace
        self._last = self._asked = start

    def asks(self, now: float) -> bool:
        """Whether it is time to ask (again); says so once for each question."""
        if not self._shots or now < self._shots[0]:
            return False
        del self._shots[0]
        self._asked = now
        return True

    def heard(self, now: float) -> None:
        """A server has come: there may be more."""
        self._last = now

    def is_over(self, now: float) -> bool:
        return not self._shots and now >= self._end

    @property
    def next(self) -> float:
        """When there is something to do even if nothing comes."""
        return self._shots[0] if self._shots else self._end

    @property
    def _end(self) -> float:
        quiet = max(self._least, self._last + self._pace.quiet)
        return max(min(quiet, self._longest), self._asked + self._pace.answer)


def browse(
    wait: float = 0, *, loopback: bool = False, again: bool = False
) -> AsyncIterator[Server]:
    """Ask once who is there; each server is yielded the moment its records are in.

    Args:
        wait: seconds to look at least; 0 means as long as it takes.
        loopback: ask only on this machine, not on any network.
        again: yield a server each time that it is heard, not only when it is new or has changed.

    Raises:
        OSError: no question could be asked at all.

    """
    return browse_by(_ways(loopback), partial(Schedule, wait=wait), again=again)


async def browse_by(
    opened: Iterable[ways.Way],
    begin: Callable[[float], Schedule] = Schedule,
    *,
    again: bool = False,
) -> AsyncGenerator[Server, None]:
    """The same by these ways out of this machine, which are closed at the end.

    Args:
        opened: the ways.
        begin: makes the schedule of a browse that begins at this time of the loop.
        again: see :func:`browse`.

    """
    servers = asyncio.Queue[Server](MAX_SERVERS)
    async with _asking(opened, Heard(again), servers) as ask:
        loop = asyncio.get_running_loop()
        schedule = begin(loop.time())
        while True:
            now = loop.time()
            if schedule.asks(now):
                ask()
            if schedule.is_over(now):
                while not servers.empty():  # it came while this process was not scheduled
                    yield servers.get_nowait()
                return
            try:
                async with asyncio.timeout_at(schedule.next):
                    server = await servers.get()
            except TimeoutError:
                continue
            schedule.heard(loop.time())
            yield server  # not inside: the time-out would cancel whoever takes it


async def browse_for_ever(
    look: Callable[[float], AsyncIterator[Server]] = partial(browse, again=True),
    intervals: Iterable[float] = BROWSE_INTERVALS,
) -> AsyncIterator[Server]:
    """Servers as they come, change or announce themselves again, for ever.

    We ask less and less often. Without multicast there is one warning, and the wait goes on.

    Args:
        look: looks for so many seconds.
        intervals: seconds between two looks; the last one counts for all that follow.

    """
    warned = False
    for interval in _with_the_last_for_ever(intervals):
        try:
            async for server in look(interval):
                yield server
        except OSError as error:
            log.log(logging.DEBUG if warned else logging.WARNING, "no mDNS: %s", error)
            warned = True
            await asyncio.sleep(interval)


def _with_the_last_for_ever(intervals: Iterable[float]) -> Iterator[float]:
    interval = 0.0
    for interval in intervals:
        yield interval
    while True:
        yield interval


def _ways(loopback: bool) -> Iterator[ways.Way]:
    yield from ways.open_ways(list_interfaces(loopback))


def list_interfaces(loopback: bool) -> list[ways.Interface]:
    """Where to ask: on this machine too, and there only on request."""
    here = [] if loopback else ways.list_interfaces(loopback=True)
    return list(dict.fromkeys((*ways.list_interfaces(loopback=loopback), *here)))


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, heard: Heard, servers: asyncio.Queue[Server], scope: str) -> None:
        self._heard = heard
        self._servers = servers
        self._scope = scope

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        for server in self._heard.receive(data, sender[0], self._scope):
            with contextlib.suppress(asyncio.QueueFull):  # nobody takes them
                self._servers.put_nowait(server)

    def error_received(self, error: Exception) -> None:
        log.debug("mDNS on %s: %s", self._scope, error)


@contextlib.asynccontextmanager
async def _asking(
    opened: Iterable[ways.Way], heard: Heard, servers: asyncio.Queue[Server]
) -> AsyncIterator[Callable[[], None]]:
    """A function that asks everywhere; who answers is put into the queue."""
    loop = asyncio.get_running_loop()
    asking: list[tuple[asyncio.DatagramTransport, ways.Target]] = []
    async with contextlib.AsyncExitStack() as stack:
        for way in opened:
            ear = partial(_Ear, heard, servers, way.interface.name)
            transport, _ = await loop.create_datagram_endpoint(ear, sock=way.connection)
            stack.callback(transport.abort)
            if way.target is not None:
                asking.append((transport, way.target))
        if not asking:
            raise OSError("no network interface to ask on")

        def ask() -> None:
            packet = question(heard.known)
            for transport, target in asking:
                transport.sendto(packet, target)

        yield ask
    await asyncio.sleep(0)  # so that the sockets are closed before the loop may be
