"""What hostile and slow clients cost the control port: each limit is reached, with tiny numbers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.patience import patience
from tests.serving import HOST, Running, running_server
from tests.talking import PING, Deaf, Line, talk
from tests.waiting import eventually
from usb_remote import replies
from usb_remote.control import Limits, limits_within
from usb_remote.rules import Networks
from usb_remote.values import BusId
from usb_remote.virtual import VirtualDevices

NEVER = 3600.0
OTHER = "127.0.0.2"
LIST = b'{"command":"list","v":1}\n'
INFO = b'{"command":"info","v":1}\n'
WATCH = b'{"command":"watch","v":1}\n'


def attach(who: str, **more: object) -> bytes:
    message = {"v": 1, "command": "attach", "bus": "1-1", "user": who, "host": "pc", "client": who}
    return json.dumps(message | more).encode() + b"\n"


@contextlib.asynccontextmanager
async def talk_from(source: str, bench: Running) -> AsyncIterator[Line]:
    """As talk, from another address."""
    reader, writer = await asyncio.open_connection(HOST, bench.control.port, local_addr=(source, 0))
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def hung_up(line: Line) -> bytes:
    """All that comes until the server hangs up, however it does."""
    said = b""
    async with asyncio.timeout(patience(20)):
        with contextlib.suppress(ConnectionError):
            while part := await line.reader.read(1 << 16):
                said += part
    return said


async def drip(line: Line, data: bytes) -> tuple[bytes, int]:
    """Say one byte now and then; returns what is answered, and how many were too late."""
    hearing = asyncio.create_task(hung_up(line))
    left = len(data)
    while left and not hearing.done():
        line.writer.write(data[-left:][:1])
        left -= 1
        await asyncio.sleep(0.005)
    return await hearing, left


async def works(line: Line) -> bool:
    return bool((await line.ask(INFO))["status"] == "success")


# -- time ---------------------------------------------------------------------------------------


async def test_a_watch_outlives_the_time_for_idle_connections() -> None:
    limits = Limits(idle_timeout=0.05)
    async with running_server(limits=limits, ping=0.1) as bench, talk(bench) as watcher:
        await watcher.ask(WATCH)
        for _ in range(3):
            assert await watcher.hear_any() == PING


async def test_whoever_waits_for_a_device_outlives_the_time_for_idle_connections() -> None:
    limits = Limits(idle_timeout=0.05, request_timeout=0.05)
    async with (
        running_server("serial", limits=limits, ping=0.1) as bench,
        talk(bench) as bob,
    ):
        async with talk(bench) as ann:
            assert (await ann.ask(attach("ann")))["status"] == "success"
        assert (await bob.ask(attach("bob", wait=0)))["event"] == "queued"
        for _ in range(3):
            assert await bob.hear_any() == PING


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    limits = Limits(idle_timeout=0.05, request_timeout=NEVER)
    async with running_server(limits=limits) as bench, talk(bench) as line:
        assert await works(line)
        assert await hung_up(line) == b""


async def test_a_connection_that_says_nothing_at_all_is_closed_without_a_word() -> None:
    limits = Limits(idle_timeout=NEVER, request_timeout=0.05)
    async with running_server(limits=limits) as bench, talk(bench) as line:
        assert await hung_up(line) == b""


async def test_an_answered_request_gives_the_time_of_idle_connections() -> None:
    limits = Limits(idle_timeout=NEVER, request_timeout=0.1)
    async with running_server(limits=limits) as bench, talk(bench) as line:
        assert await works(line)
        async with talk(bench) as silent:
            assert await hung_up(silent) == b""  # its time was up, and began later
        assert await works(line)


@pytest.mark.parametrize("first", [b"", INFO], ids=["at first", "after a request"])
async def test_each_byte_in_time_does_not_make_a_request_in_time(first: bytes) -> None:
    limits = Limits(request_timeout=0.05, idle_timeout=NEVER)
    async with running_server(limits=limits) as bench, talk(bench) as slow:
        if first:
            await slow.ask(first)
        said, left = await drip(slow, b'{"command":"list",' + b" " * 30)
        assert json.loads(said)["message"] == "no complete request within 0.05 s"
        assert left


async def test_blanks_keep_no_connection_open() -> None:
    limits = Limits(request_timeout=0.05, idle_timeout=NEVER)
    async with running_server(limits=limits) as bench, talk(bench) as slow:
        said, left = await drip(slow, b" \n" * 25)
        assert said == b""
        assert left


# -- how much -----------------------------------------------------------------------------------


async def test_of_a_bad_request_a_little_is_read_away_and_no_more() -> None:
    limits = Limits(linger_bytes=1000, linger_seconds=NEVER)
    async with running_server(limits=limits) as bench, talk(bench) as enemy:
        assert (await enemy.ask(b"[" * 17))["status"] == "error"
        (connection,) = bench.control._connections
        await enemy.say(b"x" * 999)
        await eventually(lambda: connection._linger_left == 1)
        await enemy.say(b"x")
        await eventually(lambda: not bench.control._connections)


async def test_a_bad_request_is_read_away_also_when_the_time_for_a_request_is_over() -> None:
    limits = Limits(request_timeout=0.05, linger_seconds=NEVER)
    async with running_server(limits=limits) as bench, talk(bench) as enemy:
        assert (await enemy.ask(b"GET / HTTP/1.1\r\n"))["status"] == "error"
        (rejected,) = bench.control._connections
        async with talk(bench) as silent:
            assert await hung_up(silent) == b""  # its time was up, and began later
        assert not rejected._transport.is_closing()


async def test_a_beginning_that_ends_with_the_answer_before_it_is_said_to_be_incomplete() -> None:
    """Both in one turn of the loop, which no client can time: they are called here."""
    async with (
        running_server("serial") as bench,
        talk(bench) as line,
        bench.leases._lease(BusId("1-1")).lock,
    ):
        await line.say(attach("ann", wait=0) + b'{"command"')
        await eventually(lambda: any(c.waits for c in bench.control._connections))
        (connection,) = bench.control._connections
        connection.resume()
        assert connection.eof_received()
        assert (await line.hear())["message"] == "the request is incomplete"
        assert await line.at_end()


async def test_an_address_that_may_not_talk_to_us_is_logged_once(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.control.allowed = Networks(["10.0.0.0/8"])
    for _ in range(2):
        async with talk_from("127.0.0.99", bench) as line:
            assert await hung_up(line) == b""
    assert caplog.text.count("closed the connections of 127.0.0.99") == 1


async def test_who_waits_is_read_from_only_so_far_and_loses_nothing() -> None:
    limits = Limits(ahead_bytes=len(b"\n" + 10 * INFO))
    async with (
        running_server("serial", limits=limits, ping=NEVER) as bench,
        talk(bench) as ann,
        talk(bench) as bob,
    ):
        assert (await ann.ask(attach("ann")))["status"] == "success"
        assert (await bob.ask(attach("bob", wait=0)))["event"] == "queued"
        (waiting,) = (c for c in bench.control._connections if c.waits)
        await bob.say(10 * INFO)
        await eventually(lambda: len(waiting._framer.rest) == limits.ahead_bytes)
        assert waiting._transport.is_reading()
        await bob.say(INFO)
        await eventually(lambda: not waiting._transport.is_reading())
        await bob.say(INFO)
        assert (await ann.ask(attach("ann").replace(b"attach", b"detach")))["status"]
        assert (await bob.hear())["data"]["bus_id"] == "1-1"
        for _ in range(12):
            assert (await bob.hear())["data"]["name"] == "bench"
        assert await works(bob)


async def test_what_a_forbidden_client_says_counts_for_nothing(bench: Running) -> None:
    async with talk(bench) as stranger, talk_from(OTHER, bench) as friend:
        assert await works(stranger)
        bench.control.allowed = Networks([f"{OTHER}/32"])
        await stranger.say(INFO)
        assert await works(friend)
        bench.control.close_forbidden()
        assert await hung_up(stranger) == b""
        assert await works(friend)


async def test_who_says_much_at_once_takes_turns_with_the_others() -> None:
    limits = Limits(at_once=2)
    async with running_server(limits=limits) as bench, talk(bench) as greedy, talk(bench) as one:
        assert await works(greedy)
        assert await works(one)
        answered: list[str] = []

        async def hear(name: str, line: Line, count: int) -> None:
            for _ in range(count):
                assert (await line.hear())["status"] == "success"
                answered.append(name)

        greedy.writer.write(INFO * 200)
        one.writer.write(INFO)
        await asyncio.gather(hear("greedy", greedy, 200), hear("one", one, 1))
        assert answered.index("one") < 100


class SlowlyBound(VirtualDevices):
    """A kernel that binds when it is told so."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.may_bind = asyncio.Event()

    async def bind(self, bus_id: BusId) -> None:
        await self.may_bind.wait()
        await super().bind(bus_id)


