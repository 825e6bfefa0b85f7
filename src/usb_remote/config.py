"""What can be configured: each key, its type, limits, default (docs/reference/configuration.md).

Rule of this file: values only; no file, no environment. What is wrong with a value is said here, in
words for people who write YAML; in which file and line it stands is for config_file.py.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from usb_remote import errors
from usb_remote.model import Server
from usb_remote.rules import (
    MAX_NAMES,
    MAX_NETWORKS,
    MAX_RULES,
    Names,
    Network,
    Rule,
    find_dead_rule,
    find_same_place,
    find_twice,
)
from usb_remote.values import DeviceName, clean

MAX_RANGE = 1024
"""Most addresses in all ``server_ranges``: each one is asked by every command."""

_HOST = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^\s:/\[\]]+))(?::(?P<port>\d{1,5}))?")
_RANGE = re.compile(r"(?P<prefix>(?:\d{1,3}\.){3})(?P<start>\d{1,3})-(?P=prefix)?(?P<stop>\d{1,3})")


def _parse_host(text: object) -> str:
    """Check the form ``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address."""
    split_host(str(text))
    return str(text)


def split_host(text: str) -> tuple[str, int | None]:
    """Host and port of what a person wrote; raises ValueError."""
    if text.count(":") > 1 and not text.startswith("["):
        return str(ipaddress.IPv6Address(text)), None
    found = _HOST.fullmatch(text)
    if not found or not 0 < int(found["port"] or 1) < 65536:
        raise ValueError(f"{clean(text)!r} is not a host, host:port or [address]:port")
    return found["v6"] or found["name"], int(found["port"]) if found["port"] else None


def _parse_range(text: object) -> str:
    expand_range(str(text))
    return str(text)


def expand_range(text: str) -> list[str]:
    """``192.168.1.30-40`` (2.x: the last octet only) as single addresses; raises ValueError."""
    found = _RANGE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{clean(text)!r} is not a range such as 192.168.1.30-40")
    prefix, start, stop = found["prefix"], int(found["start"]), int(found["stop"])
    if start > stop:
        raise ValueError(f"{text!r} ends before it starts")
    return [str(ipaddress.IPv4Address(f"{prefix}{last}")) for last in range(start, stop + 1)]


def _parse_address(text: object) -> str:
    try:
        return str(ipaddress.ip_address(str(text)))
    except ValueError:
        raise ValueError(f"{clean(text)!r} is not an IP address such as 0.0.0.0 or ::") from None


def server_name(text: str) -> str:
    """What clients call a server, also before the slash of SERVER/DEVICE.

    Raises:
        ConfigError: no handle can have it.

    """
    shown = clean(text)
    if "/" in shown or not shown:
        raise errors.ConfigError(
            f"{shown!r} cannot be the name of a server: SERVER/DEVICE names a device",
            hint="choose one without a slash, with --name or server.name",
        )
    return shown


def _parse_command(value: object) -> object:
    """A command as a list, or as a text that is split as a shell would, but run without one."""
    return shlex.split(value) if isinstance(value, str) else value


Host = Annotated[str, BeforeValidator(_parse_host)]
Range = Annotated[str, BeforeValidator(_parse_range)]
Address = Annotated[str, BeforeValidator(_parse_address)]
Takeover = Literal["allow", "deny"]
Command = Annotated[list[str], BeforeValidator(_parse_command)]
Port = Annotated[int, Field(ge=1, le=65535)]
FreePort = Annotated[int, Field(ge=0, le=65535)]
"""0 stands for any free port, which only makes sense for a server that is announced."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class ServerConfig(_Section):
    """What `usb-remote server` does.

    Attributes:
        listen: addresses to listen on, IPv4 and IPv6.
        port: TCP port of the control protocol.
        usbip_port: TCP port of the exporter; stock clients expect 3240.
        name: what clients call this server; the host name if it is empty.
        advertise: whether to announce it by mDNS.
        allow_from: networks that may talk to it at all; none given means all.
        share: which devices others may have; first match wins, without a match they may.
        names: what devices are called: name -> serial, id or port.
        takeover: whether a client may take a device from another one with --force.
        on_event: a command, run for each event; without a shell.
        state_dir: where names of run time and the history are kept; empty means the usual place.

    """

    listen: list[Address] = ["0.0.0.0", "::"]
    port: FreePort = 5055
    usbip_port: FreePort = 3240
    name: str = Field(default="", max_length=63)
    advertise: bool = True
    allow_from: list[Network] = Field(default=[], max_length=MAX_NETWORKS)
    share: list[Rule] = Field(default=[], max_length=MAX_RULES)
    names: Names = Field(default={}, max_length=MAX_NAMES)
    takeover: Takeover = "allow"
    on_event: Command = []
    state_dir: str = ""

    @field_validator("name")
    @classmethod
    def _fits_into_a_handle(cls, name: str) -> str:
        try:
            return name and server_name(name)
        except errors.ConfigError as error:
            context = {"why": error.message, "hint": error.hint}
            raise PydanticCustomError("server_name", "{why}", context) from None

    @field_validator("share")
    @classmethod
    def _all_alive(cls, rules: list[Rule]) -> list[Rule]:
        if dead := find_dead_rule(rules):
            raise PydanticCustomError("dead_rule", "{why}", {"part": dead[0], "why": dead[1]})
        return rules

    @field_validator("names")
    @classmethod
    def _each_once(cls, names: Names) -> Names:
        if twice := find_twice(names):
            raise PydanticCustomError(
                "twice", "the name is there twice (upper and lower case are equal)", {"part": twice}
            )
        if same := find_same_place(names):
            why = "the device has another name already, some lines above"
            raise PydanticCustomError("same_place", "{why}", {"part": same, "why": why})
        return names


