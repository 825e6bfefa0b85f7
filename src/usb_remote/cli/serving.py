"""`server`: build the parts, run until a signal, put everything back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from usb_remote import (
    __version__,
    errors,
    exporter,
    history,
    hooks,
    identity,
    lease,
    leases,
    notify,
    protocol,
    replies,
    server,
    sharing,
    state,
    survivors,
)
from usb_remote.cli import output, reloading, table
from usb_remote.cli.reloading import LoadConfig
from usb_remote.config import ServerConfig, server_name
from usb_remote.control import Limits, is_used_up, limits_within
from usb_remote.mdns import advertise
from usb_remote.model import Device, State

if TYPE_CHECKING:
    from usb_remote.protection import Guard

log = logging.getLogger(__name__)

INET6 = Path("/proc/net/if_inet6")
"""The IPv6 addresses of this machine; there if its kernel has IPv6."""


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


def _limits() -> Limits:
    """What fits into the files that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits_within(soft)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """That nothing can be accepted asyncio would tell with a thousand tracebacks a second."""
    if not is_used_up(context.get("exception")):
        loop.default_exception_handler(context)


async def _serve_kernel(config: ServerConfig, load: LoadConfig) -> None:
    from usb_remote import protection, usbip_host
    from usb_remote.udev.devices import Devices
    from usb_remote.udev.monitor import DEVICES, USED, Monitor

    guard = protection.Guard()
    host = usbip_host.Host(guard=guard)
    await host.load()
    try:
        host.check()
    except errors.SystemFault as error:
        log.warning("%s; until then devices are listed, but cannot be attached", error)
        log.info("hint: %s", error.hint)
        log.info("hint: to try usb-remote without any of this: usb-remote server --virtual")
    devices = Devices(protection.Protection())
    monitor = Monitor(*DEVICES, files=USED, routes=True)
    await _run(config, load, Bus(devices, host, monitor, guard, outlives=True), _salt(config))


async def _serve_virtual(config: ServerConfig, load: LoadConfig) -> None:
    from usb_remote.cli import plugging
    from usb_remote.virtual import KINDS, VirtualDevices

    devices = VirtualDevices(*KINDS)
    try:
        plugging.obey_commands(devices)
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
    """Where devices come from, what exports them, and what says that they may have changed.

    Attributes:
        guard: keeps the host from what it must not take; None if there is nothing like that.
        outlives: whether sessions go on without this process.

    """

    source: sharing.DeviceSource
    host: lease.ExportHost
    wakeup: server.Wakeup
    guard: Guard | None = None
    outlives: bool = False


async def _run(config: ServerConfig, load: LoadConfig, bus: Bus, salt: str) -> None:
    stopped = asyncio.Event()
    service = notify.Service()
    addresses = listenable(config.listen)
    kept = _state(config, salt)
    name = server_name(config.name or identity.host_name())
    info = replies.Info(id=identity.server_id(salt), name=name, version=__version__)
    async with contextlib.AsyncExitStack() as stack:
        hook = hooks.Hook(config.on_event, info.name)
        stack.push_async_callback(hook.stop)
        past = history.History(state.StateFile(kept and kept / "history.jsonl"))
        past.on_event = hook
        stack.callback(past.flush)
        names = sharing.NameBook(state.StateFile(kept and kept / "names.jsonl"))
        shared = sharing.SharedDevices(bus.source, names)
        if bus.guard is not None:
            bus.guard.gives_away = shared.gives_away
        held = leases.Leases(shared, bus.host, past, plugged=bus.source)
        held.keeper = survivors.Keeper(service) if bus.outlives else None
        stack.push_async_callback(held.stop)
        export = exporter.Exporter(shared, held)
        stack.push_async_callback(export.stop)
        info = info.model_copy(update={"usbip_port": config.usbip_port})
        control = server.ControlServer(shared, bus.wakeup, held, past, info, _limits())
        asyncio.get_running_loop().set_exception_handler(_on_loop_error)
        policy = reloading.Policy(load, shared, held, export, control, hook, service, stopped)
        policy.apply(config)
        reloading.obey_signals(policy)
        with _blaming(config.usbip_port):
            export.bind(addresses, config.usbip_port)
        await go_on(held, past, shared, bus.host)
        export.start()
        control.info = info.model_copy(update={"usbip_port": export.port})
        held.on_change = control.holders_changed
        stack.push_async_callback(control.stop)
        with _blaming(config.port):
            await control.start(addresses, config.port)
        if config.advertise:
            advertiser = advertise.Advertiser(control.info, control.port, config.listen)
            stack.push_async_callback(advertiser.stop)
            await advertiser.start()
        service.ready(_say_ready(control.info, control))
        await stopped.wait()
        held.leaves = bus.outlives and await survivors.is_restart()
        service.stopping()
        end = "clients are dropped, devices go back to their own drivers"
        log.info("restarting: sessions go on meanwhile" if held.leaves else f"stopping: {end}")


