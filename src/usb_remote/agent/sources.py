"""Where wishes come from: the configuration, the state file, and wishes for many places.

Rule of this file: the same wish is kept once. What is followed already is followed on, by the same
keeper, as the new wish says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from usb_remote import errors
from usb_remote.agent.keeper import Keeper
from usb_remote.agent.parts import Parts
from usb_remote.agent.records import Records
from usb_remote.agent.spread import Spread
from usb_remote.agent.wishes import Note, Wish
from usb_remote.agent_protocol import Attached, Kind, Stage

log = logging.getLogger(__name__)


class Sources:
    """Makes records of them.

    Args:
        parts: what keepers work with.
        records: all wishes.

    """

    def __init__(self, parts: Parts, records: Records) -> None:
        self._parts = parts
        self._records = records

    def wish(self, wish: Wish) -> Keeper | Spread:
        """Keep a wish, by whoever keeps the same, or follows what it means; raises Refused."""
        record = self._records.with_key(wish.key)
        if wish.is_for_many:
            spread = record if isinstance(record, Spread) else self._records.add_spread(wish)
            spread.wish = wish
            return spread
        keeper = record if isinstance(record, Keeper) else self._records.loose_for(wish)
        if keeper is None:
            keeper = self._records.add(wish)
            keeper.start()
        elif keeper.wish != wish:
            self._records.become(keeper, wish)
        return keeper

    # -- the configuration

    def configure(self, configured: Iterable[Wish]) -> None:
        """Wish for what it says now; what it said before only stays as long as it is attached."""
        wishes = {wish.key: wish for wish in configured}
        self._records.spreads = [s for s in self._records.spreads if _is_in(s.wish, wishes)]
        for keeper in list(self._records.keepers):
            if not _is_in(keeper.wish, wishes):
                self._records.become(keeper, keeper.wish.once(keeper.name))
        for wish in wishes.values():
            try:
                self.wish(wish)
            except errors.Refused as error:
                log.error("%s is not wished for: %s", wish, error)
        self.spread()

    # -- many places

    def spread(self) -> None:
        """A wish for all ports of a hub is one for whatever sits in each of them."""
        for spread in self._records.spreads:
            if not spread.is_over:
                self._spread_out(spread)
            spread.show(self._records.children(spread))

    def _spread_out(self, spread: Spread) -> None:
        spread.error = None
        for match in self._parts.world.search().select(spread.wish.query):
            wish = spread.wish.at(match)
            own = self._records.with_key(wish.key)
            if own is not None and own.wish.parent != wish.parent:
                continue  # that place has a wish of its own
            try:
                self.wish(wish)
            except errors.Refused as error:
                spread.error = error
        for child in self._records.children(spread):
            is_absent = child.status.stage is Stage.ABSENT
            if is_absent and not child.is_held and not child.recent_losses:
                self._records.become(child, child.wish.once(child.name))

    # -- the state file

    def restore(self, notes: Iterable[Note]) -> None:
        """Take up what was wished for and attached before our start."""
        for note in notes:
            try:
                if self._records.with_key(note.wish.key) is None:  # or somebody was quicker
                    self._restore(note)
            except errors.Refused as error:
                log.error("%s is forgotten: %s", note.wish, error)

    def _restore(self, note: Note) -> None:
        wish, attached = note.wish, note.attached
        if wish.is_for_many:
            self._records.add_spread(wish).ended = note.ended
        elif attached is not None and self._is_here(attached):
            log.info("%s was attached before: following it", attached.match)
            keeper = self._records.add(wish, name=attached.name)
            keeper.follow(attached.match, attached.attachment)
            if note.ended is not None:
                keeper.wish_no_more(note.ended)
        elif note.ended is not None:
            self._records.add(wish).finish(note.ended)
        elif wish.kind is Kind.KEPT and wish.parent is None:
            self._records.add(wish).start()

    def _is_here(self, attached: Attached) -> bool:
        """Whether its vhci port still has what was attached before our start."""
        lost = attached.attachment
        here = self._parts.world.attachments
        return any((a.vhci_port, a.devid) == (lost.vhci_port, lost.devid) for a in here)


def _is_in(wish: Wish, configured: dict[str, Wish]) -> bool:
    """Whether a wish is still in the configuration, or never came from there."""
    return wish.kind is not Kind.CONFIGURED or (wish.parent or wish.key) in configured
