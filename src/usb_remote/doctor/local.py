"""The server that runs here, or should; the attachments of a client.

Rule of this file: a server is asked, not guessed; processes only tell who answers instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from usb_remote import errors, protocol, replies
from usb_remote.config import ServerConfig
from usb_remote.connection import connect, list_devices
from usb_remote.doctor import path, ports
from usb_remote.doctor.machine import Machine, user_name
from usb_remote.doctor.report import Check, Finding, Fix, failed, ok, skipped, warning
from usb_remote.model import Attachment, Device, Server, State

UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
UNIT = "usb-remote-server.service"
SERVICE = UNIT.removesuffix(".service")
INSTALL = "sudo usb-remote install-service server"
WHY = f"journalctl -u {SERVICE} -n 20 -o cat"
PATIENCE = 2.0
"""Seconds that a program may take to answer."""


async def ask_here(config: ServerConfig) -> path.Answer:
    """Whether a server of ours runs on this machine."""
    addresses = [a for a in config.listen if a not in ("0.0.0.0", "::")] or ["127.0.0.1", "::1"]
    server = Server(
        name="this machine", addresses=tuple(addresses), port=config.port or protocol.PORT
    )
    found = await path.reach(server.addresses, server.port)
    if found.way is not path.Way.OPEN:
        return path.Answer()
    return await path.ask_info(server, found.address)


async def check_server(
    machine: Machine, config: ServerConfig, here: path.Answer, version: str, *, asked: bool
) -> Finding:
    """Whether a server answers here; if none was asked for, that is no failure."""
    check, port = Check.SERVER, config.port or protocol.PORT
    taken = ports.holders(machine, "tcp", port)
    if here.info is not None:
        return _check_running(machine, here.info, taken, version)
    if isinstance(here.error, errors.Refused):
        return warning(check, "usb-remote 2.x serves here", INSTALL)
    if any(found.is_ours for found in taken.processes):
        text = f"{taken} has TCP port {port}, but does not answer"
        return failed(check, text, _restart(machine, taken))
    if taken:
        return failed(check, f"TCP port {port} is taken by {taken}", *ports.freeing(taken, port))
    text = f"no server runs here (nobody listens on TCP port {port})"
    mend = "sudo usb-remote server"
    if _has_unit(machine):
        _, state = await machine.ask(["systemctl", "is-active", SERVICE], PATIENCE)
        if state.strip() in ("failed", "activating"):
            return failed(check, f"{SERVICE} cannot start: it is {state.strip()}", WHY)
        mend = f"sudo systemctl enable --now {SERVICE}"
    return failed(check, text, mend) if asked else warning(check, text, mend)


def _has_unit(machine: Machine) -> bool:
    return any(machine.exists(f"{folder}/{UNIT}") for folder in UNITS)


def _restart(machine: Machine, taken: ports.Holders) -> str:
    """The command for one that is there already, as a service or by hand."""
    if _has_unit(machine) or not taken.processes:
        return f"sudo systemctl restart {SERVICE}"
    return f"{ports.freeing(taken, protocol.PORT)[0]}; sudo usb-remote server"


def _check_running(
    machine: Machine, info: replies.Info, taken: ports.Holders, version: str
) -> Finding:
    """After an upgrade the old one runs on until it is started again."""
    by = f", by {taken.processes[0]}" if taken.processes else ""
    text = f"usb-remote {info.version} serves here as {info.name}{by}"
    if info.version != version:
        mend = INSTALL if _has_unit(machine) else _restart(machine, taken)
        return warning(Check.SERVER, f"{text}, but {version} is installed", mend)
    return ok(Check.SERVER, text)


def is_virtual(machine: Machine, config: ServerConfig) -> bool:
    """Whether the server that runs here shares programs, and needs no kernel for them."""
    taken = ports.holders(machine, "tcp", config.port or protocol.PORT)
    return any("--virtual" in found.words for found in taken.processes if found.is_ours)


def check_server_permission(machine: Machine, config: ServerConfig, *, runs: bool) -> Finding:
    """Binding writes to files of root, so the server has to be root."""
    check = Check.SERVER_PERMISSION
    if not runs:
        return skipped(check, "no server runs here")
    if is_virtual(machine, config):
        return ok(check, "the server's devices are virtual, so it needs no root")
    taken = ports.holders(machine, "tcp", config.port or protocol.PORT)
    if 0 in taken.users:
        return ok(check, "the server runs as root")
    who = user_name(taken.users[0]) if taken.users else "another user"
    text = f"the server runs as {who}, who may not bind devices"
    return failed(check, text, "sudo usb-remote server  # as root, in place of the one that runs")


def check_announced(here: path.Answer, heard: Iterable[Server], *, advertise: bool) -> Finding:
    """Whether this machine hears its own server by mDNS, as clients should."""
    check = Check.ANNOUNCED
    if here.info is None:
        return skipped(check, "no server runs here")
    if not advertise:
        return skipped(check, "server.advertise is false, so clients need this server's address")
    if any(server.id == here.info.id for server in heard):
        return ok(check, f"{here.info.name} is announced by mDNS")
    text = f"{here.info.name} runs, but is not heard by mDNS"
    return failed(check, text, "sudo systemctl restart usb-remote-server")


# -- what is attached here


async def check_attachments(
    attachments: list[Attachment], server_at: Callable[[str], Server], client_id: str
) -> list[Finding]:
    """Attachments that their server knows nothing of are dead, and only take a vhci port."""
    if not attachments:
        return [ok(Check.ATTACHMENTS, "nothing is attached here")]
    checks = (_check_attachment(a, server_at, client_id) for a in attachments)
    found = await asyncio.gather(*checks)
    bad = [finding for finding in found if finding is not None]
    return bad or [ok(Check.ATTACHMENTS, f"{len(attachments)} attached here, and alive")]


async def _check_attachment(
    local: Attachment, server_at: Callable[[str], Server], client_id: str
) -> Finding | None:
    if local.bus_id is None:
        return skipped(
            Check.ATTACHMENTS, f"vhci port {local.vhci_port}: only root sees whose device it is"
        )
    name = f"{local.address}/{local.bus_id}"
    try:
        async with await connect(server_at(local.address), path.ANSWER_TIMEOUT) as connection:
            listing = await list_devices(connection)
    except errors.UsbRemoteError as error:
        text = f"{name} is attached here, but its server does not answer: {error.message}"
        return warning(Check.ATTACHMENTS, text, f"sudo usb-remote detach {name}")
    devices = [d for d in listing.snapshot.devices if d.bus_id == local.bus_id]
    if listing.server.version is None or (devices and _is_held(devices[0], client_id)):
        return None
    text = f"{name} is attached here (vhci port {local.vhci_port}), but not for its server: stale"
    commands = (("usbip", "detach", "--port", str(local.vhci_port)),)
    fix = Fix(what=f"detach the stale {name}", commands=commands)
    return failed(Check.ATTACHMENTS, text, f"sudo {' '.join(commands[0])}", fix)


def _is_held(device: Device, client_id: str) -> bool:
    """Whether the server says that somebody has it, who may be this machine."""
    holder = device.holder
    known = holder is None or holder.client in (None, client_id)
    return device.state is State.IN_USE and known
