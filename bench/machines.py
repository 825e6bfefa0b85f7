"""Virtual machines of tests/kernel, with usb-remote and this package in them.

A machine that is rebooted has usb-remote again, but not this package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.kernel import lab
from tests.kernel.vm import VM

HERE = "/opt/bench"
PYTHON = f"PYTHONPATH={HERE}:/opt/usb-remote:/opt/py PYTHONUNBUFFERED=1 python3"

obstacle = lab.obstacle


@contextlib.contextmanager
def machines(*names: str) -> Iterator[list[VM]]:
    ours = lab.package(Path(__file__).parent)
    with lab.machines(lab.build(), *names) as made:
        for machine in made:
            machine.guest.untar(HERE, ours)
        yield made
