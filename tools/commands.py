"""The command line as plain data: what the reference, the man page and the completions are made of.

Rule of this file: the only one here that knows typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from usb_remote.cli.app import app

WORDS = {bool: "", str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """One option, under all of its names.

    Attributes:
        names: long ones first, then `--no-…`, then letters.
        value: what stands for its value, with the separator; empty for a switch.
        help: its help text.
        choices: its possible values, if they are few.
        takes_path: whether its value is a file.

    """

    names: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...] = ()
    takes_path: bool = False

    @property
    def first(self) -> str:
        """Its first name with its value: `--wait SECONDS`."""
        return self.names[0] + self.value

    @property
    def takes_word(self) -> bool:
        """Whether the next word of a command line is its value."""
        return self.value.startswith(" ")


HELP = Option(("--help", "-h"), "", "Print help.")
"""typer adds it to every command."""


@dataclass(frozen=True)
class Argument:
    """A word without a name: `DEVICE`."""

    word: str
    help: str
    required: bool
    choices: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        return self.word if self.required else f"[{self.word}]"


@dataclass(frozen=True)
class Command:
    """One command, `config show` for one in a group."""

    name: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]

    @property
    def usage(self) -> str:
        options = ["[OPTIONS]"] if self.options else []
        return " ".join(
            ["usb-remote", self.name, *options, *(argument.usage for argument in self.arguments)]
        )

    @property
    def summary(self) -> str:
        """The first line of its help, without the full stop."""
        return self.help.splitlines()[0].removesuffix(".")


@dataclass(frozen=True)
class Program:
    """`usb-remote` with the options before the command, and its commands."""

    help: str
    options: tuple[Option, ...]
    groups: tuple[Command, ...]
    commands: tuple[Command, ...]

    def children(self, group: str = "") -> list[tuple[str, str]]:
        """The words that may follow: each with what it does."""
        top = [c for c in (*self.commands, *self.groups) if " " not in c.name]
        inner = [c for c in self.commands if c.name.startswith(f"{group} ")]
        return [(c.name.rpartition(" ")[2], c.summary) for c in (inner if group else top)]


def program(of: typer.Typer = app) -> Program:
    group: Any = typer.main.get_command(of)
    found = list(_commands(group.commands.items()))
    return Program(
        help=group.help,
        options=tuple(_options(group)),
        groups=tuple(_command(n, c) for n, c in group.commands.items() if hasattr(c, "commands")),
        commands=tuple(found),
    )


def _commands(items: Iterable[tuple[str, Any]], before: str = "") -> Iterator[Command]:
    for name, command in items:
        if hasattr(command, "commands"):
            yield from _commands(command.commands.items(), f"{name} ")
        elif not command.hidden:
            yield _command(before + name, command)


def _command(name: str, command: Any) -> Command:
    text = inspect.cleandoc(command.help or "")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    return Command(name, text, tuple(_options(command)), tuple(map(_argument, arguments)))


def _options(command: Any) -> Iterator[Option]:
    for param in command.params:
        if param.param_type_name == "option" and not param.hidden:
            yield _option(param)


def _option(param: Any) -> Option:
    kind, choices = _kind(param)
    word = param.metavar or "|".join(choices) or WORDS[kind]
    between = "" if word.startswith("[") else " "
    names = sorted([*param.opts, *param.secondary_opts], key=lambda name: name[:2] != "--")
    value = "" if param.is_flag else between + word
    return Option(tuple(names), value, param.help or "", choices, kind is Path)


def _argument(param: Any) -> Argument:
    choices = _kind(param)[1]
    word = param.metavar or "|".join(choices) or param.name.upper()
    return Argument(word, param.help or "", param.required, choices)


def _kind(param: Any) -> tuple[Any, tuple[str, ...]]:
    """The type of a value, and its choices if it is an enumeration or literals."""
    kind = param.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return str, get_args(kind)
    if get_origin(kind) is not None:  # list[str]: each value is one word
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str, tuple(str(member.value) for member in kind)
    return kind, ()
