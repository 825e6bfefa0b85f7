"""What a server that is broken or hostile cannot do to the clients that ask it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Forked, usb_remote
from tests.patience import patience
from usb_remote import errors, protocol, replies
from usb_remote.agent_protocol import StatusRequest
from usb_remote.cli import table
from usb_remote.connection import connect, connect_agent
from usb_remote.model import Server

CONTROL = "\x1b[31m\x1b]0;title\x07\r\n9-9  forged\u2028\ud800"
SAYS = {
    "id": f"i{CONTROL}", "name": f"evil{CONTROL}", "version": f"9{CONTROL}", "usbip_port": 3240,
}  # fmt: skip
HOLDER = {"user": f"u{CONTROL}", "host": f"h{CONTROL}", "since": "2026-01-01T00:00:00Z"}
DEVICE = {
    "bus_id": "1-1", "vendor_id": "0403", "product_id": "6001", "id": f"x{CONTROL}",
    "description": f"d{CONTROL}", "serial": f"s{CONTROL}", "name": f"n{CONTROL}",
    "state": "in_use", "holder": HOLDER, "reason": CONTROL, "classes": [CONTROL],
}  # fmt: skip
EVENT = {
    "at": "2026-01-01T00:00:00Z", "kind": "plugged", "device": f"d{CONTROL}", "bus_id": CONTROL,
    "note": CONTROL, "description": CONTROL,
}  # fmt: skip
REFUSAL = {
    "status": "error", "code": "busy", "message": f"m{CONTROL}", "hint": CONTROL, "holder": HOLDER,
}  # fmt: skip
"""A server that puts control characters, a forged line and half a character into every text."""

Answer = Callable[[dict[str, Any]], object]


def hostile(request: dict[str, Any]) -> object:
    match request["command"]:
        case "watch":
            return {"event": "snapshot", "server": SAYS, "revision": 1, "data": [DEVICE]}
        case "history":
            return {"status": "success", "server": SAYS, "data": [EVENT]}
        case "list":
            return {"status": "success", "server": SAYS, "revision": 1, "data": [DEVICE]}
    return REFUSAL


@contextmanager
def answering(answer: Answer) -> Iterator[int]:
    """A server that answers each request line with this, as JSON; the port that it is on."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(json.dumps(answer(json.loads(line))).encode() + b"\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def configuration(folder: Path, *ports: int) -> Path:
    path = folder / "hostile"
    servers = [f"127.0.0.1:{port}" for port in ports]
    path.write_text(json.dumps({"discovery": False, "servers": servers, "timeout": 2}))
    return path


def assert_clean(text: str) -> None:
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert [line for line in text.splitlines() if line.startswith("9-9")] == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["list"], 0),
        (["list", "--json"], 0),
        (["find", "1-1"], 0),
        (["info"], 0),
        (["history"], 0),
        (["history", "--json"], 0),
        (["name", "1-1", "scope"], 4),
        (["release", "1-1"], 4),
        (["find", "nothing"], 3),
    ],
)
def test_a_server_writes_nothing_but_text_on_the_terminals_of_its_clients(
    tmp_path: Path, arguments: list[str], status: int
) -> None:
    with answering(hostile) as port:
        done = usb_remote(*arguments, config=configuration(tmp_path, port))
    assert_clean(done.stdout)
    assert_clean(done.stderr)
    assert "Traceback" not in done.stderr
    assert done.returncode == status
    assert "forged" in done.stdout + done.stderr or status == 3


def test_a_server_writes_nothing_but_text_into_a_watch(tmp_path: Path) -> None:
    with answering(hostile) as port:
        words = ["--config", str(configuration(tmp_path, port)), "watch"]
        with Forked(*words, stdout=subprocess.PIPE) as watching:
            assert watching.stdout
            line = watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            watching.communicate(patience(20))
    assert watching.returncode == 130
    assert_clean(line)
    assert json.loads(line)["devices"][0]["description"].startswith("d [31m")