async def test_who_gets_an_answer_soon_is_not_read_from_meanwhile() -> None:
    async with (
        running_server("serial", bus=SlowlyBound) as bench,
        talk(bench) as ann,
        talk(bench) as bob,
    ):
        assert isinstance(bench.devices, SlowlyBound)
        assert (await ann.ask(attach("ann")))["status"] == "success"
        await bob.say(attach("bob"))
        await eventually(lambda: any(c._paused for c in bench.control._connections))
        (busy,) = (c for c in bench.control._connections if c._paused)
        assert not busy._transport.is_reading()
        await bob.say(INFO)
        bench.devices.may_bind.set()
        assert (await bob.hear())["code"] == "busy"
        assert (await bob.hear())["data"]["name"] == "bench"


# -- how many -----------------------------------------------------------------------------------


async def test_as_many_connections_as_the_limit_says_and_the_oldest_idle_one_gives_way() -> None:
    async with (
        running_server(limits=Limits(connections=2)) as bench,
        talk_from(OTHER, bench) as first,
        talk(bench) as second,
    ):
        assert await works(first)
        assert await works(second)
        async with talk(bench) as third:
            assert await hung_up(first) == b""
            assert await works(second)
            assert await works(third)


@pytest.mark.parametrize(
    "limits", [Limits(connections=2), Limits(connections_per_address=2)], ids=["all", "address"]
)
async def test_what_is_busy_never_gives_way(limits: Limits) -> None:
    async with (
        running_server("serial", limits=limits) as bench,
        talk(bench) as watcher,
        talk(bench) as ann,
    ):
        await watcher.ask(WATCH)
        assert (await ann.ask(attach("other", force=True)))["status"] == "success"
        while (await watcher.hear())["data"][0]["state"] != "in_use":
            pass
        assert (await ann.ask(attach("ann", wait=0)))["event"] == "queued"
        for _ in range(3):
            async with talk(bench) as newest:
                assert await hung_up(newest) == b""
        while (await watcher.hear())["data"][0]["waiting"] != 1:
            pass
        bench.devices.plug("disk")
        while len((await watcher.hear())["data"]) != 2:
            pass


