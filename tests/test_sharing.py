"""Rules, names, networks, and what is kept on a disk: the parts, without sockets."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.disks import full_disk
from tests.patience import patience
from usb_remote import errors, events
from usb_remote.config import ServerConfig
from usb_remote.events import Event, Kind
from usb_remote.history import FLAPPING, MAX_EVENTS, MAX_PER_DEVICE, History
from usb_remote.model import Cause, Device, Ended, Holder, Request, State, with_ids
from usb_remote.rules import (
    MAX_NAMES,
    Criteria,
    Names,
    Networks,
    Rule,
    Verb,
    decide,
    find_dead_rule,
    find_same_place,
    find_twice,
    parse_network,
)
from usb_remote.sharing import NameBook, SharedDevices
from usb_remote.state import StateFile
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = Holder(user="ann", host="pc", client="ann", address="10.0.0.1", since=NOW)
BOB = ANN.model_copy(update={"user": "bob", "client": "bob", "since": NOW + timedelta(seconds=9)})


def device(bus_id: str = "1-1.4", **more: object) -> Device:
    facts = {
        "bus_id": BusId(bus_id), "vendor_id": "0403", "product_id": "6001", "serial": "A5XK",
        "manufacturer": "FTDI", "product": "USB Serial", "classes": ("08/06/50", "03/01/01"),
        "speed": 480.0, "devnum": 5,
    }  # fmt: skip
    return with_ids([Device.model_validate(facts | more)])[0]


# -- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "glob", "fits"),
    [
        ("id", "0403:6001", True), ("id", "0403:*", True), ("id", "0404:*", False),
        ("serial", "A5*", True), ("serial", "a5xk", True), ("serial", "A5", False),
        ("bus", "1-1.*", True), ("bus", "1-1.4", True), ("bus", "1-1", False),
        ("class", "08", True), ("class", "08/06", True), ("class", "08/06/50", True),
        ("class", "03", True), ("class", "06", False), ("class", "0?", True),
        ("class", "08/05", False), ("manufacturer", "ftdi", True), ("manufacturer", "F*", True),
        ("manufacturer", "FT", False), ("product", "usb*", True), ("product", "[tu]sb*", True),
    ],
)  # fmt: skip
def test_each_criterion(key: str, glob: str, fits: bool) -> None:
    assert Criteria.model_validate({key: glob}).matches(device()) is fits


def test_all_criteria_of_a_rule_must_fit() -> None:
    assert Criteria(id="0403:*", serial="A*").matches(device())
    assert not Criteria(id="0403:*", serial="B*").matches(device())


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        ({}, {"bus": "1-1"}, True), ({"bus": "1-1"}, {}, False),
        ({"bus": "1-*"}, {"bus": "1-1.*"}, True), ({"bus": "1-1.*"}, {"bus": "1-*"}, False),
        ({"bus": "1-*"}, {"bus": "1-[12]"}, True), ({"bus": "1-?"}, {"bus": "1-1"}, False),
        ({"bus": "1-1"}, {"bus": "1-[1]"}, False), ({"serial": "a?"}, {"serial": "a?"}, True),
        ({"serial": "[*"}, {"serial": "[*"}, True), ({"serial": "A*"}, {"serial": "ab"}, True),
        ({"class": "08"}, {"class": "08/06"}, True), ({"class": "08/06"}, {"class": "08"}, False),
        ({"class": "0*"}, {"class": "08/06/50"}, True),
        ({"serial": "a*"}, {"serial": "ab", "id": "0403:*"}, True),
        ({"serial": "a*", "id": "0403:*"}, {"serial": "ab"}, False),
    ],
)  # fmt: skip
def test_which_criteria_cover_which(
    one: dict[str, str], other: dict[str, str], covers: bool
) -> None:
    criteria = [Criteria.model_validate(globs) for globs in (one, other)]
    assert criteria[0].covers(criteria[1]) is covers


def test_the_first_rule_that_matches_wins() -> None:
    rules = [Rule(allow=Criteria(serial="A5XK")), Rule(deny=Criteria(id="0403:*"))]
    assert decide(rules, device()) is Verb.ALLOW
    assert decide(rules, device(serial="B")) is Verb.DENY
    assert decide(rules, device(vendor_id="1209")) is Verb.ALLOW, "the default"


def test_all_is_every_device() -> None:
    rules = [Rule(allow=Criteria(id="1209:*")), Rule.model_validate({"deny": "all"})]
    assert [decide(rules, d) for d in (device(), device(vendor_id="1209"))] == [
        Verb.DENY, Verb.ALLOW,
    ]  # fmt: skip


def test_a_device_without_strings_fits_no_text() -> None:
    nameless = device(serial=None, manufacturer=None, product=None, classes=())
    for key in ("serial", "manufacturer", "product", "class"):
        assert not Criteria.model_validate({key: "0*"}).matches(nameless)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "403:6001"}, {"id": "0403"}, {"id": "xyz:*"}, {"bus": "1.4"}, {"bus": "usb1"},
        {"id": "0403:60011*"}, {"id": "-!:*"}, {"id": "*:*:*"}, {"id": "[!0-9a-f]*"}, {"id": "[]"},
        {"bus": "0-*"}, {"bus": "*-*-*"}, {"bus": "*.0"}, {"bus": "1-1[-]*"}, {"bus": ""},
        {"class": "08/06/50*/*"}, {"class": "*g"}, {"class": "0"},
        {"class": "disk"}, {"class": "8"}, {"class": "08/6"}, {"class": "08/06/50/01"},
        {"class": ""}, {"colour": "red"}, {"serial": 5},
    ],
)  # fmt: skip
def test_criteria_that_no_device_can_fit_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Criteria.model_validate(wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"id": "dead:beef"}, {"id": "FFFF:*"}, {"class": "fe/0a"}, {"class": "EF"},
        {"bus": "12-10.11"}, {"bus": "*"}, {"id": "*"}, {"class": "*"}, {"id": "?403:600[1-5]"},
    ],
)  # fmt: skip
def test_criteria_that_some_device_can_fit_are_taken(right: dict[str, object]) -> None:
    assert Criteria.model_validate(right).globs


bus_ids = st.from_regex(r"[1-9][0-9]?-[1-9]([.][1-9]){0,2}", fullmatch=True)


@given(bus_ids, st.data())
def test_criteria_that_a_device_fits_are_never_refused(bus_id: str, data: st.DataObject) -> None:
    """Each character of a bus id as it is, or as a pattern that it fits; some as ``*``."""
    ways = ["{0}", "?", "[{0}]", "[!x]", "*", "*{0}"]
    glob = "".join(data.draw(st.sampled_from(ways)).format(part) for part in bus_id)
    assert Criteria(bus=glob).matches(device(bus_id))


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"allow": {}, "deny": {}}, {"allow": None}, {"allow_protected": "all"},
        {"allow_protected": {}}, {"deny": "everything"}, {"permit": "all"},
    ],
)  # fmt: skip
def test_what_is_no_rule(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate(wrong)


@pytest.mark.parametrize(
    ("before", "after", "dead"),
    [
        ({}, {"id": "0403:6001"}, True),
        ({"id": "0403:*"}, {"id": "0403:6001"}, True),
        ({"id": "0403:*"}, {"id": "0403:60*"}, True),
        ({"id": "0403:*"}, {"id": "0403:*", "serial": "A"}, True),
        ({"serial": "a5XK"}, {"serial": "A5xk"}, True),
        ({"class": "08"}, {"class": "08/06"}, True),
        ({"class": "08/06"}, {"class": "08"}, False),
        ({"class": "0*"}, {"class": "08/06"}, True),
        ({"id": "0403:6*"}, {"id": "0403:*"}, False),
        ({"id": "0403:6?01"}, {"id": "0403:6001"}, False),
        ({"id": "0403:*", "serial": "A"}, {"id": "0403:6001"}, False),
        ({"serial": "*-*"}, {"serial": "[a-z]"}, False),
        ({"serial": "*a*"}, {"serial": "[abc]"}, False),
        ({"serial": "*[*"}, {"serial": "[abc]"}, False),
        ({"serial": "A*"}, {"serial": "A[bc]"}, True),
    ],
)
def test_a_rule_that_can_never_match(
    before: dict[str, str], after: dict[str, str], dead: bool
) -> None:
    rules = [Rule.model_validate({"deny": before}), Rule.model_validate({"allow": after})]
    found = find_dead_rule(rules)
    assert (found is not None) is dead
    assert found is None or (found[0] == 1 and "share.0 takes all" in found[1])


texts = st.text("ab-]", max_size=4)
globs = st.lists(st.sampled_from([*"ab-*?![]", "[ab]", "[!a]", "[a-b]"]), max_size=5).map("".join)


@settings(max_examples=1000)
@example("*-*", "[a-b]", "b")
@example("*a]", "[]a]", "a")
@given(globs, globs, texts)
def test_what_covers_misses_nothing(glob: str, other: str, serial: str) -> None:
    covering, covered = Criteria(serial=glob), Criteria(serial=other)
    plugged = device(serial=serial or None)
    if covering.covers(covered) and covered.matches(plugged):
        assert covering.matches(plugged)


octets = st.sampled_from(["08", "0?", "?6", "*", "06", "0*"])
class_globs = st.lists(octets, min_size=1, max_size=3).map("/".join)


@given(class_globs, class_globs, st.lists(st.sampled_from(["08", "06", "50"]), min_size=3))
def test_what_covers_misses_no_class(glob: str, other: str, parts: list[str]) -> None:
    covering, covered = (Criteria.model_validate({"class": text}) for text in (glob, other))
    plugged = device(classes=("/".join(parts[:3]),))
    if covering.covers(covered) and covered.matches(plugged):
        assert covering.matches(plugged)


# -- what is shared -----------------------------------------------------------------------------


class Plugged:
    """A source of these devices."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices

    def list_devices(self) -> tuple[Device, ...]:
        return with_ids(self.devices)

    def find(self, bus_id: BusId) -> Device | None:
        return next((d for d in self.list_devices() if d.bus_id == bus_id), None)

    def record(self, bus_id: BusId) -> Record | None:
        return None


