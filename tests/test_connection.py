"""One connection to a server: what goes wrong on the way, who answers, what 2.x is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.patience import patience
from tests.serving import HOST, Running
from usb_remote import agent_protocol, errors, protocol
from usb_remote.addresses import _notice_death, open_first, resolve
from usb_remote.connection import (
    AgentConnection,
    Connection,
    connect,
    connect_agent,
    list_devices,
)
from usb_remote.framing import RequestFramer
from usb_remote.model import Server

OTHER = "127.0.0.2"
NEVER = 3600.0
DATA = Path(__file__).parent / "data" / "2x"
REJECTION = (DATA / "unknown-key.reply").read_bytes()


class Scripted:
    """A server that has these answers, one for each request, whoever asks; then it hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self.heard: list[dict[str, object]] = []
        self.asked_at: list[str] = []
        self._answers = list(answers)

    @contextlib.asynccontextmanager
    async def listening(self, *addresses: str) -> AsyncIterator[Server]:
        addresses = addresses or (HOST,)
        before = asyncio.all_tasks()
        server = await asyncio.start_server(self._serve, addresses[0], 0)
        port = server.sockets[0].getsockname()[1]
        more = [await asyncio.start_server(self._serve, a, port) for a in addresses[1:]]
        try:
            yield Server(name="pi", addresses=addresses, port=port)
        finally:
            for one in (server, *more):
                one.close()
            while left := asyncio.all_tasks() - before:  # each ends when its client has gone
                await asyncio.wait(left)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        framer = RequestFramer()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                framer.feed(data)
                while line := framer.take():
                    self.heard.append(json.loads(line))
                    self.asked_at.append(writer.get_extra_info("sockname")[0])
                    if not self._answers:
                        writer.close()
                        return
                    writer.write(self._answers.pop(0))
        writer.close()


def success(number: int) -> bytes:
    return protocol.encode({"status": "success", "data": {"number": number}})


async def ask(server: Server, request: protocol.Request, seconds: float = 20.0) -> object:
    async with await connect(server, patience(seconds)) as connection:
        return (await connection.request(request)).data


async def test_a_connection_that_is_reset_as_soon_as_it_stands_is_lost_and_nothing_else() -> None:
    """The reset may come before the connection has been handed out, or after."""

    def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    async with await asyncio.start_server(reset, HOST, 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        server = Server(name="hasty", addresses=(HOST,) * 4, port=port)
        for _ in range(50):
            with pytest.raises(errors.Unreachable):
                await ask(server, protocol.InfoRequest())


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "\udcff", ""])
async def test_a_name_that_cannot_be_one_has_no_address(name: str) -> None:
    async with asyncio.timeout(patience(20)):
        assert await resolve(name) == []


async def test_what_is_closed_has_no_socket_any_more(bench: Running) -> None:
    async with await connect(bench.server, patience(20)) as connection:
        await connection.request(protocol.InfoRequest())
        ours = connection._writer.get_extra_info("socket")
        assert ours.fileno() >= 0
    assert ours.fileno() < 0


async def test_a_connection_that_is_over_before_it_is_handed_out_is_lost() -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), HOST, 0) as listening:
        _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.transport.abort()
        await asyncio.sleep(0)  # its socket is closed now
        with pytest.raises(ConnectionResetError):
            _notice_death(writer, 1.0)


# -- how a connection is opened -----------------------------------------------------------------


async def test_the_first_of_several_addresses_has_a_head_start() -> None:
    async with Scripted().listening(OTHER, HOST) as server:
        for order in ((OTHER, HOST), (HOST, OTHER)):
            asked = server.model_copy(update={"addresses": order})
            for _ in range(5):
                opened = await open_first(asked, patience(10), head_start=NEVER)
                assert opened.address == order[0]
                opened.writer.close()
                await opened.writer.wait_closed()


async def test_of_addresses_that_answer_at_once_one_is_kept_and_the_others_are_closed() -> None:
    async with Scripted().listening(OTHER, HOST) as server:
        for _ in range(10):  # nothing_leaks looks at the end
            opened = await open_first(server, patience(10), head_start=0)
            opened.writer.close()
            await opened.writer.wait_closed()


async def test_only_the_address_that_is_asked_for_is_tried(bench: Running) -> None:
    async with await connect(bench.server, patience(10), only=HOST) as connection:
        assert connection.address == HOST
    with pytest.raises(errors.Unreachable, match="connection refused"):
        await connect(bench.server, patience(10), only=OTHER)


async def test_a_connection_notices_in_its_time_that_nobody_acknowledges(bench: Running) -> None:
    opened = await open_first(bench.server, 7.5)
    connection = opened.writer.get_extra_info("socket")
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500
    opened.writer.close()
    await opened.writer.wait_closed()


