"""`server`: what its configuration says of sharing, taken at the start and again at each SIGHUP.

Rule of this file: whatever a reload changes is changed by Policy, and at the start in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from usb_remote import errors, exporter, hooks, leases, notify, server, sharing
from usb_remote.cli import signals
from usb_remote.config import ServerConfig
from usb_remote.rules import Networks

log = logging.getLogger(__name__)

LoadConfig = Callable[[], ServerConfig]


@dataclass
class Policy:
    """What the configuration says of sharing, and who has to know of it."""

    load: LoadConfig
    shared: sharing.SharedDevices
    held: leases.Leases
    export: exporter.Exporter
    control: server.ControlServer
    hook: hooks.Hook
    service: notify.Service
    stopped: asyncio.Event
    config: ServerConfig | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def apply(self, config: ServerConfig) -> None:
        allowed = Networks(config.allow_from)
        self.shared.configure(config.share, config.names)
        self.held.takeover = config.takeover == "allow"
        self.export.allowed = self.control.allowed = self.held.allowed = allowed
        self.hook.command = config.on_event
        self.config = config

    async def reload(self) -> None:
        """Tell systemd when it begins and when it is done, whatever comes of it."""
        async with self.turn:
            self.service.reloading()
            try:
                await self._reload()
            finally:
                self.service.ready()

    async def _reload(self) -> None:
        """Take a new configuration if it is right; end what it forbids."""
        try:
            config = await asyncio.to_thread(self.load)  # 10,000 names take seconds
        except errors.UsbRemoteError as error:
            log.error("the configuration stays as it was: %s", error)
            if error.hint:
                log.info("hint: %s", error.hint)
            return
        if self.stopped.is_set():
            return
        self._warn_of_fixed(config)
        self.apply(config)
        self.control.refresh_by_new_rules()
        self.control.close_forbidden()
        self.export.close_forbidden()
        await self.held.enforce()
        log.info("the configuration was loaded again")

    def _warn_of_fixed(self, config: ServerConfig) -> None:
        fixed = ("listen", "port", "usbip_port", "name", "advertise", "state_dir")
        changed = [key for key in fixed if getattr(config, key) != getattr(self.config, key)]
        if changed:
            log.warning("server.%s: that takes a restart", ", server.".join(changed))


def obey_signals(policy: Policy) -> None:
    """SIGTERM and Ctrl-C end the server; SIGHUP reloads, or ends it if its terminal was closed."""
    loop, stopped = asyncio.get_running_loop(), policy.stopped
    for number in signals.heeded(signals.END):
        loop.add_signal_handler(number, stopped.set)
    reloading: set[asyncio.Task[None]] = set()
    on_terminal = os.isatty(0)

    def reload() -> None:
        if on_terminal and _is_terminal_gone():
            stopped.set()
            return
        task = loop.create_task(policy.reload())
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)


def _is_terminal_gone() -> bool:
    """Whether our terminal was closed: then SIGHUP means what it has always meant."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return True
    return False