def shared(
    *devices: Device, rules: tuple[Rule, ...] = (), names: Names | None = None,
    file: Path | None = None,
) -> SharedDevices:  # fmt: skip
    found = SharedDevices(Plugged(*devices), NameBook(StateFile(file)))
    found.configure(rules, names or {})
    return found


def names_of(found: SharedDevices) -> list[str | None]:
    return [d.name for d in found.list_devices()]


def named(**places: dict[str, str]) -> Names:
    return ServerConfig.model_validate({"names": places}).names


def test_denied_devices_are_hidden() -> None:
    deny = Rule(deny=Criteria(bus="1-1"))
    found = shared(device("1-1"), device("1-2", serial="B"), rules=(deny,))
    assert [d.bus_id for d in found.list_devices()] == ["1-2"]


def test_only_a_rule_of_its_own_shares_a_protected_device() -> None:
    disk = device().model_copy(update={"state": State.PROTECTED, "reason": "mounted at /"})
    for rule, state in (
        (Rule(allow=Criteria(bus="1-1.4")), State.PROTECTED),
        (Rule(allow_protected=Criteria(bus="1-1.4")), State.AVAILABLE),
        (Rule(allow_protected=Criteria(bus="1-2")), State.PROTECTED),
    ):
        (listed,) = shared(disk, rules=(rule,)).list_devices()
        assert (listed.state, listed.reason is None) == (state, state is State.AVAILABLE)


def test_only_a_rule_of_its_own_gives_away_what_is_used_unseen() -> None:
    found = shared(device(), rules=(Rule(allow=Criteria(bus="1-1.4")),))
    assert not found.gives_away(BusId("1-1.4"))
    found.configure((Rule(allow_protected=Criteria(bus="1-1.4")),), {})
    assert found.gives_away(BusId("1-1.4"))
    assert not found.gives_away(BusId("1-2"))


