"""Waiting, taking over, asking, names and limits, as clients see them on the control port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest
from usbip import protocol as reference

from tests.patience import patience
from tests.serving import HOST, Running, running_server
from tests.talking import PING, Line, talk
from tests.waiting import eventually
from usb_remote import events
from usb_remote.control import Limits
from usb_remote.lease import Times
from usb_remote.model import Cause, Device, Holder, State
from usb_remote.rules import Criteria, Networks, Rule
from usb_remote.values import BusId
from usb_remote.virtual import KINDS, VirtualDevices
from usb_remote.waiting import MAX_WAITING, Wish

OTHER = "127.0.0.2"


def request(command: str, who: str = "ann", **more: object) -> bytes:
    """A request of this person's machine; the device is 1-1 unless it says another one."""
    message = {"v": 1, "command": command, "bus": "1-1", **more}
    return json.dumps(message | {"user": who, "host": "pc", "client": who}).encode() + b"\n"


def session(bench: Running, bus_id: str = "1-1") -> socket.socket:
    connection = socket.create_connection((HOST, bench.exporter.port))
    connection.settimeout(patience(10))
    try:
        reference.client_import(connection, bus_id.encode())
    except BaseException:
        connection.close()
        raise
    return connection


async def attach(bench: Running, who: str = "ann", **more: object) -> socket.socket:
    """Reserve and import, as a client does."""
    async with talk(bench) as line:
        reply = await line.ask(request("attach", who, **more))
        assert reply["status"] == "success", reply
    return await asyncio.to_thread(session, bench)


@contextlib.asynccontextmanager
async def queue(bench: Running, *people: str, first: int = 1) -> AsyncIterator[list[Line]]:
    """These people wait in this order, and have been told their places."""
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(talk(bench)) for _ in people]
        for place, (line, who) in enumerate(zip(lines, people, strict=True), first):
            queued = await line.ask(request("attach", who, wait=0))
            assert (queued["event"], queued["place"]) == ("queued", place)
        yield lines


def device(bench: Running) -> Device:
    return next(d for d in bench.control.snapshot.devices if d.bus_id == "1-1")


def ends(bench: Running) -> list[tuple[str | None, Cause | None, str | None]]:
    """Whose sessions ended, and why, in order."""
    events = [e for e in bench.history.events if e.kind == "ended"]
    return [(e.holder.user if e.holder else None, e.cause, e.by) for e in events]


# -- the queue ----------------------------------------------------------------------------------


async def test_who_waits_is_told_the_place_and_gets_the_device_in_turn(bench: Running) -> None:
    with await attach(bench) as anns:
        async with queue(bench, "bob", "cid") as (bob, cid):
            assert device(bench).waiting == 2
            anns.close()
            reply = await bob.hear()
            assert (reply["status"], reply["data"]["holder"]["user"]) == ("success", "bob")
            queued = await cid.hear()
            assert (queued["place"], queued["holder"]["user"]) == (1, "bob")
            with await asyncio.to_thread(session, bench) as bobs:
                await eventually(lambda: device(bench).waiting == 1)
                bobs.close()
                assert (await cid.hear())["data"]["holder"]["user"] == "cid"
    detached = [("ann", Cause.DETACHED, None), ("bob", Cause.DETACHED, None)]
    await eventually(lambda: ends(bench) == detached)


async def test_who_waits_is_told_who_has_the_device(bench: Running) -> None:
    with await attach(bench):
        async with talk(bench) as bob:
            queued = await bob.ask(request("attach", "bob", wait=0))
    assert (queued["holder"]["user"], queued["holder"]["host"]) == ("ann", "pc")


async def test_who_waits_is_told_of_another_holder(bench: Running) -> None:
    with await attach(bench):
        async with queue(bench, "bob") as (bob,):
            with await attach(bench, "cid", force=True):
                queued = await bob.hear()
                assert (queued["place"], queued["holder"]["user"]) == (1, "cid")


async def test_waiting_for_a_free_device_is_attaching(bench: Running) -> None:
    async with talk(bench) as line:
        assert (await line.ask(request("attach", wait=0)))["status"] == "success"


async def test_a_client_does_not_wait_for_what_is_kept_for_it(bench: Running) -> None:
    async with talk(bench) as first, talk(bench) as again:
        await first.ask(request("attach"))
        assert (await again.ask(request("attach", wait=0)))["status"] == "success"


