"""Whom a finder asks, in which order it tells what they answer, and what it says of the others."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.patience import patience
from tests.serving import HOST, Running, at, found, knowing, running_server
from usb_remote import errors
from usb_remote.config import Config
from usb_remote.finder import RANGE_TIMEOUT, Failure, Finder, Search
from usb_remote.matching import Query
from usb_remote.model import Device, Listing, Server, Snapshot
from usb_remote.values import BusId

LOCAL2 = "127.0.0.2"
"""Another address of this machine, where no server of these tests listens."""
DEAD = "127.0.0.1:1"


def looks(
    *outcomes: list[Server] | Exception,
) -> tuple[Callable[[], AsyncIterator[Server]], list[int]]:
    """What mDNS brings at the first look, at the second, …; and how many looks there were."""
    taken = [0]

    async def browse() -> AsyncIterator[Server]:
        outcome = outcomes[taken[0]] if taken[0] < len(outcomes) else []
        taken[0] += 1
        if isinstance(outcome, Exception):
            raise outcome
        for server in outcome:
            yield server

    return browse, taken


def named(bench: Running, name: str, **more: object) -> Server:
    """As mDNS finds it: with its id and a name."""
    told = {"name": name, "id": bench.control.info.id, "version": "3", **more}
    return bench.server.model_copy(update=told)


@asynccontextmanager
async def some_servers(count: int) -> AsyncIterator[list[Running]]:
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(running_server("serial")) for _ in range(count)]
        for number, one in enumerate(running):
            one.control.info = one.control.info.model_copy(update={"id": str(number) * 32})
        yield running


def names(search: Search) -> list[str]:
    return [listing.server.name for listing in search.listings]


# -- the order, and each server once


async def test_configured_servers_come_first_in_their_order_then_the_others_by_name() -> None:
    async with some_servers(4) as (one, two, three, four):
        config = knowing(at(two), at(one))
        brought = found(named(three, "z"), named(four, "a"))
        search = await Finder(config, brought).search()
        assert names(search) == [at(two), at(one), "a", "z"]


async def test_failures_are_told_in_the_order_of_the_configuration() -> None:
    with _mute() as mute:
        slow = f"{HOST}:{mute.getsockname()[1]}"
        search = await Finder(knowing(slow, DEAD, timeout=0.1), found()).search()
    assert [failure.server.name for failure in search.failures] == [slow, DEAD]


async def test_a_configured_server_has_its_configured_name_whichever_way_is_faster(
    bench: Running,
) -> None:
    """Here by both at once."""
    by_mdns = named(bench, "pi", addresses=(HOST,))
    search = await Finder(knowing(at(bench)), found(by_mdns)).search()
    assert names(search) == [at(bench)]
    async with aclosing(Finder(knowing(at(bench)), found(by_mdns)).listings()) as answers:
        told = [answer async for answer in answers]
    assert [answer.server.name for answer in told] == [at(bench)]


async def test_a_server_that_mdns_finds_twice_is_listed_once(bench: Running) -> None:
    twice = [named(bench, "pi"), named(bench, "pi", addresses=(LOCAL2, HOST))]
    assert names(await Finder(knowing(), found(*twice)).search()) == ["pi"]
    async with aclosing(Finder(knowing(), found(*twice)).listings()) as answers:
        assert len([answer async for answer in answers]) == 1


async def test_two_servers_at_one_address_are_two() -> None:
    async with some_servers(2) as (one, two):
        search = await Finder(knowing(), found(named(one, "a"), named(two, "b"))).search()
        assert names(search) == ["a", "b"]


# -- looking for servers that nobody has named


async def test_who_hears_nobody_looks_once_more(bench: Running) -> None:
    browse, taken = looks([], [named(bench, "late")])
    assert names(await Finder(knowing(), browse).search()) == ["late"]
    assert taken == [2]


async def test_who_hears_somebody_looks_once(bench: Running) -> None:
    browse, taken = looks([named(bench, "pi")], [named(bench, "twice")])
    assert names(await Finder(knowing(), browse).search()) == ["pi"]
    assert taken == [1]


async def test_who_hears_nobody_twice_gives_up() -> None:
    browse, taken = looks()
    assert await Finder(knowing(), browse).search() == Search()
    assert taken == [2]


async def test_who_has_configured_servers_does_not_look_twice() -> None:
    browse, taken = looks()
    await Finder(knowing(DEAD), browse).search()
    assert taken == [1]


async def test_without_discovery_nobody_is_looked_for(bench: Running) -> None:
    browse, taken = looks([named(bench, "pi")])
    config = knowing(at(bench)).model_copy(update={"discovery": False})
    assert names(await Finder(config, browse).search()) == [at(bench)]
    assert names(await Finder(config, browse).search(at(bench))) == [at(bench)]
    assert taken == [0]


async def test_a_look_that_fails_is_one_warning(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    browse, taken = looks(OSError("no multicast"))
    config = knowing().model_copy(update={"server_port": bench.control.port})
    assert names(await Finder(config, browse).search()) == ["bench"]
    assert [r.message for r in caplog.records] == ["no discovery by mDNS: no multicast"]
    assert taken == [1]


async def test_an_error_that_nobody_has_thought_of_ends_the_search() -> None:
    browse, _ = looks(RuntimeError("a bug"))
    async with asyncio.timeout(patience(10)):
        with pytest.raises(RuntimeError, match="a bug"):
            await Finder(knowing(DEAD), browse).search()


# -- whose silence is a failure


async def test_this_machine_is_asked_if_nobody_is_configured_and_may_be_silent() -> None:
    assert await Finder(knowing(), found()).search() == Search()


@pytest.mark.parametrize("config", [{"servers": [DEAD]}, {"server_ranges": [f"{LOCAL2}-2"]}])
async def test_this_machine_is_not_asked_if_somebody_is_configured(
    bench: Running, config: dict[str, list[str]]
) -> None:
    known = Config(server_port=bench.control.port, timeout=20, **config)  # type: ignore[arg-type]
    assert names(await Finder(known, found()).search()) == []


async def test_of_a_range_only_those_who_are_there_are_told(bench: Running) -> None:
    config = Config(server_ranges=["127.0.0.1-3"], server_port=bench.control.port, timeout=20)
    search = await Finder(config, found()).search()
    assert names(search) == [HOST]
    assert search.failures == []


async def test_an_address_of_a_range_has_less_time_than_a_server_that_is_named() -> None:
    with _mute() as mute:
        port = mute.getsockname()[1]
        config = Config(server_ranges=["127.0.0.1-1"], server_port=port, timeout=3600)
        async with asyncio.timeout(patience(10)):
            assert await Finder(config, found(), range_timeout=0.05).search() == Search()
    assert RANGE_TIMEOUT == 1.0


async def test_a_server_that_is_named_has_the_configured_time() -> None:
    with _mute() as mute:
        config = knowing(f"{HOST}:{mute.getsockname()[1]}", timeout=0.05)
        async with asyncio.timeout(patience(10)):
            ((_, error),) = (await Finder(config, found()).search()).failures
    assert "did not answer within 0.05 s" in error.message


def _mute() -> socket.socket:
    """Somebody who lets us in and says nothing."""
    return socket.create_server((HOST, 0))


async def test_a_dead_way_to_a_server_that_answers_by_another_is_no_failure(
    bench: Running,
) -> None:
    dead = f"{LOCAL2}:{bench.control.port}"
    by_mdns = named(bench, "pi", addresses=(LOCAL2, HOST))
    search = await Finder(knowing(dead), found(by_mdns)).search()
    assert (names(search), search.failures) == ([dead], [])


async def test_a_server_that_is_dead_by_both_ways_is_one_failure() -> None:
    by_mdns = Server(id="1" * 32, name="pi", addresses=(HOST,), port=1)
    search = await Finder(knowing(DEAD), found(by_mdns, by_mdns)).search()
    assert [failure.server.name for failure in search.failures] == [DEAD]


async def test_failures_are_told_after_all_answers(bench: Running) -> None:
    async with aclosing(Finder(knowing(DEAD, at(bench)), found()).listings()) as answers:
        told = [type(answer) async for answer in answers]
    assert told == [Listing, Failure]


# -- one server by its name


async def test_a_name_is_looked_for_and_nobody_else_is_asked() -> None:
    async with some_servers(2) as (one, two):
        brought = found(named(one, "pi"), named(two, "other"))
        assert names(await Finder(knowing(), brought).search("pi")) == ["pi"]
        assert names(await Finder(knowing(), brought).search("nobody.invalid")) == []


async def test_a_configured_server_is_meant_by_its_address_too(bench: Running) -> None:
    """It has a port of its own."""
    assert names(await Finder(knowing(at(bench)), found()).search(HOST)) == [at(bench)]


async def test_no_name_at_all_is_an_error(bench: Running) -> None:
    with pytest.raises(errors.UsageError):
        await Finder(knowing(at(bench)), found()).search("")


async def test_a_configured_server_is_asked_by_its_name_alone() -> None:
    async with some_servers(2) as (one, two):
        search = await Finder(knowing(at(one), at(two)), found()).search(at(two))
        assert names(search) == [at(two)]


async def test_a_name_with_a_space_is_nobody_to_look_up(bench: Running) -> None:
    browse, _ = looks([named(bench, "Lab Pi")])
    search = await Finder(knowing(), browse).search("Lab Pi")
    assert (names(search), search.failures) == (["Lab Pi"], [])
    without = knowing().model_copy(update={"discovery": False})
    with pytest.raises(errors.UsageError):
        await Finder(without, browse).search("Lab Pi")


async def test_a_name_that_nobody_has_is_a_failure_that_says_so() -> None:
    search = await Finder(knowing(), found()).search("no-such-host.invalid")
    ((server, error),) = search.failures
    assert server.name == "no-such-host.invalid"
    assert "no such host" in error.message


# -- a server with several addresses


@asynccontextmanager
async def hanging_up(port: int) -> AsyncIterator[list[int]]:
    """At LOCAL2 on this port somebody hangs up, as a server does whose allow_from lacks us."""
    calls: list[int] = []

    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(1)
        writer.close()

    async with await asyncio.start_server(hang_up, LOCAL2, port):
        yield calls


async def test_a_server_that_hangs_up_at_one_address_is_asked_at_the_other(
    bench: Running,
) -> None:
    async with hanging_up(bench.control.port) as calls:
        by_mdns = named(bench, "pi", addresses=(LOCAL2, HOST))
        search = await Finder(knowing(), found(by_mdns)).search()
    assert (names(search), search.failures, calls) == (["pi"], [], [1])
    assert search.listings[0].server.addresses == (HOST,)


async def test_where_a_server_has_answered_is_told_to_who_looks_for_a_fault(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "usb_remote.finder")
    by_mdns = named(bench, "pi", addresses=(LOCAL2, HOST, "127.0.0.3"))
    await Finder(knowing(), found(by_mdns)).search()
    assert re.search(rf"pi answers at {HOST} after 0\.\d+ s: 3 devices", caplog.text)


async def test_a_server_that_hangs_up_at_its_only_address_is_a_failure(bench: Running) -> None:
    async with hanging_up(bench.control.port) as calls:
        only = named(bench, "pi", addresses=(LOCAL2,))
        ((_, error),) = (await Finder(knowing(), found(only)).search()).failures
    assert "closed the connection" in error.message
    assert calls == [1]


async def test_a_server_that_is_silent_at_one_address_is_not_asked_again(bench: Running) -> None:
    async with asyncio.timeout(patience(10)):
        with socket.create_server((LOCAL2, bench.control.port)):
            by_mdns = named(bench, "pi", addresses=(LOCAL2, HOST))
            search = await Finder(knowing(timeout=0.3), found(by_mdns)).search()
    ((_, error),) = search.failures
    assert isinstance(error, errors.Silent)


async def test_another_server_at_the_address_is_not_taken_for_it(bench: Running) -> None:
    gone = named(bench, "gone", id="9" * 32)
    search = await Finder(knowing(), found(gone)).search()
    ((server, error),) = search.failures
    assert server.name == "gone"
    assert error.message == f"gone: another server answers at {HOST}"


# -- the one device that is meant


def listing(name: str, *devices: str) -> Listing:
    plugged = [
        Device(bus_id=BusId(bus_id), vendor_id="0403", product_id="6001", id=f"{name}{bus_id}")
        for bus_id in devices
    ]
    server = Server(name=name, addresses=(f"10.0.0.{len(name)}",))
    return Listing(server=server, snapshot=Snapshot(devices=tuple(plugged)))


def failure(name: str, message: str = "does not answer") -> Failure:
    return Failure(Server(name=name), errors.Unreachable(f"{name} {message}"))


def test_one_match_is_the_one() -> None:
    search = Search([listing("pi", "1-1", "1-2"), listing("tom", "1-1")])
    match = search.choose(Query(handle="tom/1-1"))
    assert (match.server.name, match.device.bus_id) == ("tom", "1-1")


def test_of_several_the_first_one_is_taken_on_request_only() -> None:
    search = Search([listing("pi", "1-2"), listing("tom", "1-1")])
    assert search.choose(Query(first=True)).server.name == "pi"
    with pytest.raises(errors.Ambiguous, match="matches 2 devices") as caught:
        search.choose(Query())
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("  pi/1-2")
    assert lines[2].startswith("  tom/1-1")


def test_what_is_on_a_dead_server_is_out_of_reach_not_missing() -> None:
    search = Search([listing("pi", "1-1")], [failure("tom"), failure("eve")])
    for query in (Query(host="eve"), Query(handle="eve/scope"), Query(host="eve", handle="scope")):
        with pytest.raises(errors.Unreachable, match=r"^eve does not answer$"):
            search.choose(query)


def test_what_nobody_has_is_missing_although_somebody_is_dead() -> None:
    search = Search([listing("pi", "1-1")], [failure("tom")])
    for query in (Query(handle="scope"), Query(serial="x"), Query(handle="/scope")):
        with pytest.raises(errors.NotFound, match="no device matches") as caught:
            search.choose(query)
        assert caught.value.hint == "usb-remote list shows what there is"


def test_why_there_is_no_server_at_all() -> None:
    with pytest.raises(errors.NotFound, match="no usb-remote server found") as caught:
        Search().choose(Query(serial="x"))
    assert "usb-remote config add-server HOST" in str(caught.value.hint)
    with pytest.raises(errors.Unreachable, match="no usb-remote server is known as tom"):
        Search().choose(Query(host="tom"))
    with pytest.raises(errors.Unreachable, match=r"^tom does not answer$"):
        Search(failures=[failure("tom")]).choose(Query())


def test_of_several_dead_servers_each_one_is_named() -> None:
    with pytest.raises(errors.Unreachable) as caught:
        Search(failures=[failure("tom"), failure("eve")]).choose(Query())
    assert caught.value.message.splitlines() == [
        "no server answered:", "  tom does not answer", "  eve does not answer",
    ]  # fmt: skip
    assert caught.value.hint == "usb-remote config show lists whom we asked"


# -- nothing is left behind


async def test_who_stops_listening_leaves_no_task(bench: Running) -> None:
    with _mute() as one, _mute() as two:
        before = asyncio.all_tasks()
        mutes = [f"{HOST}:{mute.getsockname()[1]}" for mute in (one, two)]
        async with asyncio.timeout(patience(20)):
            finder = Finder(knowing(*mutes, at(bench), timeout=600), found())
            async with aclosing(finder.listings()) as answers:
                assert isinstance(await anext(answers), Listing)
            assert asyncio.all_tasks() <= before
