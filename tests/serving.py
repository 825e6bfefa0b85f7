"""A real server of this process on loopback, its devices programs; and how clients come to know it.

What belongs here: what starts servers, asks them about themselves, and names them for clients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from usb_remote import (
    control,
    exporter,
    history,
    lease,
    leases,
    protocol,
    replies,
    server,
    sharing,
    state,
)
from usb_remote.config import Config
from usb_remote.model import Server, State
from usb_remote.virtual import VirtualDevices

HOST = "127.0.0.1"
QUICK = lease.Times(grace=0.05, reservation=600.0)
"""A device hardly stays bound after its session. What is reserved is not free by itself so soon
that a test would take that for what it waits for."""


@dataclass
class Running:
    """A server that runs in this process."""

    devices: VirtualDevices
    shared: sharing.SharedDevices
    history: history.History
    leases: leases.Leases
    exporter: exporter.Exporter
    control: server.ControlServer

    @property
    def server(self) -> Server:
        return Server(
            name="bench", addresses=(HOST,), port=self.control.port, usbip_port=self.exporter.port
        )


@contextlib.asynccontextmanager
async def running_server(
    *kinds: str,
    times: lease.Times = lease.Times(),
    handshakes: exporter.HandshakeLimits = exporter.HandshakeLimits(),
    limits: control.Limits = control.Limits(),
    echo: float = server.OWN_ECHO,
    ping: float = protocol.PING_INTERVAL,
    folder: Path | None = None,
    bus: type[VirtualDevices] = VirtualDevices,
) -> AsyncIterator[Running]:
    devices = bus(*kinds)
    past = history.History(state.StateFile(folder and folder / "history.jsonl"))
    names = sharing.NameBook(state.StateFile(folder and folder / "names.jsonl"))
    shared = sharing.SharedDevices(devices, names)
    held = leases.Leases(shared, devices, past, times, devices)
    export = exporter.Exporter(shared, held, handshakes)
    await held.start()
    export.bind([HOST], 0)
    export.start()
    own_id = f"{os.getpid():032x}"  # claims of other test processes are for other servers
    info = replies.Info(id=own_id, name="bench", version="3", usbip_port=export.port)
    listening = server.ControlServer(shared, devices, held, past, info, limits, echo, ping)
    held.on_change = listening.holders_changed
    await listening.start([HOST], 0)
    try:
        yield Running(devices, shared, past, held, export, listening)
    finally:
        await listening.stop()
        await export.stop()
        await held.stop()
        devices.close()


def state_of(bench: Running, bus_id: str) -> State:
    return next(d.state for d in bench.control.snapshot.devices if d.bus_id == bus_id)


def at(bench: Running) -> str:
    """The server as a configuration names it."""
    return f"{HOST}:{bench.control.port}"


def knowing(*configured: str, timeout: float = 20.0) -> Config:
    """A configuration with these servers; nobody listens on its port for others."""
    return Config(servers=list(configured), timeout=timeout, server_port=1)


def found(*servers: Server) -> Callable[[], AsyncIterator[Server]]:
    """What mDNS finds: these."""

    async def browse() -> AsyncIterator[Server]:
        for one in servers:
            yield one

    return browse
