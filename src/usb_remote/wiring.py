"""Put the client's parts together, and run them.

Rule of this file: the only place besides the command line that knows which parts are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from usb_remote import errors
from usb_remote.agent_protocol import VARIABLE
from usb_remote.config import Config
from usb_remote.config_file import SYSTEM, find_path
from usb_remote.connection import agent_socket, connect_agent
from usb_remote.finder import Finder
from usb_remote.matching import is_called
from usb_remote.mdns.browse import browse

if TYPE_CHECKING:
    from usb_remote.agent.agent import Agent
    from usb_remote.agent.world import World
    from usb_remote.agent_protocol import View
    from usb_remote.client import Client
    from usb_remote.connection import AgentConnection
    from usb_remote.events import Event
    from usb_remote.finder import Failure, Search
    from usb_remote.model import Attachment, Listing, Server
    from usb_remote.state import StateFile
    from usb_remote.watcher import Change

T = TypeVar("T")

log = logging.getLogger(__name__)

AGENT_TIMEOUT = 5.0
"""Seconds that the agent may take to accept a connection."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels what is under way and lets it clean up."""
    return asyncio.run(work)


def finder(config: Config, wait: float = 0) -> Finder:
    """What looks for servers and devices, for at least ``wait`` seconds."""
    return Finder(config, partial(browse, wait))


async def search(
    config: Config, host: str | None = None, wait: float = 0, option: Path | None = None
) -> Search:
    """Every server's devices, as the agent knows them; else they are asked.

    Args:
        config: which servers, without an agent.
        host: only this one.
        wait: look for servers for at least so many seconds; what the agent knows will not do then.
        option: a configuration file that somebody has named, see :func:`agent`.

    """
    known = None if wait else await _known(host, option)
    return known or await finder(config, wait).search(host)


async def listings(
    config: Config, host: str | None = None, wait: float = 0, option: Path | None = None
) -> AsyncGenerator[Listing | Failure, None]:
    """The same, each server's answer as soon as it is there."""
    if not wait and (known := await _known(host, option)):
        for listing in known.listings:
            yield listing
        for failure in known.failures:
            yield failure
        return
    async with aclosing(finder(config, wait).listings(host)) as answers:
        async for answer in answers:
            yield answer


async def _known(host: str | None, option: Path | None) -> Search | None:
    """What the agent knows; None if it is not there, not ours, or knows no such server."""
    from usb_remote.agent.world import search_of
    from usb_remote.agent_protocol import ListRequest, parse_views

    try:
        if (connection := await agent(option)) is None:
            return None
        async with connection:
            views = parse_views((await connection.request(ListRequest())).data)
    except errors.UsbRemoteError as error:
        log.debug("without the agent: %s", error)
        return None
    found = search_of(v for v in views if host is None or is_called(v.server, host))
    return found if found.listings else None


async def changes(
    config: Config, host: str | None = None, option: Path | None = None
) -> AsyncGenerator[Change, None]:
    """Every server's devices at once and after each change, for ever: as the agent hears of them.

    Without an agent, also if it goes away meanwhile, servers are followed by this process.
    Arguments as those of :func:`search`.
    """
    for part in (_told_by_agent(host, option), followed(config, host)):
        async with aclosing(part):
            async for change in part:
                yield change


async def followed(config: Config, host: str | None = None) -> AsyncGenerator[Change, None]:
    """The same by this process itself."""
    from usb_remote.watcher import Watcher

    watcher = Watcher(config, found(config), host=host)
    async with aclosing(watcher.watch()) as following:
        async for change in following:
            yield change


async def _told_by_agent(host: str | None, option: Path | None) -> AsyncGenerator[Change, None]:
    """Ends if there is no agent (any more), or it knows no such server."""
    try:
        if (connection := await agent(option)) is None:
            return
    except errors.UsbRemoteError as error:
        log.debug("without the agent: %s", error)
        return
    is_known = host is None
    try:
        async with connection:
            async for event in connection.watch():
                if event.view and (host is None or is_called(event.view.server, host)):
                    is_known = True
                    yield _change(event.view)
                elif event.event == "ping" and not is_known:
                    return
    except errors.UsbRemoteError as error:
        log.warning("%s; going on without it", error)


