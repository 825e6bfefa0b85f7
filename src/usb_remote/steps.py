"""The steps of an installation: a file is written, a file or folder removed, a program run.

Rule of this file: a step knows whether it is needed, does it, and says in words what that is. Which
steps, and in which order, others know (services.py).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from usb_remote import errors


@dataclass(frozen=True)
class Write:
    """A file has this text."""

    path: Path
    text: str
    words = ("write", "wrote", "unchanged:")

    @property
    def is_done(self) -> bool:
        return self.path.is_file() and self.path.read_text() == self.text

    def do(self, _: Run) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text(self.text)
        new.chmod(0o644)
        new.replace(self.path)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Remove:
    """A file or a folder is not there."""

    path: Path
    words = ("remove", "removed", "not there:")

    @property
    def is_done(self) -> bool:
        return not os.path.lexists(self.path)

    def do(self, _: Run) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Command:
    """A program is run, each time."""

    arguments: tuple[str, ...]
    words = ("run:", "ran:", "")
    is_done = False

    def do(self, run: Run) -> None:
        run(self.arguments)

    def __str__(self) -> str:
        return shlex.join(self.arguments)


Run = Callable[[Sequence[str]], None]
Step = Write | Remove | Command


def run(arguments: Sequence[str]) -> None:
    """Run to the end; raises SystemFault with what it said."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    except OSError as error:
        raise errors.SystemFault(f"{arguments[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = said[0] if said else f"exit status {done.returncode}"
        raise errors.SystemFault(
            f"{shlex.join(arguments)}: {reason}", hint=_hint(arguments, reason)
        )


def _hint(arguments: Sequence[str], reason: str) -> str | None:
    if "--user" in arguments and "connect to bus" in reason:
        return "log in as this user (su does not), or: export XDG_RUNTIME_DIR=/run/user/$(id -u)"
    if arguments[-1].endswith(".service"):
        return f"see why: journalctl -u {arguments[-1]} -n 20 -o cat"
    return None
