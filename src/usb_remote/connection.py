"""One connection, to a server or to the agent of this machine: requests and replies, or a watch.

Rule of this file: whatever goes wrong on the way is Unreachable (or InvalidReply), with the
server's name in it; no other exception leaves it. How one to a server is opened: addresses.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from usb_remote import agent_protocol, errors, protocol, protocol_2x, replies
from usb_remote.addresses import SILENCE, open_first
from usb_remote.model import Listing, Server, Snapshot

_T = TypeVar("_T")
_D = TypeVar("_D")
Tell = Callable[[replies.WatchEvent], None]


def _ignore(_event: replies.WatchEvent) -> None:
    """Events before an answer are for those who wait."""


class _Lines:
    """An open stream of lines to somebody.

    ``_hint`` says what to look at when it was closed.

    Attributes:
        server: whom we asked for.
        hung_up: whether the other side has closed it.

    """

    _hint = "does server.allow_from in its configuration let this machine in?"
    _silent_hint = "usb-remote doctor looks at each step of the way to it"

    def __init__(
        self,
        server: Server,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        timeout: float,
    ) -> None:
        self.server = server
        self.hung_up = False
        self._reader = reader
        self._writer = writer
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _ask(self, line: bytes, extra: float = 0) -> bytes:
        try:
            self._writer.write(line)
            await self._writer.drain()
        except OSError as error:
            raise self._lost(error) from error
        return await self._read_line(self._timeout + extra)

    async def _read_line(self, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                line = await self._next_line()
        except TimeoutError:
            raise errors.Silent(
                f"{self.server.name} did not answer within {timeout:g} s", hint=self._silent_hint
            ) from None
        except ValueError:
            raise errors.InvalidReply(
                f"{self.server.name} answers more than {protocol.MAX_REPLY} bytes"
            ) from None
        if not line:
            raise self._hung_up(f"{self.server.name} closed the connection")
        return line

    async def _next_line(self) -> bytes:
        """What TCP says of its time-out (ETIMEDOUT) is a TimeoutError, too, but not of ours."""
        try:
            return await self._reader.readline()
        except OSError as error:
            raise self._lost(error) from error

    def understood(self, read: Callable[[_D], _T], data: _D) -> _T:
        """What the other side says, read by this; its nonsense is reported with its name."""
        try:
            return read(data)
        except errors.InvalidReply as error:
            raise errors.InvalidReply(
                f"{self.server.name}: {error.message}", hint=self._silent_hint
            ) from None

    def _lost(self, error: OSError) -> errors.Unreachable:
        if error.errno in SILENCE:
            return errors.Silent(f"connection to {self.server.name} lost: {error.strerror}")
        return self._hung_up(f"connection to {self.server.name} lost: {error.strerror}")

    def _hung_up(self, message: str) -> errors.Unreachable:
        self.hung_up = True
        return errors.Unreachable(message, hint=self._hint)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Connection(_Lines):
    """An open connection to a server; use :func:`connect` to make one.

    Attributes:
        address: which of its addresses answered.
        local_address: our own address on this connection, as the server sees it.

    """

    def __init__(
        self,
        server: Server,
        address: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        timeout: float,
    ) -> None:
        super().__init__(server, reader, writer, timeout)
        self.address = address
        self.local_address = str(writer.get_extra_info("sockname")[0])

    async def request(self, request: protocol.Request, tell: Tell = _ignore) -> replies.Reply:
        """Ask and wait for the answer; a 2.x server is asked again in its own words.

        Args:
            request: what to ask.
            tell: called with each event that comes before the answer.

        Raises:
            Unreachable, InvalidReply: nobody, or somebody else, is there.
            UsbRemoteError: what the server answers.

        """
        try:
            return self.understood(replies.parse_reply, await self._answer(request, tell))
        except errors.UsbRemoteError as error:
            if not protocol_2x.is_rejection(error):
                raise
        if not protocol_2x.knows(request):
            raise errors.Refused(f"{self.server.name} is usb-remote 2.x and cannot do that")
        legacy = await connect(self.server, self._timeout, only=self.address)
        async with legacy:
            line = await legacy._ask(protocol_2x.request_line(request), protocol.time_for(request))
            return self.understood(replies.parse_reply, line)

    async def _answer(self, request: protocol.Request, tell: Tell) -> bytes:
        """The line that answers; only to who waits may others come before it."""
        extra, wait = protocol.time_for(request), protocol.time_to_wait(request)
        limit = None if wait is None else self._timeout + extra + wait
        try:
            async with asyncio.timeout(limit):
                line = await self._ask(protocol.request_line(request), extra)
                while protocol.waits(request) and replies.is_event(line):
                    tell(self.understood(replies.parse_event, line))
                    line = await self._read_line(protocol.WATCH_TIMEOUT)
                return line
        except TimeoutError:
            raise errors.Silent(
                f"{self.server.name} did not answer within {limit:g} s", hint=self._silent_hint
            ) from None

    async def watch(
        self, silence: float = protocol.WATCH_TIMEOUT
    ) -> AsyncIterator[replies.WatchEvent]:
        """Every change from now on, the current state first, pings included.

        Raises:
            Unreachable: the server has gone, or was silent for so many seconds.

        """
        line = await self._ask(protocol.request_line(protocol.WatchRequest()))
        while True:
            yield self.understood(replies.parse_event, line)
            line = await self._read_line(silence)


TellAgent = Callable[[agent_protocol.AgentEvent], None]


class AgentConnection(_Lines):
    """An open connection to the agent of this machine; use :func:`connect_agent` to make one."""

    _hint = "was it stopped? see: journalctl -u usb-remote-agent"
    _silent_hint = "what does it do? see: journalctl -u usb-remote-agent"
    _owed = 0
    """Answers that have not come yet; those to questions that were cancelled are dropped."""

    async def request(
        self, request: agent_protocol.AgentRequest, tell: TellAgent = lambda event: None
    ) -> replies.Reply:
        """Ask and wait for the answer, for as long as the agent shows that it works on it.

        Args:
            request: what to ask.
            tell: called with each event that comes before the answer.

        Raises:
            Unreachable, InvalidReply: the agent has gone, or is none.
            UsbRemoteError: what it answers.

        """
        self._owed += 1
        line = await self._ask(protocol.request_line(request), protocol.WATCH_TIMEOUT)
        while not self._is_answer(line):
            if replies.is_event(line):
                tell(self.understood(agent_protocol.parse_event, line))
            line = await self._read_line(protocol.WATCH_TIMEOUT)
        return self.understood(replies.parse_reply, line)

    def _is_answer(self, line: bytes) -> bool:
        """Whether this answers the newest question."""
        if replies.is_event(line):
            return False
        self._owed -= 1
        return not self._owed

    async def events(self) -> AsyncIterator[agent_protocol.AgentEvent]:
        """Every event from now on, pings included; raises Unreachable when the agent has gone."""
        while True:
            line = await self._read_line(protocol.WATCH_TIMEOUT)
            if self._owed and not replies.is_event(line):
                self._owed -= 1
            else:
                yield self.understood(agent_protocol.parse_event, line)

    async def watch(self) -> AsyncIterator[agent_protocol.AgentEvent]:
        """Every server's view, again after each change; raises as :meth:`events`."""
        line = await self._ask(protocol.request_line(agent_protocol.WatchRequest()))
        yield self.understood(agent_protocol.parse_event, line)
        async for event in self.events():
            yield event