def test_another_device_in_the_same_place_is_decided_on_anew() -> None:
    found = shared(device(), rules=(Rule(deny=Criteria(serial="A5XK")),))
    assert found.list_devices() == ()
    found.source = Plugged(device(serial="B", devnum=6))
    assert len(found.list_devices()) == 1
    found.source = Plugged(device(serial="A5XK", devnum=7))
    assert found.list_devices() == ()


def test_the_same_device_is_decided_on_anew_when_it_is_plugged_in_again() -> None:
    """It may have changed its class, as one does that is flashed."""
    found = shared(device(), rules=(Rule(deny=Criteria.model_validate({"class": "08"})),))
    assert found.list_devices() == ()
    found.source = Plugged(device(classes=("ff/00/00",), devnum=6))
    assert len(found.list_devices()) == 1


def test_new_rules_decide_anew() -> None:
    found = shared(device(), rules=(Rule(deny=Criteria()),))
    assert found.list_devices() == ()
    found.configure((), {})
    assert len(found.list_devices()) == 1


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", [{"serial": "A5XK"}, {"id": "0403:6001"}, {"port": "1-1.4"}, {"id": "0403:6001",
              "port": "1-1.4"}],
)  # fmt: skip
def test_a_name_by_each_description(place: dict[str, str]) -> None:
    assert names_of(shared(device(), names=named(scope=place))) == ["scope"]


def test_the_most_telling_description_wins() -> None:
    names = named(port={"port": "1-1.4"}, kind={"id": "0403:6001"}, one={"serial": "A5XK"})
    assert names_of(shared(device(), names=names)) == ["one"]
    both = named(kind={"id": "0403:6001"}, one={"serial": "A5XK", "id": "0403:6001"})
    assert names_of(shared(device(), names=both)) == ["one"]
    both = named(left={"port": "1-1.4"}, one={"id": "0403:6001", "port": "1-1.4"})
    assert names_of(shared(device(), names=both)) == ["one"]


def test_all_parts_of_a_description_must_fit() -> None:
    right = {"serial": "A5XK", "id": "0403:6001", "port": "1-1.4"}
    assert names_of(shared(device(), names=named(scope=right))) == ["scope"]
    for wrong in ({"serial": "B"}, {"id": "0403:6002"}, {"port": "1-2"}):
        names = named(scope=right | wrong)
        assert names_of(shared(device(), names=names)) == [None]


def test_a_name_by_serial_moves_with_the_device_and_one_by_port_does_not() -> None:
    names = named(scope={"serial": "A5XK"}, left={"port": "1-2"})
    assert names_of(shared(device("1-3"), names=names)) == ["scope"]
    assert names_of(shared(device("1-2", serial=None), names=names)) == ["left"]


def test_an_ambiguous_name_is_nobodys_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    found = shared(device("1-1"), device("1-2", serial="B"), names=named(probe={"id": "0403:6001"}))
    assert names_of(found) == [None, None]
    found.list_devices()
    assert caplog.text.count("the name probe fits 2 devices, so none has it") == 1


def test_below_an_ambiguous_name_each_device_has_its_own() -> None:
    names = named(probe={"id": "0403:6001"}, left={"port": "1-1"}, right={"port": "1-2"})
    found = shared(device("1-1"), device("1-2", serial="B"), names=names)
    assert names_of(found) == ["left", "right"]


def test_if_the_next_name_is_ambiguous_too_nobody_has_it_either() -> None:
    names = named(one={"serial": "A5XK"}, probe={"id": "0403:6001"}, left={"port": "1-1"})
    found = shared(device("1-1"), device("1-2"), names=names)
    assert names_of(found) == ["left", None]


class Settled(Plugged):
    """Says with the same tuple that nothing has changed, as the real ones do."""

    def __init__(self, *devices: Device) -> None:
        super().__init__(*devices)
        self.plug(*devices)

    def plug(self, *devices: Device) -> None:
        self.listed = with_ids(devices)

    def list_devices(self) -> tuple[Device, ...]:
        return self.listed


def test_what_has_not_changed_is_not_decided_on_again() -> None:
    found = shared(names=named(scope={"port": "1-1"}))
    found.source = source = Settled(device("1-1"))
    first = found.list_devices()
    assert found.list_devices() is first
    found.configure((), {})
    assert [d.name for d in found.list_devices()] == [None]
    source.plug(device("1-2"))
    assert [d.bus_id for d in found.list_devices()] == ["1-2"]


def test_one_device_is_found_as_all_would_be_listed_now() -> None:
    found = shared(rules=(Rule(deny=Criteria(bus="1-2")),), names=named(scope={"port": "1-1"}))
    found.source = source = Settled(device("1-1"), device("1-2", serial="B"))
    (shown,) = found.list_devices()
    assert found.find(BusId("1-1")) is shown
    assert found.find(BusId("1-2")) is None
    source.plug(device("1-1", serial="C", devnum=6), device("1-3"))
    one, other = found.find(BusId("1-1")), found.find(BusId("1-3"))
    assert one is not None
    assert (one.serial, one.name) == ("C", "scope")
    assert other is not None
    found.configure((Rule(deny=Criteria(bus="1-1")),), {})
    assert found.find(BusId("1-1")) is None


def test_what_is_decided_of_devices_that_are_gone_is_forgotten() -> None:
    found = shared(device(), rules=(Rule(deny=Criteria(bus="1-2")),))
    for devnum in range(100):
        found.source = Plugged(device(devnum=devnum))
        assert len(found.list_devices()) == 1
    assert len(found._verbs) == 1


def test_a_name_is_given_taken_away_and_falls_back_to_the_configuration() -> None:
    found = shared(device(), names=named(scope={"serial": "A5XK"}))
    found.names.give(device(), "mine", found.list_devices())
    assert names_of(found) == ["mine"]
    found.names.give(device(), "", found.list_devices())
    assert names_of(found) == ["scope"]


def test_a_given_name_is_kept_over_a_restart_and_a_move(tmp_path: Path) -> None:
    found = shared(device(), file=tmp_path / "names")
    found.names.give(device(), "müller", found.list_devices())
    assert names_of(shared(device("1-3"), file=tmp_path / "names")) == ["müller"]


