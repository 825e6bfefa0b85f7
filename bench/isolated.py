"""A machine without a network, and without this machine's USB devices, made of namespaces.

Whatever a measurement sends stays on a loopback of its own; a server that is measured sees a
made-up /sys/bus/usb, so that it can neither list nor release a device that somebody uses.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

from tests.network import lab
from tests.network.namespaces import Namespaces

from bench.faketree import Tree, tree
from bench.processes import module

DEVICES = 20
TIMEOUT = 600

# $1 is the made-up tree; libudev takes /run/udev/control for a sign that udevd runs.
SCRIPT = """
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/bus
mkdir /sys/bus/usb
mount --bind "$1/bus/usb" /sys/bus/usb
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/udev
touch /run/udev/control
ip link set lo up
"""


obstacle = lab.obstacle


@contextlib.contextmanager
def machine() -> Iterator[tuple[Namespaces, Tree]]:
    """An isolated machine, and its DEVICES devices."""
    with tree(DEVICES) as made, Namespaces(SCRIPT, str(made.root)) as inside:
        yield inside, made


def run_module(name: str, count: int) -> Any:
    """Run `-m NAME TREE COUNT` in an isolated machine; it prints its result as JSON."""
    with machine() as (inside, made):
        command = inside.command(module(name, made.root, count))
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True)
    return json.loads(done.stdout)
