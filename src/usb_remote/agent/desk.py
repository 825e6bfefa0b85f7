"""The agent's unix socket: what people and programs of this machine ask for.

Rule of this file: requests in, replies and events out; what they mean is for agent.py. Who asks is
what the kernel says (SO_PEERCRED), never what a request claims.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from usb_remote import agent_protocol, errors, protocol, replies
from usb_remote.agent.agent import Agent
from usb_remote.agent.hold import Hold
from usb_remote.agent.listening import GROUP, listen
from usb_remote.agent.world import World
from usb_remote.agent_protocol import (
    AgentEvent,
    AgentInfo,
    Attached,
    AttachRequest,
    DetachRequest,
    Loss,
    ReleaseRequest,
    Status,
    View,
)
from usb_remote.client import How
from usb_remote.control import Complaints, ControlConnection, Limits
from usb_remote.model import Attachment
from usb_remote.rules import Networks

log = logging.getLogger(__name__)

_Slow = AttachRequest | DetachRequest | ReleaseRequest


class Desk:
    """Answers requests.

    Args:
        agent: does what is asked for.
        world: knows what there is.
        list_attachments: with their nodes.
        info: who we are.
        ping_interval: seconds after which whoever waits, watches or holds hears from us.

    """

    def __init__(
        self,
        agent: Agent,
        world: World,
        list_attachments: Callable[[], Iterable[Attachment]],
        info: AgentInfo,
        ping_interval: float = protocol.PING_INTERVAL,
    ) -> None:
        self.limits = Limits(connections=256, connections_per_address=256)
        self.allowed = Networks()
        self.complaints = Complaints()
        self.info = info
        self._agent = agent
        self._world = world
        self._list_attachments = list_attachments
        self._ping_interval = ping_interval
        self._connections: dict[ControlConnection, None] = {}
        self._watchers: set[ControlConnection] = set()
        self._tasks: dict[asyncio.Task[None], ControlConnection] = {}
        self._holds: dict[ControlConnection, list[Hold]] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._ping: asyncio.TimerHandle | None = None

    # -- life

    async def start(self, path: Path, group: str = GROUP) -> None:
        """Listen; raises SystemFault if another agent does, or the socket cannot be made."""
        loop = asyncio.get_running_loop()
        listening = listen(path, group)
        self._server = await loop.create_unix_server(
            lambda: ControlConnection(self), sock=listening, backlog=128
        )
        self._world.on_view = self._show

    async def stop(self) -> None:
        """Close the socket and every connection; what is held stays for the next agent."""
        if self._ping is not None:
            self._ping.cancel()
        if self._server is not None:
            self._server.close()
        for hold in (hold for holds in self._holds.values() for hold in holds):
            hold.claim.drop()
        self._holds.clear()
        for connection in list(self._connections):
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._releasing, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    # -- requests

    def answer(self, line: bytes, connection: ControlConnection) -> None:
        """Answer one request, now or when it is done."""
        try:
            request = agent_protocol.parse_request(line)
            if isinstance(request, _Slow):
                self._spawn(self._answer_slow(request, connection), request, connection)
            elif self._world.is_settled:
                self._answer_now(request, connection)
            else:
                self._spawn(self._answer_settled(request, connection), request, connection)
        except errors.UsbRemoteError as error:
            connection.send(replies.failure(error, legacy=False))

    async def _answer_settled(
        self, request: agent_protocol.AgentRequest, connection: ControlConnection
    ) -> None:
        """An agent that has just been started has not heard of all servers yet."""
        await self._world.settled()
        self._answer_now(request, connection)

    def _answer_now(
        self, request: agent_protocol.AgentRequest, connection: ControlConnection
    ) -> None:
        if isinstance(request, agent_protocol.WatchRequest):
            self._begin_watch(connection)
        else:
            connection.send(replies.success(self._data(request), request))

    def _data(self, request: agent_protocol.AgentRequest) -> Any:
        match request:
            case agent_protocol.ListRequest():
                return [_json(view) for view in self._views()]
            case agent_protocol.PortsRequest():
                return [_json(attachment) for attachment in self._list_attachments()]
            case agent_protocol.StatusRequest():
                return [_json(status) for status in self._agent.statuses()]
            case _:
                return _json(self.info)

    def _views(self) -> list[View]:
        search = self._world.search()
        servers = [listing.server for listing in search.listings]
        servers += [failure.server for failure in search.failures]
        return [view for server in servers if (view := self._world.view_of(server))]

    def _begin_watch(self, connection: ControlConnection) -> None:
        connection.watches = True
        self._watchers.add(connection)
        for view in self._views():
            connection.send(_view_line(view))
        connection.send(replies.PING)
        self._ping_soon()

    def _show(self, view: View) -> None:
        """A server has changed: tell all who watch."""
        line = _view_line(view) if self._watchers else b""
        for connection in self._watchers:
            connection.push(line)

    async def _answer_slow(self, request: _Slow, connection: ControlConnection) -> None:
        self._ping_soon()
        connection.send(replies.success(await self._do(request, connection), request))

    async def _answer_later(
        self,
        answering: Coroutine[Any, Any, None],
        request: agent_protocol.AgentRequest,
        connection: ControlConnection,
    ) -> None:
        """Wait for an answer; a request without one ends its connection.

        Otherwise its client would take the next answer for this one.
        """
        try:
            await answering
        except errors.UsbRemoteError as error:
            log.info("%s for %s: %s", request.command, connection.user, error)
            connection.send(replies.failure(error, legacy=False))
        except Exception:  # a fault of ours: it ends this connection, and nobody else's
            log.exception("%s for %s failed unexpectedly", request.command, connection.user)
            connection.close()
        finally:
            connection.resume()

    async def _do(self, request: _Slow, connection: ControlConnection) -> dict[str, Any] | None:
        if isinstance(request, ReleaseRequest):
            await asyncio.gather(*self._let_go(connection))
            return None
        _refuse_everything(request)
        if isinstance(request, DetachRequest):
            return _json(await self._agent.detach(request.query, connection.user))
        how = How(
            wait=request.wait,
            duration=request.duration,
            force=request.force,
            tell=lambda event: connection.push(protocol.encode(event.model_dump(mode="json"))),
            user=connection.user,
        )
        if request.hold:
            return await self._hold(request, connection, how)
        kept: list[Status] = []
        attached = await self._agent.attach(request, connection.user, how, kept.append)
        return _json(attached) if attached else {"status": _json(kept[0]) if kept else None}

    async def _hold(
        self, request: AttachRequest, connection: ControlConnection, how: How
    ) -> dict[str, Any]:
        hold = await self._agent.hold(request, connection.user, how)
        attached = hold.attached
        if connection not in self._connections or attached is None:
            await self._agent.release(hold)
            raise errors.Unreachable("it was lost at once; usb-remote history says why")
        connection.holds = True
        self._holds.setdefault(connection, []).append(hold)
        name = attached.name

        def lost(loss: Loss) -> None:
            connection.push(_event(AgentEvent(event="lost", name=name, loss=loss)))

        def back(attached: Attached) -> None:
            connection.push(_event(AgentEvent(event="attached", name=name, attached=attached)))

        hold.on_loss, hold.on_attached = lost, back
        return _json(attached)

    def _spawn(
        self,
        answering: Coroutine[Any, Any, None],
        request: agent_protocol.AgentRequest,
        connection: ControlConnection,
    ) -> None:
        connection.pause(waits=True)
        task = asyncio.create_task(self._answer_later(answering, request, connection))
        self._tasks[task] = connection
        task.add_done_callback(self._tasks.pop)

    # -- connections

    def admit(self, connection: ControlConnection) -> None:
        """One more; those of one machine's programs are few, so the newest gives way."""
        self._connections[connection] = None
        if len(self._connections) > self.limits.connections:
            connection.close()

    def forget(self, connection: ControlConnection) -> None:
        """It is closed."""
        self._connections.pop(connection, None)
        self.dismiss(connection)

    def dismiss(self, connection: ControlConnection) -> None:
        """It takes part in nothing any more: what it waited for and what it held is let go."""
        self._watchers.discard(connection)
        for task, owner in self._tasks.items():
            if owner is connection:
                task.cancel()
        self._let_go(connection)

    def _let_go(self, connection: ControlConnection) -> list[asyncio.Task[None]]:
        """Give back what was held for it, in tasks that outlive it."""
        holds = reversed(self._holds.pop(connection, []))
        tasks = [asyncio.ensure_future(self._release(hold)) for hold in holds]
        for task in tasks:
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
        return tasks

    async def _release(self, hold: Hold) -> None:
        try:
            await self._agent.release(hold)
        except errors.UsbRemoteError as error:
            log.warning("%s was not given back: %s", hold.keeper.name, error)

    def _ping_soon(self) -> None:
        if self._ping is None:
            loop = asyncio.get_running_loop()
            self._ping = loop.call_later(self._ping_interval, self._ping_all)

    def _ping_all(self) -> None:
        """Whoever waits, watches or holds hears from us; without them nothing wakes us."""
        self._ping = None
        busy = {*self._watchers, *self._holds, *self._tasks.values()}
        if busy:
            self._ping_soon()
        for connection in busy:
            connection.push(replies.PING)


def _refuse_everything(request: AttachRequest | DetachRequest) -> None:
    query = request.query
    if query.model_copy(update={"first": False}) == type(query)():
        raise errors.InvalidRequest("Invalid request format: which device?")


def _json(model: Any) -> dict[str, Any]:
    data: dict[str, Any] = model.model_dump(mode="json")
    return data


def _view_line(view: View) -> bytes:
    return _event(AgentEvent(event="view", view=view))


def _event(event: AgentEvent) -> bytes:
    return agent_protocol.event_line(event)
