"""The control protocol on TCP 5055: one line of JSON <-> one message (docs/reference/protocol.md).

Rule of this file: bytes in, messages out; no socket, no clock. What deployed usb-remote 2.x expects
lives here and nowhere else: requests without newline, replies without our extra keys.
Requests are read strictly, replies leniently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from usb_remote import errors
from usb_remote.events import Event
from usb_remote.matching import Query
from usb_remote.model import (
    LEGACY_DEVICE_KEYS,
    Device,
    Holder,
    Model,
    Server,
    Snapshot,
    clean,
    with_ids,
)

VERSION = 1
"""Protocol version: ``v`` in requests, ``proto`` in the TXT record."""

PORT = 5055
LOCALHOST = "localhost"
"""Tried where no server is configured, as 2.x did. Nobody gave it that name."""
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
_M = TypeVar("_M", bound=BaseModel)


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    v: Literal[1] | None = None

    @property
    def legacy(self) -> bool:
        """Whether a 2.x client may have sent this."""
        return self.v is None


class ListRequest(_Request):
    """All devices. Reply: ``data`` is a list of devices."""

    command: Literal["list"] = "list"


class _WhichDevice(_Request):
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
    """Find one device, or give it back. Reply: ``data`` is the device."""

    command: Literal["find", "detach"]


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


class HistoryRequest(_Request):
    """What happened to the devices. Reply: ``data`` is a list of events, oldest first."""

    command: Literal["history"] = "history"


class InfoRequest(_Request):
    """Who is there? Reply: ``data`` is the server's id, name, version, protocol and ports."""

    command: Literal["info"] = "info"


class WatchRequest(_Request):
    """From now on a line with all devices, at once and after every change."""

    command: Literal["watch"] = "watch"


WhichDevice = DeviceRequest | AttachRequest | ReleaseRequest | NameRequest
Request = ListRequest | WhichDevice | HistoryRequest | InfoRequest | WatchRequest
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="command")])
_LEGACY_REQUEST_KEYS = ("command", "id", "bus", "serial", "desc", "first")


class Info(Model):
    """What ``info`` answers, and what each reply of protocol version 1 says of its server."""

    id: str
    name: str
    version: str
    protocol: int = VERSION
    usbip_port: int = 3240


class _History(Model):
    events: tuple[Event, ...]


class Reply(Model):
    """A success. ``data`` is not checked yet; ``server`` is None from a 2.x server."""

    data: Any = None
    server: Info | None = None
    revision: int = 0


class WatchEvent(Model):
    """A line of a watch: ``snapshot`` with everything, or ``ping``.

    Before the reply to an attach that waits: ``queued`` with the place and the holder, or ``ping``.
    """

    event: Literal["snapshot", "ping", "queued"]
    server: Info | None = None
    revision: int = 0
    data: tuple[Device, ...] = ()
    place: int = 0
    holder: Holder | None = None

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(revision=self.revision, devices=self.data)


# -- the server's side --------------------------------------------------------------------------


def is_legacy_line(line: bytes) -> bool:
    """Whether a line that may not even be a request comes from a 2.x client."""
    return re.search(rb'"v"\s*:', line) is None


def parse_request(line: bytes) -> Request:
    """Read one request strictly.

    Raises:
        InvalidRequest: the message names the key, or says what a request looks like.

    """
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> errors.InvalidRequest:
    first = error.errors(include_url=False, include_input=False)[0]
    where = clean(".".join(str(part) for part in first["loc"][1:]))
    commands = "list, find, attach, detach, release, name, history, info, watch"
    text = {
        "json_invalid": f"not JSON: {clean(first['msg'])}",
        "union_tag_invalid": f"unknown command; known are {commands}",
        "union_tag_not_found": f"no command; known are {commands}",
        "extra_forbidden": f"unknown key {where!r}",
        "literal_error": f"{where}: this server speaks protocol version {VERSION}",
    }.get(first["type"], f"{where or 'request'}: {clean(first['msg'])}")
    return errors.InvalidRequest(f"Invalid request format: {text}")


def success(
    data: Any, request: _Request, info: Info | None = None, revision: int | None = None
) -> bytes:
    """The reply line to a request that went well; a 2.x client gets 2.x keys only."""
    reply: dict[str, Any] = {"status": "success", "data": data}
    if not request.legacy and info is not None:
        reply |= {"server": info.model_dump()}
    if not request.legacy and revision is not None:
        reply |= {"revision": revision}
    return encode(reply)


def failure(error: errors.UsbRemoteError, *, legacy: bool) -> bytes:
    """The reply line to a request that failed."""
    reply: dict[str, Any] = {"status": _status(error), "message": error.message}
    if not legacy:
        reply |= {"code": error.code}
        reply |= {key: value for key in ("hint", "holder") if (value := getattr(error, key))}
    return encode(reply)


def _status(error: errors.UsbRemoteError) -> str:
    statuses = {errors.NotFound: "not_found", errors.Ambiguous: "multiple_matches"}
    return statuses.get(type(error), "error")


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line; every non-ASCII character is kept."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def device_json(device: Device, *, legacy: bool = False) -> dict[str, Any]:
    """A device as it travels; the reply to a 2.x request has exactly the 2.x keys."""
    return device.model_dump(mode="json", include=set(LEGACY_DEVICE_KEYS) if legacy else None)


