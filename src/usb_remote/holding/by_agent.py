"""Devices that the agent holds for a program, as long as the connection between them is open.

Rule of this file: the agent's protocol as its client speaks it. An agent that was restarted is told
once more what is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from usb_remote import errors, wiring
from usb_remote.agent.world import search_of
from usb_remote.agent_protocol import (
    AgentEvent,
    Attached,
    AttachRequest,
    Kind,
    Loss,
    ReleaseRequest,
    StatusRequest,
    View,
    parse_statuses,
)
from usb_remote.client import How
from usb_remote.connection import AgentConnection
from usb_remote.holding.choosing import choose_all
from usb_remote.holding.device import AttachedDevice
from usb_remote.holding.holder import Holder
from usb_remote.matching import Query
from usb_remote.model import Match
from usb_remote.protocol import build
from usb_remote.replies import WatchEvent, validated
from usb_remote.watcher import key_of

log = logging.getLogger(__name__)


class ByAgent(Holder):
    """Devices that the agent holds for us as long as our connection is open.

    Args:
        connection: to the agent; ours from now on.
        come_back: seconds in which an agent that was restarted takes up again what we hold.
        try_again: seconds between two questions whether it has.

    """

    def __init__(
        self, connection: AgentConnection, come_back: float = 10.0, try_again: float = 0.2
    ) -> None:
        self._connection = connection
        self._patience = come_back
        self._try_again = try_again
        self._held: dict[str, tuple[AttachRequest, AttachedDevice]] = {}
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ByAgent:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Whoever asks for the devices next shall get them, so wait until they are back."""
        await self._stop_listening()
        async with self._connection as connection:
            if self._held:
                with contextlib.suppress(errors.UsbRemoteError):  # then it ends with us
                    await connection.request(ReleaseRequest())

    async def find_all(self, queries: Sequence[Query], wait: float | None) -> list[Match]:
        connection = await wiring.agent()
        if connection is None:
            raise errors.Unreachable("the agent of this machine has just gone")
        views: dict[str, View] = {}
        may_wait, is_complete = wait is not None, False
        loop = asyncio.get_running_loop()
        try:
            async with connection, asyncio.timeout(None) as patience:
                queries = await _as_wished(connection, queries)
                async for event in connection.watch():
                    if event.view is not None:
                        views[key_of(event.view.server)] = event.view
                    if event.event == "ping" and not is_complete:  # the agent knows all by now
                        is_complete = True
                        patience.reschedule(loop.time() + wait if wait else None)
                    search = search_of(views.values())
                    if is_complete and (found := choose_all(search, queries, may_wait)):
                        return found
        except TimeoutError:
            return choose_all(search_of(views.values()), queries, False)
        return []

    async def attach(self, query: Query, how: How, name: str | None = None) -> AttachedDevice:
        words = {"wait": how.wait, "duration": how.duration, "force": how.force, "name": name}
        request = build(AttachRequest, {**query.model_dump(), **words, "hold": True})
        await self._stop_listening()
        try:
            attached = await self._ask(request, how)
        finally:
            self._listening = asyncio.create_task(self._listen())
        device = AttachedDevice(attached)
        self._held[attached.name] = (request, device)
        return device

    async def _ask(self, request: AttachRequest, how: How) -> Attached:
        def tell(event: AgentEvent) -> None:
            if event.event == "queued":
                how.tell(WatchEvent(event="queued", place=event.place, holder=event.holder))
            self._take(event)

        reply = await self._connection.request(request, tell)
        return validated(Attached, reply.data)

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self) -> None:
        while True:
            try:
                async for event in self._connection.events():
                    self._take(event)
            except errors.UsbRemoteError as error:
                log.warning("%s; waiting for the agent to come back", error)
                if not await self._come_back():
                    return

    def _take(self, event: AgentEvent) -> None:
        if event.name not in self._held:
            return
        _, device = self._held[event.name]
        if event.event == "lost" and event.loss is not None:
            device.note_loss(event.loss)
        elif event.event == "attached" and event.attached is not None:
            device.note_attached(event.attached)

    async def _come_back(self) -> bool:
        """An agent that was restarted has taken up our devices: say that they are ours."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._patience
        is_there, missing = False, list(self._held)
        while missing and loop.time() < end:
            await asyncio.sleep(self._try_again)
            try:
                is_there = is_there or await self._connect_again()
                missing = await self._hold_again(missing) if is_there else missing
            except errors.UsbRemoteError as error:
                log.debug("not yet: %s", error)
                is_there, missing = False, list(self._held)
        if not is_there:
            log.error("the agent of this machine has gone, and nobody follows our devices now")
        for name in missing:
            log.warning("%s did not come back with the agent", name)
            self._held[name][1].note_loss(Loss(at=datetime.now(UTC)))
        return is_there

    async def _connect_again(self) -> bool:
        connection = await wiring.agent()
        if connection is None:
            return False
        old, self._connection = self._connection, connection
        await old.close()
        return True

    async def _hold_again(self, names: list[str]) -> list[str]:
        """Hold what the new agent knows by now; returns the names of the rest.

        Raises:
            Unreachable: it has gone, too.

        """
        missing = []
        for name in names:
            request, device = self._held[name]
            try:
                attached = await self._ask(_same(request, device), How())
            except errors.UsbRemoteError as error:
                if self._connection.hung_up or isinstance(error, errors.Silent):
                    raise
                log.debug("%s: %s", name, error)  # it may not have heard of the server yet
                missing.append(name)
                continue
            self._held[attached.name] = self._held.pop(name)
            if attached.attachment != device.attachment or not device.is_attached:
                device.note_attached(attached)
        return missing


async def _as_wished(connection: AgentConnection, queries: Sequence[Query]) -> list[Query]:
    """What is meant where a wish is called by a name of its own."""
    statuses = parse_statuses((await connection.request(StatusRequest())).data)
    lasting = [status for status in statuses if status.kind in (Kind.CONFIGURED, Kind.KEPT)]
    wished = {status.name: status.query for status in lasting if status.query is not None}
    return [wished.get(query.handle or "", query) for query in queries]


def _same(request: AttachRequest, device: AttachedDevice) -> AttachRequest:
    """Ask for that device; the first of several would be another one's by now."""
    if not request.first:
        return request
    place = f"{device.server.name}/{device.device.bus_id}"
    words = request.model_dump(exclude=set(Query.model_fields))
    return build(AttachRequest, {**words, "handle": place})
