"""What this machine itself needs of its USB devices, so that nobody shares it by accident.

Rule of this file: read /proc and /sys, change nothing, give a reason that a person understands.
Every listing and every export passes here: only what has a disk or a network is looked into.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


class Protection:
    """Reasons why devices must stay here, read afresh at each call.

    Args:
        proc: usually /proc.
        sysfs: usually /sys.

    """

    def __init__(self, proc: Path = Path("/proc"), sysfs: Path = Path("/sys")) -> None:
        self._proc = proc
        self._sysfs = sysfs

    def __call__(self, devices: Iterable[Path]) -> dict[Path, str]:
        """Of these sysfs paths of USB devices, those that are needed here, with the reason."""
        reasons: dict[Path, str] = {}
        below = {f"{device}/": device for device in devices}
        for device, reason in (*self._used_disks(below), *self._used_networks(below)):
            reasons.setdefault(device, reason)
        return reasons

    def _used_disks(self, below: dict[str, Path]) -> Iterator[tuple[Path, str]]:
        if not (disks := list(self._children("class/block", below))):
            return
        mounts, swaps = self._mounts(), self._swaps()
        members = {link.name for link in self._sysfs.glob("fs/btrfs/*/devices/*")}
        for path, device in disks:
            if reason := _disk_reason(path, mounts, swaps, members):
                yield device, reason

    def _used_networks(self, below: dict[str, Path]) -> Iterator[tuple[Path, str]]:
        if not (interfaces := list(self._children("class/net", below))):
            return
        routed = self._default_route_interfaces()
        for path, device in interfaces:
            if path.name in routed:
                yield device, f"{path.name} carries the default route of this server"

    def _children(self, folder: str, below: dict[str, Path]) -> Iterator[tuple[Path, Path]]:
        """What of a class of devices belongs to one of ours, and to which."""
        root = os.path.join(self._sysfs, folder)
        for name in sorted(_names(root)):
            with contextlib.suppress(OSError):  # bonding_masters is a file; a link may just go
                path = os.path.normpath(os.path.join(root, os.readlink(f"{root}/{name}")))
                if "/usb" in path:
                    yield from ((Path(path), d) for p, d in below.items() if path.startswith(p))

    def _mounts(self) -> dict[str, str]:
        """Device number ``8:1`` and node name ``sda1`` -> mount point (proc(5), mountinfo)."""
        mounts: dict[str, str] = {}
        for line in _lines(self._proc / "self/mountinfo"):
            fields, _, source = line.partition(" - ")
            parts, target = fields.split(), source.split()
            mounts.setdefault(parts[2], _unescaped(parts[4]))
            if len(target) > 1 and target[1].startswith("/dev/"):
                mounts.setdefault(Path(os.path.realpath(target[1])).name, _unescaped(parts[4]))
        return mounts

    def _swaps(self) -> set[str]:
        lines = _lines(self._proc / "swaps")[1:]
        return {Path(os.path.realpath(line.split()[0])).name for line in lines if line.strip()}

    def _default_route_interfaces(self) -> set[str]:
        v4 = [line.split() for line in _lines(self._proc / "net/route")[1:]]
        v6 = [line.split() for line in _lines(self._proc / "net/ipv6_route")]
        return {f[0] for f in v4 if f[1] == f[7] == "00000000"} | {
            f[9] for f in v6 if f[0] == "0" * 32 and f[1] == "00" and f[9] != "lo"
        }


def _disk_reason(
    path: Path, mounts: dict[str, str], swaps: set[str], btrfs: set[str]
) -> str | None:
    number = "".join(_lines(path / "dev")[:1])
    if point := mounts.get(number) or mounts.get(path.name):
        return f"{path.name} is mounted at {point}"
    if path.name in swaps:
        return f"{path.name} is used for swap"
    if path.name in btrfs:
        return f"{path.name} belongs to a mounted btrfs file system"
    holders = sorted(p.name for p in path.glob("holders/*"))
    return f"{path.name} is part of {', '.join(holders)}" if holders else None


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel; none if this kernel has no such file."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(field: str) -> str:
    return field.encode().decode("unicode_escape")
