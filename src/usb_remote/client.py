"""Attach and detach: a server's device, this machine's kernel, and both sides knowing of it.

Rule of this file: asking for what already holds is a success; what fails half-way is undone.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from usb_remote import errors, protocol
from usb_remote.config import Config
from usb_remote.connection import Connection, connect
from usb_remote.finder import Browse, Finder
from usb_remote.matching import Query, select
from usb_remote.model import Attachment, BusId, Device, Match, Server, State

log = logging.getLogger(__name__)

USABLE_TIMEOUT = 15.0
"""Seconds until the drivers must have made their nodes; after that there may be none."""


class Importer(Protocol):
    """What imports devices here: usbip.Vhci."""

    async def prepare(self) -> None: ...
    def list_attachments(self) -> list[Attachment]: ...
    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int, timeout: float
    ) -> Attachment: ...
    async def detach(self, vhci_port: int) -> None: ...


class Attached(NamedTuple):
    """What `attach` achieved; ``already`` if it was so before."""

    match: Match
    attachment: Attachment
    already: bool = False


class Detached(NamedTuple):
    """What `detach` achieved: the device if a server knows it, the local side if there was one."""

    match: Match | None
    attachment: Attachment | None


class Client:
    """The client side of this machine.

    Args:
        config: servers, time-out.
        browse: looks for servers by mDNS.
        importer: imports devices here.
        wait_until_usable: local bus id, seconds -> device nodes.

    """

    def __init__(
        self,
        config: Config,
        browse: Browse,
        importer: Importer,
        wait_until_usable: Callable[[str, float], Awaitable[tuple[str, ...]]],
    ) -> None:
        self._config = config
        self._finder = Finder(config, browse)
        self._importer = importer
        self._wait_until_usable = wait_until_usable

    async def attach(self, query: Query) -> Attached:
        """Make the device appear here, and wait until it can be used.

        Raises:
            NotFound, Ambiguous, Busy, Refused, SystemFault, Unreachable.

        """
        await self._importer.prepare()
        match = await self._finder.find(query)
        async with await connect(match.server, self._config.timeout) as connection:
            for local in self._attachments_of(match):
                if _is_alive(local, match.device, connection):
                    return Attached(match, await self._usable(local), already=True)
                log.warning(
                    "vhci port %d is a leftover of a lost server: detaching it", local.vhci_port
                )
                await self._importer.detach(local.vhci_port)
            device = await _ask_for(connection, "attach", match.device)
            attachment = await self._import(connection, match, device)
        return Attached(Match(match.server, device), await self._usable(attachment))

    async def _import(self, connection: Connection, match: Match, device: Device) -> Attachment:
        try:
            return await self._importer.attach(
                connection.address,
                device.bus_id,
                usbip_port=match.server.usbip_port,
                timeout=max(self._config.timeout, 5.0),
            )
        except BaseException:
            await _give_back(connection, match.device)
            raise

    async def _usable(self, attachment: Attachment) -> Attachment:
        if attachment.local_bus_id is None:
            return attachment
        nodes = await self._wait_until_usable(attachment.local_bus_id, USABLE_TIMEOUT)
        return attachment.model_copy(update={"nodes": nodes})

    def _attachments_of(self, match: Match) -> list[Attachment]:
        return [a for a in self._importer.list_attachments() if _belongs(a, match)]

    async def detach(self, query: Query) -> Detached:
        """Let the device go here, and see that its server has it back.

        A server that is dead does not keep a local device from being detached.

        Raises:
            NotFound, Ambiguous, Busy, SystemFault.

        """
        attachments = self._importer.list_attachments()
        search = await self._finder.search(query.host)
        matches = search.select(query)
        pairs = [(m, a) for m in matches for a in attachments if _belongs(a, m)]
        known = {a.vhci_port for _, a in pairs}
        orphans = [a for a in attachments if a.vhci_port not in known and _is_meant(a, query)]
        choices: list[tuple[Match | None, Attachment]] = [*pairs, *((None, a) for a in orphans)]
        if len(choices) > 1 and not query.first:
            listed = "\n".join(
                f"  vhci port {a.vhci_port}: {a.address}/{a.bus_id}" for _, a in choices
            )
            raise errors.Ambiguous(f"{query} matches {len(choices)} attached devices:\n{listed}")
        if not choices:
            return await self._not_attached(search.choose(query))
        match, attachment = choices[0]
        await self._importer.detach(attachment.vhci_port)
        return Detached(await self._given_back(match) if match else None, attachment)

    async def _not_attached(self, match: Match) -> Detached:
        """Nothing is imported here: a success, unless somebody else has it."""
        if match.device.state is State.IN_USE:
            async with await connect(match.server, self._config.timeout) as connection:
                device = await _ask_for(connection, "detach", match.device)
                return Detached(Match(match.server, device), None)
        return Detached(match, None)

    async def _given_back(self, match: Match) -> Match:
        """Confirm with the server; what is detached here stays detached if it is mute."""
        try:
            async with await connect(match.server, self._config.timeout) as connection:
                return Match(match.server, await _ask_for(connection, "detach", match.device))
        except errors.UsbRemoteError as error:
            log.warning("detached here, but %s does not confirm it: %s", match.server.name, error)
            return match


async def _ask_for(connection: Connection, command: str, device: Device) -> Device:
    request = protocol.DeviceRequest.model_validate(
        {
            "command": command,
            "bus": str(device.bus_id),
            "user": _user(),
            "host": socket.gethostname(),
        }
    )
    reply = await connection.request(request)
    return protocol.parse_device(reply.data)


async def _give_back(connection: Connection, device: Device) -> None:
    """The import failed: tell the server, so that nobody has to wait for our reservation."""
    try:
        await asyncio.shield(_ask_for(connection, "detach", device))
    except errors.UsbRemoteError as error:
        log.debug("reservation not given back: %s", error)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _belongs(attachment: Attachment, match: Match) -> bool:
    """Whether an import here is of this device on this server."""
    if attachment.bus_id is None:  # not root: the server's device number must do
        return attachment.devid == match.device.bus << 16 | match.device.devnum
    here = {address.partition("%")[0] for address in match.server.addresses}
    return attachment.bus_id == match.device.bus_id and attachment.address.partition("%")[0] in here


def _is_alive(attachment: Attachment, device: Device, connection: Connection) -> bool:
    """Whether the server still thinks that we have it; after its reboot it does not."""
    holder = device.holder
    return (
        device.state is State.IN_USE
        and holder is not None
        and holder.address == connection.local_address.partition("%")[0]
        and attachment.devid == device.bus << 16 | device.devnum
    )


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
