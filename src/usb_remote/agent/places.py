"""Where a device sits, and which one a wish means just now.

Rule of this file: pure functions of what the world says.
"""

from __future__ import annotations

from usb_remote.agent.world import World
from usb_remote.client import Client
from usb_remote.matching import Query
from usb_remote.model import Device, Match, State
from usb_remote.watcher import key_of


def name_of(match: Match) -> str:
    """A place, by one name for all programs of this machine."""
    return f"{key_of(match.server)}/{match.device.bus_id}"


def is_same(one: Match, other: Match) -> bool:
    """Whether both sit in the same place, whatever they are."""
    return name_of(one) == name_of(other)


def query_for(match: Match) -> Query:
    """Whatever sits where a device sits."""
    return Query(handle=f"{match.server.name}/{match.device.bus_id}")


def is_free(match: Match, client: Client) -> bool:
    """Whether no other machine has it."""
    return match.device.state is State.AVAILABLE or client.is_mine(match.device)


def choose(world: World, client: Client, query: Query) -> Match:
    """The one device that is meant; of several the first that can be had. Raises as `find`."""
    search = world.search()
    if query.first:
        matches = search.select(query)
        if matches:
            return next((match for match in matches if is_free(match, client)), matches[0])
    return search.choose(query)


def lasting_facts(device: Device) -> Device:
    """What is true of a device whoever has it."""
    state = State.PROTECTED if device.state is State.PROTECTED else State.AVAILABLE
    return device.model_copy(
        update={"state": state, "holder": None, "waiting": 0, "last_session": None}
    )
