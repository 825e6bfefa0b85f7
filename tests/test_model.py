from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from usb_remote.matching import Query, called, is_called, is_same_server, merge, select
from usb_remote.model import Device, Holder, Match, Server, with_ids
from usb_remote.values import MAX_TEXT, BusId, HardwareId, clean


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


def test_a_query_is_shown_as_one_types_it() -> None:
    queries = [
        Query(), Query(first=True), Query(handle="pi/1-1"), Query(bus="1-1", serial="S"),
        Query(handle="scope", host="pi"),
    ]  # fmt: skip
    assert [str(query) for query in queries] == [
        "any device", "any device", "pi/1-1", "--bus 1-1 --serial S", "scope --host pi",
    ]  # fmt: skip


def test_one_machine_in_yaml_and_mdns_is_one_server() -> None:
    configured = Server(name="lab", addresses=("10.0.0.3",))
    found = Server(name="bench3", id="3", addresses=("10.0.0.3", "fd00::3"), version="3")
    (merged,) = merge([configured, found])
    assert merged.name == "lab"
    assert (merged.id, merged.addresses) == ("3", ("10.0.0.3", "fd00::3"))


def test_what_is_known_first_stays_and_what_is_not_is_added() -> None:
    first = Server(name="lab", addresses=("10.0.0.3",), version="2.9", id="3")
    later = Server(name="pi", addresses=("fd00::3",), version="3.0", id="3")
    (merged,) = merge([first, later])
    assert (merged.version, merged.addresses) == ("2.9", ("10.0.0.3", "fd00::3"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"id": "1"}, {"id": "1", "port": 6000}, True),
        ({"id": "1", "addresses": ("a",)}, {"id": "2", "addresses": ("a",)}, False),
        ({"addresses": ("a", "b")}, {"id": "2", "addresses": ("b",)}, True),
        ({"addresses": ("a",)}, {"addresses": ("a",), "port": 6000}, False),
        ({"addresses": ("a",)}, {"addresses": ("b",)}, False),
    ],
)
def test_which_servers_are_one(
    one: dict[str, object], other: dict[str, object], same: bool
) -> None:
    servers = [Server.model_validate({"name": n, **s}) for n, s in (("x", one), ("y", other))]
    assert is_same_server(*servers) is same
    assert is_same_server(*reversed(servers)) is same


@pytest.mark.parametrize(
    ("host", "is_meant"),
    [
        ("lab", True), ("LAB", True), ("pi", True), ("10.0.0.3", True), ("fe80::3", True),
        ("fe80::3%eth0", True), ("abc", True), ("ABC", False), ("", False), ("b", False),
    ],
)  # fmt: skip
def test_what_a_server_is_called(host: str, is_meant: bool) -> None:
    addresses = ("10.0.0.3", "fe80::3%eth0")
    server = Server(name="lab", host_name="pi", id="abc", addresses=addresses)
    assert is_called(server, host) is is_meant


def test_a_name_of_its_own_goes_before_anything_else() -> None:
    local, other = Server(name="localhost:5056", host_name="pi"), Server(name="pi")
    assert called([local, other], "PI") == [other]
    assert called([local], "pi") == [local]


def test_a_whole_handle_goes_before_its_part_after_the_slash() -> None:
    """A serial number may have a slash, or be what a server is called."""
    odd = Match(BENCH4, device("1-7", "bench3/1-1"))
    assert select([*CANDIDATES, odd], Query(handle="bench3/1-1")) == [odd]


def test_a_description_is_also_the_name_and_the_devices_own_words() -> None:
    named = device("1-1", name="scope", manufacturer="FTDI", product="UART", description="serial")
    for words in ("SCOPE", "ftdi uart", "ser*", "uart"):
        assert Query(desc=words).matches(named)
    for words in ("uart ftdi", "FTDI", "scop"):
        assert Query(desc=words).matches(named) is (words != "uart ftdi")


# -- values -------------------------------------------------------------------------------------


def test_devices_are_in_the_order_of_their_places() -> None:
    places = ["2-1", "1-10", "1-2.10", "1-2.9", "1-2", "10-1"]
    ordered = [d.bus_id for d in with_ids(device(place) for place in places)]
    assert ordered == ["1-2", "1-2.9", "1-2.10", "1-10", "2-1", "10-1"]


def test_devices_of_two_kinds_may_have_one_serial_number() -> None:
    pair = [device("1-1", "A"), device("1-2", "A", product_id="6010")]
    assert [d.id for d in with_ids(pair)] == ["0403:6001:A", "0403:6010:A"]


@pytest.mark.parametrize("other", [{"bus_id": "1-2"}, {"product_id": "6002"}, {"serial": "B"}])
def test_another_place_kind_or_serial_number_is_another_device(other: dict[str, object]) -> None:
    one = device("1-1", "A")
    assert one.is_same(one.model_copy(update={"devnum": 9, "id": "x", "name": "n"}))
    assert not one.is_same(one.model_copy(update=other))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"client": "1"}, {"client": "1", "address": "b"}, True),
        ({"client": "1"}, {"client": "2"}, False),
        ({"client": "1", "host": "a"}, {"client": "1", "host": "b"}, False),
        ({"client": "1"}, {}, False),
        ({"address": "a"}, {"address": "a", "user": "u"}, True),
        ({"address": "a"}, {"address": "b"}, False),
    ],
)
def test_which_holders_are_one_client(
    one: dict[str, object], other: dict[str, object], same: bool
) -> None:
    both = [Holder.model_validate({"address": "a", **facts}) for facts in (one, other)]
    assert both[0].is_same_client(both[1]) is same
    assert both[1].is_same_client(both[0]) is same


def test_a_holder_is_shown_by_what_is_known() -> None:
    holders = [
        Holder(user="ann", host="pc"), Holder(host="pc"), Holder(address="a"), Holder(),
        Holder(user="ann", address="a"),
    ]  # fmt: skip
    assert list(map(str, holders)) == ["ann@pc", "pc", "a", "an unknown client", "ann@a"]


def test_what_a_person_calls_a_device() -> None:
    assert device("1-1").label == "1-1"
    assert device("1-1", id="i").label == "i"
    assert device("1-1", id="i", name="n").label == "n"


@pytest.mark.parametrize(
    "text", ["2026-01-01T00:00:00", "1969-12-31T23:00:00Z", "9999-01-01T00:00:00Z"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValidationError):
        Holder.model_validate({"since": text})
    for fine in ("1970-01-01T00:00:00Z", "9998-12-31T00:00:00Z"):
        assert Holder.model_validate({"since": fine}).since


def test_a_text_that_is_cut_ends_with_a_letter() -> None:
    assert clean("abc def", 4) == "abc"
    assert clean("x" * 200) == "x" * MAX_TEXT
    assert clean("a" + " " * 500 + "b") == "a b"
    assert clean("a\u2028b\u2029c") == "a b c"


def test_two_servers_of_one_name_stay_two() -> None:
    pair = [Server(name="pi", id=i, addresses=(f"10.0.0.{i}",)) for i in "12"]
    assert merge(pair) == pair
