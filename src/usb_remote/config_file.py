"""The configuration's file: where it is, what it says, and in which line it is wrong.

Rule of this file: the only importer of ruamel, and never silently a default. An unknown key, a
wrong type or broken YAML is an error with file, line and key.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from usb_remote import errors
from usb_remote.config import Config, ServerConfig, WishConfig
from usb_remote.rules import Criteria, Place, Rule
from usb_remote.values import clean

SYSTEM = Path("/etc/usb-remote/usb-remote.config")
"""Everybody's, and the agent's."""
LOCAL = Path(".usb-remote.config")
"""Looked for in the current directory, as 2.x did."""
VARIABLE = "USB_REMOTE_CONFIG"
LEGACY_VARIABLE = "USB_REMOTE_CONFIG_PATH"
"""The name that usb-remote 2.3.2 reads; it documents the other one."""


# -- where it is --------------------------------------------------------------------------------


def candidate_paths(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Where a configuration may be, first one first; the environment's must exist."""
    yield LOCAL.absolute()
    home = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    yield home / "usb-remote" / "usb-remote.config"
    yield SYSTEM


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
                    hint=f"usb-remote{f' --config {path}' if option else ''} config add-server HOST"
                    " makes it",
                )
            return path.expanduser()
    return next((path for path in candidate_paths(environment) if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    """Whether it is a file that we may see: a directory of somebody else's is no failure."""
    try:
        return path.is_file()
    except OSError:
        return False


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
    data = parse(path)
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


def parse(path: Path, parser: Any = None) -> Any:
    """The mapping in a file, with lines and comments, not checked yet; None if it is empty.

    Args:
        path: of the file.
        parser: one of :func:`yaml` that was told to keep more.

    Raises:
        ConfigError: it is no YAML, or something else than a mapping.

    """
    from ruamel.yaml.error import YAMLError  # 50 ms, and most machines have no file

    try:
        data = (parser or yaml()).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise errors.ConfigError(f"{path}: broken YAML: it is nested too deeply") from None
    except (TypeError, AssertionError):  # of ruamel's, which names no line
        raise errors.ConfigError(f"{path}: broken YAML: is a list used as a key?") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = clean(getattr(error, "problem", None) or error)
        raise errors.ConfigError(f"{path}{line}: broken YAML: {problem}") from None
    if data is not None and not isinstance(data, dict):
        raise errors.ConfigError(f"{path}:1: a configuration is a mapping of keys to values")
    return data


def yaml() -> Any:
    """A parser that says of every value where it is: ruamel's own forgets that for `!!int abc`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor

    class Constructor(RoundTripConstructor):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep=deep)
            except (ValueError, KeyError) as error:
                text = f"{node.value!r} is no value of its kind"
                raise ConstructorError(None, None, text, node.start_mark) from error

    parser = YAML()
    parser.Constructor = Constructor
    return parser


_WORDS = {
    "model_type": "a mapping of keys to values is needed here",
    "dict_type": "a mapping of names to devices is needed here",
    "list_type": "a list is needed here",
    "string_type": "a text is needed here: put it in quotes",
}
"""What pydantic says of types, in words for people who write YAML."""


def _explained(path: Path, data: Any, error: ValidationError) -> errors.ConfigError:
    first = error.errors()[0]
    where = [part for part in first["loc"] if part != "[key]"]
    context = first.get("ctx", {})
    if "part" in context:
        where.append(context["part"])
    key = clean(".".join(str(part) for part in where))
    hint = context.get("hint")
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
    if section[:1] == ["attach"]:
        return WishConfig.model_fields
    return (ServerConfig if section else Config).model_fields


def _line(data: Any, where: list[Any]) -> int:
    """The line of the innermost key that the parser kept a position for."""
    line = 0
    with contextlib.suppress(AttributeError, KeyError, IndexError, TypeError):
        for part in where:
            line = data.lc.data[part][0]
            data = data[part]
    return line + 1
