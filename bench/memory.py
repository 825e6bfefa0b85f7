"""memory: what an idle server keeps resident (VmRSS), and what each idle watcher adds.

Ours is the real command in a namespace with nothing but loopback, and 20 made-up devices; the other
is a Python that sleeps in asyncio: `asyncio.run(asyncio.sleep(3600))`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.network.namespaces import Namespaces, Process

from bench import isolated, report
from bench.processes import module, started

USB_REMOTE = [str(Path(sys.executable).with_name("usb-remote"))]
ASLEEP = "import asyncio, sys; print('asleep', file=sys.stderr); asyncio.run(asyncio.sleep(3600))"
WATCHERS = 500
SETTLED = 0.5
"""Seconds after its last word, in which a process finishes its start."""

obstacle = isolated.obstacle


class Size(NamedTuple):
    """In kB; `watched` with all watchers."""

    idle: float
    watched: float


def run(pairs: int) -> list[report.Row]:
    with isolated.machine() as (inside, _):
        server = [*USB_REMOTE, "server"]
        ours = partial(measure, inside, server, " serves .* devices ")
        theirs = partial(measure, inside, [sys.executable, "-c", ASLEEP], "asleep")
        a, b = report.in_turns(pairs, ours, theirs)
        virtual = measure(inside, [*server, "--virtual"], " serves 3 devices ")
    idle, bare = [[size.idle / 1000 for size in sizes] for sizes in (a, b)]
    each = [(size.watched - size.idle) / WATCHERS for size in a]
    return [
        report.compare("memory: idle server", idle, bare, "MB", report.Target(2.2)),
        report.absolute(f"memory: each of {WATCHERS} watchers", each, "kB", report.Target(8, "kB")),
        report.Row("memory: idle server --virtual", f"{virtual.idle / 1000:.3g} MB"),
    ]


def measure(inside: Namespaces, command: Sequence[str], ready: str) -> Size:
    process = Process(inside.command(command), None)
    try:
        process.wait_for(ready, 60)
        time.sleep(SETTLED)
        idle = resident(process.pid)
        port = re.search(r"on ports (\d+)", "\n".join(process.lines()))
        return Size(idle, watched(inside, process.pid, port[1]) if port else idle)
    finally:
        process.stop()
        process.close()


def watched(inside: Namespaces, pid: int, port: str) -> float:
    """The size while all watchers have had their first snapshot."""
    with started(inside.command(module("bench.watchers", port, WATCHERS))):
        time.sleep(SETTLED)
        return resident(pid)


def resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return float(found[1]) * 1.024