def test_twins_are_named_by_their_ports(tmp_path: Path) -> None:
    twins = (device("1-1"), device("1-2"))
    found = shared(*twins, file=tmp_path / "names")
    left, right = found.list_devices()
    found.names.give(left, "left", found.list_devices())
    found.names.give(right, "right", found.list_devices())
    assert names_of(shared(*twins, file=tmp_path / "names")) == ["left", "right"]


def test_a_name_is_given_again_to_the_device_that_has_it() -> None:
    found = shared(device(), device("1-2", serial="B"))
    for _ in range(2):
        one = found.list_devices()[0]
        found.names.give(one, "scope", found.list_devices())
    assert names_of(found) == ["scope", None]


@pytest.mark.parametrize(("configured", "given"), [("scope", "Scope"), ("Scope", "scope")])
def test_a_given_name_takes_the_place_of_a_configured_one_whatever_its_case(
    configured: str, given: str
) -> None:
    names = named(**{configured: {"id": "0403:6001"}})
    found = shared(device(), names=names)
    found.names.give(found.list_devices()[0], given, found.list_devices())
    found.source = Plugged(device(), device("1-2", serial="B"))
    assert names_of(found) == [given, None]


def test_a_given_name_goes_before_a_configured_one_that_tells_more() -> None:
    found = shared(device(), device("1-2"), names=named(scope={"serial": "A5XK", "port": "1-2"}))
    one = found.list_devices()[1]
    assert one.name == "scope"
    found.names.give(one, "mine", found.list_devices())  # by its port: it has a twin
    assert names_of(found) == [None, "mine"]


def test_a_new_name_replaces_the_old_one(tmp_path: Path) -> None:
    found = shared(device(), file=tmp_path / "names")
    for name in ("one", "two", "TWO"):
        found.names.give(device(), name, found.list_devices())
    assert names_of(found) == ["TWO"]
    assert len((tmp_path / "names").read_text().splitlines()) == 1


def test_a_name_of_another_device_is_refused_also_while_that_is_unplugged() -> None:
    found = shared(device("1-1", serial="X"), device("1-2"), names=named(kept={"serial": "gone"}))
    one, two = found.list_devices()
    found.names.give(one, "scope", found.list_devices())
    with pytest.raises(errors.Refused, match="scope is the name of 0403:6001:X"):
        found.names.give(two, "scope", found.list_devices())
    found.source = Plugged(device("1-2"))
    for name in ("SCOPE", "kept"):
        with pytest.raises(errors.Refused, match="not plugged in"):
            found.names.give(two, name, found.list_devices())
    assert names_of(found) == [None]


@pytest.mark.parametrize(
    "name",
    [
        "a\x1b[31m", "a\nb", "a\0b", "a/b", "../x", "..", ".hidden", "-rf", "a b", "a:b", "1-1",
        "2-1.4", "\u202eabc", "x" * 32, "_x", "a\u2028b", "a\x85",
    ],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    found = shared(device())
    with pytest.raises(errors.UsageError) as caught:
        found.names.give(device(), name, found.list_devices())
    assert caught.value.message.isprintable()
    assert names_of(found) == [None]


def test_ten_thousand_names_are_no_burden(tmp_path: Path) -> None:
    places = {f"n{i}": {"serial": f"S{i}"} for i in range(MAX_NAMES)}
    started = time.monotonic()
    names = named(**places)
    many = [device(f"1-{i // 200 + 1}.{i % 200 + 1}", serial=f"S{i}") for i in range(1000)]
    found = shared(*many, names=names)
    assert names_of(found) == [f"n{i}" for i in range(1000)]
    assert time.monotonic() - started < patience(20)


def test_more_names_than_that_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most 10000"):
        named(**{f"n{i}": {"serial": f"S{i}"} for i in range(MAX_NAMES + 1)})


def test_more_given_names_than_that_are_refused(tmp_path: Path) -> None:
    line = '{{"name": "n{0}", "serial": "S{0}"}}\n'
    (tmp_path / "names").write_text("".join(line.format(i) for i in range(MAX_NAMES - 1)))
    found = shared(device(), file=tmp_path / "names")
    found.names.give(device("1-2", serial="B"), "the-last-one", found.list_devices())
    with pytest.raises(errors.Refused, match="10000 names already"):
        found.names.give(device(), "one-too-many", found.list_devices())


def test_a_name_is_twice_whatever_its_case() -> None:
    assert find_twice(["a", "b"]) is None
    assert find_twice(["scope", "b", "Scope"]) == "Scope"
    with pytest.raises(ValidationError, match="twice"):
        named(scope={"serial": "A"}, Scope={"serial": "B"})


def test_two_names_for_one_place_are_a_mistake() -> None:
    """The second one would never be shown."""
    one, other = {"serial": "A", "id": "0403:6001"}, {"serial": "A"}
    assert find_same_place(named(a=one, b=other, c={"port": "1-1"}, d={"port": "1-2"})) is None
    with pytest.raises(ValidationError, match="another name already"):
        named(a=one, b=other, c=one)


def test_a_name_needs_a_description() -> None:
    for wrong in ({}, {"serial": ""}, {"port": "usb1"}, {"id": "403:1"}, {"color": "red"}):
        with pytest.raises(ValidationError):
            named(scope=dict(wrong))


# -- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "address", "may"),
    [
        ([], "203.0.113.9", True),
        (["192.168.1.0/24"], "192.168.1.7", True), (["192.168.1.0/24"], "192.168.2.7", False),
        (["10.0.0.1"], "10.0.0.1", True), (["10.0.0.1"], "10.0.0.2", False),
        (["fd00::/8"], "fd12::1", True), (["fd00::/8"], "fe80::1", False),
        (["fe80::/10"], "fe80::1%eth0", True), (["::1"], "127.0.0.1", False),
        (["192.168.1.0/24"], "::ffff:192.168.1.7", True),
        (["192.168.1.0/24"], "::ffff:192.168.2.7", False),
        (["10.0.0.0/8", "fd00::/8"], "fd00::1", True), (["0.0.0.0/0"], "::2", False),
    ],
)  # fmt: skip
def test_who_may_talk(networks: list[str], address: str, may: bool) -> None:
    assert (address in Networks(networks)) is may


