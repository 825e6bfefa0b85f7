"""The control protocol over real loopback sockets: what is said, and what bad input cannot do."""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.patience import patience
from tests.serving import HOST, Running, running_server
from tests.talking import PING, Deaf, talk
from tests.waiting import eventually
from usb_remote import errors, protocol, replies
from usb_remote.control import Complaints, Limits
from usb_remote.values import BusId
from usb_remote.virtual import KINDS, VirtualDevices


async def test_a_list_of_2x_has_exactly_the_keys_of_2x(bench: Running) -> None:
    async with talk(bench) as line:
        reply = await line.ask(b'{"command":"list"}')
    assert set(reply) == {"status", "data"}
    assert [d["bus_id"] for d in reply["data"]] == ["1-1", "1-2", "1-3"]
    assert set(reply["data"][0]) == {
        "bus_id", "vendor_id", "product_id", "bus", "port_numbers", "device_name", "serial",
        "description",
    }  # fmt: skip


async def test_our_list_says_more(bench: Running) -> None:
    async with talk(bench) as line:
        reply = await line.ask(b'{"command":"list","v":1}\n')
    assert reply["server"]["name"] == "bench"
    assert reply["revision"] == 1
    assert reply["data"][0]["state"] == "available"


async def test_a_plug_is_told_at_once_also_right_after_an_attach() -> None:
    """What udev says of our own bindings waits; here for ever."""
    async with (
        running_server("serial", echo=float("inf")) as bench,
        talk(bench) as watch,
        talk(bench) as line,
    ):
        await watch.say(b'{"command":"watch","v":1}\n')
        await line.ask(b'{"command":"attach","v":1,"bus":"1-1"}\n')
        while (await watch.hear())["data"][0]["state"] != "in_use":
            pass
        bench.devices.plug("keyboard")
        while len((await watch.hear())["data"]) < 2:
            pass


class Echoing(VirtualDevices):
    """A bus whose bindings are heard of, as udev tells them; each brings a device to light."""

    def __init__(self, *kinds: str) -> None:
        self.has_moved = False
        self.heard = 0
        super().__init__(*kinds)

    async def bind(self, bus_id: BusId) -> None:
        await super().bind(bus_id)
        self.plug("disk")
        self.has_moved = False

    def drain(self) -> bool:
        super().drain()
        self.heard += 1
        return self.has_moved


@pytest.mark.parametrize("echo", [3600.0, 0.05], ids=["later", "soon"])
async def test_what_a_binding_of_our_own_brings_is_looked_at_after_a_while(echo: float) -> None:
    async with (
        running_server("serial", bus=Echoing, echo=echo) as bench,
        talk(bench) as line,
    ):
        devices = bench.devices
        assert isinstance(devices, Echoing)
        await eventually(lambda: devices.heard == 1)
        await line.ask(b'{"command":"attach","v":1,"bus":"1-1"}\n')
        await eventually(lambda: devices.heard == 2)
        if echo > 1:
            assert len(bench.control.snapshot.devices) == 1
            later = bench.control._later
            devices._changed()
            await eventually(lambda: devices.heard == 3)
            assert later is not None
            assert bench.control._later is later, "once for all that comes meanwhile"
        else:
            await eventually(lambda: len(bench.control.snapshot.devices) == 2)
            assert bench.control._later is None


async def test_a_server_that_stops_ends_what_waits_and_answers_the_rest() -> None:
    """While a device is being reset, say: its lease is taken."""
    async with (
        running_server("serial", "disk") as bench,
        talk(bench) as ann,
        talk(bench) as bob,
    ):
        waits, disk = (bench.leases._lease(BusId(place)) for place in ("1-1", "1-2"))
        async with waits.lock:
            async with disk.lock:
                await bob.say(b'{"command":"attach","v":1,"bus":"1-1","wait":0}\n')
                await ann.say(b'{"command":"attach","v":1,"bus":"1-2"}\n')
                await eventually(lambda: len(bench.control._tasks) == 2)
                stopping = asyncio.create_task(bench.control.stop())
                await eventually(lambda: len(bench.control._tasks) == 1)
            async with asyncio.timeout(patience(20)):
                await stopping
        assert waits.holder is None
        assert disk.holder is not None


async def test_a_server_that_has_stopped_hears_of_no_plug(quick: Running) -> None:
    before = quick.control.snapshot
    await quick.control.stop()
    quick.devices.pull("disk")
    for _ in range(5):
        await asyncio.sleep(0)
    assert quick.control.snapshot is before


