"""Who wants one device: a wish, programs that have it, and whoever waits for it.

Rule of this file: it says whether anybody does, and for whom; it attaches nothing.
"""

from __future__ import annotations

from usb_remote.agent.hold import Hold
from usb_remote.agent.links import Access
from usb_remote.agent.waiters import Waiters
from usb_remote.agent.wishes import Wish
from usb_remote.agent_protocol import Loss
from usb_remote.client import How
from usb_remote.model import Match


class Interests:
    """All of them together.

    Attributes:
        wish: what is wished for, and how it is called.
        ended: why that wish is none any more, until it is asked for again.
        holds: programs that have the device.
        waiters: people and programs who wait until it is attached.

    """

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.ended: Loss | None = None
        self.holds: list[Hold] = []
        self.waiters = Waiters()

    @property
    def are_lasting(self) -> bool:
        """Whether the device is attached again when it is lost."""
        return bool(self.holds) or (self.wish.is_lasting and self.ended is None)

    @property
    def are_any(self) -> bool:
        """Whether it is to be attached at all."""
        return self.are_lasting or bool(self.waiters)

    @property
    def access(self) -> Access:
        """The nodes belong to whom the wish names, else to whoever has the device."""
        user = next((hold.user for hold in self.holds), None)
        return self.wish.access._replace(user=self.wish.user or user)

    def how(self, match: Match) -> How:
        """How to attach it for all: a lasting wish waits in the queue, if its server has one."""
        may_wait = self.are_lasting and match.server.version is not None
        return self.waiters.how(How(wait=0 if may_wait else None, user=self.wish.holder))