@pytest.mark.parametrize("text", ["bench3", "192.168.1.5/24", "10.0.0.0/33", "", "::1/200", "1.2"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="is not a network such as"):
        parse_network(text)


# -- files that outlive a restart ---------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB; USB_REMOTE_NO_SKIP=1 (CI) makes it a failure that there can be none."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tiny", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        missing = pytest.fail if os.environ.get("USB_REMOTE_NO_SKIP") == "1" else pytest.skip
        missing(f"nothing can be mounted here (needs root): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no room at all; returns what takes it."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def event(kind: Kind = Kind.PLUGGED, seconds: float = 0, **more: object) -> Event:
    speed = device().speed if kind is Kind.PLUGGED else None
    facts = {"speed": speed, **more}
    return events.of_device(kind, device(), NOW + timedelta(seconds=seconds), **facts)


def ended(seconds: float = 0, cause: Cause = Cause.DETACHED) -> Event:
    told = event(Kind.ENDED, seconds, holder=ANN, cause=cause)
    return told.model_copy(update={"seconds": seconds})


def history(path: Path) -> History:
    return History(StateFile(path))


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_truncated_name_file_is_kept_aside_and_what_is_whole_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "names"
    path.write_text('{"name": "one", "serial": "A5XK"}\n{"name": "tw')
    assert names_of(shared(device(), file=path)) == ["one"]
    assert "names is broken (line 2" in caplog.text
    assert "kept as names.broken-1" in caplog.text
    assert path.with_name("names.broken-1").read_text().endswith('{"name": "tw')
    assert names_of(shared(device(), file=path)) == ["one"], "after another restart, too"


def test_a_truncated_history_is_kept_aside_and_what_is_whole_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history"
    first = history(path)
    for seconds in range(3):
        first.record(event(seconds=seconds))
    path.write_bytes(path.read_bytes()[:-9])
    again = history(path)
    assert len(again.events) == 2
    assert "broken (line 3" in caplog.text
    again.record(event(seconds=5))
    assert len(history(path).events) == 3
    assert len(list(tmp_path.glob("*.broken-*"))) == 1


@pytest.mark.parametrize(
    "rubbish",
    [b"\xff\xfe", b"[]\n", b"7\n", b"null\n", b"{}\n", b'{"name": "../x", "port": "1-1"}\n',
     b'{"name": "x"}\n', b"[" * 100_000, b'{"at": NaN}\n', b"\0" * 100],
)  # fmt: skip
def test_rubbish_in_a_state_file_never_keeps_a_server_from_starting(
    tmp_path: Path, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("names", "history"):
        (tmp_path / name).write_bytes(rubbish)
    assert names_of(shared(device(), file=tmp_path / "names")) == [None]
    assert history(tmp_path / "history").events == []
    for name in ("names", "history"):
        assert (tmp_path / f"{name}.broken-1").read_bytes() == rubbish
        assert f"{name} is broken" in caplog.text


def test_names_after_one_that_makes_no_sense_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["one", "../x", "three", "../y"]
    text = "".join(f'{{"name": "{name}", "port": "1-{n}"}}\n' for n, name in enumerate(lines, 1))
    (tmp_path / "names").write_text(text)
    assert names_of(shared(device("1-1"), device("1-3", serial="B"), file=tmp_path / "names")) == [
        "one", None,
    ]  # fmt: skip
    assert len(caplog.messages) == 1
    assert (tmp_path / "names.broken-1").read_text() == text
    assert len((tmp_path / "names").read_text().splitlines()) == 1


def test_events_after_one_that_makes_no_sense_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = event().model_dump_json(exclude_none=True)
    text = f"{good}\n{{}}\n{good}\n{{}}\n"
    (tmp_path / "history").write_text(text)
    assert len(history(tmp_path / "history").events) == 1
    assert len(caplog.messages) == 1
    assert (tmp_path / "history.broken-1").read_text() == text
    assert len((tmp_path / "history").read_text().splitlines()) == 1


def test_each_broken_file_is_kept(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "history").write_text(content)
        history(tmp_path / "history")
    assert (tmp_path / "history.broken-1").read_text() == "one"
    assert (tmp_path / "history.broken-2").read_text() == "two"


def test_an_empty_file_is_no_broken_one(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("")
    assert history(tmp_path / "history").events == []
    assert len(list(tmp_path.iterdir())) == 1


def test_on_a_full_disk_a_name_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    found = shared(device(), file=tmp_path / "names")
    found.names.give(device(), "old", found.list_devices())
    with full_disk(), pytest.raises(errors.SystemFault, match="cannot be written") as caught:
        found.names.give(device(), "new", found.list_devices())
    assert "df -h" in (caught.value.hint or "")
    found.configure((), {})
    assert names_of(found) == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["names"], "nothing half written is left"
    assert names_of(shared(device(), file=tmp_path / "names")) == ["old"]


def test_on_a_full_disk_history_goes_on_and_is_written_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history"
    past = history(path)
    past.record(event())
    size = path.stat().st_size
    with full_disk(size + 20):
        for seconds in (1, 2, 3):
            past.record(event(seconds=seconds))
        assert len(past.events) == 4
        assert len(history(path).events) == 1, "and no part of a line"
    assert caplog.text.count("history is not kept over a restart") == 1
    past.record(event(seconds=4))
    assert len(history(path).events) == 5


def test_a_disk_that_is_really_full_loses_nothing(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, past = shared(device(), file=tiny_disk / "names"), history(tiny_disk / "history")
    found.names.give(device(), "old", found.list_devices())
    filler = fill(tiny_disk)
    with pytest.raises(errors.SystemFault, match="names cannot be written: No space left"):
        found.names.give(device(), "new", found.list_devices())
    for seconds in range(99):
        past.record(event(seconds=seconds))
    assert caplog.text.count("not kept over a restart: ") == 1
    assert sorted(p.name for p in tiny_disk.iterdir()) == ["filler", "history", "names"]
    assert names_of(shared(device(), file=tiny_disk / "names")) == ["old"]

    filler.unlink()
    past.record(event(seconds=99))
    assert len(history(tiny_disk / "history").events) == 100
    assert list(tiny_disk.glob("*.broken-*")) == []


def test_what_a_full_disk_refused_is_written_at_the_end_if_there_is_room(tmp_path: Path) -> None:
    past = history(tmp_path / "history")
    with full_disk():
        past.record(event())
        past.flush()
    past.flush()
    assert len(history(tmp_path / "history").events) == 1


def test_a_server_without_a_fixed_identity_writes_nothing(tmp_path: Path) -> None:
    past = History(StateFile(None))
    past.record(event())
    assert len(past.events) == 1
    assert list(tmp_path.iterdir()) == []


# -- history ------------------------------------------------------------------------------------


def test_history_survives_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    past = History(StateFile(tmp_path / "history"), clock)
    for told in (event(), event(Kind.ATTACHED, 0, holder=ANN), ended(75, Cause.TIME_UP)):
        past.record(told)
        clock.now += 75 * (told.kind is Kind.ATTACHED)
    again = history(tmp_path / "history")
    assert again.events == past.events
    last = again.last_session(device().id)
    assert last == Ended(holder=ANN, at=NOW + timedelta(seconds=75), cause=Cause.TIME_UP)
    assert str(again.events[-1]) == "0403:6001:A5XK ended with ann@pc after 1 min 15 s: time_up"


def test_history_is_bounded_in_all_and_for_each_device(tmp_path: Path) -> None:
    past = history(tmp_path / "history")
    for n in range(MAX_PER_DEVICE + 50):
        past.record(event(seconds=n))
    assert len(past.events) == MAX_PER_DEVICE
    assert past.events[0].at == NOW + timedelta(seconds=50)
    for n in range(MAX_EVENTS):
        past.record(event(seconds=1000 + n).model_copy(update={"device": f"d{n}"}))
    assert len(past.events) == MAX_EVENTS
    assert all(e.device.startswith("d") for e in past.events), "the oldest go first"
    assert len((tmp_path / "history").read_text().splitlines()) <= 2 * MAX_EVENTS


def test_the_file_is_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "history"
    line = event().model_dump_json(exclude_none=True) + "\n"
    path.write_text(line * 2 * MAX_EVENTS)
    history(path).record(event(seconds=1))
    assert len(path.read_text().splitlines()) == MAX_PER_DEVICE


def test_flapping_is_noted() -> None:
    past = History(StateFile(None))
    for n in range(FLAPPING):
        past.record(event(seconds=30 * n))
    assert [e.note for e in past.events][:-1] == [None] * (FLAPPING - 1)
    assert past.events[-1].note == f"flapping: plugged {FLAPPING} times in 2 min"


def test_a_plug_before_a_clock_was_set_back_is_not_one_of_just_now() -> None:
    past = History(StateFile(None))
    for n in range(FLAPPING - 1):
        past.record(event(seconds=3600 + n))
    past.record(event())
    assert past.events[-1].note is None


def test_flapping_is_noted_also_while_a_clock_is_set_back_a_little() -> None:
    past = History(StateFile(None))
    for seconds in (400, 410, 420, 430, 100):
        past.record(event(seconds=seconds))
    assert past.events[-1].note == f"flapping: plugged {FLAPPING} times in 1 min"


@pytest.mark.parametrize(("seconds", "noted"), [(599, True), (600, False)])
def test_flapping_is_so_much_within_ten_minutes(seconds: float, noted: bool) -> None:
    past = History(StateFile(None))
    for n in range(FLAPPING - 1):
        past.record(event(seconds=n))
        past.record(event(Kind.UNPLUGGED, n))
        past.record(event(seconds=n).model_copy(update={"device": "another"}))
    past.record(event(seconds=seconds))
    assert bool(past.events[-1].note) == noted


def test_a_loose_cable_that_slows_down_as_well_is_noted_as_both() -> None:
    past = History(StateFile(None))
    for n in range(FLAPPING - 1):
        past.record(event(seconds=n, speed=480.0))
    past.record(event(seconds=60, speed=12.0))
    assert past.events[-1].note == (
        f"came back at 12 Mbit/s, before 480; flapping: plugged {FLAPPING} times in 1 min"
    )


def test_a_device_of_which_nothing_is_kept_has_no_last_session() -> None:
    past = History(StateFile(None))
    past.record(ended(5))
    assert past.last_session(device().id) is not None
    for n in range(MAX_EVENTS - 1):
        past.record(event(seconds=n).model_copy(update={"device": f"d{n}"}))
    assert past.last_session(device().id) is not None
    assert past.events[0].device == device().id
    past.record(event().model_copy(update={"device": "one more"}))
    assert past.last_session(device().id) is None
    assert past.events[0].device == "d0"
    past.record(event().model_copy(update={"device": "another one"}))
    assert past.events[0].device == "d1"
    assert len(past.events) == MAX_EVENTS


def test_the_oldest_event_goes_first_also_that_of_a_device_with_news() -> None:
    past = History(StateFile(None))
    past.record(event())
    for n in range(MAX_EVENTS - 2):
        past.record(event(seconds=n).model_copy(update={"device": f"d{n}"}))
    past.record(event(seconds=MAX_EVENTS))
    past.record(event().model_copy(update={"device": "one more"}))
    assert [e.device for e in past.events[:1]] == ["d0"]
    assert [e.at for e in past.events if e.device == device().id] == [
        NOW + timedelta(seconds=MAX_EVENTS)
    ]


def test_what_is_kept_of_a_device_are_its_newest_events() -> None:
    past = History(StateFile(None))
    for n in range(MAX_PER_DEVICE):
        past.record(event(Kind.UNPLUGGED, seconds=n))
    assert past.events[0].at == NOW
    past.record(event(Kind.UNPLUGGED, seconds=MAX_PER_DEVICE))
    assert len(past.events) == MAX_PER_DEVICE
    assert past.events[0].at == NOW + timedelta(seconds=1)


def test_the_file_grows_to_its_bound_and_is_then_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "history"
    line = event(Kind.UNPLUGGED).model_dump_json(exclude_none=True) + "\n"
    path.write_text(line * (2 * MAX_EVENTS - 1))
    past = history(path)
    past.record(event(Kind.UNPLUGGED))
    assert len(path.read_text().splitlines()) == 2 * MAX_EVENTS
    past.record(event(Kind.UNPLUGGED))
    assert len(path.read_text().splitlines()) == MAX_PER_DEVICE
    past.record(event(Kind.UNPLUGGED))
    assert len(path.read_text().splitlines()) == MAX_PER_DEVICE + 1


def test_sessions_that_go_on_are_not_closed_and_those_that_ended_not_again() -> None:
    past = History(StateFile(None))
    goes_on = event(Kind.ATTACHED, 0, holder=ANN).model_copy(update={"device": "goes on"})
    pulled = event(Kind.UNPLUGGED, 1).model_copy(update={"device": "goes on"})
    for told in (event(Kind.ATTACHED, 0, holder=ANN), ended(5), goes_on, pulled, event(seconds=9)):
        past.record(told)
    assert past.open_sessions() == [goes_on]
    past.close_open_sessions(NOW, but_not={"goes on"})
    assert past.open_sessions() == [goes_on]
    past.close_open_sessions(NOW)
    assert past.open_sessions() == []


def test_the_length_of_each_session_is_its_own() -> None:
    clock = Clock()
    past = History(StateFile(None), clock)
    for length in (5.0, 7.0):
        past.record(event(Kind.ATTACHED, 0, holder=ANN))
        clock.now += length
        past.record(ended(0))
    past.record(ended(30, Cause.SERVER_STOPPED))
    assert [e.seconds for e in past.events if e.kind is Kind.ENDED] == [5, 7, 30]


def test_plugging_now_and_then_is_no_flapping() -> None:
    past = History(StateFile(None))
    for n in range(2 * FLAPPING):
        past.record(event(seconds=300 * n))
    assert {e.note for e in past.events} == {None}


def test_a_lower_speed_is_noted() -> None:
    past = History(StateFile(None))
    past.record(event(speed=480.0))
    past.record(event(Kind.UNPLUGGED, 10, speed=480.0))
    past.record(event(seconds=20, speed=12.0))
    past.record(event(seconds=30, speed=480.0))
    assert [e.note for e in past.events] == [
        None, None, "came back at 12 Mbit/s, before 480", None,
    ]  # fmt: skip


def test_a_speed_is_compared_with_that_of_the_plug_before() -> None:
    past = History(StateFile(None))
    for n, speed in enumerate((12.0, 480.0, 12.0, 12.0)):
        past.record(event(seconds=600 * n, speed=speed))
    lower = "came back at 12 Mbit/s, before 480"
    assert [e.note for e in past.events] == [None, None, lower, None]


def test_a_session_that_a_crash_left_open_is_closed(tmp_path: Path) -> None:
    history(tmp_path / "history").record(event(Kind.ATTACHED, 0, holder=ANN))
    past = history(tmp_path / "history")
    past.close_open_sessions(NOW + timedelta(seconds=60))
    last = past.events[-1]
    assert (last.kind, last.cause, last.seconds) == (Kind.ENDED, Cause.SERVER_STOPPED, 60)
    assert "killed or lost power" in (last.note or "")
    again = history(tmp_path / "history")
    again.close_open_sessions(NOW + timedelta(seconds=99))
    assert again.events == past.events, "once"


def test_a_clock_that_is_set_back_changes_neither_order_nor_length(tmp_path: Path) -> None:
    clock = Clock()
    past = History(StateFile(tmp_path / "history"), clock)
    past.record(event(Kind.ATTACHED, 3600, holder=ANN))
    clock.now = 7.5
    past.record(event(Kind.ENDED, 0, holder=ANN, cause=Cause.DETACHED))
    for now in (past, history(tmp_path / "history")):
        assert [e.kind for e in now.events] == [Kind.ATTACHED, Kind.ENDED]
        assert now.events[1].seconds == 7.5
        assert now.open_sessions() == []


def test_the_file_keeps_the_order_when_it_is_written_anew(tmp_path: Path) -> None:
    past = history(tmp_path / "history")
    with full_disk():
        past.record(event(Kind.ATTACHED, 3600, holder=ANN))
        past.record(event(Kind.ENDED, 0, holder=ANN, cause=Cause.DETACHED))
    past.flush()
    assert [e.kind for e in history(tmp_path / "history").events] == [Kind.ATTACHED, Kind.ENDED]


def test_no_session_is_shorter_than_nothing(tmp_path: Path) -> None:
    """The clock was set back while the server was not running: what it has missed is not known."""
    history(tmp_path / "history").record(event(Kind.ATTACHED, 0, holder=ANN))
    past = history(tmp_path / "history")
    past.close_open_sessions(NOW - timedelta(days=1))
    assert past.events[-1].seconds == 0
    assert events.duration(-5) == "0 s"


def test_each_event_is_told() -> None:
    told: list[Event] = []
    past = History(StateFile(None))
    past.on_event = told.append
    past.record(event())
    assert told == past.events


# -- what two snapshots tell --------------------------------------------------------------------


def held(by: Holder = ANN, **more: object) -> Device:
    return device().model_copy(update={"holder": by, "state": State.IN_USE, **more})


def last(cause: Cause, by: str | None = None) -> dict[str, Ended]:
    return {"last_session": Ended(holder=ANN, at=NOW + timedelta(seconds=5), cause=cause, by=by)}


SOON = ANN.model_copy(update={"ends_soon": True})
WANTED = ANN.model_copy(update={"asked": Request(by="bob@pc", message="lunch is over")})
REPLUGGED = device().model_copy(update={"devnum": 6, **last(Cause.UNPLUGGED)})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([], [], []),
        ([device()], [device()], []),
        ([], [device()], ["plugged"]),
        ([device()], [], ["unplugged"]),
        ([device()], [device("1-2")], ["unplugged", "plugged"]),
        ([device()], [held()], ["attached by ann@pc"]),
        ([], [held()], ["plugged", "attached by ann@pc"]),
        ([device()], [held(ANN.model_copy(update={"since": None}))], []),
        ([held()], [held(SOON)], ["is with ann@pc only a little longer"]),
        ([held(SOON)], [held(SOON)], []),
        ([held()], [held(WANTED)], ["is asked for by bob@pc (lunch is over)"]),
        ([held(WANTED)], [held(WANTED)], []),
        (
            [device()], [held(WANTED)],
            ["attached by ann@pc", "is asked for by bob@pc (lunch is over)"],
        ),
        ([held(SOON)], [held(BOB.model_copy(update={"ends_soon": True}))], [
            "ended with ann@pc after 30 s", "attached by bob@pc",
            "is with bob@pc only a little longer",
        ]),
        (
            [held()], [device().model_copy(update=last(Cause.TIME_UP))],
            ["ended with ann@pc after 5 s: time_up"],
        ),
        (
            [held()], [held(BOB, **last(Cause.TAKEN_OVER, "bob@pc"))],
            ["ended with ann@pc after 5 s: taken_over by bob@pc", "attached by bob@pc"],
        ),
        ([held()], [], ["ended with ann@pc after 30 s", "unplugged"]),
        (
            [held(BOB)], [device().model_copy(update=last(Cause.TIME_UP))],
            ["ended with bob@pc after 21 s"],
        ),
        ([held()], [held(BOB)], ["ended with ann@pc after 30 s", "attached by bob@pc"]),
        ([held(WANTED)], [held()], []),
        (
            [held(WANTED)], [held(WANTED.model_copy(update={"asked": Request(by="cid@pc")}))],
            ["is asked for by cid@pc"],
        ),
        ([held(SOON)], [held(SOON.model_copy(update={"ends_soon": False}))], []),
        (
            [device()], [device().model_copy(update={"vendor_id": "1209"})],
            ["unplugged", "plugged"],
        ),
        ([held(ANN.model_copy(update={"since": None}))], [device()], []),
        (
            [held()], [REPLUGGED],
            ["ended with ann@pc after 5 s: unplugged", "unplugged", "plugged"],
        ),
    ],
)  # fmt: skip
def test_changes_between_two_snapshots(
    before: list[Device], after: list[Device], told: list[str]
) -> None:
    at = NOW + timedelta(seconds=30)
    found = [str(e).partition(" ")[2] for e in events.changes(before, after, at)]
    assert found == told


def test_what_two_snapshots_tell_of_an_end_is_all_that_the_server_knows_of_it() -> None:
    at = NOW + timedelta(seconds=30)
    after = device().model_copy(update=last(Cause.TAKEN_OVER, "bob@pc"))
    (told,) = events.changes([held()], [after], at)
    assert (told.at, told.cause, told.by) == (NOW + timedelta(seconds=5), "taken_over", "bob@pc")
    (told,) = events.changes([held()], [device()], at)
    assert (told.at, told.cause, told.by, told.seconds) == (at, None, None, 30)
    (told,) = events.changes([held()], [device()], NOW - timedelta(hours=1))
    assert told.seconds == 0, "by a clock that is set back"


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_is_told_kept_and_read_again(tmp_path: Path, cause: Cause) -> None:
    by = "bob@pc" if cause is Cause.TAKEN_OVER else None
    told = ended(5, cause).model_copy(update={"by": by})
    history(tmp_path / "history").record(told)
    again = history(tmp_path / "history")
    last_one = again.last_session(device().id)
    assert last_one == Ended(holder=ANN, at=told.at, cause=cause, by=by)
    assert str(again.events[-1]).endswith(f": {cause}" + (" by bob@pc" if by else ""))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (75, "1 min 15 s"), (3600, "1 h"),
     (3661, "1 h 1 min"), (86400 * 2 + 5, "2 d 5 s"), (86399, "23 h 59 min")],
)  # fmt: skip
def test_a_duration_in_words(seconds: float | None, words: str) -> None:
    assert events.duration(seconds) == words


def test_the_end_of_a_serial_number_does_not_mean_a_device() -> None:
    told = event().model_copy(update={"name": "scope"})
    assert [events.about([told], word) for word in ("5XK", "cope", "6001")] == [[], [], []]
    assert events.about([told], "0403:6001:A5") == [told]


def test_a_servers_own_plugs_leave_sessions_to_who_ends_them() -> None:
    assert [e.kind for e in events.plugs([held()], [], NOW)] == [Kind.UNPLUGGED]


@pytest.mark.parametrize(
    ("word", "count"),
    [(None, 1), ("SCOPE", 1), ("0403:6001:a5xk", 1), ("1-1.4", 1), ("a5xk", 1), ("0403", 1),
     ("nothing", 0)],
)  # fmt: skip
def test_events_about_a_word(word: str | None, count: int) -> None:
    told = event().model_copy(update={"name": "scope"})
    assert len(events.about([told], word)) == count


def called(device: str, name: str | None, bus_id: str = "1-1") -> Event:
    told = event(serial=None, bus_id=bus_id)
    return told.model_copy(update={"device": device, "name": name, "bus_id": bus_id})


def test_a_name_means_all_that_happened_to_whoever_has_it_now() -> None:
    """Also before it was named, and not what happened to others that had the name before."""
    kept = [called("a", None), called("b", "scope"), called("b", None), called("a", "scope")]
    assert events.about(kept, "Scope") == [kept[0], kept[3]]
    now = device().model_copy(update={"id": "b", "name": "scope"})
    assert events.about(kept, "scope", [now]) == [kept[1], kept[2]]
    renamed = device().model_copy(update={"id": "a", "name": "meter"})
    assert events.about(kept, "scope", [renamed]) == [kept[0], kept[3]], "it had the name last"
    assert events.about(kept, "meter", [renamed]) == [kept[0], kept[3]]


def test_a_bus_id_means_a_place() -> None:
    kept = [called("a", None, "1-1"), called("b", None, "1-1"), called("a", None, "1-2")]
    assert events.about(kept, "1-1") == kept[:2]


def test_an_event_is_the_same_after_its_file() -> None:
    told = ended(3.5)
    assert Event.model_validate(json.loads(told.model_dump_json())) == told
