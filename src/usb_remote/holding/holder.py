"""What attaches devices until it is closed: several at once, all or none.

Rule of this file: what is the same with an agent (by_agent.py) and without one (by_ourselves.py).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from usb_remote.client import How
from usb_remote.holding import choosing
from usb_remote.holding.device import AttachedDevice
from usb_remote.matching import Query
from usb_remote.model import Match


class Wanted(NamedTuple):
    """One of several devices.

    Attributes:
        query: which one.
        how: with what `attach` needs.
        name: of its directory below /dev/usb-remote.

    """

    query: Query
    how: How = How()
    name: str | None = None


class Holder(ABC):
    """What attaches devices until it is closed."""

    @abstractmethod
    async def attach(self, query: Query, how: How, name: str | None = None) -> AttachedDevice:
        """Attach one; raises as :func:`usb_remote.aio.attach`."""

    @abstractmethod
    async def find_all(self, queries: Sequence[Query], wait: float | None) -> list[Match]:
        """What each of them means; waits until all are there, if that is wanted."""

    async def attach_all(self, wanted: Sequence[Wanted]) -> list[AttachedDevice]:
        """Attach all or none, in the order of server and position: so nobody waits in a circle.

        What is wanted twice is attached once; but the first of several, twice, is two of them.

        Raises:
            As :func:`usb_remote.aio.attach`; then what was attached is given back when the holder
            is closed.

        """
        lefts = [_Left(one.how) for one in wanted]
        matches = await self.find_all([one.query for one in wanted], _longest(wanted))
        places = [choosing.place(match) for match in matches]
        attached: dict[object, AttachedDevice] = {}
        for place, one, left in sorted(zip(places, wanted, lefts, strict=True), key=_first_of):
            if place not in attached:
                attached[place] = await self.attach(one.query, left.how, one.name)
        return [attached[place] for place in places]


def _longest(wanted: Sequence[Wanted]) -> float | None:
    """How long to wait until all are there."""
    waits = [one.how.wait for one in wanted if one.how.wait is not None]
    return (max(waits) if all(waits) else 0) if waits else None


def _first_of(parts: tuple[choosing.Place, object, object]) -> choosing.Place:
    return parts[0]


class _Left:
    """Whoever waits for several things waits no longer for all of them."""

    def __init__(self, how: How) -> None:
        self._how = how
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()

    @property
    def how(self) -> How:
        """The same, with the time that is left."""
        if not self._how.wait:
            return self._how
        left = self._how.wait - (self._clock() - self._begun)
        return self._how._replace(wait=max(left, 0.01))  # 0 would be for ever
