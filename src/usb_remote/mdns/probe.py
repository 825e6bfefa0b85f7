"""Does multicast leave this machine, and does it come in? Ask on each interface, and listen.

Rule of this file: it asks what `browse` asks, on the same sockets; a packet that we sent ourselves
comes back through this machine's own rules for what may come in, so no peer is needed.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from usb_remote.mdns import ways
from usb_remote.mdns.heard import question

LISTEN = 0.3
"""Seconds to hear ourselves; it takes less than a millisecond."""


class Probed(NamedTuple):
    """What happened on one address of one interface.

    Attributes:
        interface: its name.
        address: of this machine on it.
        error: why the question could not be sent, None if it was.
        heard: whether our own question came back to port 5353.

    """

    interface: str
    address: str
    error: OSError | None
    heard: bool


async def probe() -> list[Probed]:
    """Ask once on each interface but loopback."""
    return await probe_on(i for i in ways.list_interfaces() if i.address != ways.LOOPBACK)


async def probe_on(interfaces: Iterable[ways.Interface]) -> list[Probed]:
    """Ask once on each of these: by IPv4, by IPv6, or both."""
    chosen = ways.one_of_each(interfaces)
    return await asyncio.gather(*(probe_by(i, list(ways.open_ways([i]))) for i in chosen))


async def probe_by(
    interface: ways.Interface, opened: Sequence[ways.Way], listen: float = LISTEN
) -> Probed:
    """Ask by the first of these ways that asks, hear by those that only listen; closes them all."""
    loop = asyncio.get_running_loop()
    asking = [way for way in opened if way.target is not None]
    hearing = [way.connection for way in opened if way.target is None]
    try:
        if not asking:
            none = OSError(errno.EADDRNOTAVAIL, "no socket can be opened")
            return Probed(interface.name, interface.address, none, False)
        ears = [loop.create_task(_hear(ear, _sent(asking[:1]))) for ear in hearing]
        error = _ask(asking[0])
        heard = False
        if ears:
            done, _ = await asyncio.wait(ears, timeout=listen, return_when=asyncio.FIRST_COMPLETED)
            heard = bool(done)
        for task in ears:
            task.cancel()
        await asyncio.gather(*ears, return_exceptions=True)
        return Probed(interface.name, interface.address, error, heard)
    finally:
        for way in opened:
            way.connection.close()


def _ask(way: ways.Way) -> OSError | None:
    """Send the question; returns why that is impossible."""
    assert way.target is not None
    try:
        way.connection.sendto(question(), way.target)
    except OSError as error:
        return error
    return None


def _sent(asking: Iterable[ways.Way]) -> set[int]:
    """The ports that our questions come from."""
    return {int(way.connection.getsockname()[1]) for way in asking}


async def _hear(ear: socket.socket, ports: set[int]) -> None:
    """Until a packet of our own is there."""
    loop = asyncio.get_running_loop()
    while True:
        _, sender = await loop.sock_recvfrom(ear, 9000)
        if sender[1] in ports:
            return
