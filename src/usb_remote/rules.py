"""Who may have what: sharing rules, names by description of a device, networks.

Rule of this file: values of the configuration and pure functions; first match wins. A rule that
could never match is a mistake, and said to be one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from usb_remote.model import Device
from usb_remote.values import BusId, DeviceName, HardwareId, clean

MAX_RULES, MAX_NAMES, MAX_NETWORKS = 1000, 10_000, 1000

_PARTS = re.compile(r"\[!?\]?[^]]*\]|.", re.DOTALL)
"""A glob in parts, each for one character, or ``*``."""
_Steps = dict[int, dict[str, int]]
_Form = tuple[_Steps, set[int]]
"""How texts of a kind are made: where one is -> the characters that may follow -> where that leads;
and where a text may end."""


def _row(template: str, *ends: int) -> _Form:
    """A form in which each position has one kind of character; x is a hexadecimal digit."""
    kinds = [_HEX if kind == "x" else kind for kind in template]
    return {n: {kind: n + 1} for n, kind in enumerate(kinds)}, set(ends)


_DIGITS, _HEX = "0123456789", "0123456789abcdef"
_FORMS: dict[str, tuple[_Form, str]] = {
    "id": (_row("xxxx:xxxx", 9), "a hardware id such as 0403:6001 or 0403:*"),
    "bus": (
        (
            {
                0: {_DIGITS[1:]: 1},
                1: {_DIGITS: 1, "-": 2},
                2: {_DIGITS[1:]: 3},
                3: {_DIGITS: 3, ".": 2},
            },
            {3},
        ),
        "a bus id such as 1-1.4 or 1-1.*",
    ),
    "cls": (_row("xx/xx/xx", 2, 5, 8), "a class such as 08 or 03/01/01"),
}


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Criteria(_Values):
    """Which devices; all given globs must match, without regard to case.

    Attributes:
        id: hardware id, ``0403:*``.
        serial: serial number.
        bus: bus id, ``1-1.*``.
        cls: ``class`` in the file: class, class/subclass or class/subclass/protocol of any
            interface, hexadecimal (https://www.usb.org/defined-class-codes).
        manufacturer, product: the device's own words.

    """

    id: str | None = None
    serial: str | None = None
    bus: str | None = None
    cls: str | None = Field(default=None, alias="class")
    manufacturer: str | None = None
    product: str | None = None

    @model_validator(mode="after")
    def _can_match(self) -> Criteria:
        for key, (form, what) in _FORMS.items():
            pattern = getattr(self, key)
            if pattern is not None and not _fits_any(pattern.lower(), form):
                shown = "class" if key == "cls" else key
                raise ValueError(f"{shown} {clean(pattern)!r} can never match: it is not {what}")
        return self

    @cached_property
    def globs(self) -> dict[str, str]:
        return {key: str(glob).lower() for key, glob in self if glob is not None}

    def matches(self, device: Device) -> bool:
        values = {
            "id": (device.hardware_id,),
            "serial": (device.serial or "",),
            "bus": (device.bus_id,),
            "manufacturer": (device.manufacturer or "",),
            "product": (device.product or "",),
        }
        for key, glob in self.globs.items():
            found = _class_prefixes(device) if key == "cls" else values[key]
            if not any(_pattern(glob).match(value.lower()) for value in found):
                return False
        return True

    def covers(self, other: Criteria) -> bool:
        """Whether everything that the other one matches is matched by this one, for certain."""
        theirs = other.globs
        return all(
            key in theirs and any(_covers(glob, part) for part in _wholes(key, theirs[key]))
            for key, glob in self.globs.items()
        )


def _fits_any(glob: str, form: _Form) -> bool:
    """Whether there is a text of this form that the glob matches."""
    steps, ends = form
    places = {0}
    for part in _PARTS.findall(glob):
        places = _beyond(places, steps) if part == "*" else _after(places, steps, part)
    return bool(places & ends)


def _after(places: set[int], steps: _Steps, part: str) -> set[int]:
    """Where one character that this part of a glob matches leads to."""
    fits = _pattern(part).match
    moves = [move for place in places for move in steps.get(place, {}).items()]
    return {place for characters, place in moves if any(map(fits, characters))}


def _beyond(places: set[int], steps: _Steps) -> set[int]:
    """Where any number of characters leads to."""
    more = places.union(*(steps.get(place, {}).values() for place in places))
    return places if more == places else _beyond(more, steps)


def _wholes(key: str, glob: str) -> Iterable[str]:
    """What a device that fits this glob fits besides: with 08/06 also 08."""
    parts = glob.split("/") if key == "cls" else [glob]
    return ("/".join(parts[:n]) for n in range(1, len(parts) + 1))


def _covers(glob: str, other: str) -> bool:
    """A glob of literals and ``*`` covers what it matches as text, wild cards included.

    What stands in brackets is one character that no literal is sure to match.
    """
    if glob == other:
        return True
    simple = "[" not in glob and "?" not in glob and "\0" not in glob
    return simple and _pattern(glob).match(_without_brackets(other)) is not None


@lru_cache(4 * MAX_RULES)
def _without_brackets(glob: str) -> str:
    return re.sub(r"\[!?\]?[^]]*\]", "\0", glob)


@lru_cache(4 * MAX_RULES)
def _pattern(glob: str) -> re.Pattern[str]:
    """As fnmatch makes it, whose own memory is too short for all the rules there may be."""
    return re.compile(translate(glob))


def _class_prefixes(device: Device) -> set[str]:
    """``08/06/50`` fits as 08, as 08/06 and whole."""
    found = set()
    for triple in device.classes:
        parts = triple.split("/")
        found |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return found


class Verb(StrEnum):
    """What a rule does with the devices it matches."""

    ALLOW = "allow"
    DENY = "deny"
    ALLOW_PROTECTED = "allow_protected"


def _all(value: object) -> object:
    return {} if value == "all" else value


_Which = Annotated[Criteria | None, BeforeValidator(_all)]


class Rule(_Values):
    """``allow``, ``deny`` or ``allow_protected`` with criteria, or with the word ``all``.

    Attributes:
        allow: share them.
        deny: hide them.
        allow_protected: share them even if this machine uses them itself.

    """

    allow: _Which = None
    deny: _Which = None
    allow_protected: _Which = None

    @model_validator(mode="after")
    def _one_verb(self) -> Rule:
        if len([verb for verb in Verb if getattr(self, verb) is not None]) != 1:
            raise ValueError("a rule has one of allow, deny and allow_protected, with criteria")
        if self.allow_protected is not None and not self.allow_protected.globs:
            raise ValueError("allow_protected has to say which devices")
        return self

    @property
    def verb(self) -> Verb:
        return next(verb for verb in Verb if getattr(self, verb) is not None)

    @property
    def criteria(self) -> Criteria:
        found = getattr(self, self.verb)
        assert isinstance(found, Criteria)
        return found


def decide(rules: Iterable[Rule], device: Device) -> Verb:
    """What the first matching rule says; without one a device is shared."""
    return next((rule.verb for rule in rules if rule.criteria.matches(device)), Verb.ALLOW)


def find_dead_rule(rules: Sequence[Rule]) -> tuple[int, str] | None:
    """The first rule that an earlier one leaves nothing to, and the reason; None if all live."""
    criteria = [rule.criteria for rule in rules]
    for index, rule in enumerate(criteria):
        for earlier, before in enumerate(criteria[:index]):
            if before.covers(rule):
                return (
                    index,
                    f"this rule can never match: share.{earlier} takes all that it means",
                )
    return None


class Place(_Values):
    """Which device a name means: all that is given must be so, exactly.

    Attributes:
        serial: its serial number.
        id: its hardware id.
        port: its bus id: whatever is plugged in there.

    """

    serial: str | None = Field(default=None, min_length=1, max_length=128)
    id: HardwareId | None = None
    port: BusId | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Place:
        if not (self.serial or self.id or self.port):
            raise ValueError("a name needs serial, id or port")
        return self

    def fits(self, device: Device) -> bool:
        return (
            self.serial in (None, device.serial)
            and self.id in (None, device.hardware_id)
            and self.port in (None, device.bus_id)
        )

    @property
    def key(self) -> tuple[str, str]:
        """The part by which it is looked up, the most telling first."""
        for part in ("serial", "id", "port"):
            if value := getattr(self, part):
                return part, str(value)
        raise AssertionError("checked when it was made")


def keys_of(device: Device) -> Iterable[tuple[str, str]]:
    """What :attr:`Place.key` may be for a place that fits this device, the most telling first."""
    if device.serial:
        yield "serial", device.serial
    yield "id", device.hardware_id
    yield "port", device.bus_id


def find_twice(names: Iterable[str]) -> str | None:
    """A name that is there twice, without regard to case; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            return name
        seen.add(name.lower())
    return None


def find_same_place(names: Names) -> str | None:
    """A name for a place that another one names already; None if there is none."""
    seen: set[Place] = set()
    for name, place in names.items():
        if place in seen:
            return name
        seen.add(place)
    return None


def parse_network(text: object) -> str:
    """Check ``192.168.1.0/24``, ``fd00::/8`` or one address; raises ValueError."""
    try:
        return str(ipaddress.ip_network(str(text)))
    except ValueError as error:
        raise ValueError(
            f"{clean(text)!r} is not a network such as 192.168.1.0/24 ({error})"
        ) from None


Network = Annotated[str, BeforeValidator(parse_network)]
Names = dict[DeviceName, Place]


class Networks:
    """Networks that may talk to a server; none given means everybody may."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(text) for text in networks]

    def __contains__(self, address: Any) -> bool:
        if not self._networks:
            return True
        plain = ipaddress.ip_address(str(address).partition("%")[0])
        mapped = getattr(plain, "ipv4_mapped", None) or plain
        return any(mapped in network for network in self._networks)
