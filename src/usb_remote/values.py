"""What a value must look like: bus id, hardware id, name, text, time; checked where it enters.

Rule of this file: no nouns, and nothing untrusted stays: what cannot be right is a ValueError, what
a terminal must not see becomes a space.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import core_schema

MAX_TEXT = 128
"""Longest device string that we keep, in characters. USB allows 126 (USB 2.0, 9.6.7)."""

MAX_BUS_ID = 31
"""Longest bus id in bytes: SYSFS_BUS_ID_SIZE of linux/tools/usb/usbip is 32 with its NUL."""


class _Checked(str):
    """A string that is valid by construction, also as a pydantic field."""

    _form: re.Pattern[str]
    _what: str

    def __new__(cls, text: str) -> Self:
        if not isinstance(text, str) or len(text) > MAX_BUS_ID or not cls._form.fullmatch(text):
            raise ValueError(f"{clean(str(text))!r} is not a {cls._what}")
        return super().__new__(cls, text)

    @classmethod
    def is_valid(cls, text: str) -> bool:
        return len(text) <= MAX_BUS_ID and cls._form.fullmatch(text) is not None

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


class BusId(_Checked):
    """The kernel's name of a physical position: ``1-1.4`` is bus 1, port 1, port 4 of the hub."""

    _form = re.compile(r"[1-9][0-9]{0,3}-[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,6}")
    _what = "bus id such as 1-1.4"

    @property
    def bus(self) -> int:
        return int(self.partition("-")[0])

    @property
    def port_numbers(self) -> tuple[int, ...]:
        return tuple(int(port) for port in self.partition("-")[2].split("."))


class HardwareId(_Checked):
    """``vendor:product``, four hexadecimal digits each: ``0403:6001``."""

    _form = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
    _what = "hardware id such as 0403:6001"


class DeviceName(_Checked):
    """What people call a device: letters, digits, ``. _ -``, so that it fits into a path."""

    _form = re.compile(r"[^\W_][\w.-]*")
    _what = f"name: letters, digits and . _ - only, at most {MAX_BUS_ID} characters"

    def __new__(cls, text: str) -> Self:
        if isinstance(text, str) and BusId.is_valid(text):
            raise ValueError(f"{text!r} is a bus id, and so no name")
        return super().__new__(cls, text)


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """Make an untrusted string fit to print on one line of a terminal: no control, no override.

    Every character of the Unicode categories C* (control, format, surrogate, unassigned), Zl and Zp
    becomes a space; runs of white space become one; at most ``limit`` characters remain.
    """
    known = str(text)[: 8 * limit]
    if not known.isprintable():  # nearly every string is, and character by character is slow
        known = "".join(" " if _is_unprintable(c) else c for c in known)
    return " ".join(known.split())[:limit].rstrip()


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" or character in "\u2028\u2029"


def _clean_or_none(text: object) -> str | None:
    return None if text is None else clean(text)


Text = Annotated[str, BeforeValidator(clean)]
OptionalText = Annotated[str | None, BeforeValidator(_clean_or_none)]
Hex4 = Annotated[
    str, BeforeValidator(lambda text: str(text).lower()), Field(pattern="^([0-9a-f]{4})?$")
]
"""Four hexadecimal digits; empty where this machine cannot know them."""
Port = Annotated[int, Field(ge=0, le=65535)]


def _checked_moment(moment: datetime) -> datetime:
    if moment.tzinfo is None or not 1970 <= moment.year < 9999:
        raise ValueError("not a time with its offset from UTC between 1970 and 9998")
    return moment


Moment = Annotated[datetime, AfterValidator(_checked_moment)]
"""A time that can be shown anywhere on earth, and compared with any other."""
