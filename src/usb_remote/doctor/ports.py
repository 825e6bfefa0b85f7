"""Ports of this machine, and which programs have them: /proc/net and the files of processes.

Rule of this file: a port is taken or free for everybody to see; by which process only root sees,
others at least see by which user.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from usb_remote.doctor.machine import Machine, user_name
from usb_remote.doctor.report import Check, Finding, Fix, Role, failed, ok, warning

LISTENING, UNCONNECTED = "0A", "07"
"""Column ``st`` of /proc/net: TCP_LISTEN, and TCP_CLOSE as UDP shows it (net/tcp_states.h)."""
USBIPD = "usbipd"
MDNS = 5353
OURS = re.compile(r"usb[-_]remote")

Protocol = Literal["tcp", "udp"]


class Process(NamedTuple):
    """A program that runs; ``unit`` is the systemd service that it belongs to."""

    pid: int
    name: str
    words: tuple[str, ...] = ()
    uid: int = 0
    unit: str | None = None

    @property
    def is_ours(self) -> bool:
        return any(OURS.search(word) for word in self.words[:4])

    def __str__(self) -> str:
        of = f", {self.unit}" if self.unit else ""
        return f"{'usb-remote' if self.is_ours else self.name} (pid {self.pid}{of})"


class Holders(NamedTuple):
    """Who has a port: processes as far as they can be seen, and users."""

    processes: tuple[Process, ...] = ()
    users: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.users)

    def __str__(self) -> str:
        if self.processes:
            return ", ".join(map(str, self.processes))
        names = ", ".join(map(user_name, self.users))
        return f"a program of user {names} (which one: sudo usb-remote doctor)"


def holders(machine: Machine, protocol: Protocol, port: int) -> Holders:
    """Who listens on a port, on any address."""
    found = [
        (uid, inode)
        for name in (protocol, f"{protocol}6")
        for at, uid, inode in _sockets(machine.read(f"proc/net/{name}"), protocol)
        if at == port
    ]
    inodes = {inode for _, inode in found}
    users = tuple(sorted({uid for uid, _ in found}))
    return Holders(tuple(_processes(machine, inodes)) if inodes else (), users)


def _sockets(table: str, protocol: Protocol) -> Iterator[tuple[int, int, str]]:
    """Port, user and inode of each socket that takes connections or packets of anybody."""
    state = LISTENING if protocol == "tcp" else UNCONNECTED
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == state:
            yield int(words[1].rpartition(":")[2], 16), int(words[7]), words[9]


def _processes(machine: Machine, inodes: Iterable[str]) -> Iterator[Process]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in sorted((machine.root / "proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # not ours to see, or gone
            if any(_target(link) in wanted for link in (folder / "fd").iterdir()):
                yield process(machine, int(folder.name))


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def process(machine: Machine, pid: int) -> Process:
    """What /proc says of one process."""
    command = machine.read(f"proc/{pid}/cmdline").rstrip("\0")
    uid = re.search(r"^Uid:\s+(\d+)", machine.read(f"proc/{pid}/status"), re.MULTILINE)
    name = machine.read(f"proc/{pid}/comm").strip()
    return Process(
        pid,
        name,
        tuple(command.split("\0")),
        int(uid[1]) if uid else 0,
        _own_unit(name, machine.read(f"proc/{pid}/cgroup")),
    )


def _own_unit(name: str, cgroup: str) -> str | None:
    """The service that is this program's: who started usbipd by ssh must not lose ssh.service."""
    found = re.search(r":/system\.slice/(?:\S*/)?([^/\s]+)\.service$", cgroup, re.MULTILINE)
    if found and (name in found[1] or found[1] in name):
        return f"{found[1]}.service"
    return None


def freeing(taken: Holders, port: int) -> tuple[str, Fix | None]:
    """The command that ends who has a port; only a usbipd is safe to be ended without thinking."""
    if not taken.processes:
        return f"sudo ss -lnptu 'sport = :{port}'  # says who; then end it", None
    commands = tuple(dict.fromkeys(_ending(found) for found in taken.processes))
    mend = "; ".join(f"sudo {' '.join(command)}" for command in commands)
    if any(found.name != USBIPD for found in taken.processes):
        return mend, None
    return mend, Fix(what=f"stop {taken}", commands=commands)


def _ending(found: Process) -> tuple[str, ...]:
    if found.unit and found.is_ours:  # it is wanted again at the next boot
        return ("systemctl", "stop", found.unit)
    if found.unit:
        return ("systemctl", "disable", "--now", found.unit)
    return ("kill", str(found.pid))


# -- checks


def check_usbip_port_here(machine: Machine, port: int, *, served: bool) -> Finding:
    """Whether the USB/IP port is our server's, free for it, or somebody else's."""
    check, taken = Check.SERVER_USBIP_PORT, holders(machine, "tcp", port)
    if served:  # it would not run without this port
        return ok(check, f"TCP port {port} is the server's")
    if not taken:
        return ok(check, f"TCP port {port} is free for a server")
    return failed(check, f"TCP port {port} is taken by {taken}", *freeing(taken, port))


def check_mdns_port(machine: Machine, role: Role) -> Finding:
    """Port 5353 is for all programs together; one that does not share shuts out the others."""
    taken = holders(machine, "udp", MDNS)
    others = Holders(tuple(p for p in taken.processes if not p.is_ours), taken.users)
    if not taken:
        return ok(Check.MDNS_PORT, f"UDP port {MDNS} is free")
    if _is_shared():
        seen = others if others.processes or not taken.processes else "nobody else"
        return ok(Check.MDNS_PORT, f"UDP port {MDNS} is shared with {seen}")
    mend, _ = freeing(others, MDNS)
    text = f"UDP port {MDNS} is taken by {others}, which does not share it"
    if role is Role.SERVER:
        return failed(Check.MDNS_PORT, f"{text}; so the server cannot be announced", mend)
    return warning(Check.MDNS_PORT, text, mend)


def _is_shared() -> bool:
    """Whether another program may open the port, too: the only way to know is to try."""
    for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trial:
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                trial.bind((address, MDNS))
            except OSError:
                return False
    return True
