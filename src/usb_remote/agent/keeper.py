"""One wish: attach what it means, follow it, attach it again, for as long as anybody wants that.

Rule of this file: one task, which is always in one stage, and sleeps until something changes. Who
else wants the device (a person, a program) waits for this task and never attaches beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from usb_remote import client, errors
from usb_remote.agent.display import Display
from usb_remote.agent.following import Following
from usb_remote.agent.getting import Getting
from usb_remote.agent.hold import Hold
from usb_remote.agent.interests import Interests
from usb_remote.agent.parts import Parts
from usb_remote.agent.session import news
from usb_remote.agent.wishes import Wish
from usb_remote.agent_protocol import Attached, Loss, Stage, Status
from usb_remote.claims import Claim
from usb_remote.client import How
from usb_remote.model import Attachment, Cause, Match

log = logging.getLogger(__name__)

FOR_GOOD = (Cause.DETACHED, Cause.TAKEN_OVER, Cause.TIME_UP)
"""Ends that people have made: nobody's wish any more, until it is asked for again."""


class Keeper:
    """Keeps one wish.

    Args:
        wish: what is wanted.
        parts: what it works with.
        name: of its directory.
        on_change: called with each change of its status.

    """

    def __init__(self, wish: Wish, parts: Parts, name: str, on_change: Callable[[], None]) -> None:
        self._parts = parts
        self._interests = Interests(wish)
        self._display = Display(wish, name, parts, on_change)
        self._getting = Getting(parts, self._interests, self._display, self._arrived)
        self._task: asyncio.Task[None] | None = None

    # -- what is so

    @property
    def wish(self) -> Wish:
        return self._interests.wish

    @property
    def status(self) -> Status:
        return self._display.status

    @property
    def name(self) -> str:
        return self.status.name

    @property
    def attached(self) -> Attached | None:
        return self.status.attached

    @property
    def match(self) -> Match | None:
        """What is attached, or was tried last."""
        return self.attached.match if self.attached else self._getting.match

    @property
    def ended(self) -> Loss | None:
        """Why the wish is none any more, until it is asked for again."""
        return self._interests.ended

    @property
    def is_over(self) -> bool:
        return self.status.stage is Stage.ENDED

    @property
    def is_held(self) -> bool:
        """Whether a program has the device."""
        return bool(self._interests.holds)

    @property
    def is_wanted(self) -> bool:
        """Whether it is attached again when it is lost."""
        return self._interests.are_lasting

    @property
    def is_awaited(self) -> bool:
        """Whether people or programs wait for it, or are just being told the outcome."""
        return self._interests.waiters.count > 0

    @property
    def recent_losses(self) -> int:
        """How often it was lost within the last minute."""
        return self._display.recent_losses

    def chosen(self) -> Match | None:
        """The one device that is meant now, if it is there."""
        return self._getting.chosen()

    # -- what is asked of it

    async def attach(self, how: How) -> Attached:
        """Attach it for a person or a program, now; raises why that cannot be done."""
        if self.attached is not None:
            return self.attached.model_copy(update={"already": True})
        waiter = self._interests.waiters.join(how)
        try:
            self.start()
            self._parts.world.tell()
            return await self._interests.waiters.outcome(waiter)
        finally:
            self._interests.waiters.leave(waiter)
            self._parts.world.tell()

    def hold(self, claim: Claim, user: str) -> Hold:
        """What is attached is for a program, too, until :meth:`let_go`."""
        hold = Hold(self, claim, user)
        self._interests.holds.append(hold)
        self._show_nodes()
        return hold

    def let_go(self, hold: Hold) -> None:
        if hold in self._interests.holds:
            self._interests.holds.remove(hold)

    def wish_no_more(self, loss: Loss) -> None:
        """Its wish has ended, whatever becomes of the device."""
        self._interests.ended = loss

    def wish_again(self) -> None:
        """Its wish, should that have ended, is one again."""
        self._interests.ended = None

    def become(self, wish: Wish, name: str) -> None:
        """The same device is wished for in another way, or under another name."""
        self._interests.wish = wish
        self._display.rename(wish, name)
        self._show_nodes()
        self._parts.world.tell()

    # -- life

    def start(self) -> None:
        """Begin to get the device, unless it has begun."""
        if self._task is None or self._task.done():
            if self.attached is None:
                self._display.set(Stage.TRYING)
            self._task = asyncio.create_task(self._run())

    def follow(self, match: Match, attachment: Attachment) -> None:
        """Begin with a device that is attached already."""
        self._arrived(client.Attached(match, attachment, already=True))
        self.start()

    async def stop(self) -> None:
        """Leave everything as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def end(self, loss: Loss | None, *, gives_back: bool) -> None:
        """Make an end of it, until it is asked for again.

        Args:
            loss: why; None if that is nobody's loss.
            gives_back: whether the device is detached, too: not if another wish has it.

        """
        await self.stop()
        attached = self.attached
        if attached is not None and gives_back:
            try:
                await self._parts.client.give_back(attached.match, attached.attachment)
            except BaseException:
                self.start()
                raise
        self.finish(loss)

    def finish(self, loss: Loss | None) -> None:
        """It is over; nothing is done any more."""
        self._interests.waiters.fail(errors.Refused(f"{self.name} was detached meanwhile"))
        if self.wish.is_lasting:
            self._interests.ended = loss or self.ended
        if self.attached is not None:
            self._lose(loss)
        self._end()

    # -- the task

    async def _run(self) -> None:
        """What we did not expect ends no wish, and is shown like any other failure."""
        while True:
            try:
                await self._keep()
                return
            except Exception as error:
                log.exception("%s: this should not happen; please report it", self.name)
                fault = errors.UsbRemoteError(f"unexpected: {error!r}; the log says more")
                self._interests.waiters.fail(fault)
                self._display.remove_links()
                self._display.set(Stage.DELAYED, error=fault)
                await self._getting.wait(self._parts.times.longest_delay)

    async def _keep(self) -> None:
        while self.attached is not None or await self._getting.get():
            assert self.attached is not None
            before = self.attached.match
            loss = await self._follow(self.attached)
            if not self._goes_on(loss):
                break
            self._display.set(Stage.TRYING)
            if loss.cause is Cause.UNPLUGGED:  # the server's list may not say so yet
                is_other = partial(self._getting.is_other, before)
                await self._parts.world.until(is_other, self._parts.times.ask_again)
        self._end()

    async def _follow(self, attached: Attached) -> Loss:
        following = Following(self._parts, attached)
        loss = await following.until_lost(self._show_changes)
        await following.free()
        self._lose(loss)
        return loss

    def _goes_on(self, loss: Loss) -> bool:
        if loss.cause in FOR_GOOD and self.wish.is_lasting:
            self._interests.ended = loss
        is_wanted = self.is_wanted and loss.cause not in FOR_GOOD
        return is_wanted or bool(self._interests.waiters)

    def _end(self) -> None:
        why = self.ended or self._display.last_loss
        self._display.set(Stage.ENDED, note=str(why) if why else None)

    # -- there, and not there any more

    def _arrived(self, done: client.Attached) -> None:
        attached = Attached(
            server=done.match.server,
            device=done.match.device,
            attachment=self._as_it_is_now(done.attachment),
            already=done.already,
        )
        attached = self._display.arrive(attached, self._interests.access)
        log.info("attached %s as %s", attached.match, self.name)
        self._interests.waiters.succeed(attached)
        self._tell_programs(attached)

    def _as_it_is_now(self, attachment: Attachment) -> Attachment:
        """Since it was enumerated, the kernel knows more of it, such as its devid."""
        world, port = self._parts.world, attachment.vhci_port
        now = world.attachment_at(port)
        if now is None or now.local_bus_id != attachment.local_bus_id:  # not heard of it yet
            world.look()
            now = world.attachment_at(port)
        return now.model_copy(update={"nodes": attachment.nodes}) if now else attachment

    def _show_changes(self) -> None:
        self._show_nodes()
        self._show_news()

    def _show_nodes(self) -> None:
        if (now := self._display.update(self._interests.access)) is not None:
            self._tell_programs(now)

    def _show_news(self) -> None:
        """Our time may be nearly up, or somebody asks for the device."""
        match = self.match
        device = match and self._parts.world.device_at(match.server, match.device.bus_id)
        is_ours = device is not None and self._parts.client.is_mine(device)
        note = news(device.holder) if device and is_ours else None
        if note and note != self.status.note:
            log.warning("%s: %s", self.name, note)
        self._display.note(note)

    def _tell_programs(self, attached: Attached) -> None:
        for hold in list(self._interests.holds):
            hold.on_attached(attached)

    def _lose(self, loss: Loss | None) -> None:
        """It is gone; the next stage will show that."""
        self._display.remove_links()
        if loss is not None:
            self._display.note_loss(loss)
            log.warning("lost %s (%s): %s", self.name, self.match, loss)
            for hold in list(self._interests.holds):
                hold.on_loss(loss)