def _change(view: View) -> Change:
    from usb_remote.watcher import Change

    if view.error is None:
        return Change(view.server, view.listing)
    return Change(view.server, None, view.error.error)


def client(config: Config) -> Client:
    """What attaches: needs pyudev and the usbip command."""
    from usb_remote import client, identity, vhci
    from usb_remote.mdns.ways import local_addresses
    from usb_remote.udev.nodes import Arrival

    return client.Client(
        config,
        browse,
        vhci.Vhci(),
        Arrival,
        identity.server_id("client"),
        local_addresses,
    )


def list_attachments() -> list[Attachment]:
    """What is attached to this machine, with its nodes."""
    from usb_remote import vhci
    from usb_remote.udev.nodes import list_nodes

    return [
        a.model_copy(update={"nodes": list_nodes(a.local_bus_id)}) if a.local_bus_id else a
        for a in vhci.Vhci().list_attachments()
    ]


class Resident(NamedTuple):
    """What follows all servers and keeps devices attached."""

    agent: Agent
    world: World


@contextlib.asynccontextmanager
async def resident(
    config: Config, file: StateFile | None, links: Path | None
) -> AsyncIterator[Resident]:
    """Follow all servers and this machine's attachments.

    Args:
        config: which servers, besides those that mDNS finds.
        file: keeps the machine's wishes over restarts; None for one program, which leaves alone
            what others have attached.
        links: where directories with links to nodes are made; None for nowhere.

    """
    from usb_remote.agent import agent, wishes, world
    from usb_remote.agent.links import Links
    from usb_remote.agent.parts import Parts
    from usb_remote.state import StateFile
    from usb_remote.udev.monitor import NODES, Monitor
    from usb_remote.udev.nodes import list_parts
    from usb_remote.vhci import Vhci
    from usb_remote.watcher import Watcher

    vhci = Vhci()
    book = wishes.WishBook(file or StateFile(None))
    here = world.World(
        Watcher(config, known_first(book.list_servers(), found(config))).watch,
        vhci.list_attachments,
        Monitor(*NODES),
        finder(config).rank,
    )
    attaching = client(config)
    parts = Parts(here, attaching, Links(list_parts, links), partial(_history, config.timeout), {})
    resident = agent.Agent(parts, book)
    failure: Exception | None = None  # of the block: the group would wrap it in one of its own
    async with asyncio.TaskGroup() as group:
        following = [group.create_task(here.run())]
        if file is not None:
            following.append(group.create_task(resident.run()))
        try:
            yield Resident(resident, here)
        except Exception as error:
            failure = error
        finally:
            await resident.stop()
            for task in following:
                task.cancel()
    if failure is not None:
        raise failure


def found(config: Config) -> AsyncIterator[Server]:
    """Servers as mDNS finds them, for ever."""
    from usb_remote.mdns.browse import browse_for_ever

    return browse_for_ever() if config.discovery else nobody()


async def known_first(
    known: Iterable[Server], others: AsyncIterator[Server]
) -> AsyncIterator[Server]:
    """Servers that we know already, then others: whose devices are here need not wait for mDNS."""
    for server in known:
        yield server
    async for server in others:
        yield server


async def agent(option: Path | None = None) -> AgentConnection | None:
    """A connection to the agent of this machine, None if there is none, or if it is not ours.

    The agent goes by the machine's configuration: whoever has another one does without it, unless
    USB_REMOTE_AGENT says where it is.

    Raises:
        Refused: we may not talk to it.

    """
    is_ours = VARIABLE in os.environ or (not option and find_path(None) in (None, SYSTEM))
    return await connect_agent(AGENT_TIMEOUT) if is_ours and agent_socket() else None


async def nobody() -> AsyncIterator[Server]:
    """What is found where nothing is looked for."""
    return
    yield


async def _history(timeout: float, server: Server) -> list[Event]:
    from usb_remote.connection import connect
    from usb_remote.protocol import HistoryRequest
    from usb_remote.replies import parse_history

    async with await connect(server, timeout) as connection:
        reply = await connection.request(HistoryRequest())
    return list(parse_history(reply.data))
