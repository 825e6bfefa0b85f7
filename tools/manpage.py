"""share/man/man1/usb-remote.1, in the man(7) macros."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.commands import Argument, Command, Option, Program

END = """.SH FILES
.nf
.I .usb\\-remote.config
.I ~/.config/usb\\-remote/usb\\-remote.config
.I /etc/usb\\-remote/usb\\-remote.config
.fi
.PP
The first of these is read;
.B usb\\-remote config path
says which.
.I /var/lib/usb\\-remote
keeps a server's names and history.
.SH ENVIRONMENT
.TP
.B USB_REMOTE_CONFIG
The configuration file, instead of those above.
.TP
.B STATE_DIRECTORY
Where a server keeps names and history.
.SH EXAMPLES
.nf
sudo usb\\-remote server          # where the devices are
usb\\-remote list                 # where you want them
sudo usb\\-remote attach scope
.fi
.SH SEE ALSO
.BR usbip (8),
.BR systemctl (1)
"""


def page(program: Program, errors: str) -> str:
    """The whole page; the exit statuses are those of docs/reference/errors.md."""
    return "\n".join([*_lines(program), *_exit_statuses(errors), END])


def _exit_statuses(errors: str) -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for status, meaning in re.findall(r"^\| (\d+) \| (.*) \|$", errors, re.MULTILINE):
        yield f".TP\n.B {status}\n{_escaped(meaning.replace('`', ''))}"


def _lines(program: Program) -> Iterator[str]:
    yield '.TH USB\\-REMOTE 1 "" "usb\\-remote 3"'
    yield ".SH NAME"
    yield f"usb\\-remote \\- {_escaped(program.help.removesuffix('.'))}"
    yield ".SH SYNOPSIS"
    yield ".B usb\\-remote\n[OPTIONS] COMMAND [OPTIONS]"
    yield ".SH OPTIONS"
    yield from _options(program.options)
    yield ".SH COMMANDS"
    for command in program.commands:
        yield from _command(command)


def _command(command: Command) -> Iterator[str]:
    yield f'.SS "{_escaped(command.usage)}"'
    yield _escaped(command.help)
    for argument in command.arguments:
        yield from _argument(argument)
    yield from _options(command.options)


def _argument(argument: Argument) -> Iterator[str]:
    if argument.help:
        yield f".TP\n.I {_escaped(argument.word)}\n{_escaped(argument.help)}"


def _options(options: tuple[Option, ...]) -> Iterator[str]:
    for option in options:
        names = ", ".join((option.first, *option.names[1:]))
        yield f'.TP\n.B "{_escaped(names)}"\n{_escaped(option.help)}'


def _escaped(text: str) -> str:
    """No character of a text is a command of troff, at the start of a line neither."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace('"', "\\(dq")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in plain.split("\n"))
