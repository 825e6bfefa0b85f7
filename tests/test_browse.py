"""When a browse asks and when it ends, and what its sockets do: on loopback, without multicast."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import partial

import pytest
from zeroconf import DNSIncoming

from tests.packets import ID, announcement, packet, pointer
from tests.patience import patience
from tests.waiting import eventually
from usb_remote.mdns import browse as module
from usb_remote.mdns.browse import Pace, Schedule, browse_by, browse_for_ever
from usb_remote.mdns.ways import LOOPBACK, Interface, Way, list_interfaces
from usb_remote.model import Server

# -- the moments of a browse, by a clock of our own


def moments(
    schedule: Schedule, *heard: float, step: float = 0.01, stall: tuple[float, float] = (0, 0)
) -> tuple[list[float], float]:
    """When it asks, and when it ends, if servers come at these times.

    Nothing of it runs during the stall.
    """
    asked, waiting = [], list(heard)
    for tick in range(2000):
        now = tick * step + 1e-9
        if stall[0] <= now < stall[1]:
            continue
        while waiting and waiting[0] <= now:
            schedule.heard(waiting.pop(0))
        if schedule.asks(now):
            asked.append(round(now, 6))
        if schedule.is_over(now):
            return asked, round(now, 6)
    raise AssertionError("it never ends")


def test_it_asks_at_0_60_and_200_ms_and_ends_after_250() -> None:
    assert moments(Schedule(0.0)) == ([0.0, 0.06, 0.2], 0.25)


def test_it_ends_when_nothing_has_come_for_100_ms() -> None:
    assert moments(Schedule(0.0), 0.1)[1] == 0.25
    assert moments(Schedule(0.0), 0.2)[1] == 0.3
    assert moments(Schedule(0.0), 0.2, 0.29, 0.38)[1] == 0.48


def test_whoever_comes_for_ever_is_not_waited_for() -> None:
    for_ever = [n * 0.05 for n in range(1000)]
    assert moments(Schedule(0.0), *for_ever)[1] == 3.0


def test_it_looks_as_long_as_is_wanted() -> None:
    assert moments(Schedule(0.0, 0.1))[1] == 0.25
    assert moments(Schedule(0.0, 1.0))[1] == 1.0
    assert moments(Schedule(0.0, 1.0), 0.95)[1] == 1.05
    assert moments(Schedule(0.0, 7.0))[1] == 7.0
    assert moments(Schedule(0.0, 7.0), *(n * 0.05 for n in range(1000)))[1] == 7.0


def test_on_a_machine_that_stands_still_the_last_question_has_the_time_of_an_answer() -> None:
    asked, end = moments(Schedule(0.0), stall=(0.01, 1.0))
    assert asked == [0.0, 1.0, 1.01], "it has not forgotten one"
    assert end == 1.06
    assert moments(Schedule(0.0), stall=(0.25, 1.0)) == ([0.0, 0.06, 0.2], 1.0)


def test_no_question_is_left_out_however_late_it_is() -> None:
    no_time = Pace(answer=0.0)
    asked, _ = moments(Schedule(0.0, pace=no_time), stall=(0.01, 1.0))
    assert asked == [0.0, 1.0, 1.01]


def test_it_has_something_to_do_at_each_question_and_at_the_end() -> None:
    schedule = Schedule(10.0)
    due = []
    while not schedule.is_over(schedule.next):
        due.append(round(schedule.next - 10, 6))
        assert not schedule.asks(schedule.next - 0.001)
        assert schedule.asks(schedule.next)
    assert due == [0.0, 0.06, 0.2]
    assert round(schedule.next - 10, 6) == 0.25
    schedule.heard(10.24)
    assert round(schedule.next - 10, 6) == 0.34


# -- sockets


def soon() -> Callable[[float], Schedule]:
    """As usual, but shorter; on a slow machine longer."""
    unit = patience(0.01)
    shots = (0.0, unit, 2 * unit)
    pace = Pace(shots=shots, least=5 * unit, quiet=5 * unit, answer=3 * unit, longest=100 * unit)
    return partial(Schedule, pace=pace)


ENDLESS = partial(Schedule, pace=Pace(shots=(0.0, 0.01, 0.02), least=600, longest=600))


class Responder:
    """Somebody on loopback whom a browse asks, and who answers as the test says."""

    def __init__(self) -> None:
        self.connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.connection.setblocking(False)
        self.connection.bind((LOOPBACK, 0))

    def way(self, *, asks: bool = True, name: str = "lo") -> Way:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.setblocking(False)
        ear.bind((LOOPBACK, 0))
        target = self.connection.getsockname() if asks else None
        return Way(ear, target, Interface(LOOPBACK, 1, name))

    async def question(self) -> tuple[DNSIncoming, tuple[str, int]]:
        """The next one, and from where."""
        async with asyncio.timeout(patience(10)):
            data, sender = await asyncio.get_running_loop().sock_recvfrom(self.connection, 9000)
        return DNSIncoming(data), sender

    def answer(self, data: bytes, to: tuple[str, int]) -> None:
        self.connection.sendto(data, to)

    def questions(self) -> list[DNSIncoming]:
        """All that have come."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(DNSIncoming(self.connection.recv(9000)))
        return found


