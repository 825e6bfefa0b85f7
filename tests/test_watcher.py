"""How a watcher follows servers: whom, when it says that one is lost, and when it asks again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.patience import patience
from tests.scripted import ID, INFO, Act, Scripted, hangs_up, mute, says, scripted, snapshot, stays
from tests.serving import HOST, Running, found, knowing
from tests.serving import at as at_
from tests.waiting import eventually
from usb_remote import errors, protocol, replies
from usb_remote.config import Config
from usb_remote.model import Server
from usb_remote.watcher import Change, Watcher, key_of

LOCAL2 = "127.0.0.2"
NEVER = 3600.0
"""A pause whose end no test sees."""


class Heard:
    """What mDNS brings, when the test says so; for ever."""

    def __init__(self, *servers: Server) -> None:
        self._servers: asyncio.Queue[Server] = asyncio.Queue()
        for server in servers:
            self.bring(server)

    def bring(self, server: Server) -> None:
        self._servers.put_nowait(server)

    async def servers(self) -> AsyncIterator[Server]:
        while True:
            yield await self._servers.get()


async def next_of(changes: AsyncIterator[Change]) -> Change:
    async with asyncio.timeout(patience(10)):
        return await anext(changes)


async def lost(changes: AsyncIterator[Change]) -> errors.UsbRemoteError:
    change = await next_of(changes)
    assert change.listing is None
    assert change.error is not None
    return change.error


async def devices(changes: AsyncIterator[Change]) -> list[str]:
    change = await next_of(changes)
    assert change.error is None
    assert change.listing is not None
    return [device.bus_id for device in change.listing.snapshot.devices]


async def nothing_more(changes: AsyncIterator[Change], until: object = lambda: True) -> None:
    """Nothing is told while this becomes true."""
    coming = asyncio.ensure_future(anext(changes))
    await eventually(until)
    assert not coming.done()
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)


def at(there: Scripted) -> str:
    return f"{HOST}:{there.port}"


# -- lost and back


async def test_a_server_that_says_nothing_at_all_is_lost() -> None:
    async with scripted(stays(snapshot("1-1"))) as there:
        watcher = Watcher(knowing(at(there)), found()(), NEVER, silence=0.05)
        async with aclosing(watcher.watch()) as changes:
            assert await devices(changes) == ["1-1"]
            error = await lost(changes)
    assert isinstance(error, errors.Silent)
    assert error.message == f"{at(there)} did not answer within 0.05 s"
    assert protocol.WATCH_TIMEOUT == 9.0


async def test_a_server_that_pings_is_not_lost_and_its_pings_are_not_told() -> None:
    quiet, ping = patience(0.3), patience(0.3) / 6
    async with scripted(stays(snapshot("1-1"), ping=ping)) as there:
        watcher = Watcher(knowing(at(there)), found()(), NEVER, silence=quiet)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5 * quiet):
                    await anext(changes)


async def test_a_fault_of_ours_with_one_server_ends_no_other(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    here = Server(name="odd", id="f" * 32, version="3", addresses=(HOST,))
    nowhere = here.model_copy(update={"port": 70_000})  # not checked: Python has no such port
    async with aclosing(Watcher(knowing(at_(bench)), found(nowhere)()).watch()) as changes:
        assert len(await devices(changes)) == 3
        await eventually(lambda: "odd cannot be followed" in caplog.text)
        bench.devices.pull("disk")
        assert len(await devices(changes)) == 2


async def test_a_lost_server_is_told_once_and_asked_until_it_is_back() -> None:
    acts = [says(snapshot("1-1")), hangs_up, hangs_up, hangs_up, stays(snapshot("1-2"))]
    async with scripted(*acts) as there:
        watcher = Watcher(knowing(at(there)), found()(), 0.01)
        async with aclosing(watcher.watch()) as changes:
            assert await devices(changes) == ["1-1"]
            assert "closed the connection" in (await lost(changes)).message
            assert await devices(changes) == ["1-2"]
    assert there.calls == 5
    assert {json.loads(request)["command"] for request in there.requests} == {"watch"}


async def test_a_lost_server_is_left_alone_for_a_while() -> None:
    async with scripted(says(snapshot("1-1"))) as there:
        watcher = Watcher(knowing(at(there)), found()(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            await lost(changes)
            await nothing_more(changes)
            assert there.calls == 1


async def test_how_long_a_server_is_lost_is_counted_anew_each_time() -> None:
    async def a_while(writer: asyncio.StreamWriter) -> None:
        writer.write(snapshot("1-2"))
        await asyncio.sleep(0.1)  # longer than `later` below

    async with scripted(says(snapshot("1-1")), a_while, stays(snapshot("1-3"))) as there:
        watcher = Watcher(knowing(at(there)), found()(), 0.01, later=((0.05, NEVER),))
        async with aclosing(watcher.watch()) as changes:
            for plugged in ("1-1", "1-2", "1-3"):
                assert await devices(changes) == [plugged]
                if plugged != "1-3":
                    await lost(changes)


async def test_a_server_that_is_lost_for_long_is_asked_more_seldom() -> None:
    async with scripted(says(snapshot("1-1")), hangs_up) as there:
        watcher = Watcher(knowing(at(there)), found()(), 0.1, later=((0.05, NEVER),))
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            await lost(changes)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3 * 0.1):
                    await anext(changes)
        assert there.calls == 2


async def test_each_loss_is_told() -> None:
    async with scripted(says(snapshot("1-1"))) as there:
        watcher = Watcher(knowing(at(there)), found()(), 0.01)
        async with aclosing(watcher.watch()) as changes:
            for _ in range(3):
                await devices(changes)
                await lost(changes)


async def test_a_server_that_hung_up_and_is_then_not_heard_of_is_told_once_more() -> None:
    """First it was stopped, then it lost its network; the agent treats the two differently."""
    async with scripted(says(snapshot("1-1")), mute) as there:
        config = knowing(at(there), timeout=0.05)
        async with aclosing(Watcher(config, found()(), 0.01).watch()) as changes:
            await devices(changes)
            assert not isinstance(await lost(changes), errors.Silent)
            assert isinstance(await lost(changes), errors.Silent)
            calls = there.calls
            await nothing_more(changes, lambda: there.calls > calls + 2)


async def test_a_server_that_was_silent_and_then_refuses_is_not_told_again() -> None:
    async with scripted(stays(snapshot("1-1")), hangs_up) as there:
        watcher = Watcher(knowing(at(there)), found()(), 0.01, silence=0.05)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            assert isinstance(await lost(changes), errors.Silent)
            await nothing_more(changes, lambda: there.calls > 3)


# -- who must be there, and who may well not be


async def test_a_configured_server_that_is_not_there_is_told_once() -> None:
    async with aclosing(Watcher(knowing("127.0.0.1:1"), found()(), 0.01).watch()) as changes:
        change = await next_of(changes)
        assert change.server.name == "127.0.0.1:1"
        assert isinstance(change.error, errors.Unreachable)
        await nothing_more(changes)


@pytest.mark.parametrize("act", [hangs_up, mute], ids=["hangs up", "mute"])
async def test_neither_this_machine_nor_a_range_nor_what_mdns_finds_must_be_there(
    act: Act,
) -> None:
    async with scripted(act) as there:
        by_mdns = there.server
        for config, brought in (
            ({"server_port": there.port}, found()),
            ({"server_ranges": ["127.0.0.1-1"], "server_port": there.port}, found()),
            ({"server_ranges": ["127.0.0.9-9"], "server_port": 1}, found(by_mdns)),
        ):
            calls = there.calls
            known = Config.model_validate({"timeout": 0.05, **config})
            watcher = Watcher(known, brought(), 0.01, never_heard=0.01)
            async with aclosing(watcher.watch()) as changes:
                await nothing_more(changes, lambda calls=calls: there.calls > calls + 2)


async def test_whoever_may_not_be_there_and_was_is_lost_when_it_goes() -> None:
    async with scripted(says(snapshot("1-1")), hangs_up) as there:
        config = Config(server_port=there.port)
        async with aclosing(Watcher(config, found()(), NEVER).watch()) as changes:
            await devices(changes)
            await lost(changes)


@pytest.mark.parametrize(
    ("host", "discovery", "told"),
    [
        ("127.0.0.1", True, True),  # an address is nobody's name
        ("::1", True, True),
        ("localhost", False, True),
        ("localhost", True, False),  # mDNS may bring it
    ],
)
async def test_only_a_mere_name_may_well_not_exist(host: str, discovery: bool, told: bool) -> None:
    config = Config(server_port=1, discovery=discovery)
    watcher = Watcher(config, Heard().servers(), NEVER, host=host)
    async with aclosing(watcher.watch()) as changes:
        if told:
            assert (await next_of(changes)).server.name == host
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(changes)


async def test_a_name_with_a_space_is_only_looked_for() -> None:
    config = Config(server_port=1)
    async with aclosing(Watcher(config, found()(), host="Lab Pi").watch()) as changes:
        assert [change async for change in changes] == [], "nobody to follow: it ends"


async def test_a_configured_name_is_followed_alone() -> None:
    async with scripted(stays(snapshot("1-1"))) as there:
        config = knowing("127.0.0.1:1", at(there))
        async with aclosing(Watcher(config, found()(), host=at(there)).watch()) as changes:
            assert await devices(changes) == ["1-1"]
            await nothing_more(changes)


async def test_of_two_that_are_meant_by_one_address_the_first_is_followed() -> None:
    """As `list --host` asks it."""
    async with scripted(stays(snapshot("1-1"))) as one, scripted(stays(snapshot("1-2"))) as two:
        config = knowing(at(one), at(two))
        async with aclosing(Watcher(config, found()(), NEVER, host=HOST).watch()) as changes:
            assert await devices(changes) == ["1-1"]
            await nothing_more(changes)
        assert two.calls == 0


async def test_a_server_of_a_range_is_followed_and_this_machine_is_not() -> None:
    async with scripted(stays(snapshot("1-1"))) as here:
        async with scripted(stays(snapshot("1-2")), host=LOCAL2, port=here.port):
            config = Config(server_ranges=["127.0.0.2-2"], server_port=here.port)
            async with aclosing(Watcher(config, found()(), NEVER).watch()) as changes:
                assert await devices(changes) == ["1-2"]
        assert here.calls == 0


async def test_a_server_that_is_configured_twice_is_followed_once() -> None:
    async with scripted(stays(snapshot("1-1"))) as there:
        ranges = ["127.0.0.1-1"]
        config = Config(servers=[at(there)], server_ranges=ranges, server_port=there.port)
        async with aclosing(Watcher(config, found()(), NEVER).watch()) as changes:
            change = await next_of(changes)
            assert change.server.name == at(there)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(changes)
        assert there.calls == 1


# -- what mDNS brings


async def test_a_lost_server_is_asked_at_once_when_mdns_hears_it() -> None:
    heard = Heard()
    async with scripted(says(snapshot("1-1")), stays(snapshot("1-2"))) as there:
        watcher = Watcher(knowing(at(there)), heard.servers(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            await lost(changes)
            heard.bring(there.server)
            assert await devices(changes) == ["1-2"]


async def test_another_server_that_mdns_hears_is_no_reason_to_ask_again() -> None:
    heard = Heard()
    async with scripted(says(snapshot("1-1"))) as there:
        watcher = Watcher(knowing(at(there)), heard.servers(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            await lost(changes)
            heard.bring(Server(id="9" * 32, name="other", addresses=(HOST,), port=1))
            await nothing_more(changes)
            assert there.calls == 1


async def test_a_server_that_is_followed_and_heard_again_is_not_connected_to_again() -> None:
    async with scripted(stays(snapshot("1-1"))) as there:
        heard = Heard(there.server)
        async with aclosing(Watcher(knowing(), heard.servers(), NEVER).watch()) as changes:
            await devices(changes)
            for _ in range(3):
                heard.bring(there.server)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(changes)
            assert there.calls == 1


async def test_that_mdns_has_heard_a_server_before_its_loss_is_no_reason_to_ask_again() -> None:
    ends = asyncio.Event()

    async def a_while(writer: asyncio.StreamWriter) -> None:
        writer.write(snapshot("1-1"))
        await ends.wait()

    async with scripted(a_while) as there, scripted(stays(snapshot("1-2"))) as other:
        heard = Heard(there.server)
        watcher = Watcher(knowing(), heard.servers(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            heard.bring(there.server)
            await eventually(watcher._heard[key_of(there.server)].is_set)
            ends.set()
            await lost(changes)
            heard.bring(other.server.model_copy(update={"id": "9" * 32}))
            assert await devices(changes) == ["1-2"]  # as long as it takes to ask
            assert there.calls == 1


@pytest.mark.parametrize("configured", [True, False])
async def test_a_server_that_has_moved_is_asked_where_mdns_hears_it(configured: bool) -> None:
    async with scripted(says(snapshot("1-1"))) as before:
        heard = Heard(before.server)
        names = [at(before)] if configured else []
        watcher = Watcher(knowing(*names), heard.servers(), NEVER)
        changes = watcher.watch()
        await devices(changes)
        await lost(changes)
        port = before.port
    async with aclosing(changes), scripted(stays(snapshot("1-2")), host=LOCAL2, port=port):
        heard.bring(before.server.model_copy(update={"addresses": (LOCAL2,)}))
        assert await devices(changes) == ["1-2"]


async def test_a_configured_server_is_asked_where_it_is_configured_wherever_else_it_is() -> None:
    heard = Heard()
    async with scripted(says(snapshot("1-1")), stays(snapshot("1-2"))) as there:
        watcher = Watcher(knowing(at(there)), heard.servers(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            await devices(changes)
            await lost(changes)
            heard.bring(there.server.model_copy(update={"addresses": (LOCAL2,)}))
            assert await devices(changes) == ["1-2"]


async def test_a_server_that_is_back_on_another_port_is_followed_by_the_entry_of_mdns() -> None:
    """The configured entry has its own port, and is asked there in vain."""
    heard = Heard()
    async with scripted(says(snapshot("1-1"))) as before:
        changes = Watcher(knowing(at(before)), heard.servers(), NEVER).watch()
        await devices(changes)
        await lost(changes)
    async with aclosing(changes), scripted(stays(snapshot("1-2"))) as after:
        heard.bring(after.server)
        assert await devices(changes) == ["1-2"]


async def test_a_server_by_two_entries_is_followed_by_the_first_that_answers() -> None:
    heard = Heard()
    async with scripted(stays(snapshot("1-1")), hangs_up, stays(snapshot("1-2"))) as there:
        watcher = Watcher(knowing(at(there)), heard.servers(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            assert await devices(changes) == ["1-1"]
            heard.bring(there.server)
            await nothing_more(changes, lambda: there.calls == 2)


async def test_the_entry_that_mdns_brought_is_followed_again_when_the_other_is_lost() -> None:
    heard = Heard()
    async with scripted(stays(snapshot("1-1")), stays(snapshot("1-2"))) as there:
        watcher = Watcher(knowing(), heard.servers(), NEVER, silence=patience(0.2))
        async with aclosing(watcher.watch()) as changes:
            heard.bring(there.server)
            assert await devices(changes) == ["1-1"]
            await lost(changes)
            heard.bring(there.server)
            assert await devices(changes) == ["1-2"]


async def test_two_servers_without_an_id_are_two() -> None:
    infos = [INFO.model_copy(update={"id": id * 32}) for id in "12"]
    acts = [stays(snapshot(f"1-{n}", info=info)) for n, info in enumerate(infos, 1)]
    async with scripted(acts[0]) as one, scripted(acts[1]) as two:
        both = [
            there.server.model_copy(update={"id": None, "name": name})
            for there, name in ((one, "one"), (two, "two"))
        ]
        async with aclosing(Watcher(knowing(), Heard(*both).servers()).watch()) as changes:
            told = [await devices(changes), await devices(changes)]
    assert sorted(told) == [["1-1"], ["1-2"]]


async def test_a_server_that_mdns_hears_while_we_connect_is_connected_to_anew() -> None:
    """What was sent while it was away is lost, and TCP sends that again only seconds later."""
    heard = Heard()
    with _full() as (listening, waiting):
        port = listening.getsockname()[1]
        server = Server(id=ID, name="away", addresses=(HOST,), port=port)
        heard.bring(server)
        watcher = Watcher(knowing(timeout=patience(60)), heard.servers(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            coming = asyncio.ensure_future(anext(changes))
            await eventually(lambda: _connecting(port))
            (first,) = _connecting(port)
            for one in waiting:
                one.close()
                listening.accept()[0].close()
            heard.bring(server)
            listening.setblocking(False)
            async with asyncio.timeout(patience(10)):
                accepted, ours = await asyncio.get_running_loop().sock_accept(listening)
            accepted.close()
            assert first != _hexadecimal(ours)
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


@contextlib.contextmanager
def _full() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A server that lets in two and hears no more."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen(0)
        waiting = [socket.create_connection(listening.getsockname()) for _ in range(1)]
        yield listening, waiting
        for one in waiting:
            one.close()


def _hexadecimal(address: tuple[str, int]) -> str:
    (packed,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{packed:08X}:{address[1]:04X}"


def _connecting(port: int) -> set[str]:
    """Our ends of connections to this port that are not answered (proc(5))."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {w[1] for w in lines if w[2].endswith(f":{port:04X}") and w[3] == "02"}


