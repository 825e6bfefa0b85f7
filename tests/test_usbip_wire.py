from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usbip import protocol as reference

from usb_remote import errors, usbip_wire
from usb_remote.usbip_wire import Record, Status
from usb_remote.values import BusId

byte = st.integers(0, 255)
triples = st.tuples(byte, byte, byte)
records = st.builds(
    Record,
    path=st.text(max_size=300),
    bus_id=st.from_regex(r"[1-9]-[1-9](\.[1-9])?", fullmatch=True).map(BusId),
    busnum=st.integers(0, 2**32 - 1),
    devnum=st.integers(0, 2**32 - 1),
    speed=st.integers(0, 6),
    vendor=st.integers(0, 0xFFFF),
    product=st.integers(0, 0xFFFF),
    bcd_device=st.integers(0, 0xFFFF),
    device_class=triples,
    configuration=byte,
    configurations=byte,
    interfaces=st.lists(triples, min_size=1, max_size=4).map(tuple),
)


def read_by_reference(reply: bytes, read: Any) -> Any:
    """Let the library's own client read our bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(reply,))
        sender.start()
        try:
            return read(theirs)
        finally:
            sender.join()


@given(st.lists(records, max_size=3))
def test_an_independent_client_reads_our_devlist(devices: list[Record]) -> None:
    seen = read_by_reference(usbip_wire.pack_devlist(devices), reference.client_devlist)
    assert [(d["busid"], d["idVendor"], d["interfaces"]) for d in seen] == [
        (r.bus_id, r.vendor, list(r.interfaces)) for r in devices
    ]


@given(records)
def test_an_independent_client_reads_our_import_reply(record: Record) -> None:
    seen = read_by_reference(usbip_wire.pack_import(record), reference.client_import)
    assert (seen["busid"], seen["idProduct"], seen["speed"]) == (
        record.bus_id, record.product, record.speed,
    )  # fmt: skip


@given(records, st.sampled_from(Status))
def test_only_a_success_carries_the_record(record: Record, status: Status) -> None:
    reply = usbip_wire.pack_import(record, status)
    assert len(reply) == 8 + usbip_wire.RECORD_SIZE * (status is Status.OK)


def test_a_refusal_carries_no_record() -> None:
    assert usbip_wire.pack_import(None, Status.BUSY).hex() == "0111000300000002"


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32))
def test_any_handshake_is_a_request_or_a_clear_error(header: bytes, body: bytes) -> None:
    said = ""
    try:
        size = usbip_wire.body_size(header)
        usbip_wire.parse_request(header, body[:size])
    except errors.InvalidRequest as error:
        said = error.message
    assert said == "" or said.isprintable()


@pytest.mark.parametrize(
    "bus_id", [b"../../x", b"-r evil", b"", b"1-1\n", b"\xff\xfe", b"1" * 32, b"1-1/../2-1"]
)
def test_an_import_of_no_bus_id_is_refused(bus_id: bytes) -> None:
    header = bytes.fromhex("0111800300000000")
    assert usbip_wire.body_size(header) == 32
    with pytest.raises(errors.InvalidRequest):
        usbip_wire.parse_request(header, bus_id.ljust(32, b"\0"))


def test_an_import_request_is_read() -> None:
    header = bytes.fromhex("0111800300000000")
    request = usbip_wire.parse_request(header, b"1-1.4".ljust(32, b"\0"))
    assert request == usbip_wire.ImportRequest(BusId("1-1.4"))


DEVICE = bytes.fromhex("12 01 00 02 00 00 00 40 03 04 01 60 00 01 01 02 03 02")


def configuration(value: int, *interfaces: tuple[int, int, int, int]) -> bytes:
    body = b"".join(
        bytes([9, 4, number, alternate, 0, cls, sub, 0, 0])
        for number, alternate, cls, sub in interfaces
    )
    return bytes([9, 2, 9 + len(body), 0, len(interfaces), value, 0, 0x80, 50]) + body


def test_interfaces_are_read_from_the_descriptors() -> None:
    blob = DEVICE + configuration(1, (0, 0, 8, 6), (0, 1, 8, 0x62)) + configuration(2, (0, 0, 3, 1))
    assert usbip_wire.interfaces_of(blob) == ((8, 6, 0),)
    assert usbip_wire.interfaces_of(blob, 2) == ((3, 1, 0),)


@given(st.binary(max_size=200))
def test_any_descriptors_are_survived(blob: bytes) -> None:
    usbip_wire.interfaces_of(blob)


def test_our_own_request_for_the_list_is_read_by_us_and_our_reply_too() -> None:
    request = usbip_wire.pack_devlist_request()
    assert usbip_wire.parse_request(request, b"") == usbip_wire.DevlistRequest()
    reply = usbip_wire.pack_devlist([])[: usbip_wire.HEADER_SIZE]
    assert usbip_wire.parse_devlist_reply(reply) == usbip_wire.VERSION
    with pytest.raises(errors.InvalidRequest):
        usbip_wire.parse_devlist_reply(b"HTTP/1.0")


def test_a_path_and_interfaces_beyond_what_the_record_holds_are_left_out() -> None:
    many = tuple((number, 0, 0) for number in range(256))
    record = Record(
        path="p" * 300, bus_id=BusId("1-1"), busnum=1, devnum=2, speed=3, vendor=4, product=5,
        bcd_device=6, device_class=(7, 8, 9), configuration=1, configurations=1, interfaces=many,
    )  # fmt: skip
    data = usbip_wire.pack_devlist([record])
    assert data[12 : 12 + 256] == b"p" * 255 + b"\0"
    assert data[12 + 311] == 255
    assert len(data) == 12 + 312 + 4 * 255


def test_only_the_versions_and_requests_that_we_know_are_read() -> None:
    for header in ("0106800500000000", "0111800100000000", "0111000500000000"):
        with pytest.raises(errors.InvalidRequest):
            usbip_wire.body_size(bytes.fromhex(header))
    assert usbip_wire.body_size(bytes.fromhex("0111800500000000")) == 0


def test_descriptors_that_are_cut_off_end_where_they_are_cut_off() -> None:
    blob = DEVICE + configuration(1, (0, 0, 8, 6), (1, 0, 3, 1))
    assert usbip_wire.interfaces_of(blob) == ((8, 6, 0), (3, 1, 0))
    assert usbip_wire.interfaces_of(blob[:-9]) == ((8, 6, 0),)
    assert usbip_wire.interfaces_of(blob[:-2]) == ((8, 6, 0),)
    assert usbip_wire.interfaces_of(blob[:-1]) == ((8, 6, 0), (3, 1, 0))
    assert usbip_wire.interfaces_of(DEVICE + b"\x05\x02\0\0\0") == ()
    assert usbip_wire.interfaces_of(DEVICE + b"\0" * 20) == ()
    assert usbip_wire.interfaces_of(b"\x01" + blob) == ()
