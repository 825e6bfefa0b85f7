from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_remote import errors, protocol, protocol_2x, replies
from usb_remote.answers import Answers
from usb_remote.framing import RequestFramer
from usb_remote.model import Device, Snapshot

DATA = Path(__file__).parent / "data" / "2x"


def frames(*parts: bytes) -> list[bytes]:
    framer = RequestFramer()
    found = []
    for part in parts:
        framer.feed(part)
        while request := framer.take():
            found.append(request)
    return found


def test_a_request_of_2x_needs_no_newline() -> None:
    assert frames(b'{"command":"list"}') == [b'{"command":"list"}']


def test_several_requests_follow_each_other() -> None:
    assert frames(b'{"a":1}\n{"b":2}{"c":3}\n\n') == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


requests = st.dictionaries(
    st.text(max_size=8), st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5)
)


@given(st.lists(requests, max_size=4), st.data())
def test_cuts_do_not_matter(messages: list[dict[str, object]], data: st.DataObject) -> None:
    whole = b"".join(json.dumps(m).encode() for m in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *cuts, len(whole)]
    parts = [whole[a:b] for a, b in pairwise(edges)]
    assert [json.loads(f) for f in frames(*parts)] == messages


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_clear_error(data: bytes) -> None:
    said = ""
    try:
        for frame in frames(data):
            protocol.parse_request(frame)
    except errors.InvalidRequest as error:
        said = error.message
    assert said == "" or said.isprintable()


@pytest.mark.parametrize("data", [b"hello", b"[1]x", b"GET / HTTP/1.1\r\n\r\nx", b"\xff\xfe", b'"'])
def test_what_cannot_become_an_object_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(errors.InvalidRequest):
        [protocol.parse_request(frame) for frame in frames(data)]


def test_a_long_request_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="longer than 65536"):
        frames(b'{"command":"' + b"x" * 70_000)


def test_a_deep_request_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="nested deeper than 16"):
        frames(b'{"a":' * 20)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"{", "not JSON"),
        (b"{}", "no command; known are list, find"),
        (b'{"command":"fly"}', "unknown command; known are list"),
        (b'{"command":"list","colour":1}', "unknown key 'colour'"),
        (b'{"command":"find","id":7}', "id: Input should be a valid string"),
        (b'{"command":"find","first":"yes"}', "first: Input should be a valid boolean"),
        (
            b'{"command":"find","serial":"' + b"x" * 300 + b'"}',
            "serial: String should have at most",
        ),
        (b'{"command":"list","v":2}', "protocol version 1"),
        (b'{"command":"\xff"}', "not JSON"),
        (b'{"command":["list"]}', "known are list"),
    ],
)
def test_a_bad_request_is_named(line: bytes, named: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=named.replace("[", r"\[")):
        protocol.parse_request(line)


RECORDED = sorted(path.stem for path in DATA.glob("*.request"))


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_request_of_2x_is_understood_and_repeated(name: str) -> None:
    recorded = (DATA / f"{name}.request").read_bytes()
    (line,) = frames(recorded)
    request = protocol.parse_request(line)
    assert request.legacy
    assert protocol_2x.request_line(request) == recorded


def recorded_devices() -> list[Device]:
    return [Device(**d) for d in json.loads((DATA / "list.reply").read_bytes())["data"]]


def test_the_reply_to_a_2x_list_is_that_of_2x_to_the_byte() -> None:
    devices = replies.devices_json(recorded_devices(), legacy=True)
    ours = replies.success(devices, protocol.ListRequest(), INFO, 7)
    assert ours == (DATA / "list.reply").read_bytes()


@pytest.mark.parametrize("name", ["find-first", "attach", "detach"])
def test_the_reply_to_a_2x_device_request_is_that_of_2x_to_the_byte(name: str) -> None:
    request = protocol.parse_request((DATA / f"{name}.request").read_bytes())
    data = replies.device_json(recorded_devices()[0], legacy=True)
    assert replies.success(data, request, INFO) == (DATA / f"{name}.reply").read_bytes()


def found_for(name: str) -> Device:
    """What a server with the recorded devices finds for a recorded request."""
    nothing: Any = None
    snapshot = Snapshot(devices=tuple(recorded_devices()))
    answers = Answers(nothing, nothing, nothing, lambda: snapshot, lambda: None)
    request = protocol.parse_request((DATA / f"{name}.request").read_bytes())
    assert isinstance(request, protocol.DeviceRequest)
    return answers._find(request.query)


def test_that_several_match_is_said_as_2x_does_to_the_byte() -> None:
    with pytest.raises(errors.Ambiguous) as caught:
        found_for("find-several")
    recorded = (DATA / "find-several.reply").read_bytes()
    assert replies.failure(caught.value, legacy=True) == recorded


def test_a_device_without_a_serial_number_does_not_match_one_as_it_did_in_2x() -> None:
    """move-from-2x.md says so: 2.x found both devices with the serial number of one."""
    recorded = json.loads((DATA / "find-serial.reply").read_bytes())
    assert recorded["status"] == "multiple_matches"
    assert found_for("find-serial").serial == "FT1ABC"


def test_a_refusal_to_2x_is_that_of_2x_to_the_byte() -> None:
    error = errors.NotFound("No matching USB device found.", hint="look again")
    assert replies.failure(error, legacy=True) == (DATA / "find-nothing.reply").read_bytes()


INFO = replies.Info(id="abc", name="bench", version="3.0.0")


def test_our_own_requests_get_more() -> None:
    error = errors.Busy("taken", hint="wait", holder={"user": "ann"})
    told = json.loads(replies.failure(error, legacy=False))
    assert told == {
        "status": "error", "message": "taken", "code": "busy", "hint": "wait",
        "holder": {"user": "ann"},
    }  # fmt: skip


@pytest.mark.parametrize("cls", errors.UsbRemoteError.__subclasses__())
def test_an_error_is_the_same_class_on_both_sides(cls: type[errors.UsbRemoteError]) -> None:
    with pytest.raises(cls, match="why") as caught:
        replies.parse_reply(replies.failure(cls("why", hint="so"), legacy=False))
    assert caught.value.hint == "so"


def test_a_2x_server_is_recognised_by_its_refusal() -> None:
    with pytest.raises(errors.UsbRemoteError) as caught:
        replies.parse_reply((DATA / "unknown-key.reply").read_bytes())
    assert protocol_2x.is_rejection(caught.value)


def test_a_list_of_2x_is_read() -> None:
    reply = replies.parse_reply((DATA / "list.reply").read_bytes())
    assert reply.server is None
    assert [d.bus_id for d in replies.parse_devices(reply.data)] == ["1-1.4", "2-1"]


def test_what_a_newer_server_adds_is_ignored() -> None:
    reply = replies.parse_reply(b'{"status":"success","data":[],"moon":1}\n')
    assert replies.parse_devices(reply.data) == ()


@given(st.binary(max_size=200) | st.text().map(str.encode) | requests.map(protocol.encode))
def test_any_reply_is_read_or_refused(line: bytes) -> None:
    said = []
    for read in (replies.parse_reply, replies.parse_event):
        try:
            read(line)
        except errors.UsbRemoteError as error:
            said += error.message.splitlines()
    assert all(part.isprintable() for part in said)


def test_hostile_strings_of_a_server_are_cleaned() -> None:
    device = {
        "bus_id": "1-1",
        "vendor_id": "0403",
        "product_id": "6001",
        "description": "\x1b[2J" * 9,
    }
    reply = replies.parse_reply(protocol.encode({"status": "success", "data": [device]}))
    (read,) = replies.parse_devices(reply.data)
    assert read.description.isprintable()
