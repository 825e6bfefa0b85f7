"""What all keepers share.

Rule of this file: it names the parts, and knows of nothing that they do.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from usb_remote.agent.links import Links
from usb_remote.agent.places import name_of
from usb_remote.agent.times import Times
from usb_remote.agent.world import World
from usb_remote.client import Client
from usb_remote.events import Event
from usb_remote.model import Match, Server


class AskHistory(Protocol):
    """Asks a server what happened there."""

    async def __call__(self, server: Server) -> list[Event]: ...


class Parts(NamedTuple):
    """What all keepers share.

    Attributes:
        world: what there is.
        client: attaches and detaches.
        links: makes directories.
        ask_history: of a server.
        locks: one for each place, so that two wishes for what sits there do not race.
        times: how long they wait.

    """

    world: World
    client: Client
    links: Links
    ask_history: AskHistory
    locks: dict[str, asyncio.Lock]
    times: Times = Times()

    def lock(self, match: Match) -> asyncio.Lock:
        return self.locks.setdefault(name_of(match), asyncio.Lock())