async def test_one_address_takes_no_room_from_another() -> None:
    limits = Limits(connections_per_address=1)
    async with (
        running_server(limits=limits) as bench,
        talk_from(OTHER, bench) as other,
        talk(bench) as first,
        talk(bench) as second,
    ):
        assert await hung_up(first) == b""
        assert await works(second)
        assert await works(other)


async def test_of_many_that_come_at_once_only_the_newest_stay() -> None:
    async with running_server(limits=Limits(connections=3)) as bench:
        address = (HOST, bench.control.port)
        many = [socket.create_connection(address) for _ in range(10)]
        try:
            await eventually(lambda: bench.control._connections)
            await eventually(lambda: len(bench.control._connections) == 3)
            for connection in many:
                connection.settimeout(patience(10))
            for connection in many[:7]:
                assert await asyncio.to_thread(connection.recv, 1) == b""
            for connection in many[7:]:
                connection.sendall(INFO)
                assert b"bench" in await asyncio.to_thread(connection.recv, 4096)
        finally:
            for connection in many:
                connection.close()


def test_a_process_that_may_open_few_files_takes_fewer_connections() -> None:
    def numbers(files: int) -> tuple[int, int]:
        limits = limits_within(files)
        return limits.connections, limits.connections_per_address

    assert numbers(1 << 20) == numbers(4096 + 256) == (4096, 2048)
    assert numbers(4096 + 255) == (4095, 2048)
    assert numbers(1024) == (768, 384)
    assert numbers(100) == (50, 25)