# -- 2.x


REJECTION = b'{"status":"error","message":"Invalid request: v"}'


def legacy_list(*serials: str) -> bytes:
    listed = [
        {
            "bus_id": f"1-{number}", "vendor_id": "0403", "product_id": "6001", "bus": 1,
            "port_numbers": [1], "device_name": "/dev/bus/usb/001/002", "serial": serial,
            "description": "adapter",
        }
        for number, serial in enumerate(serials, 1)
    ]  # fmt: skip
    return json.dumps({"status": "success", "data": listed}).encode()


async def test_a_2x_server_is_asked_again_and_again_and_told_when_it_has_changed() -> None:
    one, two = says(legacy_list("A")), says(legacy_list("A", "B"))
    rejects = says(REJECTION)
    # of each look the first request is rejected, and put again in the words of 2.x
    acts = [rejects, *[rejects, one] * 3, rejects, two]
    async with scripted(*acts) as there:
        watcher = Watcher(knowing(at(there)), found()(), NEVER, legacy_interval=0.01)
        async with aclosing(watcher.watch()) as changes:
            assert await devices(changes) == ["1-1"]
            async with asyncio.timeout(patience(3)):
                assert await devices(changes) == ["1-1", "1-2"]
            assert there.calls == len(acts)


async def test_a_2x_server_is_left_alone_between_two_looks() -> None:
    acts = [says(REJECTION), says(REJECTION), *[says(legacy_list("A"))] * 9]
    async with scripted(*acts) as there, scripted(stays(snapshot("1-2"))) as other:
        heard = Heard()
        watcher = Watcher(knowing(at(there)), heard.servers(), NEVER, legacy_interval=NEVER)
        async with aclosing(watcher.watch()) as changes:
            assert await devices(changes) == ["1-1"]
            heard.bring(other.server)
            assert await devices(changes) == ["1-2"]  # as long as it takes to ask
            assert there.calls == 3


