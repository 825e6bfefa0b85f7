"""The client side of this machine: attach a device of a server, and what else is done with one.

Rule of this file: asking for what already holds is a success; what fails half-way is undone. How a
device goes back, detaching.py knows; whose it is, ownership.py.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from usb_remote import errors, protocol, replies
from usb_remote.asking import Asking
from usb_remote.claims import Turn
from usb_remote.config import Config
from usb_remote.connection import Connection, Tell, connect, list_devices
from usb_remote.detaching import Detached, Detaching, Imports
from usb_remote.finder import Browse, Finder, Search
from usb_remote.matching import Query
from usb_remote.model import Attachment, Device, Holder, Match, Server
from usb_remote.ownership import Ownership
from usb_remote.values import BusId

log = logging.getLogger(__name__)

USABLE_TIMEOUT = 15.0
"""Seconds until the drivers must have made their nodes; after that there may be none."""

TURN_TIMEOUT = 30.0
"""Seconds for another program of this machine to take the same device, or to fail with it."""


class Importer(Imports, Protocol):
    """What imports devices here: vhci.Vhci."""

    async def prepare(self) -> None: ...
    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int, timeout: float
    ) -> Attachment: ...
    def local_bus_id(self, attachment: Attachment) -> str | None: ...


class Arrival(Protocol):
    """What follows a device as it appears here: udev.nodes.Arrival."""

    async def until(self, look: Callable[[], str | None], timeout: float) -> str | None: ...
    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]: ...


class How(NamedTuple):
    """How to attach.

    Attributes:
        wait: seconds to wait for a device that somebody has, 0 without an end, None not at all.
        duration: seconds after which the session ends by itself.
        force: take it from its holder.
        tell: called with the place in the queue, while waiting.
        user: whose session it shall be, if not of the user who runs this process.

    """

    wait: float | None = None
    duration: float | None = None
    force: bool = False
    tell: Tell = lambda event: None
    user: str | None = None


class Attached(NamedTuple):
    """What `attach` achieved; ``already`` if it was so before."""

    match: Match
    attachment: Attachment
    already: bool = False


class Client:
    """The client side of this machine.

    Args:
        config: servers, time-out.
        browse: looks for servers by mDNS.
        importer: imports devices here.
        expect: makes what follows the arrival of a device.
        client_id: of this machine, see identity.py.
        local_addresses: every address of this machine, for holders that said no id.

    """

    def __init__(
        self,
        config: Config,
        browse: Browse,
        importer: Importer,
        expect: Callable[[], Arrival],
        client_id: str,
        local_addresses: Callable[[], set[str]],
    ) -> None:
        self._config = config
        self._finder = Finder(config, browse)
        self._importer = importer
        self._expect = expect
        self._ownership = Ownership(client_id, local_addresses)
        self._asking = Asking(client_id, user_name)
        self._detaching = Detaching(importer, self._ownership, self._asking, config.timeout)

    async def attach(self, query: Query, how: How = How()) -> Attached:
        """Make the device appear here, and wait until it can be used.

        Args:
            query: which one.
            how: whether to wait for it, to take it from somebody, and for how long.

        Raises:
            NotFound, Ambiguous, Busy, Refused, SystemFault, Unreachable.

        """
        await self.prepare()
        return await self.attach_found(await self._finder.find(query), how)

    async def prepare(self) -> None:
        """See that this machine can import; raises SystemFault."""
        await self._importer.prepare()

    async def attach_found(self, match: Match, how: How = How()) -> Attached:
        """The same for a device that was listed already; raises the same."""
        done: Attached | None = None
        try:
            async with (
                await connect(match.server, self._config.timeout) as connection,
                Turn(_turn_name(match.server, match.device), TURN_TIMEOUT) as turn,
            ):
                done, arrival = await self._attach(connection, turn, match, how)
            return done._replace(attachment=await _usable(arrival, done.attachment))
        except BaseException:  # Ctrl-C too, even while the connection is being closed
            if done is not None and not done.already:
                await self._free(done.attachment, done.match)
            raise

    async def _attach(
        self, connection: Connection, turn: Turn, match: Match, how: How
    ) -> tuple[Attached, Arrival]:
        """While it waits in the server's queue, others of this machine go on."""
        if here := await self._attached_here(connection, match):
            return here, self._expect()

        def tell(event: replies.WatchEvent) -> None:
            turn.leave()
            how.tell(event)

        device = await self._reserve(connection, match, how._replace(tell=tell))
        reserved, imported = Match(match.server, device), None
        try:
            await turn.resume()
            if turn.was_left and (here := await self._attached_here(connection, reserved)):
                return here, self._expect()
            arrival = self._expect()
            imported = await self._import(connection, reserved)
            attachment = await self._enumerated(imported, arrival)
        except BaseException as error:  # Ctrl-C too: no reservation outlives whoever made it
            if imported is not None:
                await self._free(imported)
            reason = await self._give_back(connection, reserved)
            if reason is not None and isinstance(error, errors.UsbRemoteError):
                raise reason from None
            raise
        return Attached(reserved, attachment), arrival

    async def _attached_here(self, connection: Connection, match: Match) -> Attached | None:
        """What this machine has of it already, if the server agrees; leftovers are detached."""
        imported = self.list_attachments(match)
        if imported:
            match = await _fresh(match, connection)
        for local in imported:
            if self._ownership.is_alive(local, match):
                return Attached(match, local, already=True)
            log.warning(
                "vhci port %d is a leftover of a lost server: detaching it", local.vhci_port
            )
            await self._importer.detach(local.vhci_port)
        return None

    async def _reserve(self, connection: Connection, match: Match, how: How) -> Device:
        return await self._asking.ask(
            connection,
            protocol.AttachRequest,
            match,
            how.tell,
            wait=how.wait,
            duration=how.duration,
            force=how.force,
            **({"user": how.user} if how.user else {}),
        )

    @property
    def _import_timeout(self) -> float:
        return max(self._config.timeout, 5.0)

    async def _import(self, connection: Connection, match: Match) -> Attachment:
        return await self._importer.attach(
            connection.address,
            match.device.bus_id,
            usbip_port=match.server.usbip_port,
            timeout=self._import_timeout,
        )

    async def _free(self, attachment: Attachment, match: Match | None = None) -> None:
        """Detach here what nobody waits for any more; its server hears of that if it is said."""
        try:
            await asyncio.shield(self.give_back(match, attachment))
        except errors.SystemFault as fault:
            log.warning("vhci port %d cannot be freed: %s", attachment.vhci_port, fault)

    async def _give_back(
        self, connection: Connection, match: Match
    ) -> errors.SystemFault | errors.Refused | None:
        """The import failed: nobody shall wait for our reservation, and the server may know why."""
        try:
            await asyncio.shield(self._asking.give_back(connection, match))
        except (errors.SystemFault, errors.Refused) as fault:
            return fault
        except errors.UsbRemoteError as error:
            log.debug("reservation not given back: %s", error)
        return None

    async def _enumerated(self, attachment: Attachment, arrival: Arrival) -> Attachment:
        local = await arrival.until(
            lambda: self._importer.local_bus_id(attachment), self._import_timeout
        )
        if local is None:
            raise errors.SystemFault(
                f"{attachment.bus_id} was imported, but this machine's kernel did not recognise it",
                hint="see the last lines of: sudo dmesg",
            )
        return attachment.model_copy(update={"local_bus_id": local})

    def list_attachments(self, match: Match) -> list[Attachment]:
        """What is imported here of this device."""
        imported = self._importer.list_attachments()
        return [a for a in imported if self._ownership.belongs(a, match)]

    def is_mine(self, device: Device) -> bool:
        """Whether the server says that this machine has the device."""
        return self._ownership.is_mine(device)

    def is_me(self, holder: Holder) -> bool:
        """Whether a holder is this machine."""
        return self._ownership.is_me(holder)

    async def detach(self, query: Query) -> Detached:
        """Let the device go here, and see that its server has it back.

        A server that is dead does not keep a local device from being detached.

        Raises:
            NotFound, Ambiguous, Busy, SystemFault.

        """
        return await self.detach_found(await self._finder.search(query.host), query)

    async def detach_found(self, search: Search, query: Query) -> Detached:
        """The same among devices that were listed already; raises the same."""
        return await self._detaching.detach(search, query)

    async def give_back(self, match: Match | None, attachment: Attachment) -> Detached:
        """Detach it here, and see that its server has it back, if that is known."""
        return await self._detaching.give_back(match, attachment)

    async def release(self, query: Query, message: str | None) -> Match:
        """Ask whoever has the device to let it go; raises as :meth:`attach`."""
        match = await self._finder.find(query)
        async with await connect(match.server, self._config.timeout) as connection:
            device = await self._asking.ask(
                connection, protocol.ReleaseRequest, match, message=message
            )
            return Match(match.server, device)

    async def name(self, query: Query, name: str) -> Match:
        """Name a device on its server, for everybody; an empty name takes it away."""
        match = await self._finder.find(query)
        async with await connect(match.server, self._config.timeout) as connection:
            device = await self._asking.ask(connection, protocol.NameRequest, match, name=name)
            return Match(match.server, device)


async def _fresh(match: Match, connection: Connection) -> Match:
    """The device as it is now: whoever listed it may have done so before we attached it."""
    devices = (await list_devices(connection)).snapshot.devices
    now = next((d for d in devices if d.bus_id == match.device.bus_id), match.device)
    return Match(match.server, now)


async def _usable(arrival: Arrival, attachment: Attachment) -> Attachment:
    if attachment.local_bus_id is None:
        return attachment
    nodes = await arrival.until_usable(attachment.local_bus_id, USABLE_TIMEOUT)
    return attachment.model_copy(update={"nodes": nodes})


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _turn_name(server: Server, device: Device) -> str:
    """Of taking this device: a server cannot tell two programs of one machine apart."""
    where = server.id or f"{server.addresses[0]}:{server.port}"
    return f"attach/{where}/{device.bus_id}"
