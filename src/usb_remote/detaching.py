"""Detach: a device goes back to its server, and both sides know of it.

Rule of this file: what is detached here stays detached, whatever its server says to that, or does
not say.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

from usb_remote import errors
from usb_remote.asking import Asking
from usb_remote.connection import connect
from usb_remote.finder import Search
from usb_remote.matching import Query, select
from usb_remote.model import Attachment, Device, Match, Server
from usb_remote.ownership import Ownership

log = logging.getLogger(__name__)


class Imports(Protocol):
    """What is imported here, and can be let go: vhci.Vhci."""

    def list_attachments(self) -> list[Attachment]: ...
    async def detach(self, vhci_port: int) -> None: ...


class Detached(NamedTuple):
    """What `detach` achieved: the device if a server knows it, the local side if there was one."""

    match: Match | None
    attachment: Attachment | None


class Detaching:
    """Gives devices back.

    Args:
        imports: what is imported here.
        ownership: tells which of it is which device.
        asking: asks servers.
        timeout: seconds that a server may take.

    """

    def __init__(
        self, imports: Imports, ownership: Ownership, asking: Asking, timeout: float
    ) -> None:
        self._imports = imports
        self._ownership = ownership
        self._asking = asking
        self._timeout = timeout

    async def detach(self, search: Search, query: Query) -> Detached:
        """Let the one device go that is meant, of those that are listed and those imported here.

        Raises:
            NotFound, Ambiguous, Busy, SystemFault.

        """
        attachments = self._imports.list_attachments()
        matches = search.select(query)
        pairs = [(m, a) for m in matches for a in attachments if self._ownership.belongs(a, m)]
        known = {a.vhci_port for _, a in pairs}
        orphans = [a for a in attachments if a.vhci_port not in known and _is_meant(a, query)]
        choices: list[tuple[Match | None, Attachment]] = [*pairs, *((None, a) for a in orphans)]
        if len(choices) > 1 and not query.first:
            raise _several(query, [attachment for _, attachment in choices])
        if not choices:
            return await self._not_attached(search.choose(query))
        return await self.give_back(*choices[0])

    async def give_back(self, match: Match | None, attachment: Attachment) -> Detached:
        """Detach it here, and see that its server has it back, if that is known."""
        await self._imports.detach(attachment.vhci_port)
        return Detached(await self._given_back(match) if match else None, attachment)

    async def _not_attached(self, match: Match) -> Detached:
        """Nothing is imported here, which is a success; what we only hold over there is let go."""
        is_mine = self._ownership.is_mine(match.device)
        return Detached(await self._given_back(match) if is_mine else match, None)

    async def _given_back(self, match: Match) -> Match:
        """Confirm with the server; what is detached here stays detached if it is mute."""
        try:
            async with await connect(match.server, self._timeout) as connection:
                held = match.device.holder if self._ownership.is_mine(match.device) else None
                since = held.since if held else None
                return Match(match.server, await self._asking.give_back(connection, match, since))
        except errors.Busy:
            return match  # whoever waited for it has it by now
        except errors.UsbRemoteError as error:
            log.warning("detached here, but %s does not confirm it: %s", match.server.name, error)
            return match


def _is_meant(attachment: Attachment, query: Query) -> bool:
    """Whether a query fits what this machine itself knows of an import."""
    if attachment.bus_id is None or not _host_fits(attachment, query):
        return False
    vendor, _, product = (attachment.hardware_id or ":").partition(":")
    device = Device(
        bus_id=attachment.bus_id,
        vendor_id=vendor,
        product_id=product,
        serial=attachment.serial,
        description=attachment.description,
    )
    server = Server(name=attachment.address, addresses=(attachment.address,))
    return bool(select([Match(server, device)], query.model_copy(update={"host": None})))


def _host_fits(attachment: Attachment, query: Query) -> bool:
    return query.host is None or query.host == attachment.address


def _several(query: Query, attachments: list[Attachment]) -> errors.Ambiguous:
    listed = "\n".join(f"  vhci port {a.vhci_port}: {a.address}/{a.bus_id}" for a in attachments)
    return errors.Ambiguous(
        f"{query} matches {len(attachments)} attached devices:\n{listed}",
        hint="say which one as SERVER/BUS-ID, or take the first one with --first",
    )
