"""The Python API for asyncio: what is there, what changes, and devices attached for a while.

Rule of this file: the functions that a program calls, with or without an agent; how devices are
held is holding/. The same without asyncio is blocking.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from usb_remote import wiring
from usb_remote.client import How
from usb_remote.config import Config
from usb_remote.config_file import load_in_force
from usb_remote.connection import AgentConnection
from usb_remote.holding.by_agent import ByAgent
from usb_remote.holding.by_ourselves import by_ourselves
from usb_remote.holding.device import Attachable, AttachedDevice
from usb_remote.holding.holder import Holder, Wanted
from usb_remote.matching import Query
from usb_remote.model import Match
from usb_remote.watcher import Change

__all__ = [
    "Attachable",
    "AttachedDevice",
    "Holder",
    "Wanted",
    "attach",
    "attach_all",
    "holding",
    "list_devices",
    "wanted",
    "watch",
]

log = logging.getLogger(__name__)


async def list_devices(host: str | None = None, config: Config | None = None) -> list[Match]:
    """Every device of every server (or of one), with its server.

    A server that does not answer is a warning in the log, and hides nothing.

    Args:
        host: only this server: its name or address.
        config: instead of the one in force; then no agent is asked.

    Raises:
        NotFound: there is no server.
        Unreachable: none has answered.

    """
    if config is None:
        search = await wiring.search(load_in_force(None), host)
    else:
        search = await wiring.finder(config).search(host)
    if not search.listings:
        raise search.why_nobody(host)
    for failure in search.failures:
        log.warning("%s", failure.error)
    return [match for listing in search.listings for match in listing.matches]


async def watch(
    host: str | None = None, config: Config | None = None
) -> AsyncGenerator[Change, None]:
    """Every server's devices, at once and again after each change, for ever."""
    if config is None:
        changes = wiring.changes(load_in_force(None), host)
    else:
        changes = wiring.followed(config, host)
    async with aclosing(changes):
        async for change in changes:
            yield change


@contextlib.asynccontextmanager
async def attach(
    handle: str | None = None,
    *,
    id: str | None = None,
    serial: str | None = None,
    desc: str | None = None,
    bus: str | None = None,
    host: str | None = None,
    first: bool = False,
    wait: float | None = None,
    duration: float | None = None,
    force: bool = False,
    name: str | None = None,
    config: Config | None = None,
) -> AsyncIterator[AttachedDevice]:
    """Attach a device as long as the block lasts; no other program here gets it meanwhile.

    Args:
        handle: name, device id, bus id or serial number; or ``server/`` and one of these.
        id: hardware id or device id; this and the next ones may be patterns.
        serial: serial number.
        desc: part of the description.
        bus: bus id.
        host: name or address of the server.
        first: take the first of several that nobody else has.
        wait: seconds to wait for a device that somebody has, 0 for as long as it takes, None not
            at all.
        duration: seconds after which it is given back by itself.
        force: take it from whoever has it.
        name: of its directory below /dev/usb-remote.
        config: instead of the one in force; then no agent is asked.

    Raises:
        NotFound, Ambiguous, Busy, Refused, SystemFault, Unreachable: see docs/reference/errors.md.

    """
    one = wanted(
        handle,
        id=id,
        serial=serial,
        desc=desc,
        bus=bus,
        host=host,
        first=first,
        wait=wait,
        duration=duration,
        force=force,
        name=name,
    )
    async with attach_all([one], config) as (device,):
        yield device


def wanted(
    handle: str | None = None,
    *,
    id: str | None = None,
    serial: str | None = None,
    desc: str | None = None,
    bus: str | None = None,
    host: str | None = None,
    first: bool = False,
    wait: float | None = None,
    duration: float | None = None,
    force: bool = False,
    name: str | None = None,
) -> Wanted:
    """One of several devices for `attach_all`; arguments as those of `attach`."""
    query = Query(handle=handle, id=id, serial=serial, desc=desc, bus=bus, host=host, first=first)
    return Wanted(query, How(wait=wait, duration=duration, force=force), name)


@contextlib.asynccontextmanager
async def attach_all(
    devices: Sequence[Wanted], config: Config | None = None
) -> AsyncIterator[list[AttachedDevice]]:
    """Attach several devices, all or none, as long as the block lasts; otherwise as `attach`."""
    async with holding(config) as holder:
        yield await holder.attach_all(devices)


@contextlib.asynccontextmanager
async def holding(
    config: Config | None = None, connection: AgentConnection | None = None
) -> AsyncIterator[Holder]:
    """What attaches any number of devices, until the block ends.

    Args:
        config: instead of the one in force; then no agent is asked.
        connection: to an agent that shall be asked all the same.

    """
    if config is None and connection is None:
        connection = await wiring.agent()
    if connection is not None:
        async with ByAgent(connection) as by_agent:
            yield by_agent
        return
    async with by_ourselves(config or load_in_force(None)) as ourselves:
        yield ourselves