# -- who does not read --------------------------------------------------------------------------


async def change(bench: Running) -> None:
    """Two new snapshots."""
    bench.devices.pull("disk")
    bench.control.refresh()
    bench.devices.plug("disk")
    bench.control.refresh()
    await asyncio.sleep(0)


async def fill(deaf: Deaf) -> None:
    await eventually(lambda: deaf.connection.watches)
    while not deaf.connection._full:
        await change(deaf.bench)


FEW = Limits(unread_bytes=4096)


async def test_a_slow_watcher_that_reads_again_skips_to_the_newest() -> None:
    async with (
        running_server("disk", limits=FEW, ping=NEVER) as bench,
        Deaf(bench, WATCH) as slow,
    ):
        await fill(slow)
        for _ in range(10):
            await change(bench)
        newest = bench.control.snapshot.revision
        lines = await slow.read_lines(b'"revision":%d,' % newest)
        revisions = [json.loads(line)["revision"] for line in lines]
        assert revisions == sorted(set(revisions))
        assert revisions[-1] == newest
        assert newest - 1 not in revisions, "what was missed is not told later"
        await change(bench)
        (line, *_) = await slow.read_lines(b'"revision":%d,' % (newest + 2))
        assert json.loads(line)["revision"] == newest + 1


async def test_what_was_missed_once_is_not_told_again() -> None:
    async with (
        running_server("disk", limits=FEW, ping=NEVER) as bench,
        Deaf(bench, WATCH) as slow,
    ):
        await fill(slow)
        await change(bench)
        await slow.read_lines(b'"revision":%d,' % bench.control.snapshot.revision)
        is_there = True
        while not slow.connection._full:  # it misses nothing this time
            (bench.devices.pull if is_there else bench.devices.plug)("disk")
            bench.control.refresh()
            is_there = not is_there
        await slow.read_lines(b'"revision":%d,' % bench.control.snapshot.revision)
        bench.devices.plug("serial")
        newest = bench.control.snapshot.revision + 1
        lines = await slow.read_lines(b'"revision":%d,' % newest)
        assert [json.loads(line)["revision"] for line in lines] == [newest]


async def test_a_watcher_that_reads_again_is_not_pinged_for_the_time_it_did_not() -> None:
    async with (
        running_server("disk", limits=FEW, ping=0.01) as bench,
        Deaf(bench, WATCH) as slow,
    ):
        await fill(slow)
        await change(bench)
        newest = bench.control.snapshot.revision
        async with talk(bench) as other:
            await other.ask(WATCH)
            for _ in range(5):
                assert await other.hear_any() == PING
        lines = await slow.read_lines(b'"revision":%d,' % newest)
        at = next(n for n, line in enumerate(lines) if b'"revision":%d,' % newest in line)
        assert lines[at - 1] + b"\n" != replies.PING


async def test_who_reads_again_in_time_stays() -> None:
    limits = Limits(unread_bytes=4096, unread_seconds=patience(0.3))
    async with (
        running_server("disk", limits=limits, ping=patience(0.1)) as bench,
        Deaf(bench, WATCH) as slow,
    ):
        await fill(slow)
        await change(bench)
        newest = bench.control.snapshot.revision
        await slow.read_lines(b'"revision":%d,' % newest)
        for _ in range(4):
            await slow.read_lines(replies.PING)
        assert slow.connection in bench.control._connections