class WishConfig(_Section):
    """A device that the agent keeps attached: a handle, or what the device must match.

    Attributes:
        device: SERVER/NAME, SERVER/BUS-ID, or a name, device id, serial number.
        id: hardware id such as 0403:6001, or device id; may be a pattern.
        serial: serial number; may be a pattern.
        port: bus id: whatever sits there; 1-1.* is every port of the hub at 1-1.
        server: name or address of the server.
        first: take the first of several that match, instead of none.
        name: of the directory below /dev/usb-remote.
        user, group: who shall own its nodes.
        mode: permission bits of its nodes, octal, in quotes.

    """

    device: str | None = None
    id: str | None = None
    serial: str | None = None
    port: str | None = None
    server: str | None = None
    first: bool = False
    name: DeviceName | None = None
    user: str | None = None
    group: str | None = None
    mode: str | None = Field(default=None, pattern=r"^0?[0-7]{3}$")

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not (self.device or self.id or self.serial or self.port):
            raise ValueError("which device? one of device, id, serial and port is needed")
        return self


def _parse_wish(value: object) -> object:
    """A mere text is a handle."""
    return {"device": value} if isinstance(value, str) else value


WishEntry = Annotated[WishConfig, BeforeValidator(_parse_wish)]
MAX_ATTACH = 128
"""Most devices that a configuration may wish for: vhci-hcd has no more ports (8 x 15, 2 speeds)."""


class Config(_Section):
    """The whole file. The first four keys are those of usb-remote 2.x.

    Attributes:
        servers: hosts to ask besides those that mDNS finds: host, host:port, [v6]:port.
        server_ranges: IPv4 ranges to try quietly, as 192.168.1.30-40.
        timeout: seconds that a server may take to answer.
        server_port: TCP port of servers that are given without one.
        discovery: whether to look for servers by mDNS.
        on_event: a command that `watch` runs for each event; without a shell.
        attach: devices that `usb-remote agent` keeps attached to this machine.
        server: what `usb-remote server` does on this machine.

    """

    servers: list[Host] = []
    server_ranges: list[Range] = []
    timeout: float = Field(default=5.0, gt=0, le=3600)
    server_port: Port = 5055
    discovery: bool = True
    on_event: Command = []
    attach: list[WishEntry] = Field(default=[], max_length=MAX_ATTACH)
    server: ServerConfig = ServerConfig()

    @field_validator("server_ranges")
    @classmethod
    def _bounded(cls, ranges: list[str]) -> list[str]:
        if sum(len(expand_range(text)) for text in ranges) > MAX_RANGE:
            raise ValueError(f"more than {MAX_RANGE} addresses, and each is asked by every command")
        return ranges

    @property
    def configured_servers(self) -> list[Server]:
        return [self.server_at(text) for text in self.servers]

    @property
    def range_servers(self) -> list[Server]:
        addresses = [a for text in self.server_ranges for a in expand_range(text)]
        return [self.server_at(address) for address in addresses]

    def server_at(self, text: str) -> Server:
        """A server that a person named; raises UsageError."""
        try:
            host, port = split_host(text)
        except ValueError as error:
            raise errors.UsageError(str(error)) from None
        return Server(name=text, addresses=(host,), port=port or self.server_port)


def overridden(section: ServerConfig, given: Mapping[str, Any]) -> ServerConfig:
    """The section with what the command line says instead; raises UsageError."""
    try:
        checked = ServerConfig.model_validate(dict(given))
        return section.model_copy(update={key: getattr(checked, key) for key in given})
    except ValidationError as error:
        first = error.errors()[0]
        message = clean(first["msg"].removeprefix("Value error, "))
        hint = first.get("ctx", {}).get("hint")
        raise errors.UsageError(f"--{first['loc'][0]}: {message}", hint=hint) from None