def devices_json(devices: Iterable[Device], *, legacy: bool = False) -> list[dict[str, Any]]:
    return [device_json(device, legacy=legacy) for device in devices]


def snapshot_event(snapshot: Snapshot, info: Info) -> bytes:
    """The line that a watcher gets at once and after every change."""
    return encode(
        {
            "event": "snapshot",
            "server": info.model_dump(),
            "revision": snapshot.revision,
            "data": devices_json(snapshot.devices),
        }
    )


def queued_event(place: int, holder: Holder | None) -> bytes:
    """The line that a client gets while it waits: 1 is next."""
    shown = holder.model_dump(mode="json") if holder else None
    return encode({"event": "queued", "place": place, "holder": shown})


PING = encode({"event": "ping"})

# -- the client's side --------------------------------------------------------------------------


def request_line(request: Request) -> bytes:
    """Our own request: with protocol version and newline."""
    return encode({"v": VERSION, **request.model_dump(exclude_none=True, exclude={"v"})})


def legacy_request(request: Request) -> bytes:
    """The same request in the words of 2.x: every key, no newline (2.3.2, client.py)."""
    known = request.model_dump()
    data = {key: known[key] for key in _LEGACY_REQUEST_KEYS if key in known}
    return json.dumps(data, separators=(",", ":")).encode()


def is_known_to_2x(request: Request) -> bool:
    """Whether a 2.x server can be asked for that."""
    if isinstance(request, AttachRequest):
        return request.wait is None and request.duration is None and not request.force
    return isinstance(request, ListRequest | DeviceRequest)


def time_for(request: Request) -> float:
    """Seconds that a server may need besides the usual time-out: it may have to end a session."""
    return RESET_TIME if isinstance(request, AttachRequest) else 0


def is_legacy_rejection(error: errors.UsbRemoteError) -> bool:
    """Whether a 2.x server says with this that it does not know our protocol version."""
    return type(error) is errors.UsbRemoteError and error.message.startswith("Invalid request")


def parse_reply(line: bytes) -> Reply:
    """Read a reply leniently.

    Raises:
        InvalidReply: it is no reply of this protocol.
        UsbRemoteError: what the server says went wrong, as the class of its code.

    """
    message = _json_object(line)
    if message.get("status") == "success":
        return _validated(Reply, message)
    raise _told(message)


def parse_event(line: bytes) -> WatchEvent:
    """Read a line of a watch; raises as :func:`parse_reply`."""
    message = _json_object(line)
    if "event" not in message:
        raise _told(message)
    return _validated(WatchEvent, message)


def is_event(line: bytes) -> bool:
    """Whether a line before a reply is none: it tells how the request is doing."""
    return line.startswith(b'{"event"')


def parse_history(data: Any) -> tuple[Event, ...]:
    """The events of a history reply; raises InvalidReply."""
    return _validated(_History, {"events": data}).events


def parse_devices(data: Any) -> tuple[Device, ...]:
    """The devices of a list reply; raises InvalidReply."""
    found = _validated(WatchEvent, {"event": "snapshot", "data": data}).data
    return found if all(d.id for d in found) else with_ids(map(_completed, found))


def parse_device(data: Any) -> Device:
    device = _validated(Device, data)
    return device if device.id else with_ids([_completed(device)])[0]


def _completed(device: Device) -> Device:
    """A device of a 2.x server, whose number is only in its name, /dev/bus/usb/002/003."""
    number = device.device_name.rpartition("/")[2]
    return device.model_copy(update={"devnum": int(number)}) if number.isdecimal() else device


def server_of(info: Info | None, fallback: Server, address: str) -> Server:
    """What we know of a server after it has answered, at this address.

    The name that somebody gave it stays.
    """
    nameless = fallback.name == LOCALHOST
    known = () if nameless else fallback.addresses
    addresses = tuple(dict.fromkeys((address, *known)))
    if info is None:
        return fallback.model_copy(update={"addresses": addresses})
    return fallback.model_copy(
        update={
            "id": info.id,
            "name": info.name if nameless else fallback.name,
            "host_name": info.name,
            "addresses": addresses,
            "version": info.version,
            "usbip_port": info.usbip_port,
        }
    )


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise errors.InvalidReply(f"the answer is not one of usb-remote: {clean(line[:60])!r}")
    return message


def _validated(model: type[_M], data: Any) -> _M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = clean(".".join(str(part) for part in first["loc"]))
        raise errors.InvalidReply(f"the answer is malformed at {where!r}: {first['msg']}") from None


def _told(message: Mapping[str, Any]) -> errors.UsbRemoteError:
    by_status = {"not_found": "not_found", "multiple_matches": "ambiguous"}
    status, holder = str(message.get("status")), message.get("holder")
    return errors.from_code(
        str(message.get("code") or by_status.get(status, "error")),
        "\n".join(
            clean(part, 500) for part in str(message.get("message", status)).splitlines()[:50]
        ),
        hint=clean(message["hint"], 500) if message.get("hint") else None,
        holder=holder if isinstance(holder, dict) else None,
    )
