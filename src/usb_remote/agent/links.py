"""/dev/usb-remote/<name>/: the same path for a device's nodes each time that it is attached.

Rule of this file: it makes links and sets who may use the nodes, and removes only what it has made.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

ROOT = Path("/dev/usb-remote")
UDEV = Path("/run/udev/data")
"""udev's file for each node, written anew with each event that it has handled."""
_NAME = re.compile(r"[^\W_.][\w.-]*|_[\w.-]*")


class Access(NamedTuple):
    """Who may use the nodes of a device; what is None stays as the system has it.

    Attributes:
        user: name of the owner.
        group: name of the group.
        mode: permission bits.

    """

    user: str | None = None
    group: str | None = None
    mode: int | None = None


class _Grant(NamedTuple):
    """What was given: to whom, and which node that was when udev was last done with it."""

    access: Access
    number: int
    handled: int | None


class Links:
    """The directories of this machine.

    Args:
        list_nodes: subsystem and path of each node of a local bus id, in the device's own order.
        root: where the directories are; None makes none (not root).
        udev: where udev keeps what it knows of nodes.

    """

    def __init__(
        self,
        list_nodes: Callable[[str], list[tuple[str, str]]],
        root: Path | None = ROOT,
        udev: Path = UDEV,
    ) -> None:
        self._list_nodes = list_nodes
        self._root = root
        self._udev = udev
        self._granted: dict[str, dict[str, _Grant]] = {}

    def directory(self, name: str) -> str | None:
        folder = self._folder(name)
        return str(folder) if folder else None

    def _folder(self, name: str) -> Path | None:
        """Where a device's links go; names may come from other machines, and we are root."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a directory")
        return self._root / name if self._root else None

    def update(self, name: str, local_bus_id: str | None, access: Access) -> dict[str, str]:
        """Make the directory show the nodes that there are now; returns name -> path."""
        nodes = name_nodes(self._list_nodes(local_bus_id)) if local_bus_id else {}
        self._grant(name, nodes.values(), access)
        folder = self._folder(name)
        if folder is None:
            return nodes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _link(folder, nodes)
        except OSError as error:
            log.warning("no links in %s: %s", folder, error.strerror)
            return nodes
        return {name: str(folder / name) for name in nodes}

    def _grant(self, name: str, nodes: Iterable[str], access: Access) -> None:
        """Once for each node, and when it is made or handled by udev anew, which resets it.

        Whoever changes it otherwise has reasons.
        """
        before = self._granted.get(name, {})
        now: dict[str, _Grant] = {}
        for node in nodes if self._root is not None else ():
            with contextlib.suppress(OSError):  # it has gone already
                grant = self._grant_of(node, access)
                if before.get(node) != grant:
                    _give(node, access)
                now[node] = grant
        self._granted[name] = now

    def _grant_of(self, node: str, access: Access) -> _Grant:
        found = Path(node).stat()
        letter = "b" if stat.S_ISBLK(found.st_mode) else "c"
        about = self._udev / f"{letter}{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        handled = about.stat().st_mtime_ns if about.exists() else None
        return _Grant(access, found.st_ino, handled)

    def remove(self, name: str) -> None:
        """The device is gone, and so is its directory."""
        self._granted.pop(name, None)
        folder = self._folder(name)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove what an earlier agent has left."""
        if self._root is not None and self._root.is_dir():
            kept = set(names)
            for folder in self._root.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)


def _link(folder: Path, nodes: dict[str, str]) -> None:
    for name, node in nodes.items():
        link = folder / name
        if not link.is_symlink() or str(link.readlink()) != node:
            fresh = folder / f".{name}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(node)
            fresh.replace(link)
    for link in folder.iterdir():
        if link.name not in nodes:
            link.unlink(missing_ok=True)


def _give(node: str, access: Access) -> None:
    """Give a node to whoever asked."""
    if access.user or access.group:
        os.chown(node, _uid(access.user), _gid(access.group))
    if access.mode is not None:
        Path(node).chmod(access.mode)


def _uid(user: str | None) -> int:
    """-1, which chown(2) takes for nobody else, if there is none."""
    try:
        return pwd.getpwnam(user).pw_uid if user else -1
    except KeyError:
        log.warning("there is no user %s here: device nodes stay as they are", user)
        return -1


def _gid(group: str | None) -> int:
    try:
        return grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        log.warning("there is no group %s here: device nodes stay as they are", group)
        return -1


def name_nodes(nodes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What each node is called: ``tty0``, ``hidraw0``, ``disk``, ``disk-part1``, ``usb``.

    Args:
        nodes: subsystem and path, in the device's own order, which the numbers follow.

    """
    count: Counter[str] = Counter()
    named: dict[str, str] = {}
    disks: dict[str, str] = {}
    for subsystem, node in nodes:
        base = Path(node).name
        if subsystem == "block":
            named[_disk_name(base, disks)] = node
        elif subsystem == "usb":
            named["usb"] = node
        else:
            kind = "tty" if subsystem == "tty" else re.sub(r"(?<=C)\d+|\d+$", "", base)
            named[f"{kind}{count[kind]}"] = node
            count[kind] += 1
    return named


def _disk_name(base: str, disks: dict[str, str]) -> str:
    """``disk``, ``disk1`` … for disks, with ``-partN`` for their partitions."""
    for whole, name in disks.items():
        with contextlib.suppress(ValueError):
            rest = base.removeprefix(whole).removeprefix("p")
            if base.startswith(whole):
                return f"{name}-part{int(rest)}"
    disks[base] = f"disk{len(disks)}" if disks else "disk"
    return disks[base]
