"""systemd services of this machine: what to put where, and what to run then.

Rule of this file: nothing is done, only planned, in steps (steps.py); to follow a plan a second
time changes nothing. Files are taken as they are in `systemd/`, but for the program's path, and a
line that says which version they are of, so that an upgrade is a change.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from usb_remote import errors
from usb_remote.steps import Command, Remove, Step, Write

PROGRAM = "/usr/local/bin/usb-remote"
"""What the files in `systemd/` run, until they are installed."""
OLD_UNIT = "usb-remote.service"
"""The server of usb-remote 2.x: it would keep the port."""
INSTANCES = "usb-remote-attach@*.service"
TEMPLATE = "usb-remote-attach@.service"
STATE = "var/lib/usb-remote"
CONFIGURATION = "etc/usb-remote"
LOADED_AT_BOOT = "etc/modules-load.d/usb-remote.conf"
"""Modules that `usb-remote doctor --fix` has loaded."""
GROUP = "usb-remote"
_FORGET = (
    Command(("systemctl", "daemon-reload")),
    Command(("systemctl", "reset-failed", "usb-remote-*")),
)


class Kind(StrEnum):
    """What can be a service."""

    SERVER = "server"
    AGENT = "agent"

    @property
    def unit(self) -> str:
        return f"usb-remote-{self}.service"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.unit, *_MORE[self], self.last_file)

    @property
    def last_file(self) -> str:
        """The one that is written when all is done: what broke off before is done again."""
        return f"modules-load.d/usb-remote-{self}.conf"


_MORE = {
    Kind.SERVER: (),
    Kind.AGENT: (TEMPLATE, "sysusers.d/usb-remote.conf", "tmpfiles.d/usb-remote.conf"),
}


def folder() -> Path:
    """Where the files are: in an installed package, or in a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "systemd"
    return packaged if packaged.is_dir() else here.parents[1] / "systemd"


# -- plans --------------------------------------------------------------------------------------


class Machine:
    """Where things are on a machine, or below a folder that stands for one.

    Args:
        version: of what is installed.
        root: of its files.

    """

    def __init__(self, version: str, root: Path = Path("/")) -> None:
        self.root = root
        self._version = version

    def check(self, kind: Kind) -> None:
        """See whether there is a systemd to install for.

        Raises:
            SystemFault: there is none.

        """
        if not (self.root / "run/systemd/system").is_dir():
            raise errors.SystemFault(
                "systemd does not run this machine, so it has no services to install",
                hint=f"run it by hand, or by what starts programs here: sudo usb-remote {kind}",
            )

    def installation(self, kind: Kind, program: Sequence[str], *, start: bool) -> list[Step]:
        """All that makes it run now and after each boot."""
        files = [self._written(name, program) for name in kind.files]
        changed = not all(step.is_done for step in files)
        return [
            *files[:-1],
            *self._setup(kind),
            Command(("systemctl", "daemon-reload")),
            *self._without_old_server(kind),
            Command(("systemctl", "enable", kind.unit)),
            *([Command(("systemctl", "restart" if changed else "start", kind.unit))] * start),
            files[-1],
        ]

    def removal(self, kind: Kind, *, purge: bool) -> list[Step]:
        """All that undoes it; ``purge`` takes what it remembers, and the group, as well."""
        units = (kind.unit, *([INSTANCES] if kind is Kind.AGENT else []))
        is_there = self.target(kind.unit).exists()
        return [
            *([Command(("systemctl", "stop", *units))] if is_there else []),
            *([Command(("systemctl", "disable", *_units(kind)))] if is_there else []),
            *(Remove(self.target(name)) for name in kind.files),
            *(Remove(self.root / path) for path in _left(kind)),
            *(self._purge(kind) if purge else ()),
            *(_FORGET if is_there else ()),
        ]

    def target(self, name: str) -> Path:
        """Where a file of `systemd/` belongs."""
        is_unit = name.endswith(".service")
        return self.root / "etc" / (f"systemd/system/{name}" if is_unit else name)

    def _written(self, name: str, program: Sequence[str]) -> Write:
        return Write(self.target(name), rendered(name, program, self._version))

    def _setup(self, kind: Kind) -> Iterator[Step]:
        for name in kind.files:
            if name.startswith("sysusers.d"):
                yield Command(("systemd-sysusers", str(self.target(name))))
            if name.startswith("tmpfiles.d"):
                yield Command(("systemd-tmpfiles", "--create", str(self.target(name))))

    def _without_old_server(self, kind: Kind) -> Iterator[Step]:
        if kind is Kind.SERVER and self.target(OLD_UNIT).exists():
            yield Command(("systemctl", "disable", "--now", OLD_UNIT))

    def _purge(self, kind: Kind) -> Iterator[Step]:
        """The other service may still need what both have."""
        yield from self._edits(kind)
        if not any(self.target(other.unit).exists() for other in Kind if other is not kind):
            yield Remove(self.root / STATE)
            yield Remove(self.root / LOADED_AT_BOOT)
            configuration = self.root / CONFIGURATION
            if configuration.is_dir() and not any(configuration.iterdir()):
                yield Remove(configuration)
        groups = self.root / "etc/group"
        if kind is Kind.AGENT and f"\n{GROUP}:" in groups.read_text():
            yield Command(("groupdel", GROUP))

    def _edits(self, kind: Kind) -> Iterator[Step]:
        """What `systemctl edit` has written, also for single instances of a template."""
        for unit in _units(kind):
            folder = self.target(unit).parent
            names = {f"{unit}.d", *(p.name for p in folder.glob(f"{unit.replace('@', '@*')}.d"))}
            yield from (Remove(folder / name) for name in sorted(names))


