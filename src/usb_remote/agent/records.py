"""All wishes of this machine, each once: found, named, noted.

Rule of this file: it knows who follows what, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from usb_remote import errors
from usb_remote.agent import places
from usb_remote.agent.keeper import Keeper
from usb_remote.agent.parts import Parts
from usb_remote.agent.spread import Spread
from usb_remote.agent.wishes import Note, Wish
from usb_remote.agent_protocol import Kind, Stage, Status
from usb_remote.matching import Query, select
from usb_remote.model import Match

Record = Keeper | Spread
MAX_WISHES = 256
"""Wishes of one machine; vhci-hcd has far fewer ports."""
_NEAREST = (Stage.ATTACHED, Stage.WAITING, Stage.TRYING, Stage.DELAYED, Stage.STOPPED)
"""Stages at which a keeper has a device, or goes for one; the nearest to it first."""


class Records:
    """All wishes.

    Args:
        parts: what keepers work with.
        on_change: called when any of them changes.

    """

    def __init__(self, parts: Parts, on_change: Callable[[], None]) -> None:
        self.keepers: list[Keeper] = []
        self.spreads: list[Spread] = []
        self._parts = parts
        self._on_change = on_change

    # -- made and forgotten

    def add(self, wish: Wish, match: Match | None = None, name: str | None = None) -> Keeper:
        """One more; raises Refused if there are too many."""
        self._see_room()
        name = self._free_name(name or wish.name_for(match))
        keeper = Keeper(wish, self._parts, name, self._on_change)
        self.keepers.append(keeper)
        return keeper

    def add_spread(self, wish: Wish) -> Spread:
        """The same for a wish for many places."""
        self._see_room()
        spread = Spread(wish, self._on_change)
        self.spreads.append(spread)
        return spread

    def _see_room(self) -> None:
        if len(self.keepers) + len(self.spreads) >= MAX_WISHES:
            raise errors.Refused(f"there are {MAX_WISHES} wishes already")

    def become(self, keeper: Keeper, wish: Wish) -> None:
        """Its device is wished for in another way; a program that has it keeps its paths."""
        name = keeper.name
        if not keeper.is_held:
            name = self._free_name(wish.name_for(keeper.match), keeper)
        keeper.become(wish, name)

    def rename(self, keeper: Keeper) -> None:
        """Under the name of its wish, if that is free by now, and no program uses another one."""
        self.become(keeper, keeper.wish)

    def _free_name(self, name: str, owner: Keeper | None = None) -> str:
        """Two devices must not share a directory; what has ended needs none."""
        others = [keeper for keeper in self.keepers if keeper is not owner and not keeper.is_over]
        taken = {keeper.name for keeper in others}
        numbered = (f"{name}-{number}" for number in range(2, MAX_WISHES + 2))
        return name if name not in taken else next(n for n in numbered if n not in taken)

    def tidy(self) -> None:
        """Forget what is over, and nobody's wish."""
        self.keepers = [k for k in self.keepers if k.wish.is_lasting or k.is_held or not k.is_over]

    # -- found

    @property
    def _all(self) -> list[Record]:
        return [*self.spreads, *self.keepers]

    def statuses(self) -> list[Status]:
        return [record.status for record in self._all]

    def with_key(self, key: str) -> Record | None:
        """Who keeps the same wish, whoever asked."""
        same = (r for r in self._all if r.wish.is_lasting and r.wish.key == key)
        return next(same, None)

    def called(self, query: Query) -> Record | None:
        """Whose wish, or name, somebody has typed."""
        words = str(query).lower()
        for record in self._all:
            is_it = record.wish.key == words or record.name == query.handle
            if is_it and not record.is_over:
                return record
        return None

    def query_called(self, handle: str | None) -> Query | None:
        """What a lasting wish of this name is for."""
        for keeper in self.keepers:
            if keeper.wish.is_lasting and keeper.name == handle:
                return keeper.wish.query
        return None

    def children(self, spread: Spread) -> list[Keeper]:
        return [keeper for keeper in self.keepers if keeper.wish.parent == spread.wish.key]

    def keeper_for(self, match: Match) -> Keeper | None:
        """Who has a device, goes for it, or would if it was asked for it; the nearest to it."""
        near = [keeper for keeper in self.keepers if _takes(keeper, match)]
        return min(near, key=_distance, default=None)

    def loose_for(self, wish: Wish) -> Keeper | None:
        """Who follows what a wish means, and keeps no wish itself."""
        for keeper in self.keepers:
            if not keeper.wish.is_lasting and keeper.attached is not None:
                device = keeper.attached.match
                try:
                    world, client = self._parts.world, self._parts.client
                    if places.is_same(places.choose(world, client, wish.query), device):
                        return keeper
                except errors.UsbRemoteError:
                    return None  # it means nothing that is there
        return None

    def meant(self, query: Query) -> list[Keeper]:
        """Who has the device that somebody means, or goes for it; several if they share it.

        Raises:
            Ambiguous: it means several devices.

        """
        going = [keeper for keeper in self.keepers if _is_going(keeper)]
        known = [match for keeper in going if (match := keeper.match)]
        search = self._parts.world.search()
        known += [match for listing in search.listings for match in listing.matches]
        found = dict.fromkeys(places.name_of(match) for match in select(known, query))
        mine = {place: [k for k in going if _place(k) == place] for place in found}
        several = [keepers for keepers in mine.values() if keepers]
        if len(several) > 1 and not query.first:
            raise _several(query, [keepers[0] for keepers in several])
        return several[0] if several else []

    def sharing(self, keeper: Keeper) -> list[Keeper]:
        """Who has the same attachment, this one first."""
        attached = keeper.attached
        return [keeper] + [
            other
            for other in self.keepers
            if attached is not None
            and other is not keeper
            and other.attached is not None
            and other.attached.attachment.vhci_port == attached.attachment.vhci_port
        ]

    # -- noted

    def notes(self) -> list[Note]:
        """What must outlive us."""
        spreads = [
            Note(wish=spread.wish, ended=spread.ended)
            for spread in self.spreads
            if spread.ended or spread.wish.kind is Kind.KEPT
        ]
        return spreads + [
            Note(wish=keeper.wish, ended=keeper.ended, attached=keeper.attached)
            for keeper in self.keepers
            if keeper.attached or keeper.ended or _is_kept(keeper)
        ]


def _is_kept(keeper: Keeper) -> bool:
    return keeper.wish.kind is Kind.KEPT and keeper.wish.parent is None


def _is_going(keeper: Keeper) -> bool:
    return keeper.match is not None and keeper.status.stage in _NEAREST


def _takes(keeper: Keeper, match: Match) -> bool:
    own = keeper.attached.match if keeper.attached else keeper.chosen()
    return own is not None and places.is_same(own, match)


def _distance(keeper: Keeper) -> int:
    stage = keeper.status.stage
    return _NEAREST.index(stage) if stage in _NEAREST else len(_NEAREST) + keeper.is_over


def _place(keeper: Keeper) -> str | None:
    return places.name_of(keeper.match) if keeper.match else None


def _several(query: Query, keepers: Iterable[Keeper]) -> errors.Ambiguous:
    listed = "\n".join(f"  {keeper.name}: {keeper.match}" for keeper in keepers)
    return errors.Ambiguous(
        f"{query} means several devices that are attached here:\n{listed}",
        hint="say which one as SERVER/BUS-ID, or take the first one with --first",
    )
