"""The way to one server: is a port open, who answers there, what time is it there?

Rule of this file: refused, dropped and unreachable are different faults with different cures, so
each port is tried by itself, and a ping tells a dead machine from a silent firewall.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from typing import NamedTuple

from usb_remote import errors, protocol, replies, usbip_wire
from usb_remote.addresses import resolve
from usb_remote.connection import connect
from usb_remote.doctor.machine import Machine
from usb_remote.model import Server

CONNECT_TIMEOUT = 2.5
"""Seconds for a connection to stand; a lost SYN is sent again after 1 s (RFC 6298)."""
ANSWER_TIMEOUT = 3.0
"""Seconds for an answer on a connection that stands; a busy server is slow, not broken."""


class Way(Enum):
    """How a try to connect ended."""

    OPEN = auto()
    REFUSED = auto()
    DROPPED = auto()
    REJECTED = auto()
    UNROUTED = auto()
    NAMELESS = auto()


class Reach(NamedTuple):
    """The first address that let us in, or how the first one did not.

    Attributes:
        way: how it ended.
        address: of the two.
        reason: the system's word for it, or what is wrong with what was said on the connection.

    """

    way: Way
    address: str
    reason: str = ""


class Answer(NamedTuple):
    """What is known of the server behind a control port; ``error`` if it is of no use."""

    info: replies.InfoNow | None = None
    seconds_ahead: float | None = None
    error: errors.UsbRemoteError | None = None


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[str]]
"""What is said on a connection that stands; returns what is wrong with it."""

_WAYS = {
    errno.ECONNREFUSED: Way.REFUSED,
    errno.ETIMEDOUT: Way.DROPPED,
    errno.ENETUNREACH: Way.UNROUTED,
    errno.EADDRNOTAVAIL: Way.UNROUTED,
}


async def reach(hosts: Sequence[str], port: int, talk: Talk | None = None) -> Reach:
    """Try all addresses at once; the first one that is open counts, else the first of all."""
    addresses = await _addresses(hosts)
    if not addresses:
        return Reach(Way.NAMELESS, " or ".join(hosts))
    tries = [asyncio.create_task(_reach_one(address, port, talk)) for address in addresses]
    try:
        for done in asyncio.as_completed(tries):
            if (found := await done).way is Way.OPEN:
                return found
        return tries[0].result()
    finally:
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)


async def _addresses(hosts: Sequence[str]) -> list[str]:
    """None if no name is known, or if it takes too long to ask."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return [address for host in hosts for address in await resolve(host)]
    except TimeoutError:
        return []


async def _reach_one(address: str, port: int, talk: Talk | None) -> Reach:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return Reach(Way.DROPPED, address)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        return Reach(_WAYS.get(error.errno or 0, Way.REJECTED), address, reason)
    try:
        return Reach(Way.OPEN, address, await talk(reader, writer) if talk else "")
    finally:
        writer.close()


async def answers_ping(machine: Machine, address: str) -> bool:
    status, _ = await machine.ask(["ping", "-c", "1", "-W", "1", address], CONNECT_TIMEOUT)
    return status == 0


async def ask_info(server: Server, address: str, timeout: float = ANSWER_TIMEOUT) -> Answer:
    """Ask who is there, and what time it is there."""
    only = server.model_copy(update={"addresses": (address,)})
    try:
        async with await connect(only, timeout) as connection:
            sent = datetime.now(UTC)
            reply = await connection.request(protocol.InfoRequest())
            here = sent + (datetime.now(UTC) - sent) / 2
        info = replies.InfoNow.model_validate(reply.data)
    except errors.UsbRemoteError as error:
        return Answer(error=error)
    except ValueError:
        return Answer(error=errors.InvalidReply("what answers there is no usb-remote server"))
    return Answer(info, (info.now - here).total_seconds() if info.now else None)


async def ask_devices(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Ask a USB/IP server for its list; returns what is wrong with the answer, "" for nothing."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            writer.write(usbip_wire.pack_devlist_request())
            header = await reader.readexactly(usbip_wire.HEADER_SIZE)
            await reader.read()  # the list itself, so that the other side is not cut off
        version = usbip_wire.parse_devlist_reply(header)
    except TimeoutError:
        return "but nobody answers there"
    except asyncio.IncompleteReadError as error:
        return (
            "but what answers is no USB/IP server" if error.partial else "but it is closed at once"
        )
    except errors.InvalidRequest:
        return "but what answers is no USB/IP server"
    except OSError as error:
        return f"but the connection breaks: {error.strerror}"
    if version != usbip_wire.VERSION:
        return f"but it speaks USB/IP version {version:#06x}, not {usbip_wire.VERSION:#06x}"
    return ""
