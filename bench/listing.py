"""list: ten servers, each in a namespace of its own, and a client that knows nothing of them.

Ours is `usb-remote list` on a terminal, where each server is printed as soon as it answers: to the
first line of a device, and to the exit. The other is `avahi-browse -rpt _usbremote._tcp`, which
finds servers and no devices, to its exit. avahi-daemon runs on the client all the time, as on a
desktop, and takes part of the replies that come to port 5353; two rows are without it.
"""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tests.network import lab

from bench import report
from bench.memory import USB_REMOTE

SERVERS = 10
AVAHI_BROWSE = ["avahi-browse", "-rpt", "_usbremote._tcp"]
TOOLS = {
    "avahi-browse": "avahi-utils",
    "avahi-daemon": "avahi-daemon",
    "dbus-daemon": "dbus-daemon",
}
AVAHI_CONF = "[server]\nuse-ipv4=yes\nuse-ipv6=yes\n[rlimits]\n"


class Run(NamedTuple):
    """Milliseconds to the first line of a device and to the exit; servers in the output."""

    first: float
    exit: float
    servers: int


def obstacle() -> str | None:
    if missing := [package for tool, package in TOOLS.items() if not shutil.which(tool)]:
        return f"packages are missing: apt-get install {' '.join(missing)}"
    return lab.obstacle()


def run(pairs: int) -> list[report.Row]:
    with lab.Network(SERVERS + 1) as network, tempfile.TemporaryDirectory() as home:
        *servers, client = network
        serve(servers)
        ours = partial(ours_in, client, home)
        with avahi(client, home):
            a, b = report.in_turns(pairs, ours, partial(theirs_in, client))
        alone = [ours() for _ in range(pairs)]
    return rows(a, b, alone)


def rows(a: list[Run], b: list[Run], alone: list[Run]) -> list[report.Row]:
    end = [run.exit for run in b]
    first, exits = report.Target(0.5), report.Target(0.75)
    return [
        report.compare("list: first device shown", [r.first for r in a], end, "ms", first),
        report.compare("list: exit", [r.exit for r in a], end, "ms", exits),
        report.absolute("list: first, without avahi", [r.first for r in alone], "ms"),
        report.absolute("list: exit, without avahi", [r.exit for r in alone], "ms"),
        report.Row("list: runs that found all", *(complete(runs) for runs in (a + alone, b))),
    ]


def complete(runs: list[Run]) -> str:
    return f"{sum(run.servers == SERVERS for run in runs)} of {len(runs)}"


def serve(hosts: Sequence[lab.Host]) -> None:
    command = [*USB_REMOTE, "server", "--virtual", "--name"]
    running = [host.start([*command, f"lab{number}"]) for number, host in enumerate(hosts)]
    for process in running:
        process.wait_for(" serves ", 60)
    time.sleep(2)  # they repeat their announcements for a second


@contextlib.contextmanager
def avahi(host: lab.Host, home: str) -> Iterator[None]:
    """D-Bus and avahi in a host's private /run."""
    conf = f"{home}/avahi-daemon.conf"
    with open(conf, "w") as file:  # noqa: PTH123 - a str is all we have
        file.write(AVAHI_CONF)
    host.run(["mkdir", "-p", "/run/dbus", "/run/avahi-daemon"])
    bus = host.start(["dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address"])
    bus.wait_for("unix:path=")
    daemon = host.start(["avahi-daemon", "-f", conf, "--no-drop-root", "--no-rlimits"])
    daemon.wait_for("Server startup complete")
    try:
        yield
    finally:
        daemon.stop()
        bus.stop()


def ours_in(host: lab.Host, home: str) -> Run:
    return on_terminal(
        host,
        [*USB_REMOTE, "list"],
        {"HOME": home, "XDG_CONFIG_HOME": home},
        is_device=lambda line: line.startswith(b"  "),
        is_server=lambda line: line.startswith(b"lab"),
    )


def theirs_in(host: lab.Host) -> Run:
    return on_terminal(
        host,
        AVAHI_BROWSE,
        {},
        is_device=lambda line: line.startswith(b"="),
        is_server=lambda line: line.startswith(b"=;eth0;IPv4;"),
    )


Check = Callable[[bytes], bool]


def on_terminal(
    host: lab.Host,
    argv: Sequence[str],
    environment: dict[str, str],
    is_device: Check,
    is_server: Check,
) -> Run:
    master, slave = pty.openpty()
    with open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 - it is a descriptor
        start = time.perf_counter()
        process = subprocess.Popen(
            host.inside.command(argv), stdout=slave, env={**os.environ, **environment}
        )
        os.close(slave)
        lines = list(stamped(terminal.fileno()))
        process.wait(30)
        end = time.perf_counter()
    first = next((moment for moment, line in lines if is_device(line)), end)
    servers = sum(is_server(line) for _, line in lines)
    return Run((first - start) * 1000, (end - start) * 1000, servers)


def stamped(fd: int) -> Iterator[tuple[float, bytes]]:
    """Each line with the time at which it was complete, until the program has gone."""
    rest = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(fd, 65536):
            now = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            yield from ((now, line) for line in lines)
