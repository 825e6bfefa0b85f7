"""Which devices are meant when several are wanted, and the order in which to take them.

Rule of this file: pure functions of what a search has found. One device alone is finder.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from usb_remote import errors
from usb_remote.finder import Search
from usb_remote.matching import Query
from usb_remote.model import Match
from usb_remote.watcher import key_of

Place = tuple[str, int, tuple[int, ...]]
"""The key of a server, the bus, and the ports on the way."""


def place(match: Match) -> Place:
    """The same order on every client."""
    bus_id = match.device.bus_id
    return key_of(match.server), bus_id.bus, bus_id.port_numbers


def choose_all(search: Search, queries: Sequence[Query], may_wait: bool) -> list[Match]:
    """What each means; none if one is not there yet, and we may wait for it."""
    try:
        return _choose_each(search, queries)
    except (errors.NotFound, errors.Unreachable):
        if may_wait:
            return []
        raise


def _choose_each(search: Search, queries: Sequence[Query]) -> list[Match]:
    """What each means; those that take the first of several come last, and take other ones."""
    chosen: dict[int, Match] = {}
    for index in sorted(range(len(queries)), key=lambda index: queries[index].first):
        chosen[index] = _choose(search, queries[index], chosen.values())
    return [chosen[index] for index in range(len(queries))]


def _choose(search: Search, query: Query, taken: Iterable[Match]) -> Match:
    if not query.first:
        return search.choose(query)
    found, places = search.select(query), [place(match) for match in taken]
    left = [match for match in found if place(match) not in places]
    if found and not left:
        raise errors.NotFound(
            f"more devices are wanted than there are of {query}: {len(found)}",
            hint="usb-remote list shows what there is",
        )
    return left[0] if left else search.choose(query)
