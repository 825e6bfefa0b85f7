"""What this machine wishes for: made, found again after a restart, asked for, given back.

Rule of this file: one device is followed by one keeper, and whoever wants the device, too, goes
through that keeper. What a person says goes before what was wished for earlier.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from usb_remote import claims, errors
from usb_remote.agent import claiming, places
from usb_remote.agent.hold import Hold
from usb_remote.agent.keeper import Keeper
from usb_remote.agent.parts import Parts
from usb_remote.agent.records import Records
from usb_remote.agent.sources import Sources
from usb_remote.agent.spread import Spread
from usb_remote.agent.strangers import Strangers
from usb_remote.agent.wishes import Wish, WishBook
from usb_remote.agent_protocol import (
    Attached,
    AttachRequest,
    Detached,
    Kind,
    Loss,
    Stage,
    Status,
)
from usb_remote.client import How
from usb_remote.matching import Query
from usb_remote.model import Cause, Match

log = logging.getLogger(__name__)

BEGUN = (Stage.ATTACHED, Stage.WAITING, Stage.DELAYED, Stage.STOPPED, Stage.ABSENT, Stage.ENDED)
"""Stages at which there is something to say to whoever has just made a wish."""


class Agent:
    """Keeps what is wished for attached.

    Args:
        parts: what keepers work with.
        book: keeps wishes over restarts.

    """

    def __init__(self, parts: Parts, book: WishBook) -> None:
        self._parts = parts
        self._book = book
        self._records = Records(parts, self._changed)
        self._sources = Sources(parts, self._records)
        self._strangers = Strangers(parts, self._records)
        self._started: float | None = None
        self._is_stopped = False

    # -- life

    def start(self, configured: Iterable[Wish]) -> None:
        """Take up what was wished for and attached before, and what the configuration says."""
        self._parts.world.look()
        self._sources.restore(self._book.read())
        self._started = asyncio.get_running_loop().time()
        self.configure(configured)
        self._remove_links()

    def configure(self, configured: Iterable[Wish]) -> None:
        """Wish for what the configuration says now, and for nothing that it said before only."""
        self._sources.configure(configured)
        self._changed()

    async def run(self) -> None:
        """Follow the world, for ever: places with new devices, attachments of others."""
        loop, times = asyncio.get_running_loop(), self._parts.times
        is_settled = False
        while True:
            self._sources.spread()
            is_waiting = self._strangers.look(loop.time())
            begun = self._started or loop.time()
            if not is_settled and loop.time() - begun > times.claim_again:
                is_settled = True
                await self._give_up_unclaimed()
            await self._parts.world.changed(None if is_settled and not is_waiting else times.tick)

    async def _give_up_unclaimed(self) -> None:
        """Nobody came back for what we had held for programs."""
        for keeper in list(self._records.keepers):
            is_wanted = keeper.is_wanted or keeper.is_awaited or keeper.wish.kind is Kind.ONCE
            if keeper.attached is not None and not is_wanted:
                log.info("%s: nobody came back for it", keeper.name)
                try:
                    await self._give_back(keeper)
                except errors.UsbRemoteError as error:
                    log.warning("%s was not given back: %s", keeper.name, error)
        self._remove_links()

    def _remove_links(self) -> None:
        """Those of what is not attached may lead to another device by now."""
        self._parts.links.keep_only(k.name for k in self._records.keepers if k.attached)

    async def stop(self) -> None:
        """End, and leave what is attached attached: the next agent takes it up."""
        self._is_stopped = True
        for keeper in list(self._records.keepers):
            await keeper.stop()

    def _changed(self) -> None:
        """Note what must outlive us; forget what is over."""
        if self._is_stopped:
            return
        self._records.tidy()
        if self._started is not None:  # what was noted before is not read yet
            self._book.write(self._records.notes())
        self._parts.world.tell()  # for those who wait for a wish

    # -- what people and programs ask for

    def statuses(self) -> list[Status]:
        return self._records.statuses()

    async def attach(
        self, request: AttachRequest, user: str, how: How, on_keep: Callable[[Status], None]
    ) -> Attached | None:
        """Attach a device for a person; None if it is kept, but not there yet.

        Args:
            request: which one, and for how long.
            user: who asks.
            how: with what `attach` needs.
            on_keep: called with how the wish goes, if it is to be kept.

        """
        if request.keep:
            return await self._keep(request, user, on_keep)
        match = await self._find(request.query)
        if request.keep is False:
            self._keep_no_more(match)
        once = Wish(
            query=places.query_for(match), kind=Kind.ONCE, by=user, user=user, name=request.name
        )
        keeper = self._keeper_for(match, once)
        attached = await keeper.attach(how)
        keeper.wish_again()
        if keeper.wish.kind is Kind.HELD:  # a program has it, and a person wants it to stay
            self._records.become(keeper, keeper.wish.once(keeper.name, user))
        self._changed()
        return attached

    def _keeper_for(self, match: Match, wish: Wish) -> Keeper:
        """Whoever takes a device, under a name of its own; of the wish, if there is nobody."""
        keeper = self._records.keeper_for(match)
        if keeper is None:
            return self._records.add(wish, match)
        if keeper.is_over:
            self._records.rename(keeper)
        return keeper

    def _keep_no_more(self, match: Match) -> None:
        """What was kept is attached once; raises Refused if that is not the person's to say."""
        keeper = self._records.keeper_for(match)
        if keeper is None:
            return
        wish = keeper.wish
        if wish.kind is Kind.CONFIGURED:
            raise errors.Refused(
                f"{wish} is kept by the configuration of this machine",
                hint="take it out of attach: there; sudo systemctl reload usb-remote-agent",
            )
        if wish.parent is not None:
            raise errors.Refused(
                f"{wish} is one of those that {wish.parent} keeps",
                hint=f"usb-remote detach {wish.parent} ends that, for all of them",
            )
        if wish.kind is Kind.KEPT:
            self._records.become(keeper, wish.once(keeper.name))

    async def _find(self, query: Query) -> Match:
        """The device that is meant; a wish may have a name of its own.

        An agent that has just started has not heard of all yet.
        """
        await self._parts.world.settled()
        query = self._records.query_called(query.handle) or query
        return places.choose(self._parts.world, self._parts.client, query)

    async def hold(self, request: AttachRequest, user: str, how: How) -> Hold:
        """Attach a device for one program of this machine, and for no other one."""
        match, claim = await self._claim(request, how.wait)
        try:
            words = request.query if not request.query.first else places.query_for(match)
            wish = Wish(query=words, kind=Kind.HELD, by=user, user=user, name=request.name)
            keeper = self._keeper_for(match, wish)
            try:
                await keeper.attach(how)
            except asyncio.CancelledError:  # its program has ended, perhaps just when it arrived
                if keeper.attached is not None:
                    await self._give_back_unless_wanted(keeper)
                raise
            return keeper.hold(claim, user)
        except BaseException:
            claim.drop()
            raise

    async def _claim(
        self, request: AttachRequest, wait: float | None
    ) -> tuple[Match, claims.Claim]:
        """The device, and our claim to it; of several the first that nobody else has."""
        match = await self._find(request.query)
        if request.query.first:
            return await claiming.claim_first(self._parts, request.query, wait)
        timeout = 0 if wait is None else wait or None
        return match, await claims.wait_for(places.name_of(match), timeout)

    async def release(self, hold: Hold) -> None:
        """Give it back, unless somebody else here wants it, too."""
        hold.keeper.let_go(hold)
        try:
            await self._give_back_unless_wanted(hold.keeper)
        finally:
            hold.claim.drop()
            self._changed()

    async def _give_back_unless_wanted(self, keeper: Keeper) -> None:
        """What a person has attached once stays as long as it is there."""
        stays = keeper.wish.kind is Kind.ONCE and keeper.attached is not None
        if keeper.is_wanted or keeper.is_awaited or stays:
            self._records.rename(keeper)
        else:
            await self._give_back(keeper)

    async def _give_back(self, keeper: Keeper) -> None:
        is_shared = len(self._records.sharing(keeper)) > 1
        await keeper.end(None, gives_back=not is_shared)

    async def _keep(
        self, request: AttachRequest, user: str, on_keep: Callable[[Status], None]
    ) -> Attached | None:
        if request.duration or request.force or request.wait is not None:
            raise errors.UsageError("--keep goes with none of --for, --force and --wait")
        wish = Wish(query=request.query, kind=Kind.KEPT, by=user, user=user, name=request.name)
        await self._parts.world.settled()
        record = self._records.with_key(wish.key) or self._sources.wish(wish)
        record.wish_again()
        if isinstance(record, Spread):
            self._sources.spread()
            on_keep(record.status)
            return None
        already = record.attached is not None
        if record.is_over:
            self._records.rename(record)
        record.start()
        self._changed()
        patience = self._parts.times.answer
        await self._parts.world.until(lambda: record.status.stage in BEGUN or None, patience)
        on_keep(record.status)
        attached = record.attached
        return attached.model_copy(update={"already": already}) if attached else None

    async def detach(self, query: Query, user: str) -> Detached:
        """Give a device back for a person, and wish for it no more."""
        loss = Loss(at=datetime.now(UTC), cause=Cause.DETACHED, by=user)
        record = self._records.called(query)
        if isinstance(record, Spread):
            return await self._end_spread(record, loss)
        keepers = self._records.sharing(record) if record else self._records.meant(query)
        if keepers:
            return await self._end_all(keepers, loss)
        done = await self._parts.client.detach_found(self._parts.world.search(), query)
        match = done.match
        return Detached(
            server=match.server if match else None,
            device=match.device if match else None,
            attachment=done.attachment,
        )

    async def _end_spread(self, spread: Spread, loss: Loss) -> Detached:
        """Nothing that sits in its places is wished for any more."""
        spread.ended = loss
        names = tuple(c.name for c in self._records.children(spread) if c.attached is not None)
        for child in self._records.children(spread):
            await self._end_all(self._records.sharing(child), loss)
        if spread.wish.kind is Kind.KEPT:
            self._records.spreads.remove(spread)
        for child in self._records.children(spread):
            self._records.become(child, child.wish.once(child.name))
        self._sources.spread()
        self._changed()
        return Detached(wish=str(spread.wish), names=names)

    async def _end_all(self, keepers: list[Keeper], loss: Loss) -> Detached:
        """All who follow one attachment; the last one gives the device back."""
        attached = keepers[0].attached
        wishes = [str(keeper.wish) for keeper in keepers if keeper.wish.is_lasting]
        for keeper in keepers:
            await keeper.end(loss, gives_back=keeper is keepers[-1])
            if keeper.wish.kind is Kind.KEPT and keeper.wish.parent is None:
                self._records.become(keeper, keeper.wish.once(keeper.name))
        self._changed()
        return Detached(
            server=attached.server if attached else None,
            device=attached.device if attached else None,
            attachment=attached.attachment if attached else None,
            wish=wishes[0] if wishes else None,
        )
