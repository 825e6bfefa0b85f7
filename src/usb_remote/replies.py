"""What the control protocol answers: replies and events (docs/reference/protocol.md).

Rule of this file: as protocol.py; one line of JSON <-> one reply or event, on both sides, read
leniently: what a peer sent is checked and cleaned, and what is new to us ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from usb_remote import errors, protocol_2x
from usb_remote.events import Event
from usb_remote.model import Device, Holder, Model, Server, Snapshot, with_ids
from usb_remote.protocol import VERSION, InfoRequest, StrictRequest, encode
from usb_remote.values import Moment, Port, Text, clean

LOCALHOST = "localhost"
"""Tried where no server is configured, as 2.x did."""

_M = TypeVar("_M", bound=BaseModel)


class Info(Model):
    """What ``info`` answers, and what each reply of protocol version 1 says of its server."""

    id: Text
    name: Text
    version: Text
    protocol: int = VERSION
    usbip_port: Port = 3240


class InfoNow(Info):
    """What ``info`` alone also says: the server's clock; None from one older than 3.0."""

    now: Moment | None = None


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


def success(
    data: Any, request: StrictRequest, info: Info | None = None, revision: int | None = None
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


def device_json(device: Device, *, legacy: bool = False) -> dict[str, Any]:
    """A device as it travels; the reply to a 2.x request has exactly the 2.x keys."""
    return device.model_dump(mode="json", include=set(protocol_2x.DEVICE_KEYS) if legacy else None)


def devices_json(devices: Iterable[Device], *, legacy: bool = False) -> list[dict[str, Any]]:
    return [device_json(device, legacy=legacy) for device in devices]


def info_json(info: Info, request: InfoRequest, now: datetime) -> dict[str, Any]:
    """What ``info`` answers; the clock only to those who speak this version."""
    told = info.model_dump()
    return told if request.legacy else {**told, "now": now.isoformat()}


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


def parse_reply(line: bytes) -> Reply:
    """Read a reply leniently.

    Raises:
        InvalidReply: it is no reply of this protocol.
        UsbRemoteError: what the server says went wrong, as the class of its code.

    """
    message = _json_object(line)
    if "status" not in message:
        raise _not_ours(line)
    if message["status"] == "success":
        return validated(Reply, message)
    raise _told(message)


def parse_event(line: bytes) -> WatchEvent:
    """Read a line of a watch; raises as :func:`parse_reply`."""
    return parse_event_as(WatchEvent, line)


def parse_event_as(model: type[_M], line: bytes) -> _M:
    """Read a line that is no reply as this model of events."""
    message = _json_object(line)
    if "event" not in message:
        raise _told(message)
    return validated(model, message)


def is_event(line: bytes) -> bool:
    """Whether a line before a reply is none: it tells how the request is doing."""
    return line.startswith(b'{"event"')


def parse_history(data: Any) -> tuple[Event, ...]:
    """The events of a history reply; raises InvalidReply."""
    return validated(_History, {"events": data}).events


def parse_devices(data: Any) -> tuple[Device, ...]:
    """The devices of a list reply; raises InvalidReply."""
    found = validated(WatchEvent, {"event": "snapshot", "data": data}).data
    return found if all(d.id for d in found) else with_ids(map(protocol_2x.completed, found))


def parse_device(data: Any) -> Device:
    device = validated(Device, data)
    return device if device.id else with_ids([protocol_2x.completed(device)])[0]


def default_server(port: int) -> Server:
    """The server to try where none is configured: nobody gave it a name."""
    return Server(name="", addresses=(LOCALHOST,), port=port)


def server_of(info: Info | None, fallback: Server, address: str) -> Server:
    """What we know of a server after it has answered, at this address.

    The name that somebody gave it stays.
    """
    known = fallback.addresses if fallback.name else ()
    addresses = tuple(dict.fromkeys((address, *known)))
    if info is None:
        name = fallback.name or LOCALHOST
        return fallback.model_copy(update={"name": name, "addresses": addresses})
    return fallback.model_copy(
        update={
            "id": info.id,
            "name": fallback.name or info.name,
            "host_name": info.name,
            "addresses": addresses,
            "version": info.version,
            "usbip_port": info.usbip_port,
        }
    )


def validated(model: type[_M], data: Any) -> _M:
    """What a peer sent, as this model; raises InvalidReply."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = clean(".".join(str(part) for part in first["loc"]))
        raise errors.InvalidReply(f"the answer is malformed at {where!r}: {first['msg']}") from None


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not {"status", "event"} & message.keys():
        raise _not_ours(line)
    return message


def _not_ours(line: bytes) -> errors.InvalidReply:
    return errors.InvalidReply(f"the answer is not one of usb-remote: {clean(line[:60])!r}")


def _told(message: Mapping[str, Any]) -> errors.UsbRemoteError:
    by_status = {"not_found": "not_found", "multiple_matches": "ambiguous"}
    status = str(message.get("status"))
    return errors.from_code(
        str(message.get("code") or by_status.get(status, "error")),
        _told_message(str(message.get("message", status))),
        hint=clean(message["hint"], 500) if message.get("hint") else None,
        holder=_told_holder(message.get("holder")),
    )


def _told_message(text: str) -> str:
    """In lines of text; indented but for the first, so that none looks like one of ours."""
    return "\n  ".join(clean(line, 500) for line in text.splitlines()[:50])


def _told_holder(data: Any) -> dict[str, Any] | None:
    """A holder that was told beside an error, cleaned; None rather than another error."""
    try:
        return Holder.model_validate(data).model_dump(mode="json", exclude_unset=True)
    except ValidationError:
        return None
