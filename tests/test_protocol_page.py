"""docs/reference/protocol.md: each example is what the code sends and understands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from usb_remote import (
    errors,
    protocol,
    protocol_2x,
    replies,
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
