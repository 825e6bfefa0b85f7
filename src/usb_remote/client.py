"""Attach and detach: a server's device, this machine's kernel, and both sides knowing of it.

Rule of this file: asking for what already holds is a success; what fails half-way is undone.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

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
    def local_bus_id(self, attachment: Attachment) -> str | None: ...
    async def detach(self, vhci_port: int) -> None: ...


class Arrival(Protocol):
    """What follows a device as it appears here: udev.nodes.Arrival."""

    async def until(self, look: Callable[[], str | None], timeout: float) -> str | None: ...
    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]: ...


R = TypeVar("R", bound=BaseModel)
Tell = Callable[[protocol.WatchEvent], None]


class How(NamedTuple):
    """How to attach.

    Attributes:
        wait: seconds to wait for a device that somebody has, 0 without an end, None not at all.
        duration: seconds after which the session ends by itself.
        force: take it from its holder.
        tell: called with the place in the queue, while waiting.

    """

    wait: float | None = None
    duration: float | None = None
    force: bool = False
    tell: Tell = lambda event: None


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
        self._client_id = client_id
        self._local_addresses = local_addresses

    async def attach(self, query: Query, how: How = How()) -> Attached:
        """Make the device appear here, and wait until it can be used.

        Args:
            query: which one.
            how: whether to wait for it, to take it from somebody, and for how long.

        Raises:
            NotFound, Ambiguous, Busy, Refused, SystemFault, Unreachable.

        """
        await self._importer.prepare()
        match = await self._finder.find(query)
        async with await connect(match.server, self._config.timeout) as connection:
            for local in self._attachments_of(match):
                if self._is_alive(local, match):
                    return Attached(match, await _usable(self._expect(), local), already=True)
                log.warning(
                    "vhci port %d is a leftover of a lost server: detaching it", local.vhci_port
                )
                await self._importer.detach(local.vhci_port)
            device = await self._reserve(connection, match.device, how)
            arrival = self._expect()
            attachment = await self._import(connection, match, device, arrival)
        return Attached(Match(match.server, device), await _usable(arrival, attachment))

    async def _reserve(self, connection: Connection, device: Device, how: How) -> Device:
        request = self._request(
            protocol.AttachRequest,
            device,
            wait=how.wait,
            duration=how.duration,
            force=how.force,
        )
        return await self._ask(connection, request, how.tell)

    async def _import(
        self, connection: Connection, match: Match, device: Device, arrival: Arrival
    ) -> Attachment:
        timeout = max(self._config.timeout, 5.0)
        try:
            attachment = await self._importer.attach(
                connection.address,
                device.bus_id,
                usbip_port=match.server.usbip_port,
                timeout=timeout,
            )
            return await self._enumerated(attachment, arrival, timeout)
        except BaseException as error:  # Ctrl-C too: no reservation outlives whoever made it
            reason = await self._give_back(connection, match.device)
            raise reason or error from None

    async def _give_back(self, connection: Connection, device: Device) -> errors.SystemFault | None:
        """The import failed: nobody shall wait for our reservation, and the server may know why."""
        try:
            await asyncio.shield(self._ask(connection, self._detach_request(device)))
        except errors.SystemFault as fault:
            return fault
        except errors.UsbRemoteError as error:
            log.debug("reservation not given back: %s", error)
        return None

    async def _enumerated(
        self, attachment: Attachment, arrival: Arrival, timeout: float
    ) -> Attachment:
        local = await arrival.until(lambda: self._importer.local_bus_id(attachment), timeout)
        if local is None:
            raise errors.SystemFault(
                f"{attachment.bus_id} was imported, but this machine's kernel did not recognise it",
                hint="see the last lines of: sudo dmesg",
            )
        return attachment.model_copy(update={"local_bus_id": local})

    def _attachments_of(self, match: Match) -> list[Attachment]:
        return [a for a in self._importer.list_attachments() if self._belongs(a, match)]

    def _belongs(self, attachment: Attachment, match: Match) -> bool:
        """Whether an import here is of this device on this server.

        Only root may read what it is an import of. Others need everything that they can see to fit,
        and the server to say that this machine has the device: identical servers are common.
        """
        device = match.device
        if attachment.bus_id is not None:
            here = {address.partition("%")[0] for address in match.server.addresses}
            address = attachment.address.partition("%")[0]
            return attachment.bus_id == device.bus_id and address in here
        seen = (attachment.devid, attachment.hardware_id, attachment.serial)
        return self._is_mine(device) and seen == (_devid(device), device.hardware_id, device.serial)

    def _is_alive(self, local: Attachment, match: Match) -> bool:
        """Whether the server still knows of our import; a 2.x server never says who has what."""
        known = self._is_mine(match.device) or match.server.version is None
        return known and local.devid == _devid(match.device)

    def _is_mine(self, device: Device) -> bool:
        """Whether the server says that this machine has the device."""
        holder = device.holder
        if device.state is not State.IN_USE or holder is None:
            return False
        if holder.client:
            return holder.client == self._client_id
        return holder.address in self._local_addresses()

    async def detach(self, query: Query) -> Detached:
        """Let the device go here, and see that its server has it back.

        A server that is dead does not keep a local device from being detached.

        Raises:
            NotFound, Ambiguous, Busy, SystemFault.

        """
        attachments = self._importer.list_attachments()
        search = await self._finder.search(query.host)
        matches = search.select(query)
        pairs = [(m, a) for m in matches for a in attachments if self._belongs(a, m)]
        known = {a.vhci_port for _, a in pairs}
        orphans = [a for a in attachments if a.vhci_port not in known and _is_meant(a, query)]
        choices: list[tuple[Match | None, Attachment]] = [*pairs, *((None, a) for a in orphans)]
        if len(choices) > 1 and not query.first:
            raise _several(query, [attachment for _, attachment in choices])
        if not choices:
            return await self._not_attached(search.choose(query))
        match, attachment = choices[0]
        await self._importer.detach(attachment.vhci_port)
        return Detached(await self._given_back(match) if match else None, attachment)

    async def _not_attached(self, match: Match) -> Detached:
        """Nothing is imported here, which is a success; what we only hold over there is let go."""
        return Detached(
            await self._given_back(match) if self._is_mine(match.device) else match, None
        )

    async def _given_back(self, match: Match) -> Match:
        """Confirm with the server; what is detached here stays detached if it is mute."""
        try:
            async with await connect(match.server, self._config.timeout) as connection:
                device = await self._ask(connection, self._detach_request(match.device))
                return Match(match.server, device)
        except errors.Busy:
            return match  # whoever waited for it has it by now
        except errors.UsbRemoteError as error:
            log.warning("detached here, but %s does not confirm it: %s", match.server.name, error)
            return match

    async def release(self, query: Query, message: str | None) -> Match:
        """Ask whoever has the device to let it go; raises as :meth:`attach`."""
        match = await self._finder.find(query)
        async with await connect(match.server, self._config.timeout) as connection:
            request = self._request(protocol.ReleaseRequest, match.device, message=message)
            return Match(match.server, await self._ask(connection, request))

    async def name(self, query: Query, name: str) -> Match:
        """Name a device on its server, for everybody; an empty name takes it away."""
        match = await self._finder.find(query)
        async with await connect(match.server, self._config.timeout) as connection:
            request = self._request(protocol.NameRequest, match.device, name=name)
            return Match(match.server, await self._ask(connection, request))

    def _request(self, model: type[R], device: Device, **more: object) -> R:
        """A request about a device; raises UsageError for what a person gave too long."""
        try:
            return model.model_validate({"bus": str(device.bus_id), **self._who(), **more})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise errors.UsageError(f"{first['loc'][-1]}: {first['msg']}") from None

    def _detach_request(self, device: Device) -> protocol.DeviceRequest:
        return self._request(protocol.DeviceRequest, device, command="detach")

    def _who(self) -> dict[str, Any]:
        return {"user": _user(), "host": socket.gethostname(), "client": self._client_id}

    async def _ask(
        self, connection: Connection, request: protocol.WhichDevice, tell: Tell = lambda event: None
    ) -> Device:
        """Ask the server of a connection; what is wrong on its machine is said to be there."""
        try:
            reply = await connection.request(request, tell)
        except errors.SystemFault as error:
            name = connection.server.host_name or connection.server.name
            hint = f"on {name}, {error.hint}" if error.hint else None
            raise errors.SystemFault(f"on {name}: {error.message}", hint=hint) from None
        return protocol.parse_device(reply.data)


async def _usable(arrival: Arrival, attachment: Attachment) -> Attachment:
    if attachment.local_bus_id is None:
        return attachment
    nodes = await arrival.until_usable(attachment.local_bus_id, USABLE_TIMEOUT)
    return attachment.model_copy(update={"nodes": nodes})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _devid(device: Device) -> int:
    """The number that vhci-hcd shows for an import (drivers/usb/usbip/vhci_sysfs.c)."""
    return device.bus << 16 | device.devnum


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
