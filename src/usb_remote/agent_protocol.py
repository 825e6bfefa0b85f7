"""What is asked of the agent on its unix socket, and what it answers (docs/reference/agent.md).

Rule of this file: as protocol.py and replies.py, whose lines these are: requests read strictly,
replies leniently. What differs is that the agent speaks of all servers, and of this machine.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from usb_remote import errors, protocol, replies
from usb_remote.matching import Query
from usb_remote.model import (
    Attachment,
    Cause,
    Device,
    Holder,
    Listing,
    Match,
    Model,
    Server,
    Snapshot,
)
from usb_remote.protocol import MAX_SECONDS, StrictRequest, Word
from usb_remote.values import DeviceName, OptionalText, Text

SOCKET = "/run/usb-remote/agent.sock"
"""Where the agent listens; its group is ``usb-remote``, its mode 0660."""
VARIABLE = "USB_REMOTE_AGENT"
"""The environment's other socket; an empty one means: do without an agent."""


class Which(StrictRequest):
    """A device of any server; at least one key is needed."""

    handle: Word | None = None
    id: Word | None = None
    bus: Word | None = None
    serial: Word | None = None
    desc: Word | None = None
    host: Word | None = None
    first: bool = False

    @property
    def query(self) -> Query:
        return Query(
            handle=self.handle,
            id=self.id,
            bus=self.bus,
            serial=self.serial,
            desc=self.desc,
            host=self.host,
            first=self.first,
        )


class ListRequest(StrictRequest):
    """Every server as it is known now. Reply: ``data`` is a list of views."""

    command: Literal["list"] = "list"


class WatchRequest(StrictRequest):
    """From now on a ``view`` event for each server, at once and after every change."""

    command: Literal["watch"] = "watch"


class AttachRequest(Which):
    """Attach a device here. Reply: ``data`` is what is attached.

    Attributes:
        wait: seconds to wait if somebody has it, 0 for as long as it takes.
        duration: seconds after which the session ends by itself.
        force: take it from its holder.
        keep: True to have it attached for ever, False to end that.
        hold: attached as long as this connection is open; ``lost`` and ``attached`` events follow.
        name: of its directory below /dev/usb-remote.

    """

    command: Literal["attach"] = "attach"
    wait: float | None = Field(default=None, ge=0, le=MAX_SECONDS)
    duration: float | None = Field(default=None, gt=0, le=MAX_SECONDS)
    force: bool = False
    keep: bool | None = None
    hold: bool = False
    name: DeviceName | None = None


class DetachRequest(Which):
    """Give a device back, and wish for it no more. Reply: ``data`` says what was detached."""

    command: Literal["detach"] = "detach"


class ReleaseRequest(StrictRequest):
    """Give back what this connection holds. The reply comes when that is done, without ``data``."""

    command: Literal["release"] = "release"


class PortsRequest(StrictRequest):
    """What is attached here. Reply: ``data`` is a list of attachments."""

    command: Literal["ports"] = "ports"


class StatusRequest(StrictRequest):
    """What is wished for, and how that goes. Reply: ``data`` is a list of statuses."""

    command: Literal["status"] = "status"


class InfoRequest(StrictRequest):
    """Who is there? Reply: ``data`` is the agent's version and configuration file."""

    command: Literal["info"] = "info"


AgentRequest = (
    ListRequest
    | WatchRequest
    | AttachRequest
    | DetachRequest
    | ReleaseRequest
    | PortsRequest
    | StatusRequest
    | InfoRequest
)
_REQUEST: TypeAdapter[AgentRequest] = TypeAdapter(
    Annotated[AgentRequest, Field(discriminator="command")]
)


class Told(Model):
    """An error, as it is said of a server or a wish."""

    code: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: errors.UsbRemoteError) -> Told:
        return cls(code=error.code, message=error.message, hint=error.hint)

    @property
    def error(self) -> errors.UsbRemoteError:
        return errors.from_code(self.code, self.message, hint=self.hint)


class View(Model):
    """A server as the agent knows it; with ``error`` it is lost, and has no devices."""

    server: Server
    revision: int = 0
    devices: tuple[Device, ...] = ()
    error: Told | None = None

    @property
    def listing(self) -> Listing:
        return Listing(
            server=self.server, snapshot=Snapshot(revision=self.revision, devices=self.devices)
        )


