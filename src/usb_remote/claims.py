"""One device for one program of this machine: claims that end with whoever holds them.

Rule of this file: a server cannot tell two programs of one machine apart, so they agree here. A
claim is an abstract unix socket (unix(7)): the kernel lets one process at a time have a name, takes
it away however that process ends, and asks for no directory, permission or cleaning up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
from typing import Self

from usb_remote import errors

PREFIX = b"\0usb-remote/claim/"
LONGEST = 107
"""Bytes that an abstract name may have (unix(7))."""
LOOK_AGAIN = 1.0
"""Seconds after which we try again even without having been told."""
MAX_WAITING = 64
"""Programs that are told at once when a claim is dropped; more look again and again."""


class Claim:
    """Ours until it is dropped. Who waits for it is connected to it, until either of us ends."""

    def __init__(self, name: str, listening: socket.socket, max_waiting: int) -> None:
        self.name = name
        self._max_waiting = max_waiting
        self._listening = listening
        self._waiting: set[socket.socket] = set()
        self._loop = asyncio.get_running_loop()
        listening.setblocking(False)
        self._loop.add_reader(listening, self._admit)

    def drop(self) -> None:
        """Let others have it; who waits is told by the kernel. Again it does nothing."""
        if self._listening.fileno() < 0:
            return
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for waiting in list(self._waiting):
            self._forget(waiting)

    def _admit(self) -> None:
        """Those who have given up must not fill the queue of those who wait."""
        try:
            waiting, _ = self._listening.accept()
        except OSError:  # it has given up already
            return
        self._waiting.add(waiting)
        self._loop.add_reader(waiting, self._leave, waiting)
        if len(self._waiting) >= self._max_waiting:
            self._loop.remove_reader(self._listening)

    def _leave(self, waiting: socket.socket) -> None:
        self._forget(waiting)
        self._loop.add_reader(self._listening, self._admit)

    def _forget(self, waiting: socket.socket) -> None:
        self._waiting.discard(waiting)
        self._loop.remove_reader(waiting)
        waiting.close()


def claim(name: str, max_waiting: int = MAX_WAITING) -> Claim | None:
    """Claim it now; None if another program has it.

    Args:
        name: of what is claimed.
        max_waiting: programs that are told at once when it is dropped.

    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(_address(name))
    except OSError as error:
        listening.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    listening.listen(max_waiting)
    return Claim(name, listening, max_waiting)


def _address(name: str) -> str:
    """Names come from servers, and the kernel takes no longer ones."""
    address = PREFIX + name.encode(errors="replace")
    if len(address) > LONGEST:
        address = PREFIX + hashlib.sha256(address).hexdigest().encode()
    return os.fsdecode(address)


class Turn:
    """A claim for a while: one program of this machine after the other.

    Args:
        name: of what is done one at a time.
        timeout: seconds to wait for whoever does it now.

    Attributes:
        was_left: whether others may have had their turn since it began.

    """

    def __init__(self, name: str, timeout: float) -> None:
        self.was_left = False
        self._name = name
        self._timeout = timeout
        self._claim: Claim | None = None

    async def __aenter__(self) -> Self:
        """Raises Busy."""
        await self.resume()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drop()

    def leave(self) -> None:
        """Let others go on meanwhile."""
        self.was_left = True
        self._drop()

    async def resume(self) -> None:
        """Have it (again); raises Busy."""
        if self._claim is None:
            self._claim = await wait_for(self._name, self._timeout)

    def _drop(self) -> None:
        if self._claim is not None:
            self._claim.drop()
            self._claim = None


async def wait_for(name: str, timeout: float | None) -> Claim:
    """Claim it as soon as nobody else has it.

    Args:
        name: of what is claimed.
        timeout: in seconds; 0 for none at all, None for as long as it takes.

    Raises:
        Busy: it was not free in time.

    """
    try:
        async with asyncio.timeout(timeout):
            while (mine := claim(name)) is None:
                if timeout == 0:
                    break
                await _until_dropped(name)
    except TimeoutError:
        mine = None
    if mine is None:
        raise errors.Busy(
            f"another program of this machine has {name.rpartition('/')[2]}",
            hint="usb-remote status shows which; --wait waits for it",
        )
    return mine


async def _until_dropped(name: str) -> None:
    """Wait at the other's door: the kernel hangs up when it is closed."""
    try:
        async with asyncio.timeout(LOOK_AGAIN):
            reader, writer = await asyncio.open_unix_connection(_address(name))
        with contextlib.closing(writer):
            await reader.read(1)
    except (OSError, TimeoutError):  # it has just gone, or too many wait already
        await asyncio.sleep(LOOK_AGAIN / 10)