@pytest.fixture
def responder() -> Iterator[Responder]:
    there = Responder()
    yield there
    there.connection.close()


async def test_a_server_is_yielded_the_moment_it_answers(responder: Responder) -> None:
    async with aclosing(browse_by([responder.way()], ENDLESS)) as found:
        coming = asyncio.ensure_future(anext(found))
        _, asker = await responder.question()
        responder.answer(announcement(), asker)
        async with asyncio.timeout(patience(10)):
            assert (await coming).id == ID


async def test_each_question_is_asked_by_every_way_that_asks(responder: Responder) -> None:
    ways = [responder.way(), responder.way(), responder.way(asks=False)]
    senders = [way.connection.getsockname()[1] for way in ways]
    assert [server async for server in browse_by(ways, soon())] == []
    assert len(responder.questions()) == 2 * 3
    assert senders[2] not in senders[:2]


async def test_by_which_way_an_answer_comes_makes_no_difference(responder: Responder) -> None:
    for hears in (0, 1):
        ways = [responder.way(), responder.way(asks=False)]
        ear = ways[hears].connection.getsockname()
        async with aclosing(browse_by(ways, ENDLESS)) as found:
            coming = asyncio.ensure_future(anext(found))
            await responder.question()
            responder.answer(announcement(), ear)
            async with asyncio.timeout(patience(10)):
                assert (await coming).id == ID


async def test_a_later_question_tells_what_is_known(responder: Responder) -> None:
    later = patience(0.1)
    pace = Pace(shots=(0.0, later), least=later, quiet=0.0, answer=0.0)
    looking = asyncio.ensure_future(
        _all(browse_by([responder.way()], partial(Schedule, pace=pace)))
    )
    first, asker = await responder.question()
    responder.answer(announcement(), asker)
    second, _ = await responder.question()
    await looking
    assert (first.answers(), second.answers()) == ([], [pointer()])


async def test_a_link_local_address_has_the_interface_of_the_way(responder: Responder) -> None:
    ways = [responder.way(name="eth7")]
    async with aclosing(browse_by(ways, ENDLESS)) as found:
        coming = asyncio.ensure_future(anext(found))
        _, asker = await responder.question()
        responder.answer(announcement("x", ("id=1",), "fe80::7", LOOPBACK), asker)
        async with asyncio.timeout(patience(10)):
            assert (await coming).addresses == (LOOPBACK, "fe80::7%eth7")


@pytest.mark.parametrize(("again", "told"), [(False, ["1", "2"]), (True, ["1", "1", "1", "2"])])
async def test_who_is_heard_again_is_told_again_on_request(
    responder: Responder, again: bool, told: list[str]
) -> None:
    async with aclosing(browse_by([responder.way()], ENDLESS, again=again)) as found:
        coming = asyncio.ensure_future(anext(found))
        _, asker = await responder.question()
        for id in "1112":
            responder.answer(announcement(f"s{id}", (f"id={id}",)), asker)
        async with asyncio.timeout(patience(10)):
            assert [(await coming).id, *[(await anext(found)).id for _ in told[1:]]] == told


async def test_what_came_while_this_process_stood_still_is_found(responder: Responder) -> None:
    """Answer and end are due at the same moment."""
    end = patience(0.05)
    pace = Pace(shots=(0.0,), least=end, quiet=0.0, answer=0.0)
    looking = asyncio.ensure_future(
        _all(browse_by([responder.way()], partial(Schedule, pace=pace)))
    )
    _, asker = await responder.question()
    responder.answer(announcement(), asker)
    time.sleep(1.2 * end)  # noqa: ASYNC251 - the machine has other things to do
    assert [server.id for server in await looking] == [ID]


async def test_who_takes_long_over_a_server_loses_none(responder: Responder) -> None:
    found = []
    async for server in _answered(responder, [announcement(f"s{n}", (f"id={n}",)) for n in "123"]):
        found.append(server.id)
        await asyncio.sleep(patience(0.1))  # the end has long been due
    assert found == ["1", "2", "3"]


async def _answered(responder: Responder, packets: list[bytes]) -> AsyncIterator[Server]:
    """A browse whose first question is answered by these."""

    async def answer() -> None:
        _, asker = await responder.question()
        for data in packets:
            responder.answer(data, asker)

    answering = asyncio.create_task(answer())
    async with aclosing(browse_by([responder.way()], soon())) as found:
        async for server in found:
            yield server
    await answering


