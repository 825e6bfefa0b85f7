"""An agent of this process behind its real unix socket; the kernel is that of importing.py.

What belongs here: what starts agents, and what people and programs ask of them in tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.importing import ArrivedAtOnce, Bell, NoticingImporter
from tests.serving import HOST, Running, found, knowing
from tests.waiting import eventually
from usb_remote import agent_protocol, protocol
from usb_remote.agent import wishes
from usb_remote.agent.agent import Agent
from usb_remote.agent.desk import Desk
from usb_remote.agent.links import Links
from usb_remote.agent.parts import Parts
from usb_remote.agent.times import Times
from usb_remote.agent.wishes import WishBook
from usb_remote.agent.world import World
from usb_remote.agent_protocol import (
    AgentInfo,
    AttachRequest,
    DetachRequest,
    Stage,
    Status,
    StatusRequest,
)
from usb_remote.client import Arrival, Client
from usb_remote.config import WishConfig
from usb_remote.connection import AgentConnection, connect, connect_agent
from usb_remote.events import Event
from usb_remote.model import Server
from usb_remote.protocol import HistoryRequest
from usb_remote.replies import parse_history
from usb_remote.state import StateFile
from usb_remote.watcher import Watcher
from usb_remote.wiring import known_first, nobody

BRISK = Times(look_around=0.02, tick=0.1, first_delay=0.05)
"""Nothing else is waited for than the server; what a test is about, it sets itself."""


@dataclass
class Here:
    """An agent that runs in this process, and what it works with."""

    agent: Agent
    world: World
    importer: NoticingImporter
    bell: Bell
    folder: Path
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def socket(self) -> str:
        return str(self.folder / "agent.sock")

    async def talk(self) -> AgentConnection:
        connection = await connect_agent(2.0, self.socket)
        assert connection is not None
        return connection

    async def ask(self, request: agent_protocol.AgentRequest) -> Any:
        async with await self.talk() as connection:
            return (await connection.request(request)).data

    async def attach(self, handle: str, **more: Any) -> Any:
        return await self.ask(protocol.build(AttachRequest, {"handle": handle, **more}))

    async def detach(self, handle: str) -> Any:
        return await self.ask(protocol.build(DetachRequest, {"handle": handle}))

    async def status(self) -> list[Status]:
        return list(agent_protocol.parse_statuses(await self.ask(StatusRequest(v=1))))

    def stages(self) -> dict[str, Stage]:
        return {status.name: status.stage for status in self.agent.statuses()}

    def pull(self, bench: Running, kind: str) -> None:
        bench.devices.pull(kind)
        self.notice()

    def notice(self) -> None:
        """The kernel's event comes a moment after the connection is closed."""
        asyncio.get_running_loop().call_later(0.02, self.bell.ring)


@contextlib.asynccontextmanager
async def residing(
    folder: Path,
    *servers: str,
    attach: tuple[WishConfig, ...] = (),
    importer: NoticingImporter | None = None,
    reconnect: float = 0.05,
    starts: bool = True,
    hears: bool = True,
    times: Times = BRISK,
    arrives: Callable[[], Arrival] = ArrivedAtOnce,
) -> AsyncIterator[Here]:
    """An agent, once it has heard of all servers, if it `hears` of them."""
    bell = importer._bell if importer else Bell()
    here = importer or NoticingImporter(bell, folder)
    config = knowing(*servers)
    book = WishBook(StateFile(folder / "wishes.jsonl"))
    watcher = Watcher(config, known_first(book.list_servers(), nobody()), reconnect)
    world = World(watcher.watch, here.list_attachments, bell, times=times)
    client = Client(config, found(), here, arrives, "me", lambda: {HOST})
    links = Links(here.nodes.list_parts, folder / "dev", folder / "udev")
    parts = Parts(world, client, links, partial(history_of, config.timeout), {}, times)
    agent = Agent(parts, book)
    running = Here(agent, world, here, bell, folder)
    desk = Desk(agent, world, here.list_attachments, AgentInfo(version="3"))
    await desk.start(Path(running.socket), group="no such group")
    running.tasks = [asyncio.create_task(world.run()), asyncio.create_task(agent.run())]
    if starts:
        agent.start(map(wishes.of_config, attach))
    try:
        if hears:
            await eventually(lambda: world.is_settled and len(world.views) >= len(servers))
        yield running
    finally:
        await desk.stop()
        await agent.stop()
        for task in running.tasks:
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        if importer is None:
            for attachment in here.list_attachments():
                await here.detach(attachment.vhci_port)
            bell.close()


async def history_of(timeout: float, server: Server) -> list[Event]:
    async with await connect(server, timeout) as connection:
        return list(parse_history((await connection.request(HistoryRequest())).data))
