"""One attachment, followed until it is lost; then nothing of it stays here.

Rule of this file: session.py says when it is over; this file looks, asks the server why, and frees
the vhci port.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from usb_remote import errors
from usb_remote.agent.parts import Parts
from usb_remote.agent.session import Session
from usb_remote.agent_protocol import Attached, Loss, View
from usb_remote.model import Attachment

log = logging.getLogger(__name__)

ASK_TIMES = 4
"""How often a server is asked for the end of a session that it has only just seen."""
FREE_TIMES = 8
"""How often we try to free a vhci port."""


class Following:
    """Follows one attachment.

    Args:
        parts: what keepers work with.
        attached: the device as it was attached; ``already`` if its server has long known that.

    """

    def __init__(self, parts: Parts, attached: Attached) -> None:
        self._parts = parts
        self._attached = attached
        self._times = parts.times
        now = asyncio.get_running_loop().time()
        began = now - (self._times.settle if attached.already else 0)
        self._session = Session(attached, parts.client.is_me, began, self._times)

    async def until_lost(self, on_change: Callable[[], None]) -> Loss:
        """Wait until it is lost; returns why.

        Args:
            on_change: called with each change of anything, as long as it is there.

        """
        world = self._parts.world
        while True:
            view = world.view_of(self._attached.server)
            if (loss := self._loss(view)) is not None:
                break
            on_change()
            await world.changed(None if self._session.is_settled else self._times.tick)
        if loss.cause is None and view is not None and view.error is None:
            loss = await self._ask_why() or loss
        return loss

    def _loss(self, view: View | None) -> Loss | None:
        server, now = self._attached.server, asyncio.get_running_loop().time()
        silent = self._parts.world.is_silent(server)
        return self._session.loss(self._here(), view, now, silent=silent)

    def _here(self) -> Attachment | None:
        """What is in its vhci port."""
        return self._parts.world.attachment_at(self._attached.attachment.vhci_port)

    async def _ask_why(self) -> Loss | None:
        """A device that is gone has no last session; its server's history has."""
        for _ in range(ASK_TIMES):
            try:
                events = await self._parts.ask_history(self._attached.server)
            except errors.UsbRemoteError as error:
                log.debug("no history: %s", error)
                return None
            if (loss := self._session.find_in(events)) is not None:
                return loss
            await asyncio.sleep(self._times.ask_again)
        return None

    async def free(self) -> None:
        """What is lost must not stay here: programs would hang in it (FACTS: D state)."""
        lost = self._attached.attachment
        for number in range(FREE_TIMES):
            self._parts.world.look()
            if self._is_gone():
                return
            try:
                await self._parts.client.give_back(None, lost)
                return
            except errors.UsbRemoteError as error:
                log.warning("vhci port %d cannot be freed: %s", lost.vhci_port, error)
            await self._parts.world.until(self._is_gone, self._times.free_again * 2.0**number)

    def _is_gone(self) -> bool | None:
        here = self._here()
        is_here = here is not None and here.devid == self._attached.attachment.devid
        return None if is_here else True