async def test_who_has_read_everything_late_is_closed_when_idle_as_any_other() -> None:
    limits = Limits(unread_bytes=4096, idle_timeout=0.1)
    async with running_server("disk", limits=limits) as bench, Deaf(bench, b"") as slow:
        count = 0
        while not slow.connection._full:  # nothing is left to be answered when it reads again
            before = slow.connection._timer
            slow.socket.sendall(LIST)
            await eventually(lambda before=before: slow.connection._timer is not before)
            count += 1
        async with talk(bench) as idle:
            assert await works(idle)
            assert await hung_up(idle) == b""
        assert slow.connection in bench.control._connections
        lines: list[bytes] = []
        while len(lines) < count:
            lines += await slow.read_lines(b"\n")
        await eventually(lambda: slow.connection not in bench.control._connections)


async def test_who_does_not_read_does_not_keep_open_what_is_closed() -> None:
    limits = Limits(unread_bytes=4096, linger_seconds=0.05)
    async with (
        running_server("disk", limits=limits) as bench,
        Deaf(bench, WATCH) as slow,
    ):
        await fill(slow)
        slow.connection.close()
        await eventually(lambda: slow.connection not in bench.control._connections)


async def test_nothing_is_looked_at_any_more_when_a_client_has_gone() -> None:
    async with running_server("disk", limits=FEW, ping=NEVER) as bench:
        async with Deaf(bench, WATCH) as deaf:
            await fill(deaf)
            lost = deaf.connection
            timers = [lost._timer, lost._look, lost._unread]
        await eventually(lambda: lost not in bench.control._connections)
        assert [timer is not None and timer.cancelled() for timer in timers] == [True] * 3


async def test_who_has_said_it_all_and_does_not_read_is_kept_for_a_while_only() -> None:
    limits = Limits(unread_bytes=4096, unread_seconds=0.1, linger_seconds=NEVER)
    async with running_server("disk", limits=limits) as bench, Deaf(bench, LIST * 20) as slow:
        slow.socket.shutdown(socket.SHUT_WR)
        await eventually(lambda: slow.connection not in bench.control._connections)


async def test_who_has_said_it_all_may_read_later() -> None:
    limits = Limits(unread_bytes=4096, linger_seconds=0.01, request_timeout=0.1)
    async with running_server("disk", limits=limits) as bench, Deaf(bench, LIST * 50) as slow:
        slow.socket.shutdown(socket.SHUT_WR)
        await eventually(lambda: slow.connection._full)
        async with talk(bench) as silent:
            assert await hung_up(silent) == b""  # so much time has passed
        lines: list[bytes] = []
        while len(lines) < 50:
            lines += await slow.read_lines(b"\n")


# -- faults of ours -----------------------------------------------------------------------------


FOREVER = Limits(request_timeout=NEVER, idle_timeout=NEVER)


class Faulty(VirtualDevices):
    """A bus that fails as nobody expects."""

    def check(self) -> None:
        raise RuntimeError("a fault of ours")


class Unsayable(replies.Info):
    """Who we are cannot be said."""

    def model_dump(self, *args: Any, **more: Any) -> dict[str, Any]:
        raise RuntimeError("a fault of ours")


async def test_a_request_that_fails_as_nobody_expects_ends_its_connection_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        running_server("serial", bus=Faulty, limits=FOREVER) as bench,
        talk(bench) as watcher,
        talk(bench) as victim,
        talk(bench) as other,
    ):
        await watcher.ask(WATCH)
        await victim.say(attach("ann") + INFO)
        assert await hung_up(victim) == b"", "the next answer would be taken for the first"
        assert await works(other)
        bench.devices.plug("disk")
        assert len((await watcher.hear())["data"]) == 2
    assert "a fault of ours" in caplog.text


async def test_an_answer_at_once_that_fails_ends_its_connection_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        running_server("serial", limits=FOREVER) as bench,
        talk(bench) as victim,
        talk(bench) as other,
    ):
        assert await works(other)
        info = bench.control.info
        bench.control.info = Unsayable(**info.model_dump())
        await victim.say(INFO + b"{}" + INFO)
        assert await hung_up(victim) == b"", "the next answer would be taken for the first"
        bench.control.info = info
        assert await works(other)
    assert "a fault of ours" in caplog.text
