"""push: from udev's message that a device came or went to the line at the last of N watchers.

Absolute, there is nothing to compare with. Server and watchers are processes of their own, the
server is a real ControlServer with a real monitor; only the devices (20, in memory) and the sender
of the netlink message are made up. The clock starts just before the message is sent, in a network
namespace where nobody else hears it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import isolated, report
from bench.faketree import Tree
from bench.processes import module, started
from bench.uevent import Sender

TARGETS = {1: 2.0, 100: 6.0}
"""Milliseconds (median) until the last of so many watchers has the line."""
EVENTS_PER_PAIR = 20
PAUSE = 0.02
"""Seconds between two events: nothing is under way any more."""
DEVICE = "1-2.3"

obstacle = isolated.obstacle


def run(pairs: int) -> list[report.Row]:
    measured = isolated.run_module("bench.push", pairs * EVENTS_PER_PAIR)
    return [row for count, target in TARGETS.items() for row in _rows(measured, count, target)]


def _rows(measured: dict[str, list[float]], count: int, target: float) -> list[report.Row]:
    numbers = measured[str(count)]
    who = "the only watcher" if count == 1 else f"the last of {count} watchers"
    late = report.percentile(numbers, 99)
    return [
        report.absolute(f"push: to {who}", numbers, "ms", report.Target(target, "ms")),
        report.Row(f"push: to {who}, p99 of {len(numbers)}", f"{late:.3g} ms"),
    ]


# -- in the namespace ---------------------------------------------------------------------------


def measure(made: Tree, events: int) -> dict[int, list[float]]:
    with started(module("bench.serving", made.root)) as (_, port):
        return {count: measure_with(made, port, count, events) for count in TARGETS}


def measure_with(made: Tree, port: str, count: int, events: int) -> list[float]:
    with started(module("bench.watchers", port, count)) as (process, _):
        assert process.stdout
        return time_events(made, process.stdout.readline, events)


def time_events(made: Tree, arrival: Callable[[], str], events: int) -> list[float]:
    sender = Sender()
    numbers = []
    for number in range(events):
        time.sleep(PAUSE)
        plug = number % 2 == 1
        (made.plug if plug else made.pull)(DEVICE)
        start = time.monotonic_ns()
        sender.send("add" if plug else "remove", f"/devices/pci0000:00/usb1/{DEVICE}")
        numbers.append((int(arrival()) - start) / 1e6)
    if events % 2:
        made.plug(DEVICE)
        sender.send("add", f"/devices/pci0000:00/usb1/{DEVICE}")
    sender.close()
    return numbers


if __name__ == "__main__":
    print(json.dumps(measure(Tree(Path(sys.argv[1])), int(sys.argv[2]))))