async def test_every_server_that_comes_prolongs_it(responder: Responder) -> None:
    schedules = []

    def begin(start: float) -> Schedule:
        schedules.append(Schedule(start, pace=Pace(shots=(0.0,), least=0, quiet=600, longest=1200)))
        return schedules[-1]

    async with aclosing(browse_by([responder.way()], begin)) as found:
        coming = asyncio.ensure_future(anext(found))
        _, asker = await responder.question()
        end = schedules[0].next
        responder.answer(announcement(), asker)
        await coming
        assert schedules[0].next > end


async def test_it_ends_when_its_time_has_come(responder: Responder) -> None:
    begin = partial(Schedule, pace=Pace(shots=(0.0, 0.01), least=0.02, quiet=0.01, answer=0.01))
    async with asyncio.timeout(patience(1)):
        assert [server async for server in browse_by([responder.way()], begin)] == []


async def test_nonsense_and_other_services_do_not_prolong_it(responder: Responder) -> None:
    packets = [b"", b"x" * 500, packet(pointer("laser", kind="_ipp._tcp.local."))]
    assert await _all(_answered(responder, packets)) == []


async def test_without_a_way_to_ask_by_there_is_an_error_and_nothing_is_left_open(
    responder: Responder,
) -> None:
    way = responder.way(asks=False)
    with pytest.raises(OSError, match="no network interface"):
        await _all(browse_by([way]))
    await eventually(lambda: way.connection.fileno() == -1)


async def test_a_way_that_leads_nowhere_does_not_harm_the_others(responder: Responder) -> None:
    dead = Responder()
    nowhere = dead.way()
    dead.connection.close()  # the kernel says: connection refused
    looking = asyncio.ensure_future(_all(browse_by([nowhere, responder.way()], soon())))
    _, asker = await responder.question()
    responder.answer(announcement(), asker)
    assert [server.id for server in await looking] == [ID]


async def test_who_stops_looking_leaves_no_socket(responder: Responder) -> None:
    ways = [responder.way(), responder.way(asks=False)]
    found = browse_by(ways, ENDLESS)
    coming = asyncio.ensure_future(anext(found))
    await responder.question()
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    assert [way.connection.fileno() for way in ways] == [-1, -1]


async def _all(found: AsyncIterator[Server]) -> list[Server]:
    async with asyncio.timeout(patience(20)):
        return [server async for server in found]


# -- where


def test_it_asks_on_every_interface_and_on_loopback_there_only_on_request() -> None:
    assert {i.address for i in module.list_interfaces(True)} == {LOOPBACK}
    everywhere = module.list_interfaces(False)
    assert set(everywhere) == {*list_interfaces(), *list_interfaces(loopback=True)}
    assert len(set(everywhere)) == len(everywhere)


def test_a_browse_asks_everywhere_unless_that_is_not_wanted() -> None:
    assert inspect.signature(module.browse).parameters["loopback"].default is False


# -- for ever


BENCH = Server(name="bench")


def looks(*outcomes: object) -> tuple[Callable[[float], AsyncIterator[Server]], list[float]]:
    """Looks that end so, one after the other, and then no more; and how long each one was to be."""
    waits: list[float] = []
    left = list(outcomes)

    async def look(wait: float) -> AsyncIterator[Server]:
        waits.append(wait)
        outcome = left.pop(0) if left else asyncio.CancelledError()
        if isinstance(outcome, BaseException):
            raise outcome
        yield BENCH

    return look, waits


async def test_an_endless_browse_looks_less_and_less_often() -> None:
    look, waits = looks(*[BENCH] * 5)
    found = browse_for_ever(look, (1.0, 2.0, 4.0))
    assert [await anext(found) for _ in range(5)] == [BENCH] * 5
    with pytest.raises(asyncio.CancelledError):
        await anext(found)
    assert waits == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0]


async def test_without_multicast_an_endless_browse_warns_once_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    look, waits = looks(OSError("no multicast"), OSError("none yet"), BENCH)
    with caplog.at_level(logging.DEBUG):
        async with asyncio.timeout(patience(10)):
            assert await anext(browse_for_ever(look, (0.0, 0.01, 0.02))) is BENCH
    assert waits == [0.0, 0.01, 0.02]
    told = [(r.levelname, r.message) for r in caplog.records if "mDNS" in r.message]
    assert told == [("WARNING", "no mDNS: no multicast"), ("DEBUG", "no mDNS: none yet")]


async def test_after_a_failure_the_next_look_waits_its_time() -> None:
    look, waits = looks(OSError("no multicast"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(browse_for_ever(look, (3600.0,)))
    assert waits == [3600.0]


def test_the_times_of_an_endless_browse_are_those_of_the_page() -> None:
    assert module.BROWSE_INTERVALS == (1, 2, 4, 8, 16, 30, 60, 120, 300)
