"""The machine that is examined: its files, its programs, and the distribution on it.

Rule of this file: what cannot be read is empty, what cannot be run has status 127; nothing raises.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from usb_remote import programs

Ask = Callable[[Sequence[str], float], Awaitable[tuple[int, str]]]

NAME = "usb-remote"
NO_PROGRAM = 127
"""The status of a shell that finds no such program."""


@dataclass(frozen=True)
class Machine:
    """What checks look at.

    Attributes:
        root: where its files are; another folder in tests.
        uid: who is asking; 0 sees everything.
        ask: runs a program for so many seconds, returns its status and what it wrote.
        find: where a program is.

    """

    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    ask: Ask = programs.ask
    find: Callable[[str], str | None] = programs.find

    def read(self, path: str) -> str:
        """A whole small file, "" if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    @property
    def release(self) -> str:
        """The running kernel, as `uname -r` says it."""
        return self.read("proc/sys/kernel/osrelease").strip()


def user_name(uid: int) -> str:
    """The name of a user, or its number."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def distribution(machine: Machine) -> str:
    """``debian``, ``ubuntu``, ``raspberry``, ``fedora``, ``arch``, or "" for another one."""
    lines = machine.read("etc/os-release").splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    names = shlex.split(f"{values.get('ID', '')} {values.get('ID_LIKE', '')}")
    names = [name for word in names for name in word.split()]
    if "raspbian" in names[:1] or ("debian" in names[:1] and machine.exists("etc/rpi-issue")):
        return "raspberry"
    known = ("ubuntu", "debian", "fedora", "arch")
    return next((name for name in names if name in known), "")


def kernel_package(machine: Machine, module: str) -> str:
    """The command that installs a module which the running kernel could have."""
    release = machine.release
    if distribution(machine) == "raspberry":
        package = f"linux-image-{release}" if "rpi-" in release else "raspberrypi-kernel"
        return f"sudo apt install --reinstall {package} && sudo reboot"
    commands = {
        "debian": "sudo apt install linux-image-$(dpkg --print-architecture) && sudo reboot",
        "ubuntu": f"sudo apt install linux-modules-extra-{release}",
        "fedora": f"sudo dnf install kernel-modules-extra-{release}",
        "arch": "sudo pacman -Syu linux && sudo reboot",
    }
    other = f"install the package of your distribution that has {module} for kernel {release}"
    return commands.get(distribution(machine), other)


def upgrade(prefix: Path = Path(sys.prefix)) -> str:
    """The command that upgrades the usb-remote that runs here, by the place where it is."""
    sudo = "" if Path.home() in prefix.parents else "sudo "
    if prefix.parts[-2:] == ("tools", NAME):
        return f"{sudo}uv tool upgrade {NAME}"
    if prefix.parts[-2:] != ("venvs", NAME):
        return f"{sudo}{prefix}/bin/pip install --upgrade {NAME}"
    home = f"PIPX_HOME={prefix.parent.parent} PIPX_BIN_DIR=/usr/local/bin " if sudo else ""
    return f"{sudo}{home}pipx upgrade {NAME}"


def tool_package(machine: Machine) -> str:
    """The command that installs `usbip`."""
    commands = {
        "debian": "sudo apt install usbip",
        "raspberry": "sudo apt install usbip",
        "ubuntu": f"sudo apt install linux-tools-generic linux-tools-{machine.release}",
        "fedora": "sudo dnf install usbip",
        "arch": "sudo pacman -S usbip",
    }
    other = "install the package of your distribution that has the command usbip"
    return commands.get(distribution(machine), other)