async def test_nobody_who_listens_is_no_silence(bench: Running) -> None:
    gone = bench.server.model_copy(update={"port": 1})
    with pytest.raises(errors.Unreachable, match=r"bench: connection refused \(TCP port 1\)") as e:
        await connect(gone, patience(10))
    assert not isinstance(e.value, errors.Silent)
    assert "server` running there" in (e.value.hint or "")


async def test_a_network_that_is_not_there_is_silence(bench: Running) -> None:
    """To connect to a group of multicast is refused by our own kernel, with ENETUNREACH."""
    far = bench.server.model_copy(update={"addresses": ("224.0.0.1",)})
    with pytest.raises(errors.Silent, match="network is unreachable"):
        await connect(far, patience(10))


async def test_a_name_that_is_none_is_said_to_be_wrong(bench: Running) -> None:
    wrong = bench.server.model_copy(update={"addresses": ("x" * 70,)})
    with pytest.raises(errors.Unreachable, match="no such host") as caught:
        await connect(wrong, patience(10))
    assert not isinstance(caught.value, errors.Silent)
    assert "is the name right?" in (caught.value.hint or "")


async def test_who_does_not_even_accept_is_silent() -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(4):  # the kernel drops what comes when the queue is full
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        server = Server(name="pi", addresses=(HOST,), port=full.getsockname()[1])
        with pytest.raises(errors.Silent, match=r"pi did not answer within 0.1 s \(TCP port"):
            await connect(server, 0.1)


# -- how it ends --------------------------------------------------------------------------------

SILENT = ["ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN", "ENETDOWN"]
HUNG_UP = ["ECONNRESET", "EPIPE", "ECONNABORTED"]


@pytest.mark.parametrize("name", SILENT + HUNG_UP)
@pytest.mark.parametrize("when", ["before", "while it waits"])
async def test_a_connection_that_breaks_says_whether_the_way_or_the_server_has_gone(
    name: str, when: str
) -> None:
    number = getattr(errno, name)
    error = OSError(number, os.strerror(number))
    async with Scripted(b"").listening() as server:
        opened = await open_first(server, patience(10))
        async with Connection(server, *opened, timeout=patience(10)) as connection:
            if when == "before":
                opened.reader.set_exception(error)
            else:
                asyncio.get_running_loop().call_later(0.01, opened.reader.set_exception, error)
            with pytest.raises(errors.Unreachable, match="connection to pi lost: ") as caught:
                await connection.request(protocol.InfoRequest())
            assert isinstance(caught.value, errors.Silent) == (name in SILENT)
            assert connection.hung_up == (name in HUNG_UP)


async def test_who_hangs_up_instead_of_answering_may_not_let_us_in() -> None:
    async with Scripted().listening() as server:
        with pytest.raises(errors.Unreachable, match="pi closed the connection") as caught:
            await ask(server, protocol.InfoRequest())
    assert not isinstance(caught.value, errors.Silent)
    assert "allow_from" in (caught.value.hint or "")


async def test_who_does_not_answer_is_silent() -> None:
    async with Scripted(b"").listening() as server, await connect(server, 0.1) as connection:
        with pytest.raises(errors.Silent, match=r"pi did not answer within 0\.1 s"):
            await connection.request(protocol.InfoRequest())
        assert not connection.hung_up


async def test_an_answer_without_end_is_given_up() -> None:
    async with Scripted(b"x" * 1000).listening() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port, limit=64)
        async with Connection(server, HOST, reader, writer, patience(10)) as connection:
            with pytest.raises(errors.InvalidReply, match="pi answers more than 16777216 bytes"):
                await connection.request(protocol.InfoRequest())


async def test_a_watch_of_a_mute_server_ends() -> None:
    snapshot = protocol.encode({"event": "snapshot", "revision": 1, "data": []})
    async with (
        Scripted(snapshot).listening() as server,
        await connect(server, patience(10)) as connection,
    ):
        watching = connection.watch(silence=0.05)
        assert (await anext(watching)).event == "snapshot"
        with pytest.raises(errors.Silent, match=r"did not answer within 0\.05 s"):
            await anext(watching)


# -- who answers --------------------------------------------------------------------------------


async def test_another_server_at_the_address_is_not_taken_for_ours(bench: Running) -> None:
    other = bench.server.model_copy(update={"id": "f" * 32})
    async with await connect(other, patience(10)) as connection:
        with pytest.raises(errors.Unreachable, match=f"bench: another server answers at {HOST}"):
            await list_devices(connection)


