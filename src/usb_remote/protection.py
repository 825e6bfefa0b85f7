"""What this machine itself needs of its USB devices, so that nobody shares it by accident.

Rule of this file: read /proc and /sys, change nothing, give a reason that a person understands.
Every listing and every export passes here: only what has a disk or a network is looked into.
What cannot be seen there, the kernel itself is asked at each export (:class:`Guard`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from usb_remote import errors
from usb_remote.values import BusId

PROC, SYSFS, DEV = Path("/proc"), Path("/sys"), Path("/dev")
EXCLUSIVE = os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC


class Protection:
    """Reasons why devices must stay here, read afresh at each call.

    Args:
        proc: usually /proc.
        sysfs: usually /sys.

    """

    def __init__(self, proc: Path = PROC, sysfs: Path = SYSFS) -> None:
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
        if not (disks := list(_children(self._sysfs / "class/block", below))):
            return
        mounts, swaps, loops = self._mounts(), self._swaps(), self._loops()
        members = {link.name for link in self._sysfs.glob("fs/btrfs/*/devices/*")}
        for path, device in disks:
            if reason := _disk_reason(path, mounts, swaps, members):
                yield device, reason
            elif path.name in loops:
                yield device, f"{path.name} is part of {loops[path.name]}"

    def _used_networks(self, below: dict[str, Path]) -> Iterator[tuple[Path, str]]:
        if not (interfaces := list(_children(self._sysfs / "class/net", below))):
            return
        routed = self._default_route_interfaces()
        for path, device in interfaces:
            for name in self._stack(path.name):
                if name in routed:
                    above = "" if name == path.name else f"is part of {name}, which "
                    yield device, f"{path.name} {above}carries the default route of this server"

    def _stack(self, interface: str) -> Iterator[str]:
        """An interface and all that is made of it: bridges, bonds, VLANs."""
        yield interface
        for link in self._sysfs.glob(f"class/net/{interface}/upper_*"):
            yield from self._stack(link.name.removeprefix("upper_"))

    def _mounts(self) -> dict[str, str]:
        """Device number ``8:1`` and node name ``sda1`` -> mount point (proc(5), mountinfo)."""
        mounts: dict[str, str] = {}
        for line in filter(None, _lines(self._proc / "self/mountinfo")):
            fields, _, source = line.partition(" - ")
            parts, target = fields.split(" "), source.split(" ")
            mounts.setdefault(parts[2], _unescaped(parts[4]))
            if len(target) > 1 and target[1].startswith("/dev/"):
                mounts.setdefault(Path(os.path.realpath(target[1])).name, _unescaped(parts[4]))
        return mounts

    def _swaps(self) -> set[str]:
        lines = _lines(self._proc / "swaps")[1:]
        return {Path(os.path.realpath(line.split()[0])).name for line in lines if line.strip()}

    def _loops(self) -> dict[str, str]:
        """Node name ``sda1`` -> the loop device on top of it, which the kernel does not tell."""
        root = os.path.join(self._sysfs, "block")
        loops = [name for name in _names(root) if name.startswith("loop")]
        files = {name: _lines(f"{root}/{name}/loop/backing_file") for name in loops}
        return {os.path.basename(line): name for name, lines in files.items() for line in lines}

    def _default_route_interfaces(self) -> set[str]:
        v4 = [line.split() for line in _lines(self._proc / "net/route")[1:]]
        v6 = [line.split() for line in _lines(self._proc / "net/ipv6_route") if line]
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


def _children(folder: Path, below: dict[str, Path]) -> Iterator[tuple[Path, Path]]:
    """What of a class of devices belongs to one of ours, and to which."""
    root = str(folder)
    for name in sorted(_names(root)):
        with contextlib.suppress(OSError):  # bonding_masters is a file; a link may just go
            link = os.readlink(f"{root}/{name}")
            if "/usb" in link:
                path = os.path.normpath(os.path.join(root, link))
                yield from ((Path(path), d) for p, d in below.items() if path.startswith(p))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _lines(path: Path | str) -> list[str]:
    """The lines of a file of the kernel; none if this kernel has no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\n").split("\n")
    except OSError:
        return []


def _unescaped(field: str) -> str:
    r"""What the kernel has written as ``\040``; all the rest is as it is."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


class Guard:
    """Has disks to itself while they are taken from their driver.

    The kernel refuses that (O_EXCL, open(2)) for what is mounted in a container, belongs to ZFS or
    a target: whatever uses a disk, but is not to be seen. Nor can such a use begin meanwhile.

    Attributes:
        gives_away: whether a rule shares a device even so.

    """

    def __init__(
        self, sysfs: Path = SYSFS, dev: Path = DEV, opens: Callable[..., int] = os.open
    ) -> None:
        self.gives_away: Callable[[BusId], bool] = lambda bus_id: False
        self._sysfs = sysfs
        self._dev = dev
        self._opens = opens

    def __call__(self, bus_id: BusId) -> AbstractContextManager[None]:
        """Decides now; entered, it opens the disks, which takes as long as they need to answer.

        Raises:
            Refused: when it is entered, and a disk is in use.

        """
        return contextlib.nullcontext() if self.gives_away(bus_id) else self._claimed(bus_id)

    @contextlib.contextmanager
    def _claimed(self, bus_id: BusId) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for disk in self._disks(bus_id):
                self._claim(bus_id, disk, stack)
            yield

    def _disks(self, bus_id: BusId) -> list[str]:
        """Whole disks only: a partition in use is enough for the kernel to refuse them."""
        device = os.path.realpath(self._sysfs / "bus/usb/devices" / bus_id)
        below = {f"{device}/": Path(device)}
        paths = [path for path, _ in _children(self._sysfs / "class/block", below)]
        return [path.name for path in paths if not (path / "partition").exists()]

    def _claim(self, bus_id: BusId, disk: str, stack: contextlib.ExitStack) -> None:
        try:
            stack.callback(os.close, self._opens(self._dev / disk, EXCLUSIVE))
        except OSError as error:  # others: no card in the reader, no node in this container
            if error.errno == errno.EBUSY:
                raise errors.Refused(
                    f"{bus_id} is protected: {disk} is in use by something on this server"
                ) from error
