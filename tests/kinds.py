"""Kinds of tests: how long one of each may take, whether it may run again, and in which order.

What belongs here: what pytest is told of a test because of the folder it is in. A unit test never
runs again: it has everything in its hands. One with a network or virtual machines may, once; each
time is written down (see ledger.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from tests.patience import patience


@dataclass(frozen=True)
class Kind:
    """What is so for all tests of one folder.

    Attributes:
        name: also the name of its marker.
        seconds: how long one may take on a machine of usual speed.
        reruns: how often one may run again.

    """

    name: str
    seconds: float
    reruns: int


UNIT = Kind("unit", seconds=120, reruns=0)
NETWORK = Kind("network", seconds=300, reruns=1)
KERNEL = Kind("kernel", seconds=600, reruns=1)
ALL = (UNIT, NETWORK, KERNEL)
SOAK_SECONDS = 3600.0
"""How long a test may take that only `make soak` runs."""

LONGEST = (
    "test_the_agent_attaches_for_its_group",
    "test_after_a_bad_day",
    "test_a_server_survives_boot_crash_and_upgrade",
    "test_a_killed_agent_takes_up",
    "test_members_of_the_group",
    "test_a_dead_server_does_not_hang",
    "test_a_cable_cut_for_4_s",
    "test_each_cause_of_an_end",
    "test_the_queue_is_fair",
    "test_a_second_client_is_refused",
)
"""Beginnings of names: these start first, or one core would have nothing to do at the end."""


def kind_of(item: pytest.Item) -> Kind:
    """The kind of a test, by its folder."""
    folders = item.path.parts
    return next((k for k in (NETWORK, KERNEL) if k.name in folders), UNIT)


def mark(items: Iterable[pytest.Item]) -> None:
    """Give each test the marker, the time-out and the reruns of its kind."""
    for item in items:
        kind = kind_of(item)
        item.add_marker(kind.name)
        if not item.get_closest_marker("timeout"):
            soaks = item.get_closest_marker("soak") is not None
            item.add_marker(pytest.mark.timeout(patience(SOAK_SECONDS if soaks else kind.seconds)))
        if kind.reruns:
            item.add_marker(pytest.mark.flaky(reruns=kind.reruns))


def longest_first(items: list[pytest.Item]) -> None:
    """Order tests by LONGEST; what is not there keeps its order, behind."""

    def rank(item: pytest.Item) -> int:
        places = (n for n, start in enumerate(LONGEST) if item.name.startswith(start))
        return next(places, len(LONGEST))

    items.sort(key=rank)