async def test_info(bench: Running) -> None:
    async with talk(bench) as line:
        before = datetime.now(UTC)
        reply = await line.ask(b'{"command":"info","v":1}\n')
        older = await line.ask(b'{"command":"info"}\n')
    now = datetime.fromisoformat(reply["data"].pop("now"))
    assert before <= now <= datetime.now(UTC)
    assert reply["data"] == older["data"] == {
        "id": bench.control.info.id, "name": "bench", "version": "3", "protocol": 1,
        "usbip_port": bench.exporter.port,
    }  # fmt: skip


async def test_requests_follow_each_other_in_order(bench: Running) -> None:
    async with talk(bench) as line:
        await line.say(b'{"command":"attach","bus":"1-1","v":1}\n{"command":"info","v":1}\n' * 3)
        for _ in range(3):
            assert (await line.hear())["data"]["bus_id"] == "1-1"
            assert (await line.hear())["data"]["name"] == "bench"


async def test_find_tells_nothing_and_several_apart(bench: Running) -> None:
    async with talk(bench) as line:
        assert (await line.ask(b'{"command":"find","bus":"9-9"}'))["status"] == "not_found"
        several = await line.ask(b'{"command":"find","id":"1209:*"}')
        assert several["status"] == "multiple_matches"
        assert several["message"].count("\n  - ") == 3
        first = await line.ask(b'{"command":"find","id":"1209:*","first":true}')
        assert first["data"]["bus_id"] == "1-1"


async def test_a_watch_starts_with_everything_and_follows_each_change(bench: Running) -> None:
    async with talk(bench) as line:
        start = await line.ask(b'{"command":"watch","v":1}\n')
        assert (start["event"], start["revision"], len(start["data"])) == ("snapshot", 1, 3)
        bench.devices.pull("disk")
        assert [d["bus_id"] for d in (await line.hear())["data"]] == ["1-1", "1-3"]
        bench.devices.plug("disk")
        again = await line.hear()
        assert (again["revision"], len(again["data"])) == (3, 3)
        assert again["data"][1]["devnum"] > start["data"][1]["devnum"]


async def test_a_quiet_watch_pings() -> None:
    async with running_server("disk", ping=0.05) as bench, talk(bench) as line:
        await line.ask(b'{"command":"watch","v":1}\n')
        assert await line.hear_any() == PING


async def test_a_half_closed_client_still_gets_its_answer(bench: Running) -> None:
    async with talk(bench) as line:
        line.writer.write(b'{"command":"attach","bus":"1-1"}')
        line.writer.write_eof()
        assert (await line.hear())["status"] == "success"
        assert await line.at_end()


# -- bad input ----------------------------------------------------------------------------------

BAD = [
    b"hello\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"{not json}\n",
    b'{"command":"list"\n',
    b"[" * 100 + b"\n",
    b'{"a":' * 100,
    b'{"command":"list","colour":"red"}\n',
    b'{"command":"fly"}\n',
    b'{"command":7}\n',
    b'{"command":"find","id":["x"]}\n',
    b'{"command":"\xff\xfe"}\n',
    b"\xff\xfe\n",
    b"\x00" * 100 + b"\n",
    b'{"command":"list","v":99}\n',
    b'{"command":"attach","bus":"../../x"}\n',
    b'{"command":"attach","bus":"-r evil"}\n',
    b'{"command":"attach","bus":"' + b"9" * 300 + b'"}\n',
]


@pytest.mark.parametrize("data", BAD)
async def test_bad_input_gets_one_clear_error_and_disturbs_nobody(
    bench: Running, data: bytes
) -> None:
    async with talk(bench) as watcher, talk(bench) as line:
        await watcher.ask(b'{"command":"watch","v":1}\n')
        reply = await line.ask(data)
        assert reply["status"] in ("error", "not_found")
        assert reply["message"].isprintable()
        bench.devices.pull("disk")
        assert len((await watcher.hear())["data"]) == 2


WATCH = b'{"command":"watch","v":1}\n'
REJECTED = [b"[" * 17, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b'{"a":' * 17]


@pytest.mark.parametrize("nonsense", REJECTED)
async def test_a_watcher_that_is_rejected_silences_nobody_but_itself(nonsense: bytes) -> None:
    async with (
        running_server(*KINDS, ping=0.1) as bench,
        talk(bench) as watcher,
        talk(bench) as enemy,
        talk(bench) as other,
    ):
        await watcher.ask(WATCH)
        await enemy.ask(WATCH)
        assert (await enemy.ask(nonsense))["status"] == "error"
        bench.devices.pull("disk")
        assert len((await watcher.hear())["data"]) == 2
        assert await watcher.hear_any() == PING
        bench.devices.pull("serial")
        assert len((await watcher.hear())["data"]) == 1
        assert (await other.ask(b'{"command":"attach","bus":"1-3"}'))["status"] == "success"
        assert await enemy.at_end()