async def test_the_server_that_is_meant_is_listed_also_when_its_id_is_not_known_yet(
    bench: Running,
) -> None:
    for known in (bench.control.info.id, None):
        server = bench.server.model_copy(update={"id": known})
        async with await connect(server, patience(10)) as connection:
            listing = await list_devices(connection)
        assert listing.server.id == bench.control.info.id
        assert len(listing.snapshot.devices) == 3


# -- servers of 2.x -----------------------------------------------------------------------------

UNKNOWN_TO_2X = [
    protocol.ReleaseRequest(bus="1-1"),
    protocol.NameRequest(bus="1-1", name="x"),
    protocol.HistoryRequest(),
    protocol.InfoRequest(),
    protocol.WatchRequest(),
    protocol.AttachRequest(bus="1-1", wait=1),
    protocol.AttachRequest(bus="1-1", wait=0),
    protocol.AttachRequest(bus="1-1", duration=1),
    protocol.AttachRequest(bus="1-1", force=True),
]
KNOWN_TO_2X = [
    protocol.ListRequest(),
    protocol.DeviceRequest(command="find", bus="1-1"),
    protocol.DeviceRequest(command="detach", bus="1-1"),
    protocol.AttachRequest(bus="1-1"),
]


@pytest.mark.parametrize("request_", UNKNOWN_TO_2X, ids=lambda r: protocol.request_line(r).decode())
async def test_a_2x_server_is_not_asked_for_what_it_cannot_do(request_: protocol.Request) -> None:
    script = Scripted(REJECTION, success(2))
    async with script.listening() as server:
        with pytest.raises(errors.Refused, match=r"pi is usb-remote 2\.x and cannot do that"):
            await ask(server, request_)
    assert len(script.heard) == 1


@pytest.mark.parametrize("request_", KNOWN_TO_2X, ids=lambda r: r.command)
async def test_a_2x_server_is_asked_again_in_its_words_where_it_answered(
    request_: protocol.Request,
) -> None:
    script = Scripted(REJECTION, success(2))
    async with script.listening(OTHER, HOST) as server:
        turned = server.model_copy(update={"addresses": (HOST, OTHER)})
        opened = await open_first(turned, patience(10), only=OTHER)
        async with Connection(turned, *opened, timeout=patience(10)) as connection:
            assert (await connection.request(request_)).data == {"number": 2}
    first, again = script.heard
    assert (first["v"], first["command"]) == (1, request_.command)
    assert "v" not in again
    assert again["command"] == request_.command
    assert script.asked_at == [OTHER, OTHER]


async def test_what_a_server_refuses_is_not_asked_again() -> None:
    refusal = protocol.encode({"status": "error", "code": "refused", "message": "Invalid request"})
    script = Scripted(refusal, success(2))
    async with script.listening() as server:
        with pytest.raises(errors.Refused, match="Invalid request"):
            await ask(server, protocol.ListRequest())
    assert len(script.heard) == 1


# -- the agent ----------------------------------------------------------------------------------


async def test_the_answer_to_a_question_that_was_given_up_is_not_taken_for_the_next() -> None:
    ping = protocol.encode({"event": "ping"})
    script = Scripted(b"", success(1) + ping + success(2), success(3))
    async with script.listening() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        async with AgentConnection(server, reader, writer, patience(10)) as agent:
            asking = asyncio.create_task(agent.request(agent_protocol.StatusRequest()))
            while not script.heard:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.001)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            told: list[str] = []
            reply = await agent.request(
                agent_protocol.StatusRequest(), lambda event: told.append(event.event)
            )
            assert (reply.data, told) == ({"number": 2}, ["ping"])
            reply = await agent.request(agent_protocol.StatusRequest())
            assert reply.data == {"number": 3}


async def test_events_come_without_the_answer_to_a_question_that_was_given_up() -> None:
    ping = protocol.encode({"event": "ping"})
    script = Scripted(b"", success(1) + ping + success(2) + ping, success(3))
    async with script.listening() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        async with AgentConnection(server, reader, writer, patience(10)) as agent:
            for _ in range(2):
                asking = asyncio.create_task(agent.request(agent_protocol.StatusRequest()))
                await asyncio.sleep(0)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
            events = agent.events()
            assert [(await anext(events)).event for _ in range(2)] == ["ping", "ping"]
            reply = await agent.request(agent_protocol.StatusRequest())
            assert reply.data == {"number": 3}


async def test_no_agent_is_none(tmp_path: Path) -> None:
    assert await connect_agent(1, str(tmp_path / "none")) is None
    assert await connect_agent(1, str(tmp_path / ("long" * 50))) is None
    nobody = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(nobody))
    assert await connect_agent(1, str(nobody)) is None