async def test_a_client_that_uses_the_device_waits_for_its_own_session(bench: Running) -> None:
    with await attach(bench) as anns:
        async with queue(bench, "ann") as (again,):
            anns.close()
            assert (await again.hear())["data"]["holder"]["user"] == "ann"


async def test_who_detaches_hands_over_at_once(bench: Running) -> None:
    with await attach(bench):
        async with queue(bench, "bob") as (bob,), talk(bench) as ann:
            await ann.say(request("detach"))
            assert (await bob.hear())["data"]["holder"]["user"] == "bob"
            assert (await ann.hear())["data"]["holder"]["user"] == "bob"


class SlowlyReset(VirtualDevices):
    """A kernel that is done with a session when it is told so."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.is_reset = asyncio.Event()

    async def wait_free(self, bus_id: BusId, timeout: float) -> None:
        await super().wait_free(bus_id, timeout)
        await self.is_reset.wait()


async def test_the_next_one_is_told_and_accepted_during_the_reset() -> None:
    """Its kernel looks at the new port meanwhile; the session begins when the reset is over."""
    async with running_server(*KINDS, bus=SlowlyReset) as bench:
        assert isinstance(bench.devices, SlowlyReset)
        with await attach(bench) as anns:
            async with queue(bench, "bob", "cid") as (bob, cid):
                anns.close()
                assert (await bob.hear())["data"]["holder"]["user"] == "bob"
                assert (await cid.hear())["place"] == 1
                assert not ends(bench)
                with await asyncio.to_thread(session, bench):
                    assert not ends(bench)
                    bench.devices.is_reset.set()
                    await eventually(lambda: str(bench.history.events[-1].holder) == "bob@pc")
                    assert ends(bench) == [("ann", Cause.DETACHED, None)]
                    assert str(device(bench).holder) == "bob@pc"


async def test_watchers_see_the_end_and_its_cause_when_the_device_goes_to_the_next_one() -> None:
    async with running_server(*KINDS, bus=SlowlyReset) as bench:
        assert isinstance(bench.devices, SlowlyReset)
        with await attach(bench) as anns:
            async with queue(bench, "bob") as (bob,):
                before = bench.control.snapshot.devices
                anns.close()
                assert (await bob.hear())["data"]["holder"]["user"] == "bob"
                during = bench.control.snapshot.devices
                bench.devices.is_reset.set()
                await eventually(lambda: str(device(bench).holder) == "bob@pc")
                after = bench.control.snapshot.devices
    now = datetime.now(UTC)
    assert list(events.changes(before, during, now)) == []
    (ended,) = events.changes(during, after, now)
    assert (ended.kind, ended.cause, str(ended.holder)) == ("ended", Cause.DETACHED, "ann@pc")


async def test_who_is_told_during_the_reset_and_leaves_does_not_keep_the_device() -> None:
    async with running_server(*KINDS, bus=SlowlyReset) as bench:
        assert isinstance(bench.devices, SlowlyReset)
        with await attach(bench) as anns:
            async with queue(bench, "bob", "cid") as (bob, cid):
                anns.close()
                assert (await bob.hear())["status"] == "success"
                await bob.say(request("detach", "bob"))
                bench.devices.is_reset.set()
                assert (await cid.hear())["place"] == 1
                assert (await cid.hear())["data"]["holder"]["user"] == "cid"


async def test_who_is_told_of_a_device_that_is_pulled_during_the_reset_is_refused() -> None:
    async with running_server(*KINDS, bus=SlowlyReset) as bench:
        assert isinstance(bench.devices, SlowlyReset)
        with await attach(bench) as anns:
            async with queue(bench, "bob") as (bob,):
                anns.close()
                assert (await bob.hear())["status"] == "success"
                bench.devices.pull("serial")
                bench.devices.is_reset.set()
                with pytest.raises(reference.core.NotFound):
                    await asyncio.to_thread(session, bench)
                await eventually(lambda: ends(bench) == [("ann", Cause.UNPLUGGED, None)])


async def test_who_has_got_the_device_and_does_not_come_loses_it_to_the_next() -> None:
    async with running_server(*KINDS, times=Times(reservation=0.2)) as bench:
        with await attach(bench) as anns:
            async with queue(bench, "bob", "cid") as (bob, cid):
                anns.close()
                assert (await bob.hear())["status"] == "success"
                assert (await cid.hear())["place"] == 1
                assert (await cid.hear())["data"]["holder"]["user"] == "cid"


def end_properly(line: Line) -> None:
    line.writer.close()


def end_half(line: Line) -> None:
    line.writer.write_eof()


def reset(line: Line) -> None:
    connection = line.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.writer.transport.abort()


@pytest.mark.parametrize("leave", [end_properly, end_half, reset])
async def test_the_place_is_lost_with_the_connection(
    bench: Running, leave: Callable[[Line], None]
) -> None:
    with await attach(bench) as anns:
        async with queue(bench, "bob", "cid") as (bob, cid):
            leave(bob)
            queued = await cid.hear()
            assert (queued["place"], queued["holder"]["user"]) == (1, "ann")
            assert device(bench).waiting == 1
            anns.close()
            assert (await cid.hear())["status"] == "success"


async def test_the_place_is_lost_with_the_client_that_is_killed(bench: Running) -> None:
    with await attach(bench):
        asking = request("attach", "bob", wait=0).decode()
        script = 'exec 3<>/dev/tcp/127.0.0.1/$1; printf %s "$2" >&3; exec cat <&3'
        port = str(bench.control.port)
        with subprocess.Popen(
            ["bash", "-c", script, "-", port, asking], stdout=subprocess.DEVNULL
        ) as bob:
            await eventually(lambda: device(bench).waiting == 1)
            bob.kill()
        await eventually(lambda: device(bench).waiting == 0)


async def test_a_turn_is_not_wasted_on_who_leaves_at_that_moment(bench: Running) -> None:
    leases = bench.leases
    with await attach(bench) as anns:
        bobs = Wish(Holder(user="bob", host="pc", client="bob", address=HOST))
        bob = asyncio.create_task(leases.reserve(device(bench), bobs, lambda *_: None))
        await eventually(lambda: device(bench).waiting == 1)
        async with queue(bench, "cid", first=2) as (cid,):
            turn = leases._leases[BusId("1-1")].queue.waiters[0].turn
            anns.close()
            while not turn.done():  # noqa: ASYNC110 - this very turn of the loop is meant
                await asyncio.sleep(0)
            bob.cancel()
            while (heard := await cid.hear()).get("status") is None:
                pass
            assert heard["data"]["holder"]["user"] == "cid"
            with pytest.raises(asyncio.CancelledError):
                await bob


async def test_a_wait_with_a_limit_ends_with_the_holder(bench: Running) -> None:
    with await attach(bench):
        async with talk(bench) as bob:
            assert (await bob.ask(request("attach", "bob", wait=0.1)))["event"] == "queued"
            reply = await bob.hear()
            assert reply["code"] == "busy"
            assert "still in use by ann@pc after 0.1 s" in reply["message"]
            assert reply["holder"]["user"] == "ann"
            assert "usb-remote release" in reply["hint"]
            assert device(bench).waiting == 0
            assert (await bob.ask(request("find")))["status"] == "success"


async def test_what_is_asked_while_waiting_is_answered_after_it(bench: Running) -> None:
    with await attach(bench) as anns:
        async with queue(bench, "bob") as (bob,):
            await bob.say(b'{"command":"info","v":1}\n')
            anns.close()
            assert (await bob.hear())["data"]["bus_id"] == "1-1"
            assert (await bob.hear())["data"]["name"] == "bench"


async def test_who_waits_hears_that_the_server_lives() -> None:
    async with running_server(*KINDS, ping=0.05) as bench:
        with await attach(bench):
            async with queue(bench, "bob") as (bob,):
                assert await bob.hear_any() == PING


async def test_who_waits_does_not_give_way_to_idle_connections() -> None:
    limits = Limits(connections=4, connections_per_address=4)
    async with running_server(*KINDS, limits=limits) as bench:
        with await attach(bench) as anns:
            async with queue(bench, "bob") as (bob,), contextlib.AsyncExitStack() as stack:
                for _ in range(6):
                    idle = await stack.enter_async_context(talk(bench))
                    await idle.ask(b'{"command":"info","v":1}\n')
                assert device(bench).waiting == 1
                anns.close()
                assert (await bob.hear())["status"] == "success"


async def test_the_queue_has_an_end(bench: Running) -> None:
    with await attach(bench):
        async with queue(bench, *(f"p{n}" for n in range(MAX_WAITING))), talk(bench) as late:
            assert (await late.ask(request("attach", "late", wait=0)))["code"] == "busy"
            assert device(bench).waiting == MAX_WAITING


async def test_who_waits_for_a_device_that_is_pulled_is_told(bench: Running) -> None:
    with await attach(bench):
        async with queue(bench, "bob") as (bob,):
            bench.devices.pull("serial")
            assert (await bob.hear())["code"] == "not_found"
    await eventually(lambda: ends(bench) == [("ann", Cause.UNPLUGGED, None)])


async def test_who_waits_for_a_device_that_is_replugged_does_not_get_another_one(
    bench: Running,
) -> None:
    with await attach(bench):
        async with queue(bench, "bob") as (bob,):
            bench.devices.pull("serial")
            bench.devices.plug("serial")
            heard = await bob.hear()
            assert heard.get("code") == "not_found" or heard["data"]["serial"] == "VIRTUAL0001"


async def test_a_server_that_stops_lets_those_who_wait_go() -> None:
    async with contextlib.AsyncExitStack() as stack:
        bench = await stack.enter_async_context(running_server(*KINDS))
        with await attach(bench):
            lines = await stack.enter_async_context(queue(bench, "bob", "cid"))
            async with asyncio.timeout(patience(5)):
                await bench.control.stop()
            for line in lines:
                assert "is being stopped" in (await line.hear())["message"]
                assert await line.at_end()
            assert device(bench).state is State.IN_USE
            await bench.leases.stop()
        assert ends(bench) == [("ann", Cause.SERVER_STOPPED, None)]


# -- taking over, and asking --------------------------------------------------------------------


async def test_force_takes_the_device_from_its_holder(bench: Running) -> None:
    with await attach(bench) as anns, await attach(bench, "bob", force=True):
        assert await asyncio.to_thread(anns.recv, 1) == b""
        assert str(device(bench).holder) == "bob@pc"
        last = device(bench).last_session
        assert last is not None
        assert (last.cause, last.by, last.holder.user) == (Cause.TAKEN_OVER, "bob@pc", "ann")
    assert ends(bench)[0] == ("ann", Cause.TAKEN_OVER, "bob@pc")


async def test_every_takeover_is_logged_with_both_names(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with await attach(bench), await attach(bench, "bob", force=True):
        assert "is taken over from ann@pc by bob@pc" in caplog.text


async def test_force_takes_a_reservation_too(bench: Running) -> None:
    async with talk(bench) as ann, talk(bench) as bob:
        await ann.ask(request("attach"))
        reply = await bob.ask(request("attach", "bob", force=True))
        assert reply["data"]["holder"]["user"] == "bob"


async def test_a_server_may_forbid_to_take_over(bench: Running) -> None:
    bench.leases.takeover = False
    with await attach(bench) as anns, pytest.raises(AssertionError, match="does not allow taking"):
        await attach(bench, "bob", force=True)
    assert anns.fileno() == -1
    await eventually(lambda: ends(bench) == [("ann", Cause.DETACHED, None)])


async def test_a_forbidden_takeover_leaves_everything_as_it_was(bench: Running) -> None:
    bench.leases.takeover = False
    with await attach(bench):
        async with talk(bench) as bob:
            reply = await bob.ask(request("attach", "bob", force=True, wait=0))
        assert reply["code"] == "refused"
        assert "usb-remote release" in reply["hint"]
        assert str(device(bench).holder) == "ann@pc"
        assert device(bench).waiting == 0


async def test_a_takeover_goes_before_those_who_wait_and_leaves_them_their_places(
    bench: Running,
) -> None:
    with await attach(bench):
        async with queue(bench, "bob") as (bob,):
            with await attach(bench, "cid", force=True):
                assert device(bench).waiting == 1
            while (heard := await bob.hear()).get("status") is None:
                pass
            assert heard["data"]["holder"]["user"] == "bob"


async def test_a_request_to_release_is_seen_by_everybody(bench: Running) -> None:
    with await attach(bench):
        async with talk(bench) as watcher, talk(bench) as bob:
            await watcher.ask(b'{"command":"watch","v":1}\n')
            reply = await bob.ask(request("release", "bob", message="five minutes?"))
            asked = {"by": "bob@pc", "message": "five minutes?"}
            assert reply["data"]["holder"]["asked"] == asked
            assert (await watcher.hear())["data"][0]["holder"]["asked"] == asked
            listed = await bob.ask(b'{"command":"list","v":1}\n')
            assert listed["data"][0]["holder"]["asked"] == asked


async def test_a_request_to_release_what_nobody_has_asks_nobody(bench: Running) -> None:
    async with talk(bench) as bob:
        reply = await bob.ask(request("release", "bob"))
    assert (reply["status"], reply["data"]["holder"]) == ("success", None)


async def test_a_request_is_gone_with_the_session_it_was_about(bench: Running) -> None:
    with await attach(bench):
        async with talk(bench) as bob:
            await bob.ask(request("release", "bob"))
    await eventually(lambda: device(bench).state is State.AVAILABLE)
    with await attach(bench, "bob"):
        held = device(bench).holder
        assert held is not None
        assert held.asked is None


# -- for some time ------------------------------------------------------------------------------


async def test_a_session_for_some_time_ends_by_itself_and_says_so_before(bench: Running) -> None:
    async with talk(bench) as watcher:
        await watcher.ask(b'{"command":"watch","v":1}\n')
        with await attach(bench, duration=1) as anns:
            holder = device(bench).holder
            assert holder is not None
            assert holder.until is not None
            assert holder.since is not None
            assert (holder.until - holder.since).total_seconds() == pytest.approx(1)
            holders = [(await watcher.hear())["data"][0]["holder"] for _ in range(4)]
            assert [h and h["ends_soon"] for h in holders] == [False, False, True, None]
            assert await asyncio.to_thread(anns.recv, 1) == b""
    assert ends(bench) == [("ann", Cause.TIME_UP, None)]


async def test_when_time_is_up_the_next_one_gets_the_device(bench: Running) -> None:
    with await attach(bench, duration=1):
        async with queue(bench, "bob") as (bob,):
            assert (await bob.hear())["data"]["holder"]["user"] == "bob"
    assert ends(bench) == [("ann", Cause.TIME_UP, None)]


async def test_the_time_of_one_session_does_not_end_another(bench: Running) -> None:
    with await attach(bench, duration=1) as anns:
        anns.close()
        await eventually(lambda: device(bench).state is State.AVAILABLE)
        with await attach(bench, "bob") as bobs:
            bobs.settimeout(1.5)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(bobs.recv, 1)
    assert ends(bench) == [("ann", Cause.DETACHED, None), ("bob", Cause.DETACHED, None)][:1]


# -- who may talk to this server ----------------------------------------------------------------


def first_byte(address: tuple[str, int], source: str) -> bytes:
    """What a silent client gets: nothing but the end, if it is closed before a byte is read."""
    with socket.create_connection(address, 10, source_address=(source, 0)) as connection:
        try:
            return connection.recv(1)
        except ConnectionResetError:
            return b""


async def test_other_networks_are_closed_before_a_byte_is_read(bench: Running) -> None:
    bench.control.allowed = bench.exporter.allowed = Networks([f"{OTHER}/32"])
    for port in (bench.control.port, bench.exporter.port):
        assert await asyncio.to_thread(first_byte, (HOST, port), HOST) == b""


async def test_the_networks_that_are_given_may_talk_at_both_ports(bench: Running) -> None:
    bench.control.allowed = bench.exporter.allowed = Networks([f"{OTHER}/32"])
    reader, writer = await asyncio.open_connection(HOST, bench.control.port, local_addr=(OTHER, 0))
    writer.write(request("attach"))
    assert json.loads(await reader.readline())["status"] == "success"
    writer.close()
    await writer.wait_closed()

    def import_it() -> None:
        address = (HOST, bench.exporter.port)
        with socket.create_connection(address, 10, source_address=(OTHER, 0)) as connection:
            reference.client_import(connection, b"1-1")

    await asyncio.to_thread(import_it)
    await eventually(lambda: ends(bench) == [("ann", Cause.DETACHED, None)])


async def test_new_networks_end_the_sessions_and_waits_of_others(bench: Running) -> None:
    with await attach(bench) as anns:
        async with queue(bench, "bob") as (bob,):
            bench.control.allowed = bench.leases.allowed = Networks([OTHER])
            bench.control.close_forbidden()
            await bench.leases.enforce()
            assert await asyncio.to_thread(anns.recv, 1) == b""
            assert await bob.at_end()
    await eventually(lambda: device(bench).state is State.AVAILABLE)
    assert ends(bench) == [("ann", Cause.FORBIDDEN, None)]
    assert device(bench).waiting == 0


async def test_a_new_rule_ends_the_session_and_the_wait(bench: Running) -> None:
    with await attach(bench) as anns:
        async with queue(bench, "bob") as (bob,):
            bench.shared.configure([Rule(deny=Criteria(bus="1-1"))], {})
            await bench.leases.enforce()
            bench.control.refresh()
            assert await asyncio.to_thread(anns.recv, 1) == b""
            assert (await bob.hear())["code"] == "not_found"
            listed = await bob.ask(b'{"command":"list","v":1}\n')
    assert [d["bus_id"] for d in listed["data"]] == ["1-2", "1-3"]
    assert ends(bench) == [("ann", Cause.FORBIDDEN, None)]


async def test_a_hidden_device_is_hidden_at_both_ports(bench: Running) -> None:
    bench.shared.configure([Rule(deny=Criteria(bus="1-1"))], {})
    bench.control.refresh()
    async with talk(bench) as line:
        assert (await line.ask(request("attach")))["code"] == "not_found"
    with pytest.raises(reference.core.NotFound, match="status 4"):
        await asyncio.to_thread(session, bench)


# -- names and history --------------------------------------------------------------------------


async def test_a_name_is_given_seen_used_and_taken_away(bench: Running) -> None:
    async with talk(bench) as watcher, talk(bench) as line:
        await watcher.ask(b'{"command":"watch","v":1}\n')
        assert (await line.ask(request("name", name="scope")))["data"]["name"] == "scope"
        assert (await watcher.hear())["data"][0]["name"] == "scope"
        assert (await line.ask(request("name", name="")))["data"]["name"] is None
        assert (await watcher.hear())["data"][0]["name"] is None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a\x1b[31mb", "usage"), ("a/b", "usage"), ("..", "usage"), ("a b", "usage"),
        ("1-1", "usage"), ("1-1.4", "usage"), ("-rf", "usage"), ("\u202egnp", "usage"),
        ("x" * 32, "usage"), ("x" * 257, "invalid_request"), (7, "invalid_request"),
        (None, "invalid_request"), ("taken", "refused"), ("TAKEN", "refused"),
    ],
)  # fmt: skip
async def test_what_is_no_name_is_refused(bench: Running, name: object, code: str) -> None:
    async with talk(bench) as line:
        assert (await line.ask(request("name", bus="1-2", name="taken")))["status"] == "success"
        reply = await line.ask(request("name", name=name))
        assert reply["code"] == code
        assert reply["message"].isprintable()
    assert [d.name for d in bench.control.snapshot.devices] == [None, "taken", None]


async def test_history_tells_everything_oldest_first(bench: Running) -> None:
    with await attach(bench):
        pass
    await eventually(lambda: len(ends(bench)) == 1)
    bench.devices.pull("serial")
    bench.devices.plug("serial")
    bench.devices.pull("disk")
    await eventually(lambda: len(bench.control.snapshot.devices) == 2)
    async with talk(bench) as line:
        events = (await line.ask(b'{"command":"history","v":1}\n'))["data"]
    told = [(e["kind"], e["bus_id"], e["cause"]) for e in events]
    assert told[:2] == [("attached", "1-1", None), ("ended", "1-1", "detached")]
    assert sorted(told[2:]) == [
        ("plugged", "1-1", None), ("unplugged", "1-1", None), ("unplugged", "1-2", None),
    ]  # fmt: skip
    assert events[1]["seconds"] >= 0
    assert events[0]["holder"]["user"] == "ann"


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("attach", "wait", -1), ("attach", "wait", "5"), ("attach", "wait", float("nan")),
        ("attach", "wait", float("inf")), ("attach", "wait", 31 * 86400), ("attach", "wait", [1]),
        ("attach", "wait", True), ("attach", "duration", 0), ("attach", "duration", -1),
        ("attach", "duration", float("nan")), ("attach", "force", "yes"), ("attach", "force", 1),
        ("release", "message", "x" * 257), ("release", "message", 7), ("find", "wait", 1),
        ("detach", "force", True), ("attach", "user", "x" * 257), ("history", "bus", "1-1"),
    ],
)  # fmt: skip
async def test_bad_input_is_refused_by_name_and_disturbs_nobody(
    bench: Running, command: str, key: str, value: object
) -> None:
    with await attach(bench):
        async with queue(bench, "bob") as (bob,), talk(bench) as line:
            message = {"v": 1, "command": command, "bus": "1-1", "client": "cid", key: value}
            reply = await line.ask(json.dumps(message).encode() + b"\n")
            assert reply["code"] == "invalid_request"
            assert key in reply["message"]
            assert device(bench).waiting == 1
            assert not bob.reader.at_eof()


async def test_a_message_with_control_characters_travels_as_plain_text(bench: Running) -> None:
    with await attach(bench):
        async with talk(bench) as bob:
            reply = await bob.ask(request("release", "b\x07b", message="\x1b[2Jgive\nit"))
    asked = reply["data"]["holder"]["asked"]
    assert asked["message"].isprintable()
    assert asked["by"].isprintable()
