"""What all servers say and what is attached here, and a wake-up when either changes.

Rule of this file: the newest of everything, nothing of the past, no decisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Protocol, TypeVar

from usb_remote import errors
from usb_remote.agent.times import Times
from usb_remote.agent_protocol import Told, View
from usb_remote.finder import Failure, Search
from usb_remote.matching import is_same_server
from usb_remote.model import Attachment, Device, Server
from usb_remote.watcher import Change, key_of

log = logging.getLogger(__name__)

T = TypeVar("T")


class Wakeup(Protocol):
    """A file descriptor that is readable when local devices may have changed: udev.monitor."""

    def fileno(self) -> int: ...
    def drain(self) -> object: ...


class World:
    """The newest of everything.

    Args:
        changes: of all servers, for ever.
        list_attachments: what is imported here.
        wakeup: says when that may have changed.
        order: of servers, for those who list them.
        times: how long it waits.

    Attributes:
        views: one for each server, by its id (its name, for 2.x).
        attachments: what is imported here.

    """

    def __init__(
        self,
        changes: Callable[[], AsyncIterator[Change]],
        list_attachments: Callable[[], Iterable[Attachment]],
        wakeup: Wakeup,
        order: Callable[[Server], tuple[int, str]] = lambda server: (0, server.name),
        times: Times = Times(),
    ) -> None:
        self.views: dict[str, View] = {}
        self.attachments: tuple[Attachment, ...] = ()
        self.on_view: Callable[[View], None] = lambda view: None
        self._changes = changes
        self._list_attachments = list_attachments
        self._wakeup = wakeup
        self._order = order
        self._times = times
        self._news = asyncio.Event()
        self._silent: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._settled = asyncio.Event()
        self._began = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Follow everything, for ever."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._wakeup.fileno(), self._woken)
        self._look(self._times.slow_look)
        settling = loop.call_later(self._times.look_around, self._settled.set)
        try:
            async with aclosing(self._changes()) as changes:  # type: ignore[type-var]
                async for change in changes:
                    self._see(change)
        finally:
            loop.remove_reader(self._wakeup.fileno())
            settling.cancel()
            if self._timer is not None:
                self._timer.cancel()

    # -- news

    def _see(self, change: Change) -> None:
        key = key_of(change.server)
        self._silent.discard(key)
        if change.listing is not None:
            snapshot = change.listing.snapshot
            view = View(server=change.server, revision=snapshot.revision, devices=snapshot.devices)
        else:
            error = change.error or errors.Unreachable(f"{change.server.name} was lost")
            if isinstance(error, errors.Silent):
                self._silent.add(key)
            log.warning("%s: %s; asking again until it is back", change.server.name, error)
            view = View(server=change.server, error=Told.of(error))
        for known, other in list(self.views.items()):  # by its address, before it said its id
            if known != key and is_same_server(other.server, change.server):
                del self.views[known]
        self.views[key] = view
        self.on_view(view)
        self.tell()

    def _woken(self) -> None:
        self._wakeup.drain()
        quiet = self._looked + self._times.storm - asyncio.get_running_loop().time()
        if quiet > 0:
            self._look_in(quiet, self._times.look_again)
        else:
            self._look(self._times.look_again)

    def _look(self, again: float) -> None:
        """Look now, and once more after some seconds."""
        self._looked = asyncio.get_running_loop().time()
        self._look_in(again, self._times.slow_look)
        self.look()

    def _look_in(self, seconds: float, again: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look, again)

    def look(self) -> None:
        """See what is imported here; the drivers' nodes may have changed even if that has not."""
        with contextlib.suppress(FileNotFoundError):  # vhci-hcd is just being unloaded
            self.attachments = tuple(self._list_attachments())
        self.tell()

    def tell(self) -> None:
        """Wake everybody who waits for a change."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    # -- those who wait for it

    @property
    def is_settled(self) -> bool:
        """Whether what is not known is not there, as far as one can tell."""
        return self._settled.is_set()

    async def settled(self) -> None:
        await self._settled.wait()

    async def changed(self, timeout: float | None = None) -> None:
        """Wait for the next change, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()

    async def until(self, look: Callable[[], T | None], timeout: float | None = None) -> T | None:
        """Wait until there is something to be seen; None if there is not in time."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while (seen := look()) is None:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return None
            await self.changed(left)
        return seen

    # -- what there is

    def search(self) -> Search:
        """Everything, as a search would have brought it."""
        return search_of(sorted(self.views.values(), key=lambda view: self._order(view.server)))

    def view_of(self, server: Server) -> View | None:
        known = self.views.get(key_of(server))
        if known is not None:
            return known
        same = (v for v in self.views.values() if is_same_server(v.server, server))
        return next(same, None)

    def is_silent(self, server: Server) -> bool:
        """Whether nothing at all is heard of a server, or was since we began."""
        if (view := self.view_of(server)) is not None:
            return key_of(view.server) in self._silent
        return asyncio.get_running_loop().time() - self._began > self._times.unheard

    def attachment_at(self, vhci_port: int) -> Attachment | None:
        """What was in a vhci port at the last look."""
        return next((a for a in self.attachments if a.vhci_port == vhci_port), None)

    def device_at(self, server: Server, bus_id: str) -> Device | None:
        """What sits in a place now, None also if the server is lost."""
        view = self.view_of(server)
        return next((d for d in view.devices if d.bus_id == bus_id), None) if view else None


def search_of(views: Iterable[View]) -> Search:
    """Views, as a search would have brought them."""
    found = Search()
    for view in views:
        if view.error is None:
            found.listings.append(view.listing)
        else:
            found.failures.append(Failure(view.server, view.error.error))
    return found
