"""`server`: build the parts, run until a signal, put everything back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO
from typing import TYPE_CHECKING, NamedTuple

from usb_remote import (
    __version__,
    errors,
    exporter,
    history,
    hooks,
    identity,
    lease,
    leases,
    protocol,
    server,
    sharing,
    state,
)
from usb_remote.cli import output
from usb_remote.config import ServerConfig
from usb_remote.mdns import advertise
from usb_remote.rules import Networks

if TYPE_CHECKING:
    from usb_remote.virtual import VirtualDevices

log = logging.getLogger(__name__)

LoadConfig = Callable[[], ServerConfig]


def serve(load: LoadConfig, *, virtual: bool) -> None:
    """Run a server until SIGTERM or Ctrl-C; SIGHUP loads the configuration again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to load again
    config = load()
    if logging.getLogger().level > logging.INFO:
        output.log_to_stderr(progress=True)
    _allow_many_files()
    asyncio.run(_serve_virtual(config, load) if virtual else _serve_kernel(config, load))


def _allow_many_files() -> None:
    """A thousand idle clients must not use up our file descriptors (the soft limit is 1024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


async def _serve_kernel(config: ServerConfig, load: LoadConfig) -> None:
    from usb_remote import protection, usbip_host
    from usb_remote.udev.devices import Devices
    from usb_remote.udev.monitor import USED, Monitor

    host = usbip_host.Host()
    await host.load()
    try:
        host.check()
    except errors.SystemFault as error:
        log.warning("%s; until then devices are listed, but cannot be attached", error)
        log.info("hint: %s", error.hint)
        log.info("hint: to try usb-remote without any of this: usb-remote server --virtual")
    devices = Devices(protection.Protection())
    monitor = Monitor("usb", "block", files=USED)
    await _run(config, load, Bus(devices, host, monitor), _salt(config))


async def _serve_virtual(config: ServerConfig, load: LoadConfig) -> None:
    from usb_remote.virtual import KINDS, VirtualDevices

    devices = VirtualDevices(*KINDS)
    try:
        with _commands(devices):
            bus = Bus(devices, devices, devices)
            await _run(config, load, bus, f"virtual{_salt(config)}")
    finally:
        devices.close()


def _salt(config: ServerConfig) -> str:
    """Two servers on one machine differ in their port; a free port is as good as the process."""
    if config.port == 0:
        return f"process{os.getpid()}"
    return "" if config.port == protocol.PORT else str(config.port)


class Bus(NamedTuple):
    """Where devices come from, what exports them, and what says that they may have changed."""

    source: sharing.DeviceSource
    host: lease.ExportHost
    wakeup: server.Wakeup


async def _run(config: ServerConfig, load: LoadConfig, bus: Bus, salt: str) -> None:
    stopped = asyncio.Event()
    addresses = _listenable(config.listen)
    kept = _state(config, salt)
    info = protocol.Info(
        id=identity.server_id(salt), name=config.name or identity.host_name(), version=__version__
    )
    async with contextlib.AsyncExitStack() as stack:
        hook = hooks.Hook(config.on_event, info.name)
        stack.push_async_callback(hook.stop)
        past = history.History(state.StateFile(kept and kept / "history.jsonl"))
        past.on_event = hook
        past.close_open_sessions(datetime.now(UTC))
        stack.callback(past.flush)
        names = sharing.NameBook(state.StateFile(kept and kept / "names.jsonl"))
        shared = sharing.SharedDevices(bus.source, names)
        held = leases.Leases(shared, bus.host, past)
        stack.push_async_callback(held.stop)
        export = exporter.Exporter(shared, held)
        stack.push_async_callback(export.stop)
        info = info.model_copy(update={"usbip_port": config.usbip_port})
        control = server.ControlServer(shared, bus.wakeup, held, past, info)
        policy = _Policy(load, shared, held, export, control, hook)
        policy.apply(config)
        _on_signals(stopped, policy)
        await export.start(addresses, config.usbip_port)
        await held.start()
        control.info = info.model_copy(update={"usbip_port": export.port})
        held.on_change = control.holders_changed
        stack.push_async_callback(control.stop)
        await control.start(addresses, config.port)
        if config.advertise:
            advertiser = advertise.Advertiser(control.info, control.port, config.listen)
            stack.push_async_callback(advertiser.stop)
            await advertiser.start()
        _say_ready(control.info, control)
        await stopped.wait()
        log.info("stopping: clients are dropped, devices go back to their own drivers")


def _state(config: ServerConfig, salt: str) -> Path | None:
    """Where this server keeps things; one on any free port is another one each time."""
    if config.state_dir:
        return Path(config.state_dir).expanduser()
    return state.directory() / salt if config.port else None


@dataclass
class _Policy:
    """What the configuration says of sharing, and who has to know of it."""

    load: LoadConfig
    shared: sharing.SharedDevices
    held: leases.Leases
    export: exporter.Exporter
    control: server.ControlServer
    hook: hooks.Hook
    config: ServerConfig | None = None

    def apply(self, config: ServerConfig) -> None:
        allowed = Networks(config.allow_from)
        self.shared.configure(config.share, config.names)
        self.held.takeover = config.takeover == "allow"
        self.export.allowed = self.control.allowed = allowed
        self.hook.command = config.on_event
        self.config = config

    async def reload(self) -> None:
        """Take a new configuration if it is right; end what it forbids."""
        try:
            config = self.load()
        except errors.UsbRemoteError as error:
            log.error("the configuration stays as it was: %s", error)
            if error.hint:
                log.info("hint: %s", error.hint)
            return
        self._warn_of_fixed(config)
        self.apply(config)
        self.control.refresh_by_new_rules()
        self.control.close_forbidden()
        await self.held.enforce(lambda address: address in self.control.allowed)
        log.info("the configuration was loaded again")

    def _warn_of_fixed(self, config: ServerConfig) -> None:
        fixed = ("listen", "port", "usbip_port", "name", "advertise", "state_dir")
        changed = [key for key in fixed if getattr(config, key) != getattr(self.config, key)]
        if changed:
            log.warning("server.%s: that takes a restart", ", server.".join(changed))


def _say_ready(info: protocol.Info, control: server.ControlServer) -> None:
    count = len(control.snapshot.devices)
    log.info(
        "usb-remote %s serves %d device%s as %s on ports %d (control) and %d (USB/IP)",
        info.version, count, "" if count == 1 else "s", info.name, control.port, info.usbip_port,
    )  # fmt: skip


def _on_signals(stopped: asyncio.Event, policy: _Policy) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
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


def _listenable(addresses: list[str]) -> list[str]:
    """Leave ``::`` out on a machine without IPv6."""
    has_ipv6 = Path("/proc/net/if_inet6").exists()
    return [a for a in addresses if has_ipv6 or ":" not in a]


# -- plugging virtual devices by hand -----------------------------------------------------------


@contextlib.contextmanager
def _commands(devices: VirtualDevices) -> Iterator[None]:
    """Obey ``plug KIND`` and ``pull KIND`` from a terminal or a pipe on stdin."""
    loop = asyncio.get_running_loop()
    mode = os.fstat(sys.stdin.fileno()).st_mode if sys.stdin else 0
    usable = S_ISFIFO(mode) or (S_ISCHR(mode) and os.isatty(sys.stdin.fileno()))
    if usable:
        log.info("type `pull KIND` or `plug KIND` and Enter; kinds: %s", ", ".join(devices.kinds))
        loop.add_reader(sys.stdin.fileno(), _obey, devices)
    try:
        yield
    finally:
        if usable:
            loop.remove_reader(sys.stdin.fileno())


def _obey(devices: VirtualDevices) -> None:
    data = os.read(sys.stdin.fileno(), 4096)
    if not data:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    for line in data.decode(errors="replace").splitlines():
        verb, _, kind = line.strip().partition(" ")
        actions = {"plug": devices.plug, "pull": devices.pull}
        try:
            if verb not in actions:
                raise errors.UsageError(f"{verb!r} is neither plug nor pull")
            actions[verb](kind.strip())
        except errors.UsageError as error:
            log.warning("%s", error)
