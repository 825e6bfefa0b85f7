from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_remote import errors, protocol, protocol_2x, replies
from usb_remote.answers import Answers
from usb_remote.framing import MAX_DEPTH, MAX_REQUEST, RequestFramer
from usb_remote.model import Device, Server, Snapshot

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


def of_size(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


@pytest.mark.parametrize("end", [b"", b"\n", b'{"b":1}\n'])
def test_a_request_may_be_as_long_as_the_limit_and_no_longer(end: bytes) -> None:
    assert frames(of_size(MAX_REQUEST) + end)[0] == of_size(MAX_REQUEST)
    with pytest.raises(errors.InvalidRequest, match="longer than 65536"):
        frames(of_size(MAX_REQUEST + 1) + end)


def test_a_line_that_is_no_object_is_refused_when_it_is_longer_than_the_limit() -> None:
    line = b'{"a":"' + b"x" * MAX_REQUEST
    for whole in (line, line + b"\n"):
        with pytest.raises(errors.InvalidRequest, match="longer than 65536"):
            frames(whole)


def test_what_was_looked_at_is_not_looked_at_again() -> None:
    """Else one byte after the other would cost the square of their number."""
    framer = RequestFramer()
    for data in (b'{"a":"', b"x" * 1000, b"y"):
        framer.feed(data)
        assert framer.take() is None
        assert framer._seen == len(framer.rest)


def test_blanks_between_requests_are_no_part_of_them() -> None:
    blanks = b" \r\n\t" * MAX_REQUEST
    assert frames(blanks + b'{"a":1}' + blanks + b'{"b":2}' + blanks) == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize("brackets", [b"{", b"[", b"[{"])
def test_a_request_may_be_as_deep_as_the_limit_and_no_deeper(brackets: bytes) -> None:
    def nested(levels: int) -> bytes:
        opening = (b"{" + brackets * MAX_DEPTH)[:levels]
        closing = opening[::-1].translate(bytes.maketrans(b"{[", b"}]"))
        return opening + closing

    assert frames(nested(MAX_DEPTH)) == [nested(MAX_DEPTH)]
    with pytest.raises(errors.InvalidRequest, match="nested deeper than 16"):
        frames(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "request_",
    [b'{"a":"}"}', rb'{"a":"\"}"}', rb'{"a":"\\"}', b'{"a":"[[["}', b'{"[":[{}]}', b'{"a":{}}'],
)
def test_brackets_and_quotes_in_a_string_end_nothing(request_: bytes) -> None:
    assert frames(request_ + b'{"b":1}') == [request_, b'{"b":1}']
    bytewise = [bytes([byte]) for byte in request_ + b'{"b":1}']
    assert frames(*bytewise) == [request_, b'{"b":1}']


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
    for other in (errors.InvalidRequest("Invalid request format"), errors.UsbRemoteError("no")):
        assert not protocol_2x.is_rejection(other)


def test_a_list_of_2x_is_read() -> None:
    reply = replies.parse_reply((DATA / "list.reply").read_bytes())
    assert reply.server is None
    assert [d.bus_id for d in replies.parse_devices(reply.data)] == ["1-1.4", "2-1"]


@pytest.mark.parametrize(
    ("line", "of_2x"),
    [
        (b'{"command":"list"}', True), (b'{"v":1,"command":"list"}', False),
        (b'{"command":"list", "v" : 2}', False), (b"{", True), (b'{"v"', True),
    ],
)  # fmt: skip
def test_who_sends_no_version_speaks_2x(line: bytes, of_2x: bool) -> None:
    assert protocol_2x.is_line(line) is of_2x


def attach(**more: object) -> protocol.AttachRequest:
    return protocol.build(protocol.AttachRequest, {"bus": "1-1", **more})


def test_what_2x_can_be_asked_for() -> None:
    known: list[protocol.Request] = [
        attach(),
        protocol.ListRequest(),
        protocol.DeviceRequest(command="find"),
        protocol.DeviceRequest(command="detach", bus="1-1"),
    ]
    unknown: list[protocol.Request] = [
        attach(wait=0), attach(duration=9), attach(force=True), protocol.InfoRequest(),
        protocol.WatchRequest(), protocol.HistoryRequest(), protocol.NameRequest(name="x"),
        protocol.ReleaseRequest(bus="1-1"),
    ]  # fmt: skip
    assert [protocol_2x.knows(request) for request in known] == [True] * len(known)
    assert [protocol_2x.knows(request) for request in unknown] == [False] * len(unknown)


def test_how_long_a_request_may_take() -> None:
    requests: list[protocol.Request] = [
        attach(),
        attach(wait=0),
        attach(wait=7),
        protocol.ListRequest(),
    ]
    assert [protocol.time_to_wait(request) for request in requests] == [0, None, 7, 0]
    assert [protocol.waits(request) for request in requests] == [False, True, True, False]
    assert [protocol.time_for(request) for request in requests] == [protocol.RESET_TIME] * 3 + [0]


MONTH = 30 * 86400


@pytest.mark.parametrize(
    ("key", "least", "most", "beyond"),
    [
        ("wait", 0, MONTH, (-1, MONTH + 1, float("inf"), float("nan"))),
        ("duration", 0.001, MONTH, (0, -1, MONTH + 1, float("inf"), float("nan"))),
    ],
)
def test_times_are_bounded(key: str, least: float, most: float, beyond: tuple[float, ...]) -> None:
    for fine in (least, most):
        assert getattr(attach(**{key: fine}), key) == fine
    for wrong in beyond:
        with pytest.raises(errors.UsageError, match=f"^{key}: "):
            attach(**{key: wrong})


@pytest.mark.parametrize("key", ["id", "bus", "serial", "desc", "user", "host", "client", "name"])
def test_words_are_bounded(key: str) -> None:
    line = protocol.encode({"v": 1, "command": "name", "name": "x", key: "x" * 256})
    assert isinstance(protocol.parse_request(line), protocol.NameRequest)
    with pytest.raises(errors.InvalidRequest, match=f"{key}: .*at most 256"):
        protocol.parse_request(line.replace(b"xx", b"xxx", 1))


def test_our_own_requests_have_a_version_and_no_key_without_a_value() -> None:
    line = protocol.request_line(attach(force=True))
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "v": 1, "command": "attach", "bus": "1-1", "first": False, "force": True,
    }  # fmt: skip