class Attached(Model):
    """A device that is attached here.

    Attributes:
        name: of its directory.
        directory: the links to its nodes, None if there is no agent that makes them.
        paths: what each node is called (``tty0``, ``disk`` …) and where it is; through the
            directory where there is one, so the same after each time that it is attached.
        already: whether it was attached before it was asked for.

    """

    server: Server
    device: Device
    attachment: Attachment
    name: Text = ""
    directory: str | None = None
    paths: dict[str, str] = Field(default={})
    already: bool = False

    @property
    def match(self) -> Match:
        return Match(self.server, self.device)


class Detached(Model):
    """What `detach` achieved.

    Attributes:
        server, device: which one it was.
        attachment: what was attached here, None if nothing was.
        wish: what is not wished for any more.
        names: of all that were detached with a wish for the ports of a hub.

    """

    server: Server | None = None
    device: Device | None = None
    attachment: Attachment | None = None
    wish: OptionalText = None
    names: tuple[Text, ...] = ()


class Loss(Model):
    """Why a device is not attached any more.

    Attributes:
        at: when that was noticed.
        cause: what its server has seen, None if the server itself was lost.
        by: who has it now or made an end of it, if the server says so.

    """

    at: datetime
    cause: Cause | None = None
    by: OptionalText = None

    @property
    def blame(self) -> Literal["network", "user", "device"]:
        """Whose doing it was: of the way to the server (or the server), a person, the device."""
        if self.cause in (Cause.UNPLUGGED, Cause.DEVICE_RESET):
            return "device"
        people = (Cause.DETACHED, Cause.TAKEN_OVER, Cause.FORBIDDEN, Cause.TIME_UP)
        return "user" if self.cause in people else "network"

    def __str__(self) -> str:
        words = self.cause.replace("_", " ") if self.cause else "its server cannot be reached"
        return f"{words} by {self.by}" if self.by else words


class Kind(StrEnum):
    """How long a device is wished for."""

    CONFIGURED = "configured"
    KEPT = "kept"
    HELD = "held"
    ONCE = "once"


class Stage(StrEnum):
    """How a wish goes (docs/reference/agent.md)."""

    ABSENT = "absent"
    TRYING = "trying"
    WAITING = "waiting"
    ATTACHED = "attached"
    DELAYED = "delayed"
    STOPPED = "stopped"
    ENDED = "ended"


class Status(Model):
    """A wish, and how it goes.

    Attributes:
        wish: what was asked for, in words.
        query: the same, as whoever asks for the wish by its name needs it.
        name: of its directory below /dev/usb-remote.
        by: who asked.
        since: when it came to this stage.
        error: why it is not attached.
        note: more, for people.
        retry_at: when it is tried again.
        attached: the device, while it is attached.
        losses: when and why it was lost, newest last.

    """

    wish: Text
    query: Query | None = None
    name: Text
    kind: Kind
    by: Text = ""
    stage: Stage = Stage.ABSENT
    since: datetime
    error: Told | None = None
    note: OptionalText = None
    retry_at: datetime | None = None
    attached: Attached | None = None
    losses: tuple[Loss, ...] = ()


class AgentInfo(Model):
    """What ``info`` answers."""

    version: str
    config: str | None = None


class AgentEvent(Model):
    """A line that is no reply.

    ``view`` in a watch; ``queued`` while an attach waits; ``attached`` and ``lost`` of a device
    that is held by this connection; ``ping`` when nothing else was said for a while.
    """

    event: Literal["view", "ping", "queued", "attached", "lost"]
    view: View | None = None
    place: int = 0
    holder: Holder | None = None
    name: Text = ""
    attached: Attached | None = None
    loss: Loss | None = None


_M = TypeVar("_M", bound=BaseModel)


def parse_request(line: bytes) -> AgentRequest:
    """Read one request strictly; raises InvalidRequest, as :func:`protocol.parse_request`."""
    try:
        return _REQUEST.validate_json(line)
    except ValidationError as error:
        known = "list, watch, attach, detach, release, ports, status, info"
        raise protocol.invalid_request(error, known) from None


def parse_event(line: bytes) -> AgentEvent:
    """Read a line that is no reply; raises as :func:`replies.parse_reply`."""
    return replies.parse_event_as(AgentEvent, line)


class _Views(Model):
    views: tuple[View, ...]


class _Statuses(Model):
    statuses: tuple[Status, ...]


def parse_views(data: Any) -> tuple[View, ...]:
    """The views of a list reply; raises InvalidReply."""
    return replies.validated(_Views, {"views": data}).views


def parse_statuses(data: Any) -> tuple[Status, ...]:
    """The statuses of a status reply; raises InvalidReply."""
    return replies.validated(_Statuses, {"statuses": data}).statuses


def event_line(event: AgentEvent) -> bytes:
    return protocol.encode(event.model_dump(mode="json", exclude_none=True))