class UserMachine(Machine):
    """What one user may install: units whose devices the agent of the machine attaches."""

    def __init__(self, version: str, home: Path, root: Path = Path("/")) -> None:
        super().__init__(version, root)
        self._home = home

    def installation(self, kind: Kind, program: Sequence[str], *, start: bool) -> list[Step]:
        name = f"user/{TEMPLATE}"
        return [
            Write(self.target(TEMPLATE), rendered(name, program, self._version)),
            Command(("systemctl", "--user", "daemon-reload")),
        ]

    def removal(self, kind: Kind, *, purge: bool) -> list[Step]:
        is_there = self.target(TEMPLATE).exists()
        stop = Command(("systemctl", "--user", "stop", INSTANCES))
        return [
            *([stop, Command(("systemctl", "--user", "disable", TEMPLATE))] if is_there else []),
            Remove(self.target(TEMPLATE)),
            Command(("systemctl", "--user", "daemon-reload")),
        ]

    def target(self, name: str) -> Path:
        return self._home / ".config/systemd/user" / name


def _units(kind: Kind) -> list[str]:
    return [name for name in kind.files if name.endswith(".service")]


def _left(kind: Kind) -> tuple[str, ...]:
    return ("run/usb-remote", "dev/usb-remote") if kind is Kind.AGENT else ()


# -- the program --------------------------------------------------------------------------------


def rendered(name: str, program: Sequence[str], version: str) -> str:
    """The text of a file in `systemd/`, with this program in place of the usual one."""
    text = f"# of usb-remote {version}\n{(folder() / name).read_text()}"
    return text.replace(f"ExecStart={PROGRAM} ", f"ExecStart={' '.join(map(_quoted, program))} ")


def _quoted(word: str) -> str:
    """A word as ExecStart= reads it (systemd.service(5), COMMAND LINES)."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if any(c in " \t'\"\\;" for c in word) else word


def check_program(places: Sequence[Path]) -> None:
    """See whether a service, which is root without its powers, can read all of the program.

    Raises:
        SystemFault: it is in a home that only its owner may enter, or where a service has its own
            files.

    """
    for place in places:
        for part in (place.resolve(), *place.resolve().parents):
            if str(part) in ("/tmp", "/var/tmp"):
                raise _misplaced(place, f"{part} is another one for each service")
            if not _may_enter(part):
                raise _misplaced(place, f"only its owner may enter {part}")


def _may_enter(path: Path) -> bool:
    status = path.stat()
    return not stat.S_ISDIR(status.st_mode) or status.st_uid == 0 or bool(status.st_mode & 0o001)


def _misplaced(place: Path, reason: str) -> errors.SystemFault:
    return errors.SystemFault(
        f"a service cannot run {place}: {reason}",
        hint="install it for the machine: sudo python3 -m venv /opt/usb-remote && "
        "sudo /opt/usb-remote/bin/pip install usb-remote && "
        "sudo /opt/usb-remote/bin/usb-remote install-service …",
    )


def is_writable_by_others(path: Path) -> bool:
    """Whether somebody who is not root could change it, and so be root after the next start."""
    parts = (path.resolve(), *path.resolve().parents)
    return any(part.stat().st_uid != 0 or part.stat().st_mode & 0o002 for part in parts)


def is_root() -> bool:
    return os.geteuid() == 0