def test_a_server_cannot_forge_lines_of_the_live_table(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with (
        answering(hostile) as port,
        Forked(
            "--config", str(configuration(tmp_path, port)), "watch",
            stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "COLUMNS": "500", "TERM": "xterm"},
        ) as watching,
    ):  # fmt: skip
        os.close(theirs)
        seen = ""
        while "1-1" not in seen:
            seen += os.read(ours, 65536).decode()
        watching.send_signal(signal.SIGINT)
        watching.wait(patience(20))
    os.close(ours)
    assert "\x1b]" not in seen
    assert "\x1b[31m" not in seen
    assert "\n9-9" not in seen


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vendor_id", "\x1b[31m"),
        ("product_id", "60011"),
        ("vendor_id", "040\n"),
        ("speed", float("nan")),
        ("speed", float("inf")),
        ("holder", {"since": "9999-12-31T23:59:59Z"}),
        ("holder", {"since": "0001-01-01T00:00:00Z"}),
        ("holder", {"since": "2026-01-01T00:00:00"}),
        ("holder", {"until": "9999-12-31T23:59:59Z"}),
    ],
)
def test_a_device_that_cannot_be_is_a_malformed_answer(key: str, value: object) -> None:
    with pytest.raises(errors.InvalidReply, match=key) as caught:
        replies.parse_devices([{**DEVICE, key: value}])
    assert caught.value.message.isprintable()


def test_a_device_without_an_id_gets_one_that_is_text() -> None:
    devices = replies.parse_devices([{**DEVICE, "id": ""}])
    (line,) = table.device_lines(d.model_dump(mode="json") for d in devices)
    assert line.isprintable()


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
@pytest.mark.parametrize(
    "changed",
    [
        {"holder": {**HOLDER, "since": "9999-12-31T23:59:59Z"}},
        {"holder": {**HOLDER, "since": "0001-01-01T00:00:00Z"}},
        {"speed": float("nan")},
        {"vendor_id": "\x1b[31mzz", "id": ""},
    ],
)
def test_a_broken_server_is_a_warning_and_hides_no_other(
    tmp_path: Path, zone: str, changed: dict[str, object]
) -> None:
    def broken(request: dict[str, Any]) -> object:
        return {"status": "success", "server": SAYS, "data": [{**DEVICE, **changed}]}

    with answering(hostile) as good, answering(broken) as bad:
        done = usb_remote("list", config=configuration(tmp_path, good, bad), TZ=zone)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr.startswith(f"warning: 127.0.0.1:{bad}: the answer is malformed at 'data.0.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["list", "history"])
def test_a_server_that_only_says_how_it_is_going_is_no_server(tmp_path: Path, command: str) -> None:
    """It would say so for ever; only who waits in a queue wants to hear it."""

    def endless(request: dict[str, Any]) -> object:
        if request["command"] == command:
            return {"event": "ping"}
        return {"status": "success", "server": {**SAYS, "id": "another"}, "data": []}

    with answering(hostile) as good, answering(endless) as bad:
        done = usb_remote(command, config=configuration(tmp_path, good, bad))
    assert (done.returncode, "forged" in done.stdout) == (0, True)
    assert done.stderr.startswith(f"warning: 127.0.0.1:{bad}")


async def test_a_wait_ends_in_time_although_the_server_goes_on_telling() -> None:
    async def teller(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError), closing(writer):
            while True:
                writer.write(replies.PING)
                await writer.drain()
                await asyncio.sleep(0.05)

    async with await asyncio.start_server(teller, "127.0.0.1", 0) as server:
        there = Server(
            name="evil", addresses=("127.0.0.1",), port=server.sockets[0].getsockname()[1]
        )
        request = protocol.build(protocol.AttachRequest, {"bus": "1-1", "wait": 0.1})
        async with await connect(there, 0.5) as connection, asyncio.timeout(patience(60)):
            with pytest.raises(errors.Silent, match="evil did not answer within"):
                await connection.request(request)


@pytest.mark.parametrize("says", [b"no JSON\n", b'{"event":"lost","loss":7}\n'])
async def test_nonsense_of_the_agent_is_reported_as_its_own(tmp_path: Path, says: bytes) -> None:
    def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()

    path = str(tmp_path / "socket")
    async with await asyncio.start_unix_server(answer, path):
        connection = await connect_agent(5.0, path)
        assert connection is not None
        async with connection:
            with pytest.raises(errors.InvalidReply, match=r"^the agent: ") as caught:
                await connection.request(StatusRequest())
    assert "journalctl" in (caught.value.hint or "")


def test_further_lines_of_a_message_are_indented() -> None:
    reply = protocol.encode({"status": "error", "message": "no\nhint: run this\n  - a"})
    with pytest.raises(errors.UsbRemoteError) as caught:
        replies.parse_reply(reply)
    assert caught.value.message == "no\n  hint: run this\n  - a"
