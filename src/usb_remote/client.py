"""All servers at once: discover, list, find, attach, detach, watch.

Rule of this file: partial failure never hides what worked. Servers are asked concurrently, each
one's answer is passed on the moment it is there, and those that fail are reported beside it.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from usb_remote import errors, protocol
from usb_remote.config import Config
from usb_remote.connection import Connection, connect
from usb_remote.model import (
    Attachment,
    BusId,
    Device,
    Listing,
    Match,
    Query,
    Server,
    Snapshot,
    State,
    is_called,
    is_same_server,
    merge,
    select,
)

log = logging.getLogger(__name__)

Browse = Callable[[], AsyncIterator[Server]]

RANGE_TIMEOUT = 1.0
"""Seconds that an address of ``server_ranges`` may take: most of them are nobody."""
USABLE_TIMEOUT = 15.0
"""Seconds until the drivers must have made their nodes; after that there may be none."""
RECONNECT = 2.0


class Importer(Protocol):
    """What imports devices here: usbip.Vhci."""

    async def prepare(self) -> None: ...
    def list_attachments(self) -> list[Attachment]: ...
    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int, timeout: float
    ) -> Attachment: ...
    async def detach(self, vhci_port: int) -> None: ...


class Failure(NamedTuple):
    """A server that did not answer as it should."""

    server: Server
    error: errors.UsbRemoteError


class Attached(NamedTuple):
    """What `attach` achieved; ``already`` if it was so before."""

    match: Match
    attachment: Attachment
    already: bool = False


class Detached(NamedTuple):
    """What `detach` achieved: the device if a server knows it, the local side if there was one."""

    match: Match | None
    attachment: Attachment | None


class Change(NamedTuple):
    """A line of a watch: the newest listing of a server, or why there is none any more."""

    server: Server
    listing: Listing | None
    error: errors.UsbRemoteError | None = None


@dataclass
class _Candidate:
    """A server to ask. A quiet one may well not exist, so its silence is no failure."""

    server: Server
    quiet: bool = False
    timeout: float | None = None


@dataclass
class Search:
    """What a whole search brought: in the order configuration, name, bus id."""

    listings: list[Listing] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def select(self, query: Query) -> list[Match]:
        return select((m for listing in self.listings for m in listing.matches), query)


class Client:
    """The client side of this machine.

    Args:
        config: servers, time-out.
        browse: looks for servers by mDNS once; may fail, which is a warning.
        importer: imports devices here.
        wait_until_usable: local bus id, seconds -> device nodes.
        reconnect: seconds before a watch asks a lost server again.

    """

    def __init__(
        self,
        config: Config,
        browse: Browse,
        importer: Importer,
        wait_until_usable: Callable[[str, float], Awaitable[tuple[str, ...]]],
        reconnect: float = RECONNECT,
    ) -> None:
        self._config = config
        self._browse = browse
        self._importer = importer
        self._wait_until_usable = wait_until_usable
        self._reconnect = reconnect

    # -- finding

    async def listings(self, host: str | None = None) -> AsyncGenerator[Listing | Failure, None]:
        """Each server's answer, as it arrives; the same server under two addresses once."""
        answers: asyncio.Queue[Listing | Failure | None] = asyncio.Queue()
        asking = asyncio.create_task(self._ask_all(host, answers))
        shown: list[Server] = []
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, Failure):
                    yield answer
                elif not any(is_same_server(answer.server, server) for server in shown):
                    shown.append(answer.server)
                    yield answer
            await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def search(self, host: str | None = None) -> Search:
        """Every server's answer, merged and ordered; the failures of dead ones beside them."""
        found = Search()
        async for answer in self.listings(host):
            if isinstance(answer, Failure):
                found.failures.append(answer)
            else:
                found.listings.append(answer)
        found.listings.sort(key=lambda listing: self._rank(listing.server))
        return found

    def _rank(self, server: Server) -> tuple[int, str]:
        """Configured servers in their order, then the others by name."""
        names = [configured.name for configured in self._config.configured_servers]
        return (names.index(server.name) if server.name in names else len(names), server.name)

    async def _ask_all(
        self, host: str | None, answers: asyncio.Queue[Listing | Failure | None]
    ) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            async for candidate in self._candidates(host):
                tasks.append(asyncio.create_task(self._ask(candidate, answers)))
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            answers.put_nowait(None)

    async def _candidates(self, host: str | None) -> AsyncIterator[_Candidate]:
        """Whom to ask: the configuration at once, then whoever mDNS brings."""
        if host is not None:
            async for candidate in self._named(host):
                yield candidate
            return
        for server in self._config.configured_servers:
            yield _Candidate(server)
        for server in self._config.range_servers:
            yield _Candidate(server, quiet=True, timeout=RANGE_TIMEOUT)
        if not (self._config.servers or self._config.server_ranges):
            yield _Candidate(self._config.server_at("localhost"), quiet=True)
        async for server in self._discovered():
            yield _Candidate(server)

    async def _named(self, host: str) -> AsyncIterator[_Candidate]:
        """One server, by address, host name, or the name that it announces."""
        direct = self._config.server_at(host)
        yield _Candidate(direct, quiet=self._config.discovery)
        async for server in self._discovered():
            if is_called(server, host):
                yield _Candidate(server)

    async def _discovered(self) -> AsyncIterator[Server]:
        if not self._config.discovery:
            return
        try:
            async for server in self._browse():
                yield server
        except OSError as error:
            log.warning("no discovery by mDNS: %s", error)

    async def _ask(
        self, candidate: _Candidate, answers: asyncio.Queue[Listing | Failure | None]
    ) -> None:
        timeout = candidate.timeout or self._config.timeout
        try:
            async with await connect(candidate.server, timeout) as connection:
                answers.put_nowait(await _list(connection))
        except errors.UsbRemoteError as error:
            if not candidate.quiet:
                answers.put_nowait(Failure(candidate.server, error))

    async def find(self, query: Query) -> Match:
        """The one device that is meant.

        Raises:
            NotFound, Ambiguous, Unreachable: the message lists what there is.

        """
        return self._choose(await self.search(query.host), query)

    def _choose(self, search: Search, query: Query) -> Match:
        matches = search.select(query)
        if not matches:
            raise _nothing(search, query)
        if len(matches) > 1 and not query.first:
            listed = "\n".join(f"  {match}" for match in matches)
            raise errors.Ambiguous(
                f"{query} matches {len(matches)} devices:\n{listed}",
                hint="say which one as SERVER/BUS-ID, or take the first one with --first",
            )
        return matches[0]

    # -- attaching

    async def attach(self, query: Query) -> Attached:
        """Make the device appear here, and wait until it can be used.

        Raises:
            NotFound, Ambiguous, Busy, Refused, SystemFault, Unreachable.

        """
        await self._importer.prepare()
        match = await self.find(query)
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
        search = await self.search(query.host)
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
            return await self._not_attached(self._choose(search, query))
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

    # -- watching

    async def watch(self, found: AsyncIterator[Server]) -> AsyncGenerator[Change, None]:
        """Every server's newest listing, again after each change, for ever.

        Args:
            found: servers as mDNS finds them, for as long as the watch goes on.

        """
        changes: asyncio.Queue[Change] = asyncio.Queue()
        watching = asyncio.create_task(self._watch_all(found, changes))
        try:
            while True:
                get = asyncio.create_task(changes.get())
                await asyncio.wait({get, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not get.done():
                    get.cancel()
                    watching.result()
                    return
                yield get.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch_all(
        self, found: AsyncIterator[Server], changes: asyncio.Queue[Change]
    ) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        owners: dict[str, Server] = {}
        local = [self._config.server_at("localhost")] if not self._config.servers else []
        async with asyncio.TaskGroup() as group:
            for server in merge([*self._config.configured_servers, *local]):
                group.create_task(self._follow(server, changes, owners, server not in local))
            async for server in found:
                key = f"{server.id} {sorted(server.addresses)}"
                if key not in tasks or tasks[key].done():
                    tasks[key] = group.create_task(self._follow(server, changes, owners, False))

    async def _follow(
        self,
        server: Server,
        changes: asyncio.Queue[Change],
        owners: dict[str, Server],
        loud: bool,
    ) -> None:
        """Follow one server; when it is lost, say so once and ask again until it is back.

        ``owners`` says by which entry a server id is followed already: that one is enough.
        """
        told = server
        while True:
            try:
                async for told, listing in self._listings_of(server):
                    if owners.setdefault(told.id or told.name, server) is not server:
                        return
                    loud = True
                    changes.put_nowait(Change(told, listing))
            except errors.UsbRemoteError as error:
                if loud:
                    changes.put_nowait(Change(told, None, error))
                loud = False
                if owners.get(told.id or told.name) is server:
                    del owners[told.id or told.name]
            await asyncio.sleep(self._reconnect)

    async def _listings_of(self, server: Server) -> AsyncIterator[tuple[Server, Listing]]:
        async with await connect(server, self._config.timeout) as connection:
            async for event in connection.watch():
                if event.event == "snapshot":
                    told = _named(protocol.server_of(event.server, server), event.server)
                    yield told, Listing(server=told, snapshot=event.snapshot)


async def _list(connection: Connection) -> Listing:
    reply = await connection.request(protocol.ListRequest())
    devices = protocol.parse_devices(reply.data)
    if reply.server and connection.server.id not in (None, reply.server.id):
        raise errors.Unreachable(
            f"{connection.server.name}: another server answers at {connection.address}"
        )
    server = _named(protocol.server_of(reply.server, connection.server), reply.server)
    addresses = dict.fromkeys((connection.address, *server.addresses))
    return Listing(
        server=server.model_copy(update={"addresses": tuple(addresses)}),
        snapshot=Snapshot(revision=reply.revision, devices=devices),
    )


def _named(server: Server, info: protocol.Info | None) -> Server:
    """Nobody named the server that we tried on this machine: it is called what it says."""
    own = info is not None and server.name == "localhost"
    return server.model_copy(update={"name": info.name}) if own and info else server


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


def _nothing(search: Search, query: Query) -> errors.UsbRemoteError:
    """Why nothing matches: no server at all, only dead ones, or no such device."""
    if search.listings:
        return errors.NotFound(
            f"no device matches {query}", hint="usb-remote list shows what there is"
        )
    if search.failures:
        return search.failures[0].error
    return no_server(query.host)


def no_server(host: str | None = None) -> errors.UsbRemoteError:
    """What to say when nobody answered."""
    if host:
        return errors.Unreachable(
            f"no usb-remote server is known as {host}", hint="usb-remote list shows all servers"
        )
    return errors.NotFound(
        "no usb-remote server found on this network",
        hint="start one with: usb-remote server   or name one that mDNS does not reach with: "
        "usb-remote config add-server HOST",
    )