async def test_a_2x_server_that_goes_is_lost() -> None:
    acts = [says(REJECTION), says(REJECTION), says(legacy_list("A")), hangs_up]
    async with scripted(*acts) as there:
        watcher = Watcher(knowing(at(there)), found()(), NEVER, legacy_interval=0.01)
        async with aclosing(watcher.watch()) as changes:
            assert await devices(changes) == ["1-1"]
            await lost(changes)


async def test_what_else_a_server_refuses_is_its_loss() -> None:
    refusal = replies.failure(errors.Refused("not for you"), legacy=False)
    async with scripted(says(refusal)) as there:
        watcher = Watcher(knowing(at(there)), found()(), NEVER)
        async with aclosing(watcher.watch()) as changes:
            assert (await lost(changes)).message == "not for you"
            await nothing_more(changes)
    assert there.calls == 1


# -- how often one is asked that is lost


PI = Server(name="pi", id="1" * 32, version="3", addresses=("pi",))
TOM = Server(name="tom", id="2" * 32, version="3", addresses=("tom",))


@pytest.mark.parametrize(
    ("lost_for", "named", "met"),
    [
        (0, 2, 2), (60, 2, 2), (60.1, 5, 5), (600, 5, 5), (600.1, 15, 15), (3600, 15, 15),
        (3600.1, 15, 300),
    ],
)  # fmt: skip
def test_the_longer_a_server_is_lost_the_more_seldom_it_is_asked(
    lost_for: float, named: float, met: float
) -> None:
    watcher = Watcher(knowing("pi"), found()())
    assert watcher._pause(PI, lost_for) == named
    assert watcher._pause(TOM, lost_for) == met
    assert Watcher(knowing(), found()(), host="tom")._pause(TOM, lost_for) == named


