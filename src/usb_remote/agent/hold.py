"""A device that is attached for one program.

Rule of this file: it is one interest in a device, and not what keeps the device attached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from usb_remote.agent_protocol import Attached, Loss
from usb_remote.claims import Claim

if TYPE_CHECKING:
    from usb_remote.agent.keeper import Keeper


class Hold:
    """A device for one program, until that says so or ends.

    Args:
        keeper: follows the device.
        claim: keeps other programs of this machine from it.
        user: whose program it is.

    Attributes:
        on_loss, on_attached: called when the device is lost, and each time that it is there or its
            nodes have changed.

    """

    def __init__(self, keeper: Keeper, claim: Claim, user: str) -> None:
        self.keeper = keeper
        self.claim = claim
        self.user = user
        self.on_loss: Callable[[Loss], None] = lambda loss: None
        self.on_attached: Callable[[Attached], None] = lambda attached: None

    @property
    def attached(self) -> Attached | None:
        return self.keeper.attached
