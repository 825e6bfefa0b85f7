"""Files that outlive a restart: where they are, and how they are never half written.

Rule of this file: what cannot be read is kept aside and said, what cannot be written is an error
of whoever wanted it written; nothing is lost in silence.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from usb_remote import errors

log = logging.getLogger(__name__)

VARIABLE = "STATE_DIRECTORY"
"""What systemd sets for StateDirectory= (systemd.exec(5))."""


def directory() -> Path:
    """Where this user's servers keep what they must not forget."""
    if named := os.environ.get(VARIABLE):
        return Path(named.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/usb-remote")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "usb-remote"


class StateFile:
    """One file of state; ``path`` None keeps nothing, for servers without a fixed identity.

    Attributes:
        was_broken: whether it was set aside, so that what is known of it has to be written anew.

    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.was_broken = False

    def read_lines(self) -> list[dict[str, Any]]:
        """Each line as an object; the file is kept aside if any line is not one."""
        if self.path is None:
            return []
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self.set_aside(str(error))
            return []
        return self._parsed(lines)

    def _parsed(self, lines: list[bytes]) -> list[dict[str, Any]]:
        found = []
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("not an object")
                found.append(value)
            except (ValueError, RecursionError) as error:
                self.set_aside(f"line {number}: {error}")
                break
        return found

    def set_aside(self, reason: str) -> None:
        """Keep a broken file under another name, so that nothing overwrites it."""
        if self.path is None or self.was_broken:
            return
        self.was_broken = True
        number = 1
        while (kept := self.path.with_name(f"{self.path.name}.broken-{number}")).exists():
            number += 1
        try:
            self.path.replace(kept)
            log.warning("%s is broken (%s); it is kept as %s", self.path, reason, kept.name)
        except OSError as error:
            log.warning("%s cannot be read (%s), nor kept aside: %s", self.path, reason, error)

    def replace(self, lines: Iterable[dict[str, Any]]) -> None:
        """Write all of it in one step; raises SystemFault, and then the old content is there."""
        if self.path is None:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        name = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w",
                encoding="utf-8",
                dir=self.path.parent,
                prefix=f".{self.path.name}-",
                delete=False,
            ) as file:
                name = Path(file.name)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            name.replace(self.path)
        except OSError as error:
            if name is not None:
                name.unlink(missing_ok=True)
            raise _cannot_write(self.path, error) from error

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; raises SystemFault."""
        if self.path is None:
            return
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                if file.write(data) < len(data):
                    file.truncate(size)  # a full disk takes a part: better none of it
                    raise OSError(28, os.strerror(28))
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def _cannot_write(path: Path, error: OSError) -> errors.SystemFault:
    return errors.SystemFault(
        f"{path} cannot be written: {error.strerror}",
        hint=f"see: df -h {path.parent}; ls -ld {path.parent}",
    )