def test_where_nobody_has_ever_answered_is_asked_once_a_minute() -> None:
    nobody = Server(name="", addresses=(HOST,))
    watcher = Watcher(knowing("pi"), found()())
    assert watcher._pause(nobody, 0) == 60
    assert watcher._pause(nobody, 5000) == 60
    assert watcher._pause(nobody.model_copy(update={"name": "pi"}), 0) == 2
    assert watcher._pause(nobody.model_copy(update={"version": "3"}), 0) == 2
    assert watcher._pause(nobody.model_copy(update={"id": "1"}), 0) == 2
    assert Watcher(knowing(), found()(), 100)._pause(nobody, 0) == 100


def test_a_server_is_known_by_its_id_and_one_of_2x_by_its_name() -> None:
    assert key_of(PI) == PI.id
    assert key_of(PI.model_copy(update={"id": None})) == "pi"


# -- the end


async def test_an_error_that_nobody_has_thought_of_ends_the_watch() -> None:
    async def broken() -> AsyncIterator[Server]:
        raise RuntimeError("a bug")
        yield

    async with aclosing(Watcher(knowing("127.0.0.1:1"), broken(), NEVER).watch()) as changes:
        with pytest.raises(ExceptionGroup) as caught:
            await next_of(changes)
    assert caught.group_contains(RuntimeError, match="a bug")