@contextlib.contextmanager
def _blaming(port: int) -> Iterator[None]:
    """If a port is taken, say by whom, and the command that ends just that."""
    try:
        yield
    except errors.SystemFault as error:
        is_taken = getattr(error.__cause__, "errno", None) == errno.EADDRINUSE
        if is_taken and (better := _with_holder(error, port)):
            raise better from error
        raise


def _with_holder(error: errors.SystemFault, port: int) -> errors.SystemFault | None:
    from usb_remote.doctor import ports
    from usb_remote.doctor.machine import Machine

    taken = ports.holders(Machine(), "tcp", port)
    if not taken:  # it has just ended
        return None
    mend, _ = ports.freeing(taken, port)
    return errors.SystemFault(f"{error.message} by {taken}", hint=f"type: {mend}")


async def go_on(
    held: leases.Leases,
    past: history.History,
    shared: sharing.SharedDevices,
    host: lease.ExportHost,
) -> None:
    """Go on where the server before has left off, as far as that is possible."""
    going_on: list[survivors.Survivor] = []
    if held.keeper is not None:
        sessions, devices = past.open_sessions(), _all_devices(shared)
        going_on = held.keeper.survivors(sessions, devices, host.list_bound())
    past.close_open_sessions(datetime.now(UTC), {one.device.id for one in going_on})
    await held.start(going_on)
    await held.enforce()


def _all_devices(shared: sharing.SharedDevices) -> list[Device]:
    """Also what a new rule hides: its session has to go on in order to end as forbidden."""
    hidden = {device.bus_id: device for device in shared.source.list_devices()}
    shown = {device.bus_id: device for device in shared.list_devices()}
    return list((hidden | shown).values())


def _state(config: ServerConfig, salt: str) -> Path | None:
    """Where this server keeps things; one on any free port is another one each time."""
    if config.state_dir:
        return Path(config.state_dir).expanduser()
    return state.directory() / salt if config.port else None


def _say_ready(info: replies.Info, control: server.ControlServer) -> str:
    """Say it to people, and return what to say to systemd."""
    count = len(control.snapshot.devices)
    ports = f"on ports {control.port} (control) and {info.usbip_port} (USB/IP)"
    devices = f"{count} device{'' if count == 1 else 's'}"
    log.info("usb-remote %s serves %s as %s %s", info.version, devices, info.name, ports)
    if sys.stderr.isatty():
        _show(info.name, control.snapshot.devices)
    return f"serves as {info.name} {ports}"


def _show(name: str, devices: Sequence[Device]) -> None:
    """For somebody at a terminal: what there is, and what to type where it is wanted."""
    for line in table.device_lines([d.model_dump(mode="json") for d in devices]):
        log.info("%s", line)
    free = [device for device in devices if device.state is State.AVAILABLE]
    command = (
        f"sudo usb-remote attach {output.handle(name, free[0])}" if free else "usb-remote list"
    )
    log.info("next, where you want them: %s (this runs until Ctrl-C)", command)


def listenable(addresses: list[str], inet6: Path = INET6) -> list[str]:
    """Leave ``::`` out on a machine without IPv6."""
    has_ipv6 = inet6.exists()
    return [a for a in addresses if has_ipv6 or ":" not in a]
