"""What all tests share: a real server with virtual devices on loopback, and leak guards."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from usb_remote import control, exporter, history, lease, leases, protocol, server, sharing, state
from usb_remote.model import Server
from usb_remote.virtual import KINDS, VirtualDevices

HOST = "127.0.0.1"

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No thread and no file descriptor outlives a test (event loops are pytest-asyncio's)."""
    threads = set(threading.enumerate())
    before = _descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=5)
    left = [t for t in set(threading.enumerate()) - threads if not t.name.startswith("asyncio")]
    assert not left, f"threads left behind: {left}"
    opened = {fd: what for fd, what in _descriptors().items() if before.get(fd) != what}
    sockets = {fd: what for fd, what in opened.items() if what.startswith("socket")}
    loop_pair = 2  # pytest-asyncio's own wake-up sockets
    assert len(sockets) <= loop_pair, f"sockets left behind: {sockets}"


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[fd.name] = str(fd.readlink())
    return found


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
    handshake_timeout: float = 5.0,
    limits: control.Limits = control.Limits(),
    folder: Path | None = None,
) -> AsyncIterator[Running]:
    devices = VirtualDevices(*kinds)
    past = history.History(state.StateFile(folder and folder / "history.jsonl"))
    names = sharing.NameBook(state.StateFile(folder and folder / "names.jsonl"))
    shared = sharing.SharedDevices(devices, names)
    held = leases.Leases(shared, devices, past, times)
    export = exporter.Exporter(shared, held, handshake_timeout)
    await held.start()
    await export.start([HOST], 0)
    info = protocol.Info(id="0" * 31 + "1", name="bench", version="3", usbip_port=export.port)
    listening = server.ControlServer(shared, devices, held, past, info, limits)
    held.on_change = listening.holders_changed
    await listening.start([HOST], 0)
    try:
        yield Running(devices, shared, past, held, export, listening)
    finally:
        await listening.stop()
        await export.stop()
        await held.stop()
        devices.close()


@pytest.fixture
async def bench() -> AsyncIterator[Running]:
    async with running_server(*KINDS) as running:
        yield running


async def eventually(condition: object, timeout: float = 5.0) -> None:
    """Wait until something that has no event of its own becomes true."""
    assert callable(condition)
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - the point of this function
            await asyncio.sleep(0.005)
