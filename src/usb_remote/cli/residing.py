"""`agent`: build the parts, run until a signal; what is attached stays attached."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from usb_remote import __version__, errors, notify, state, wiring
from usb_remote.agent import wishes
from usb_remote.agent.desk import Desk
from usb_remote.agent.links import ROOT
from usb_remote.agent_protocol import AgentInfo
from usb_remote.cli import output, signals
from usb_remote.config import Config
from usb_remote.connection import agent_socket

log = logging.getLogger(__name__)

LoadConfig = Callable[[], Config]


def serve(load: LoadConfig, path: Path | None) -> None:
    """Run the agent until SIGTERM or Ctrl-C; SIGHUP loads the configuration again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to load again
    config = load()
    if logging.getLogger().level > logging.INFO:
        output.log_to_stderr(progress=True)
    asyncio.run(_serve(config, load, path))


async def _serve(config: Config, load: LoadConfig, path: Path | None) -> None:
    socket = agent_socket()
    if not socket:
        raise errors.UsageError("USB_REMOTE_AGENT is empty, so there is no socket to listen on")
    service = notify.Service()
    file = state.StateFile(state.directory() / "agent" / "wishes.jsonl")
    info = AgentInfo(version=__version__, config=str(path) if path else None)
    links = ROOT if os.geteuid() == 0 else None
    async with AsyncExitStack() as stack:
        resident = await stack.enter_async_context(wiring.resident(config, file, links))
        desk = Desk(resident.agent, resident.world, wiring.list_attachments, info)
        stack.push_async_callback(desk.stop)
        await desk.start(Path(socket))
        resident.agent.start(map(wishes.of_config, config.attach))
        await _prepare(config)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in signals.heeded(signals.END):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, _reload, config, load, resident, service)
        log.info("usb-remote %s keeps devices attached; it listens on %s", __version__, socket)
        service.ready(f"keeps devices attached, listens on {socket}")
        _return_memory()
        await stopped.wait()
        service.stopping()
        log.info("stopping: what is attached stays attached")


async def _prepare(config: Config) -> None:
    """Load the kernel module now rather than with the first device."""
    try:
        await wiring.client(config).prepare()
    except errors.SystemFault as error:
        log.warning("%s", error)
        log.info("hint: %s", error.hint)


def _return_memory() -> None:
    """What only the start needed goes back to the kernel: 0.7 of 44 MB; malloc_trim(3), glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reload(
    before: Config, load: LoadConfig, resident: wiring.Resident, service: notify.Service
) -> None:
    """Tell systemd when it begins and when it is done, whatever comes of it."""
    service.reloading()
    try:
        _take(load(), before, resident)
    except errors.UsbRemoteError as error:
        log.error("the configuration stays as it was: %s", error)
        if error.hint:
            log.info("hint: %s", error.hint)
    service.ready()


def _take(config: Config, before: Config, resident: wiring.Resident) -> None:
    """Wish for what the file says now."""
    fixed = ("servers", "server_ranges", "timeout", "server_port", "discovery")
    changed = [key for key in fixed if getattr(config, key) != getattr(before, key)]
    if changed:
        log.warning("%s: that takes a restart", ", ".join(changed))
    resident.agent.configure(map(wishes.of_config, config.attach))
    log.info("the configuration was loaded again")