def agent_socket(environment: Mapping[str, str] = os.environ) -> str:
    """Where the agent listens; empty if none is wanted."""
    return environment.get(agent_protocol.VARIABLE, agent_protocol.SOCKET)


async def connect_agent(timeout: float, path: str | None = None) -> AgentConnection | None:
    """Connect to the agent of this machine, None if there is none.

    Raises:
        Refused: we may not talk to it.

    """
    path = agent_socket() if path is None else path
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path, limit=protocol.MAX_REPLY)
    except PermissionError:
        raise errors.Refused(
            f"only members of the group usb-remote may use the agent of this machine ({path})",
            hint=f"sudo usermod -aG usb-remote {getpass.getuser()}   and log in again",
        ) from None
    except TimeoutError:
        raise errors.Silent(f"the agent ({path}) did not answer within {timeout:g} s") from None
    except (OSError, ValueError):  # no such file, or nobody listens any more
        return None
    return AgentConnection(Server(name="the agent"), reader, writer, timeout)


async def list_devices(connection: Connection) -> Listing:
    """Everything that this server has; raises as :meth:`Connection.request`."""
    reply = await connection.request(protocol.ListRequest())
    devices = connection.understood(replies.parse_devices, reply.data)
    if reply.server and connection.server.id not in (None, reply.server.id):
        raise errors.Unreachable(
            f"{connection.server.name}: another server answers at {connection.address}"
        )
    return Listing(
        server=replies.server_of(reply.server, connection.server, connection.address),
        snapshot=Snapshot(revision=reply.revision, devices=devices),
    )


async def connect(server: Server, timeout: float, *, only: str | None = None) -> Connection:
    """Connect to whichever address of the server answers first; raises as :func:`open_first`."""
    opened = await open_first(server, timeout, only=only)
    return Connection(server, *opened, timeout)
