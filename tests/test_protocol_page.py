"""docs/reference/protocol.md: each example is what the code sends and understands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from usb_remote import (
    addresses,
    control,
    errors,
    exporter,
    framing,
    history,
    lease,
    protocol,
    protocol_2x,
    replies,
    rules,
    sessions,
    waiting,
)
from usb_remote.events import Event
from usb_remote.model import Device

pytestmark = pytest.mark.docs

PAGE = (Path(__file__).parent.parent / "docs/reference/protocol.md").read_text()
BLOCKS = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MESSAGES = [
    re.sub(r"\n +", "", message)
    for block in BLOCKS
    for message in re.findall(r"^[<>] .*(?:\n .*)*", block, re.MULTILINE)
]
SENT = [message[2:].encode() for message in MESSAGES if message[0] == ">"]
RECEIVED = [message[2:].encode() for message in MESSAGES if message[0] == "<"]


def commands() -> Iterator[str]:
    for request in get_args(protocol.Request):
        yield from get_args(request.model_fields["command"].annotation)


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_has_a_row_and_an_example(command: str) -> None:
    assert re.search(rf"^\| `{command}` \|", PAGE, re.MULTILINE)
    assert command in {json.loads(line)["command"] for line in SENT}


@pytest.mark.parametrize("line", SENT, ids=lambda line: line[:40].decode())
def test_the_server_understands_the_request(line: bytes) -> None:
    request = protocol.parse_request(line)
    assert request.legacy == ("v" not in json.loads(line))


@pytest.mark.parametrize("line", SENT, ids=lambda line: line[:40].decode())
def test_our_client_or_2x_would_send_just_that(line: bytes) -> None:
    request = protocol.parse_request(line)
    again = protocol_2x.request_line if request.legacy else protocol.request_line
    assert json.loads(line).items() <= json.loads(again(request)).items()


@pytest.mark.parametrize("line", RECEIVED, ids=lambda line: line[:60].decode())
def test_the_client_understands_the_answer(line: bytes) -> None:
    message = json.loads(line)
    if "event" in message:
        assert replies.parse_event(line).event == message["event"]
    elif message["status"] == "success":
        understood(message, replies.parse_reply(line).data)
    else:
        code = message.get("code", message["status"])
        with pytest.raises(type(errors.from_code(code, ""))):
            replies.parse_reply(line)


def understood(message: dict[str, Any], data: Any) -> None:
    """The content of a success, in which our own replies say who answers, but for `info`'s."""
    if isinstance(data, list) and "kind" in data[0]:
        replies.parse_history(data)
    elif isinstance(data, list):
        replies.parse_devices(data)
    elif "usbip_port" in data:
        replies.Info.model_validate(data)
    else:
        replies.parse_device(data)


def objects(of: Any) -> Iterator[dict[str, Any]]:
    if isinstance(of, dict):
        yield of
    for inner in of.values() if isinstance(of, dict) else of if isinstance(of, list) else ():
        yield from objects(inner)


def test_devices_and_holders_have_the_keys_of_today() -> None:
    keys = {frozenset(o) for line in RECEIVED for o in objects(json.loads(line)) if "bus_id" in o}
    events = {k for k in keys if "kind" in k}
    assert keys - events == {frozenset(Device.model_fields), frozenset(protocol_2x.DEVICE_KEYS)}
    assert events == {frozenset(Event.model_fields)}


