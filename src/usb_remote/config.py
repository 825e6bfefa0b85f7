"""YAML and environment -> Config (docs/reference/configuration.md).

Rule of this file: never silently a default. An unknown key, a wrong type or broken YAML is an error
with file, line and key. Writing keeps the user's comments.
"""

from __future__ import annotations

import io
import ipaddress
import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

from usb_remote import errors
from usb_remote.model import Server, clean
from usb_remote.rules import (
    MAX_NAMES,
    MAX_NETWORKS,
    MAX_RULES,
    Criteria,
    Names,
    Network,
    Place,
    Rule,
    find_dead_rule,
    find_same_place,
    find_twice,
)

MAX_RANGE = 1024
"""Most addresses in all ``server_ranges``: each one is asked by every command."""

LOCAL = Path(".usb-remote.config")
"""Looked for in the current directory, as 2.x did."""
VARIABLE = "USB_REMOTE_CONFIG"
LEGACY_VARIABLE = "USB_REMOTE_CONFIG_PATH"
"""The name that usb-remote 2.3.2 reads; it documents the other one."""

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
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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


class Config(_Section):
    """The whole file. The first four keys are those of usb-remote 2.x.

    Attributes:
        servers: hosts to ask besides those that mDNS finds: host, host:port, [v6]:port.
        server_ranges: IPv4 ranges to try quietly, as 192.168.1.30-40.
        timeout: seconds that a server may take to answer.
        server_port: TCP port of servers that are given without one.
        discovery: whether to look for servers by mDNS.
        on_event: a command that `watch` runs for each event; without a shell.
        server: what `usb-remote server` does on this machine.

    """

    servers: list[Host] = []
    server_ranges: list[Range] = []
    timeout: float = Field(default=5.0, gt=0, le=3600)
    server_port: Port = 5055
    discovery: bool = True
    on_event: Command = []
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


# -- where it is --------------------------------------------------------------------------------