async def test_watchers_that_are_rejected_and_close_at_once_leave_nothing(bench: Running) -> None:
    for _ in range(50):
        with socket.create_connection((HOST, bench.control.port)) as enemy:
            enemy.sendall(WATCH + b"[" * 17)
    await eventually(lambda: not bench.control._connections)
    assert not bench.control._watchers


async def test_a_watcher_that_is_rejected_and_stays_is_closed() -> None:
    async with (
        running_server(limits=Limits(linger_seconds=0.1)) as bench,
        talk(bench) as enemy,
    ):
        await enemy.say(WATCH + b"[" * 17)
        await eventually(lambda: not bench.control._watchers)
        await eventually(lambda: not bench.control._connections)


BODY = b'{"command":"name","bus":"1-1","name":"mine","v":1}\n'


async def test_a_form_that_a_browser_posts_does_nothing_and_is_logged_once(
    bench: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    head = b"POST / HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for _ in range(5):
        async with talk(bench) as browser:
            reply = await browser.ask(head % len(BODY) + BODY)
            assert reply["message"].startswith("not a JSON object")
            assert await browser.at_end()
    assert [device.name for device in bench.control.snapshot.devices] == [None] * 3
    assert caplog.text.count("which is no client") == 1


async def test_what_was_not_logged_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    complaints = Complaints(every=60)
    for now in (0.0, 1.0, 59.9, 60.0, 61.0):
        complaints.note("10.0.0.9", errors.InvalidRequest("not a JSON object"), now)
    assert len(caplog.messages) == 2
    assert "10.0.0.9" in caplog.messages[0]
    assert "2 more" in caplog.messages[1]


async def test_a_mistake_does_not_end_the_connection(bench: Running) -> None:
    async with talk(bench) as line:
        assert (await line.ask(b'{"command":"fly","v":1}\n'))["code"] == "invalid_request"
        assert (await line.ask(b'{"command":"info","v":1}\n'))["status"] == "success"


async def test_ten_megabytes_without_newline_get_an_error_line(bench: Running) -> None:
    async with talk(bench) as line:
        writing = asyncio.create_task(line.say(b'{"command":"' + b"x" * 10_000_000))
        assert "longer than" in (await line.hear())["message"]
        await writing
        line.writer.write_eof()
        assert await line.at_end()


async def test_half_a_request_then_silence() -> None:
    limits = Limits(request_timeout=0.2)
    async with running_server(limits=limits) as bench, talk(bench) as line:
        reply = await line.ask(b'{"command":"li')
        assert "no complete request" in reply["message"]
        assert await line.at_end()


async def test_half_a_request_then_the_end(bench: Running) -> None:
    async with talk(bench) as line:
        line.writer.write(b'{"command":"li')
        line.writer.write_eof()
        assert "incomplete" in (await line.hear())["message"]


async def test_an_ipv6_listener_takes_no_ipv4_so_that_addresses_are_plain(bench: Running) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    await bench.control._listen(asyncio.get_running_loop(), "::")
    listener = bench.control._servers[-1].sockets[0]
    assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


async def test_a_thousand_idle_connections(bench: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    address = (HOST, bench.control.port)
    idle = await asyncio.to_thread(lambda: [socket.create_connection(address) for _ in range(1000)])
    try:
        async with talk(bench) as line:
            assert (await line.ask(b'{"command":"list"}'))["status"] == "success"
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_beyond_the_limit_the_longest_idle_gives_way() -> None:
    limits = Limits(connections_per_address=3)
    async with (
        running_server("disk", limits=limits) as bench,
        talk(bench) as watcher,
        talk(bench) as first,
        talk(bench) as second,
    ):
        await watcher.ask(b'{"command":"watch","v":1}\n')
        async with talk(bench) as newest:
            assert (await newest.ask(b'{"command":"info"}'))["status"] == "success"
            assert await first.at_end()
            assert (await second.ask(b'{"command":"info"}'))["status"] == "success"
            bench.devices.pull("disk")
            assert (await watcher.hear())["data"] == []


async def test_a_watcher_that_never_reads_costs_bounded_memory_and_delays_nobody() -> None:
    limits = Limits(unread_bytes=4096)
    async with (
        running_server(*KINDS, limits=limits) as bench,
        talk(bench) as watcher,
        Deaf(bench, WATCH) as deaf,
    ):
        await watcher.ask(WATCH)
        await eventually(lambda: len(bench.control._watchers) == 2)
        for number in range(300):
            bench.devices.pull("disk")
            bench.devices.plug("disk")
            bench.control.refresh()
            if number % 50 == 49:  # or this one would not read, either
                newest = bench.control.snapshot.revision
                while (await watcher.hear()).get("revision") != newest:
                    pass
        assert bench.control.snapshot.revision > 300
        assert deaf.connection in bench.control._watchers
        pending = [c._transport.get_write_buffer_size() for c in bench.control._watchers]
        assert len(pending) == 2
        assert max(pending) < 100_000


class Flood(Deaf):
    """Says its request again and again."""

    ROOM = 16384

    def __init__(self, bench: Running, request: bytes, first: bytes = b"") -> None:
        super().__init__(bench, first)
        self.again = request
        self.sent = 0
        self._left = b""

    def send(self) -> None:
        """As much as the server takes."""
        with suppress(BlockingIOError):
            while True:
                self._left = self._left or self.again * 1000
                count = self.socket.send(self._left)
                self.sent, self._left = self.sent + count, self._left[count:]

    async def read_to_the_end(self, last: bytes) -> bytes:
        """Say the rest, and this, and read everything."""
        loop = asyncio.get_running_loop()
        left = len(self._left) % len(self.again)
        self.sent += left
        rest = self.again[-left:] if left else b""
        saying = asyncio.create_task(loop.sock_sendall(self.socket, rest + last))
        saying.add_done_callback(lambda _: self.socket.shutdown(socket.SHUT_WR))
        answers = bytearray()
        async with asyncio.timeout(patience(20)):
            while part := await loop.sock_recv(self.socket, 1 << 20):
                answers += part
        await saying
        return bytes(answers)


@pytest.mark.parametrize("first", [b"", WATCH])
@pytest.mark.parametrize("request_", [b'{"command":"history"}', b'{"command":"list"}', b"{}"])
async def test_who_asks_and_never_reads_costs_bounded_memory_and_delays_nobody(
    first: bytes, request_: bytes
) -> None:
    limits = Limits(unread_bytes=4096)
    async with running_server(*KINDS, limits=limits) as bench, talk(bench) as line:
        for _ in range(25):
            bench.devices.pull("disk")
            bench.control.refresh()
            bench.devices.plug("disk")
            bench.control.refresh()
        async with Flood(bench, request_, first) as flood:
            since_full = 0
            while since_full < 20:
                flood.send()
                assert (await line.ask(b'{"command":"info"}'))["status"] == "success"
                since_full += flood.connection._full
            assert flood.connection._transport.get_write_buffer_size() < 200_000
            assert not flood.connection._transport.is_reading()
            assert len(flood.connection._framer.rest) < 100_000


@pytest.mark.parametrize(("last", "said"), [(b"", []), (b'{"command":', ["incomplete"])])
async def test_who_reads_late_gets_every_answer(last: bytes, said: list[str]) -> None:
    async with running_server(*KINDS, limits=Limits(unread_bytes=65536)) as bench:
        async with Flood(bench, b'{"command":"list","v":1}\n') as flood:
            while not flood.connection._full:
                flood.send()
                await asyncio.sleep(0)
            lines = (await flood.read_to_the_end(last)).splitlines()
        assert len(lines) == flood.sent / len(flood.again) + len(said)
        assert lines[0] == lines[-1 - len(said)]
        assert all(word.encode() in lines[-1] for word in said)


async def test_a_mistake_is_answered_after_what_came_before_it(bench: Running) -> None:
    async with talk(bench) as line:
        await line.say(b'{"command":"attach","bus":"1-1"}{"command":"info"}oops')
        assert (await line.hear())["data"]["bus_id"] == "1-1"
        assert (await line.hear())["data"]["name"] == "bench"
        assert "not a JSON object" in (await line.hear())["message"]


async def test_the_history_of_now_is_told(bench: Running) -> None:
    async with talk(bench) as line:
        for count in range(3):
            assert len((await line.ask(b'{"command":"history"}'))["data"]) == count
            bench.devices.pull(KINDS[count])
            await eventually(lambda count=count: len(bench.history.events) > count)


async def test_hostile_device_strings_travel_as_one_printable_line(bench: Running) -> None:
    (device, *_) = bench.devices.list_devices()
    hostile = type(device)(**{**device.model_dump(), "description": "\x1b[31m\n" + "A" * 65536})
    line = protocol.encode({"data": replies.device_json(hostile)})
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    assert len(line) < 2000