def test_a_query_of_a_request_is_all_that_it_says_of_the_device() -> None:
    asked = {"id": "0403:6001", "bus": "1-1", "serial": "S", "desc": "d", "first": True}
    assert protocol.ListRequest().v is None
    query = protocol.DeviceRequest.model_validate({"command": "find", **asked}).query
    assert query.model_dump(exclude_none=True) == asked


# -- replies ------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_only_who_speaks_this_version_is_told_the_time() -> None:
    told = INFO.model_dump()
    assert replies.info_json(INFO, protocol.InfoRequest(), NOW) == told
    assert replies.info_json(INFO, protocol.InfoRequest(v=1), NOW) == {
        **told, "now": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def test_what_is_known_of_a_server_after_its_answer() -> None:
    named = Server(name="lab", addresses=("pi", "fd00::1"))
    after = replies.server_of(INFO, named, "10.0.0.1")
    assert (after.name, after.host_name, after.id, after.version) == (
        "lab",
        "bench",
        "abc",
        "3.0.0",
    )
    assert after.addresses == ("10.0.0.1", "pi", "fd00::1")
    nameless = replies.default_server(5055)
    after = replies.server_of(INFO, nameless, "10.0.0.1")
    assert (after.name, after.addresses) == ("bench", ("10.0.0.1",))
    of_2x = replies.server_of(None, nameless, "10.0.0.1")
    assert (of_2x.name, of_2x.addresses, of_2x.id) == ("localhost", ("10.0.0.1",), None)
    of_2x = replies.server_of(None, named, "10.0.0.1")
    assert (of_2x.name, of_2x.addresses) == ("lab", ("10.0.0.1", "pi", "fd00::1"))


@pytest.mark.parametrize("line", [b'{"a":1}', b"{}", b"[]", b"7", b'"status"', b"{", b"\xff"])
def test_what_is_neither_a_reply_nor_an_event_is_not_ours(line: bytes) -> None:
    for read in (replies.parse_reply, replies.parse_event):
        with pytest.raises(errors.InvalidReply, match="not one of usb-remote"):
            read(line)


def test_an_event_is_no_reply_and_a_reply_that_tells_of_events_is_one() -> None:
    with pytest.raises(errors.InvalidReply, match="not one of usb-remote"):
        replies.parse_reply(replies.PING)
    assert replies.is_event(replies.PING)
    assert not replies.is_event(b'{"status":"success","data":[{"event":"ping"}]}')


def test_a_message_of_many_lines_is_cut() -> None:
    line = protocol.encode({"status": "error", "message": "\n".join(["x" * 600] * 60)})
    with pytest.raises(errors.UsbRemoteError) as caught:
        replies.parse_reply(line)
    lines = caught.value.message.splitlines()
    assert len(lines) == 50
    assert max(map(len, lines)) == 502


@pytest.mark.parametrize(
    ("message", "raised", "said"),
    [
        ({"status": "not_found", "message": "m"}, errors.NotFound, "m"),
        ({"status": "multiple_matches", "message": "m"}, errors.Ambiguous, "m"),
        ({"status": "error", "message": "m"}, errors.UsbRemoteError, "m"),
        ({"status": "error", "code": "busy"}, errors.Busy, "error"),
        ({"status": "error", "code": "of the future", "message": "m"}, errors.UsbRemoteError, "m"),
        ({"status": 7}, errors.UsbRemoteError, "7"),
    ],
)
def test_a_failure_is_the_class_that_its_code_or_status_says(
    message: dict[str, object], raised: type[errors.UsbRemoteError], said: str
) -> None:
    for read in (replies.parse_reply, replies.parse_event):
        with pytest.raises(errors.UsbRemoteError) as caught:
            read(protocol.encode(message))
        assert type(caught.value) is raised
        assert caught.value.message == said


def test_the_holder_beside_a_failure_is_cleaned_or_left_out() -> None:
    def told(holder: object) -> object:
        reply = {"status": "error", "code": "busy", "message": "m", "holder": holder}
        with pytest.raises(errors.Busy) as caught:
            replies.parse_reply(protocol.encode(reply))
        return caught.value.holder

    assert told({"user": "a\x1b", "moon": 1}) == {"user": "a"}
    assert told({"since": "never"}) is None
    assert told(7) is None


def test_devices_without_ids_get_some_and_others_keep_theirs() -> None:
    node = {"vendor_id": "0403", "product_id": "6001", "device_name": "/dev/bus/usb/002/003"}
    old, new = {"bus_id": "1-1", **node}, {"bus_id": "1-2", **node, "id": "mine", "devnum": 9}
    assert [(d.id, d.devnum) for d in replies.parse_devices([new])] == [("mine", 9)]
    assert [(d.id, d.devnum) for d in replies.parse_devices([old])] == [("0403:6001@1-1", 3)]
    both = [(d.id, d.devnum) for d in replies.parse_devices([old, new])]
    assert both == [("0403:6001@1-1", 3), ("0403:6001@1-2", 3)]
    assert (replies.parse_device(old).devnum, replies.parse_device(new).id) == (3, "mine")
    odd = replies.parse_device({**old, "device_name": "/dev/bus/usb/002/x"})
    assert odd.devnum == 0


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
