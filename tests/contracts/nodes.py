"""What holds for the device nodes of an attached device, and for whoever lists them.

Who has to pass it: udev.nodes.list_parts on the real kernel, and fakes.nodes.Nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Parts = list[tuple[str, str]]


class Bench(Protocol):
    """A serial adapter, plugged in.

    Attributes:
        patience: seconds that anything may take at most, on this machine.

    """

    patience: float

    def plug(self) -> None: ...
    def pull(self) -> None: ...
    def list_parts(self) -> Parts:
        """Subsystem and path of each node, as Links gets them."""


Check = Callable[[Bench], None]


def ready(bench: Bench) -> Parts:
    """All nodes, once the driver has made its own."""
    deadline = time.monotonic() + bench.patience
    while not (parts := bench.list_parts()) or parts[-1][0] != "tty":
        assert time.monotonic() < deadline, parts
        time.sleep(0.01)
    return parts


def the_device_itself_comes_first_and_what_its_driver_has_made_next(bench: Bench) -> None:
    (kind, own), (driver, tty) = ready(bench)
    assert (kind, driver) == ("usb", "tty")
    assert Path(own).parts[-4:-2] == ("bus", "usb")
    assert Path(tty).name.startswith("ttyACM")


def nodes_are_there_as_long_as_the_device_is(bench: Bench) -> None:
    paths = [Path(path) for _, path in ready(bench)]
    assert all(path.exists() for path in paths)
    bench.pull()
    assert bench.list_parts() == []
    assert not any(path.exists() for path in paths)
    bench.plug()


def plugged_again_it_is_another_node(bench: Bench) -> None:
    before = dict(ready(bench))
    inode = Path(before["tty"]).stat().st_ino, Path(before["tty"]).stat().st_ctime_ns
    bench.pull()
    bench.plug()
    after = dict(ready(bench))
    assert after["usb"] != before["usb"]
    assert (Path(after["tty"]).stat().st_ino, Path(after["tty"]).stat().st_ctime_ns) != inode


CHECKS: tuple[Check, ...] = (
    the_device_itself_comes_first_and_what_its_driver_has_made_next,
    nodes_are_there_as_long_as_the_device_is,
    plugged_again_it_is_another_node,
)