def candidate_paths(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Where a configuration may be, first one first; the environment's must exist."""
    yield LOCAL.absolute()
    home = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    yield home / "usb-remote" / "usb-remote.config"
    yield Path("/etc/usb-remote/usb-remote.config")


def find_path(option: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file that is in force; None if there is none.

    Raises:
        ConfigError: a file that was asked for by name does not exist.

    """
    named = [(option, "--config")] if option else []
    named += [(Path(environment[v]), v) for v in (VARIABLE, LEGACY_VARIABLE) if environment.get(v)]
    for path, who in named:
        if path is not None:
            if not path.expanduser().is_file():
                raise errors.ConfigError(
                    f"{path} (from {who}) does not exist",
                    hint="usb-remote config add-server HOST makes it",
                )
            return path.expanduser()
    return next((path for path in candidate_paths(environment) if path.is_file()), None)


def path_to_write(option: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The file that `config add-server` and its like change, or make."""
    named = option or environment.get(VARIABLE) or environment.get(LEGACY_VARIABLE)
    if named:
        return Path(named).expanduser()
    return find_path(None, environment) or list(candidate_paths(environment))[1]


# -- reading ------------------------------------------------------------------------------------


def load_in_force(option: Path | None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file that is in force; raises as :func:`find_path` and :func:`load`."""
    path = find_path(option, environment)
    config = load(path)
    is_named = option or environment.get(VARIABLE) or environment.get(LEGACY_VARIABLE)
    if path is not None and path == LOCAL.absolute() and not is_named:
        _refuse_foreign_commands(path, config)
    return config


def load(path: Path | None) -> Config:
    """Read and check a file; no file is the default configuration.

    Raises:
        ConfigError: naming file, line and key.

    """
    if path is None:
        return Config()
    data = _parse(path)
    try:
        given = {key: value for key, value in (data or {}).items() if value is not None}
        return Config.model_validate(given)
    except ValidationError as error:
        raise _explained(path, data, error) from None


def _refuse_foreign_commands(path: Path, config: Config) -> None:
    """The file of a directory that one happens to be in must not run programs."""
    commands = {"on_event": config.on_event, "server.on_event": config.server.on_event}
    for key, command in commands.items():
        if command:
            raise errors.ConfigError(
                f"{path}: {key}: a file of the current directory may not name programs",
                hint=f"name it on purpose: usb-remote --config {path} …, or move it to "
                "~/.config/usb-remote/usb-remote.config",
            )


def _parse(path: Path) -> Any:
    from ruamel.yaml import YAML  # 50 ms, and most machines have no file
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path}: cannot be read: {error}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = clean(getattr(error, "problem", None) or error)
        raise errors.ConfigError(f"{path}{line}: broken YAML: {problem}") from None
    if data is not None and not isinstance(data, dict):
        raise errors.ConfigError(f"{path}:1: a configuration is a mapping of keys to values")
    return data


_WORDS = {
    "model_type": "a mapping of keys to values is needed here",
    "dict_type": "a mapping of names to devices is needed here",
    "list_type": "a list is needed here",
    "string_type": "a text is needed here: put it in quotes",
}
"""What pydantic says of types, in words for people who write YAML."""


def _explained(path: Path, data: Any, error: ValidationError) -> errors.ConfigError:
    first = error.errors(include_url=False)[0]
    where = [part for part in first["loc"] if part != "[key]"]
    if "part" in first.get("ctx", {}):
        where.append(first["ctx"]["part"])
    key = clean(".".join(str(part) for part in where))
    hint = None
    message = _WORDS.get(first["type"]) or clean(first["msg"].removeprefix("Value error, "))
    if first["type"] == "extra_forbidden":
        message = "unknown key"
        hint = f"known keys: {', '.join(_known_keys(where[:-1]))}"
    return errors.ConfigError(f"{path}:{_line(data, where)}: {key}: {message}", hint=hint)


def _known_keys(section: list[Any]) -> Iterable[str]:
    """The keys that may stand where an unknown one was found."""
    if section[:2] == ["server", "share"]:
        fields = Criteria.model_fields if len(section) > 3 else Rule.model_fields
        return [field.alias or name for name, field in fields.items()]
    if section[:2] == ["server", "names"]:
        return Place.model_fields
    return (ServerConfig if section else Config).model_fields


def _line(data: Any, where: list[Any]) -> int:
    """The line of the innermost key that the parser kept a position for."""
    line = 0
    for part in where:
        try:
            line = data.lc.data[part][0]
            data = data[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line + 1


# -- writing ------------------------------------------------------------------------------------


def add_server(path: Path, server: str) -> bool:
    """Append to ``servers``; False if it was there already. Raises ConfigError, UsageError."""
    Config().server_at(server)
    if server in load(path if path.is_file() else None).servers:
        return False
    _change(path, lambda data: data.setdefault("servers", []).append(server))
    return True


def remove_server(path: Path, server: str) -> bool:
    """Remove from ``servers``; False if it was not there."""
    if not path.is_file() or server not in load(path).servers:
        return False
    _change(path, lambda data: data["servers"].remove(server))
    return True


def overridden(section: ServerConfig, given: Mapping[str, Any]) -> ServerConfig:
    """The section with what the command line says instead; raises UsageError."""
    try:
        checked = ServerConfig.model_validate(dict(given))
        return section.model_copy(update={key: getattr(checked, key) for key in given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = clean(first["msg"].removeprefix("Value error, "))
        raise errors.UsageError(f"--{first['loc'][0]}: {message}") from None


def set_timeout(path: Path, timeout: float) -> None:
    """Set ``timeout`` in seconds; raises UsageError."""
    try:
        Config(timeout=timeout)
    except ValidationError:
        raise errors.UsageError("the timeout is a number of seconds, 0 < timeout <= 3600") from None
    _change(path, lambda data: data.__setitem__("timeout", timeout))


def _change(path: Path, change: Any) -> None:
    """Change a file in place: comments and order stay, and it is never half written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    load(path if text else None)
    parsed = _parse(path) if text else None
    only_comments = parsed is None
    data: Any = CommentedMap() if only_comments else parsed
    if data.get("servers", ...) is None:
        del data["servers"]
    change(data)
    with io.StringIO() as out:
        yaml.dump(data, out)
        _replace(path, text * only_comments + out.getvalue())


def _replace(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).chmod(mode)
        Path(file.name).replace(path.resolve())
    except OSError as error:
        raise errors.ConfigError(f"{path}: cannot be written: {error.strerror}") from None