NUMBERS = [
    ("MAX_REQUEST", framing.MAX_REQUEST / 1024, "64 KiB"),
    ("MAX_DEPTH", framing.MAX_DEPTH, "16 levels"),
    ("MAX_REPLY", protocol.MAX_REPLY / 2**20, "16 MiB"),
    ("PING_INTERVAL", protocol.PING_INTERVAL, "3 s"),
    ("RESET_TIME", protocol.RESET_TIME, "5 s"),
    ("WATCH_TIMEOUT", protocol.WATCH_TIMEOUT, "9 s"),
    ("Limits.connections", control.Limits().connections, "4096"),
    ("Limits.connections_per_address", control.Limits().connections_per_address, "2048"),
    ("Limits.request_timeout", control.Limits().request_timeout, "10 s"),
    ("Limits.idle_timeout", control.Limits().idle_timeout, "300 s"),
    ("Limits.unread_bytes", control.Limits().unread_bytes / 2**20, "1 MiB"),
    ("Limits.linger_bytes", control.Limits().linger_bytes / 2**20, "32 MiB"),
    ("Limits.linger_seconds", control.Limits().linger_seconds, "3 s"),
    ("MAX_SECONDS", protocol.MAX_SECONDS / 86400, "30 days"),
    ("MAX_WAITING", waiting.MAX_WAITING, "64 clients"),
    ("Limits.at_once", control.Limits().at_once, "16 requests"),
    ("Limits.ahead_bytes", control.Limits().ahead_bytes / 2**10, "64 KiB"),
    ("MAX_NAMES", rules.MAX_NAMES, "10000 names"),
    ("MAX_EVENTS", history.MAX_EVENTS, "2000 events"),
    ("Limits.silent_seconds", control.Limits().silent_seconds, "6 s"),
    ("Limits.probe_seconds", control.Limits().probe_seconds, "125 s"),
    ("Limits.unread_seconds", control.Limits().unread_seconds / 60, "15 min"),
    ("MAX_PER_DEVICE", history.MAX_PER_DEVICE, "200 of a device"),
    ("HEAD_START", addresses.HEAD_START, "0.1 s"),
    ("HandshakeLimits.timeout", exporter.HandshakeLimits().timeout, "5 s"),
    ("HandshakeLimits.rest", exporter.HandshakeLimits().rest, "1 s"),
    ("HandshakeLimits.at_once", exporter.HandshakeLimits().at_once, "64 at a time"),
    ("Times.reservation", lease.Times().reservation, "15 s"),
    ("Times.grace", lease.Times().grace, "2 s"),
    ("Times.reset", lease.Times().reset, "5 s"),
    ("Times.notice", lease.Times().notice, "60 s"),
    ("KEEPALIVE_IDLE", sessions.KEEPALIVE_IDLE, "3 s"),
    ("KEEPALIVE_INTERVAL", sessions.KEEPALIVE_INTERVAL, "1 s"),
    ("KEEPALIVE_COUNT", sessions.KEEPALIVE_COUNT, "5"),
    ("USER_TIMEOUT_MS", sessions.USER_TIMEOUT_MS / 1000, "8 s"),
    ("SILENT_MS", sessions.SILENT_MS / 1000, "2.5 s"),
]


@pytest.mark.parametrize(("name", "value", "words"), NUMBERS, ids=lambda x: str(x))
def test_every_limit_is_what_the_page_says(name: str, value: float, words: str) -> None:
    assert words.startswith(f"{value:g} ") or words == f"{value:g}"
    row = re.search(rf"^\| (?:`[\w.]+`, )*`{re.escape(name)}`.*$", PAGE, re.MULTILINE)
    assert row, name
    assert words in row[0].replace("10 000", "10000")


def test_every_limit_of_the_page_is_looked_at() -> None:
    cells = re.findall(r"^\| (`[A-Z].*?) \|", PAGE, re.MULTILINE)
    names = {name for cell in cells for name in re.findall(r"`([A-Z][\w.]*)`", cell)}
    assert {n for n in names if not n.startswith("OP_")} == {name for name, *_ in NUMBERS}


@pytest.mark.parametrize(
    "limits", [control.Limits, exporter.HandshakeLimits], ids=["control", "exporter"]
)
def test_no_limit_is_missing_on_the_page(limits: type[Any]) -> None:
    assert {f"{limits.__name__}.{field.name}" for field in fields(limits)} <= {
        n for n, *_ in NUMBERS
    }
