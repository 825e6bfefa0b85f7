"""`server`: build the parts, run until a signal, put everything back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO
from typing import TYPE_CHECKING

from usb_remote import __version__, errors, exporter, identity, leases, protocol, server
from usb_remote.cli import output
from usb_remote.config import ServerConfig
from usb_remote.mdns import advertise

if TYPE_CHECKING:
    from usb_remote.virtual import VirtualDevices

log = logging.getLogger(__name__)


def serve(config: ServerConfig, *, virtual: bool) -> None:
    """Run a server until SIGTERM or Ctrl-C."""
    if logging.getLogger().level > logging.INFO:
        output.log_to_stderr(progress=True)
    _allow_many_files()
    asyncio.run(_serve_virtual(config) if virtual else _serve_kernel(config))


def _allow_many_files() -> None:
    """A thousand idle clients must not use up our file descriptors (the soft limit is 1024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


async def _serve_kernel(config: ServerConfig) -> None:
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
    await _run(config, devices, host, monitor, identity.server_id(_salt(config)))


async def _serve_virtual(config: ServerConfig) -> None:
    from usb_remote.virtual import KINDS, VirtualDevices

    devices = VirtualDevices(*KINDS)
    try:
        with _commands(devices):
            salt = f"virtual{_salt(config)}"
            await _run(config, devices, devices, devices, identity.server_id(salt))
    finally:
        devices.close()


def _salt(config: ServerConfig) -> str:
    """Two servers on one machine differ in their port; a free port is as good as the process."""
    if config.port == 0:
        return f"process{os.getpid()}"
    return "" if config.port == protocol.PORT else str(config.port)


async def _run(
    config: ServerConfig,
    source: leases.DeviceSource,
    host: leases.ExportHost,
    wakeup: server.Wakeup,
    server_id: str,
) -> None:
    stopped = _on_signals()
    info = protocol.Info(
        id=server_id, name=config.name or identity.host_name(), version=__version__
    )
    addresses = _listenable(config.listen)
    async with contextlib.AsyncExitStack() as stack:
        held = leases.Leases(source, host)
        stack.push_async_callback(held.stop)
        export = exporter.Exporter(source, held)
        stack.push_async_callback(export.stop)
        await export.start(addresses, config.usbip_port)
        await held.start()
        info = info.model_copy(update={"usbip_port": export.port})
        control = server.ControlServer(source, wakeup, held, info)
        held.on_change = control.holders_changed
        stack.push_async_callback(control.stop)
        await control.start(addresses, config.port)
        if config.advertise:
            advertiser = advertise.Advertiser(info, control.port, config.listen)
            stack.push_async_callback(advertiser.stop)
            await advertiser.start()
        _say_ready(info, control)
        await stopped.wait()
        log.info("stopping: clients are dropped, devices go back to their own drivers")


def _say_ready(info: protocol.Info, control: server.ControlServer) -> None:
    count = len(control.snapshot.devices)
    log.info(
        "usb-remote %s serves %d device%s as %s on ports %d (control) and %d (USB/IP)",
        info.version, count, "" if count == 1 else "s", info.name, control.port, info.usbip_port,
    )  # fmt: skip


def _on_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


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
