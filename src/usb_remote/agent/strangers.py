"""Attachments that nobody here has made: of stock `usbip`, or of a program without an agent.

Rule of this file: they are followed after a while, as if somebody had attached them once.
"""

from __future__ import annotations

import logging

from usb_remote import errors
from usb_remote.agent import places
from usb_remote.agent.parts import Parts
from usb_remote.agent.records import Records
from usb_remote.agent.wishes import Wish
from usb_remote.agent_protocol import Kind, Stage
from usb_remote.model import Attachment, Match

log = logging.getLogger(__name__)


class Strangers:
    """Looks for them.

    Args:
        parts: what keepers work with.
        records: who follows what.

    """

    def __init__(self, parts: Parts, records: Records) -> None:
        self._parts = parts
        self._records = records
        self._seen: dict[tuple[int, int], float] = {}

    def look(self, now: float) -> bool:
        """Follow those that were here for some time; returns whether others may soon be so old."""
        keepers = self._records.keepers
        owned = {k.attached.attachment.vhci_port for k in keepers if k.attached}
        there = {
            (a.vhci_port, a.devid): a
            for a in self._parts.world.attachments
            if a.vhci_port not in owned
        }
        self._seen = {key: self._seen.get(key, now) for key in there}
        old = [
            key for key, since in self._seen.items() if now - since >= self._parts.times.adopt_after
        ]
        for key in old:
            self._follow(there[key])
        return len(old) < len(self._seen)

    def _follow(self, attachment: Attachment) -> None:
        match = self._match_of(attachment)
        if match is None or attachment.local_bus_id is None or self._is_wanted(match):
            return
        wish = Wish(query=places.query_for(match), kind=Kind.ONCE, by="somebody")
        try:
            keeper = self._records.add(wish, match)
        except errors.Refused as error:
            log.warning("%s is not followed: %s", match, error)
            return
        log.info("%s was attached before: following it", match)
        keeper.follow(match, attachment)

    def _match_of(self, attachment: Attachment) -> Match | None:
        """Which server's device an attachment is; None as long as that server is unknown."""
        for view in self._parts.world.views.values():
            for device in view.devices:
                match = Match(view.server, device)
                if attachment in self._parts.client.list_attachments(match):
                    return match
        return None

    def _is_wanted(self, match: Match) -> bool:
        """Whether a keeper is attaching it just now."""
        return any(
            keeper.status.stage in (Stage.TRYING, Stage.WAITING)
            and keeper.match is not None
            and places.is_same(keeper.match, match)
            for keeper in self._records.keepers
        )
