from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from usb_remote.matching import Query, merge, select
from usb_remote.model import Device, Match, Server, with_ids
from usb_remote.values import BusId, HardwareId, clean


@pytest.mark.parametrize("text", ["1-1", "1-1.4", "12-3.4.5.6.7", "2-10"])
def test_a_bus_id_is_a_bus_and_ports(text: str) -> None:
    assert BusId(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "1", "1-", "-1", "0-1", "1-0", "1-1.", "1-1:1.0", "usb1", "../../x", "-r evil", "1-1\n",
     "1-1 ", "1-1/..", "1-" + "1." * 40 + "1", "１-1", "1-1\0"],
)  # fmt: skip
def test_what_is_no_bus_id(text: str) -> None:
    with pytest.raises(ValueError, match="is not a bus id"):
        BusId(text)


def test_a_bus_id_knows_its_parts() -> None:
    assert (BusId("3-1.4").bus, BusId("3-1.4").port_numbers) == (3, (1, 4))


@pytest.mark.parametrize("text", ["", "0403", "0403:", "0403:600g", "0403:6001:", "04030:6001"])
def test_what_is_no_hardware_id(text: str) -> None:
    with pytest.raises(ValueError, match="is not a hardware id"):
        HardwareId(text)


@given(st.text(max_size=2000))
def test_a_cleaned_text_is_one_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) <= 128
    assert cleaned == "" or cleaned.isprintable()
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("\x1b[2Jevil", "[2Jevil"),
        ("two\nlines\r\n", "two lines"),
        ("\u202egnirts", "gnirts"),
        ("nul\0nul", "nul nul"),
        ("x" * 65536, "x" * 128),
        ("\ud800", ""),
    ],
)
def test_hostile_device_strings_become_harmless(hostile: str, harmless: str) -> None:
    assert clean(hostile) == harmless
    assert device("1-1", product=hostile).product == harmless


def device(bus_id: str, serial: str | None = None, **more: object) -> Device:
    values = {"bus_id": bus_id, "vendor_id": "0403", "product_id": "6001", "serial": serial, **more}
    return Device.model_validate(values)


def test_a_device_id_is_the_serial_where_it_is_unique() -> None:
    devices = with_ids([device("1-2", "A"), device("1-10", "B"), device("1-1")])
    assert [d.id for d in devices] == ["0403:6001@1-1", "0403:6001:A", "0403:6001:B"]


def test_twins_fall_back_to_their_position() -> None:
    devices = with_ids([device("1-2", "A"), device("1-1", "A")])
    assert [d.id for d in devices] == ["0403:6001@1-1", "0403:6001@1-2"]


def test_a_device_without_a_valid_bus_id_is_refused() -> None:
    with pytest.raises(ValidationError):
        device("../../etc")


BENCH3 = Server(name="bench3", addresses=("10.0.0.3",), id="3")
BENCH4 = Server(name="bench4", addresses=("10.0.0.4", "fe80::4%eth0"), id="4")
CANDIDATES = [
    Match(BENCH3, d)
    for d in with_ids(
        [
            device("1-1", "FT1", name="scope", description="FTDI FT232 Serial"),
            device("1-2", "FT2", description="FTDI FT232 Serial"),
            device("1-3", None, description="Logic analyser"),
        ]
    )
] + [Match(BENCH4, d) for d in with_ids([device("1-1", "FT3", name="ft1")])]


def chosen(**query: object) -> list[str]:
    found = select(CANDIDATES, Query.model_validate(query))
    return [f"{m.server.name}/{m.device.bus_id}" for m in found]


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        ("scope", ["bench3/1-1"]),
        ("bench3/scope", ["bench3/1-1"]),
        ("bench3/1-2", ["bench3/1-2"]),
        ("10.0.0.4/1-1", ["bench4/1-1"]),
        ("fe80::4/1-1", ["bench4/1-1"]),
        ("FT2", ["bench3/1-2"]),
        ("0403:6001:FT2", ["bench3/1-2"]),
        ("0403:6001@", ["bench3/1-3"]),
        ("ft1", ["bench4/1-1"]),  # a name goes before somebody's serial number
        ("1-1", ["bench3/1-1", "bench4/1-1"]),
        ("bench5/1-1", []),
        ("bench3/", []),
        ("", []),
    ],
)
def test_handles(handle: str, expected: list[str]) -> None:
    assert chosen(handle=handle) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"serial": "FT2"}, ["bench3/1-2"]),
        ({"serial": "FT*"}, ["bench3/1-1", "bench3/1-2", "bench4/1-1"]),
        ({"desc": "logic"}, ["bench3/1-3"]),
        ({"desc": "FTDI*Serial", "bus": "1-2"}, ["bench3/1-2"]),
        ({"id": "0403:*", "host": "bench4"}, ["bench4/1-1"]),
        ({"id": "dead:*"}, []),
        ({"serial": "*"}, ["bench3/1-1", "bench3/1-2", "bench3/1-3", "bench4/1-1"]),
    ],
)
def test_options(query: dict[str, object], expected: list[str]) -> None:
    assert chosen(**query) == expected


def test_one_machine_in_yaml_and_mdns_is_one_server() -> None:
    configured = Server(name="lab", addresses=("10.0.0.3",))
    found = Server(name="bench3", id="3", addresses=("10.0.0.3", "fd00::3"), version="3")
    (merged,) = merge([configured, found])
    assert merged.name == "lab"
    assert (merged.id, merged.addresses) == ("3", ("10.0.0.3", "fd00::3"))


def test_two_servers_of_one_name_stay_two() -> None:
    pair = [Server(name="pi", id=i, addresses=(f"10.0.0.{i}",)) for i in "12"]
    assert merge(pair) == pair
