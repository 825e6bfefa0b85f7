"""The control protocol on TCP 5055: its numbers, and what is asked (docs/reference/protocol.md).

Rule of this file: bytes in, messages out; no socket, no clock. One line of JSON <-> one request, on
both sides, read strictly. What is answered is in replies.py, the form of 2.x in protocol_2x.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from usb_remote import errors
from usb_remote.matching import Query
from usb_remote.values import clean

VERSION = 1
"""Protocol version: ``v`` in requests, ``proto`` in the TXT record."""

PORT = 5055
MAX_REPLY = 16 * 1024 * 1024
"""Longest reply line in bytes that a client reads: about 20 000 devices."""
PING_INTERVAL = 3.0
"""Seconds between two ``ping`` lines of a quiet watch."""
MAX_SECONDS = 30 * 86400.0
"""Longest wait, and longest session that ends by itself: 30 days."""
RESET_TIME = 5.0
"""Seconds that the kernel of a server may take to reset a device after a session."""
WATCH_TIMEOUT = 9.0
"""Seconds without any line after which a watch is dead."""

Word = Annotated[str, Field(max_length=256)]
_R = TypeVar("_R", bound="StrictRequest")


class StrictRequest(BaseModel):
    """The base of all requests, also of those to the agent: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    v: Literal[1] | None = None

    @property
    def legacy(self) -> bool:
        """Whether a 2.x client may have sent this."""
        return self.v is None


class ListRequest(StrictRequest):
    """All devices. Reply: ``data`` is a list of devices."""

    command: Literal["list"] = "list"


class _WhichDevice(StrictRequest):
    """One device, and who asks: ``user`` and ``host`` for people, ``client`` for the machine.

    They keep people apart who are honest, and prove nothing.
    """

    id: Word | None = None
    bus: Word | None = None
    serial: Word | None = None
    desc: Word | None = None
    first: bool = False
    user: Word | None = None
    host: Word | None = None
    client: Word | None = None

    @property
    def query(self) -> Query:
        return Query(id=self.id, bus=self.bus, serial=self.serial, desc=self.desc, first=self.first)


class DeviceRequest(_WhichDevice):
    """Find one device, or give it back. Reply: ``data`` is the device.

    Attributes:
        since: to give back only the session that began then, not one that has followed it.

    """

    command: Literal["find", "detach"]
    since: datetime | None = None


class AttachRequest(_WhichDevice):
    """Take a device. Reply: ``data`` is the device, reserved for this client.

    Attributes:
        wait: seconds to wait if somebody has it, 0 for as long as it takes; ``queued`` events
            come before the reply. Without it the request is refused then.
        duration: seconds after which the session ends by itself.
        force: take it from its holder.

    """

    command: Literal["attach"] = "attach"
    wait: float | None = Field(default=None, ge=0, le=MAX_SECONDS)
    duration: float | None = Field(default=None, gt=0, le=MAX_SECONDS)
    force: bool = False


class ReleaseRequest(_WhichDevice):
    """Ask the holder to let a device go. Reply: ``data`` is the device."""

    command: Literal["release"] = "release"
    message: Word | None = None


class NameRequest(_WhichDevice):
    """Name a device; an empty name takes the name away. Reply: ``data`` is the device."""

    command: Literal["name"] = "name"
    name: Word


class HistoryRequest(StrictRequest):
    """What happened to the devices. Reply: ``data`` is a list of events, oldest first."""

    command: Literal["history"] = "history"


class InfoRequest(StrictRequest):
    """Who is there? Reply: ``data`` is the server's id, name, version, protocol and ports."""

    command: Literal["info"] = "info"


class WatchRequest(StrictRequest):
    """From now on a line with all devices, at once and after every change."""

    command: Literal["watch"] = "watch"


WhichDevice = DeviceRequest | AttachRequest | ReleaseRequest | NameRequest
Request = ListRequest | WhichDevice | HistoryRequest | InfoRequest | WatchRequest
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="command")])


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line; every non-ASCII character is kept."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


# -- the server's side --------------------------------------------------------------------------


def parse_request(line: bytes) -> Request:
    """Read one request strictly.

    Raises:
        InvalidRequest: the message names the key, or says what a request looks like.

    """
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        commands = "list, find, attach, detach, release, name, history, info, watch"
        raise invalid_request(error, commands) from None


def invalid_request(error: ValidationError, commands: str) -> errors.InvalidRequest:
    """What is wrong with a request, in words for people who write clients."""
    first = error.errors(include_input=False)[0]
    where = clean(".".join(str(part) for part in first["loc"][1:]))
    text = {
        "json_invalid": f"not JSON: {clean(first['msg'])}",
        "union_tag_invalid": f"unknown command; known are {commands}",
        "union_tag_not_found": f"no command; known are {commands}",
        "extra_forbidden": f"unknown key {where!r}",
        "literal_error": f"{where}: this server speaks protocol version {VERSION}",
    }.get(first["type"], f"{where or 'request'}: {clean(first['msg'])}")
    return errors.InvalidRequest(f"Invalid request format: {text}")


# -- the client's side --------------------------------------------------------------------------


def request_line(request: StrictRequest) -> bytes:
    """Our own request: with protocol version and newline."""
    return encode(
        {"v": VERSION, **request.model_dump(mode="json", exclude_none=True, exclude={"v"})}
    )


def build(model: type[_R], data: Mapping[str, Any]) -> _R:
    """A request from what a person gave; raises UsageError, for instance for what is too long."""
    try:
        return model.model_validate({"v": VERSION, **data})
    except ValidationError as error:
        first = error.errors()[0]
        raise errors.UsageError(f"{first['loc'][-1]}: {first['msg']}") from None


def time_for(request: Request) -> float:
    """Seconds that a server may need besides the usual time-out: it may have to end a session."""
    return RESET_TIME if isinstance(request, AttachRequest) else 0


def waits(request: Request) -> bool:
    """Whether the server may tell how it is going before it answers."""
    return isinstance(request, AttachRequest) and request.wait is not None


def time_to_wait(request: Request) -> float | None:
    """Seconds for which a request lets itself be put off, None for as long as it takes."""
    wait = request.wait if isinstance(request, AttachRequest) else None
    return None if wait == 0 else wait or 0
