"""`attach`, `detach` and `ports`."""

from __future__ import annotations

import re
from pathlib import Path

from usb_remote import errors, protocol, wiring
from usb_remote.agent_protocol import (
    Attached,
    AttachRequest,
    Detached,
    DetachRequest,
    PortsRequest,
    Status,
)
from usb_remote.cli import output
from usb_remote.cli.wishing import HOW_TO_START, NO_AGENT, describe
from usb_remote.client import How
from usb_remote.config import Config
from usb_remote.errors import UsageError
from usb_remote.matching import Query
from usb_remote.model import Attachment, Match
from usb_remote.protocol import MAX_SECONDS
from usb_remote.replies import validated

_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_TIME = re.compile(r"\d+(\.\d+)?|(\d+(\.\d+)?[smhd])+")


def attach(
    config: Config,
    option: Path | None,
    query: Query,
    wait: str | None,
    duration: str | None,
    *,
    force: bool,
    keep: bool | None,
    name: str | None,
    as_json: bool,
) -> None:
    how = How(
        wait=None if wait is None else parse_time("--wait", wait, least=0),
        duration=None if duration is None else parse_time("--for", duration, least=1),
        force=force,
        tell=output.print_place,
    )
    done = wiring.run(_attach(config, option, query, how, keep, name))
    if isinstance(done, Status):
        _print_kept(done, as_json=as_json)
        return
    if done.already and how.duration:
        output.warn("it was attached already, so --for has no effect; detach it first")
    if as_json:
        output.print_json(**done.model_dump(mode="json"))
    else:
        _print_attached(done)
        if not done.already and not done.directory:  # who has an agent has done so before
            word = output.handle(done.server.name, done.device)
            output.next_step(f"detach {word}", " gives it back")


async def _attach(
    config: Config,
    option: Path | None,
    query: Query,
    how: How,
    keep: bool | None,
    name: str | None,
) -> Attached | Status:
    """Through the agent if there is one, which then follows the device; else by ourselves."""
    connection = await wiring.agent(option)
    if connection is None:
        if keep or name:
            what = "--keep" if keep else "--name"
            raise errors.NotFound(f"{what}: {NO_AGENT}", hint=HOW_TO_START)
        match, attachment, already = await wiring.client(config).attach(query, how)
        return Attached(
            server=match.server, device=match.device, attachment=attachment, already=already
        )
    async with connection:
        reply = await connection.request(_request(query, how, keep, name), output.print_place)
    if "status" in reply.data:
        return validated(Status, reply.data["status"])
    return validated(Attached, reply.data)


def _request(query: Query, how: How, keep: bool | None, name: str | None) -> AttachRequest:
    words = {"wait": how.wait, "duration": how.duration, "force": how.force}
    more = {"keep": keep, "name": name}
    return protocol.build(AttachRequest, {**query.model_dump(), **words, **more})


def _print_kept(status: Status, *, as_json: bool) -> None:
    """A wish that cannot be had just now."""
    if as_json:
        output.print_json(wish=status.model_dump(mode="json"))
        return
    for line in describe(status):
        print(line)
    output.note("it will be attached as soon as that is possible; usb-remote status shows how")


def parse_time(option: str, text: str, *, least: float) -> float:
    """``90``, ``90s``, ``30m``, ``2h``, ``1h30m``, ``1d`` in seconds; raises UsageError."""
    sizes = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    if not (text and _TIME.fullmatch(text)):
        raise UsageError(f"{option}: {text!r} is no time such as 90s, 30m, 2h or 1h30m")
    seconds = sum(float(number) * sizes[unit] for number, unit in _PART.findall(text))
    if not least <= seconds <= MAX_SECONDS:
        raise UsageError(f"{option}: between {least:g} s and {MAX_SECONDS / 86400:g} days")
    return seconds


def _print_attached(done: Attached) -> None:
    verb = "already attached" if done.already else "attached"
    print(f"{verb}: {output.describe_device(done.match)}")
    print(f"  vhci port {done.attachment.vhci_port}")
    for path in done.paths.values() if done.directory else ():
        print(f"  {path}")
    for node in done.attachment.nodes:
        print(f"  {node}")
    if not done.attachment.nodes:
        output.warn("no driver has made a device node yet; see the end of: sudo dmesg")


def detach(config: Config, option: Path | None, query: Query, *, as_json: bool) -> None:
    done = wiring.run(_detach(config, option, query))
    if as_json:
        device = output.device_json(done.server, done.device) if done.server and done.device else {}
        port = done.attachment.vhci_port if done.attachment else None
        several = {"names": done.names} if done.names else {}
        output.print_json(**device, vhci_port=port, **several)
        return
    print(_described(done))
    if done.wish:
        output.note(f"not kept any more: {done.wish}")


async def _detach(config: Config, option: Path | None, query: Query) -> Detached:
    connection = await wiring.agent(option)
    if connection is None:
        match, attachment = await wiring.client(config).detach(query)
        server, device = match or (None, None)
        return Detached(server=server, device=device, attachment=attachment)
    async with connection:
        request = protocol.build(DetachRequest, query.model_dump())
        return validated(Detached, (await connection.request(request)).data)


def _described(done: Detached) -> str:
    if done.names:
        return f"detached: {', '.join(done.names)}"
    what = done.wish or "?"
    if done.server and done.device:
        what = output.describe_device(Match(done.server, done.device))
    elif done.attachment:
        what = f"{done.attachment.address}/{done.attachment.bus_id}"
    if done.attachment is None:
        return f"not attached here: {what}"
    return f"detached: {what} (vhci port {done.attachment.vhci_port})"


def list_ports(*, as_json: bool) -> None:
    attachments = wiring.run(_ports())
    if as_json:
        output.print_json(ports=[a.model_dump(mode="json") for a in attachments])
        return
    for attachment in attachments:
        print(output.describe_attachment(attachment))
    if not attachments:
        output.note("nothing is attached to this machine")


async def _ports() -> list[Attachment]:
    """What the agent knows: it may read what only root can."""
    try:
        connection = await wiring.agent()
    except errors.Refused:
        connection = None
    if connection is None:
        return wiring.list_attachments()
    async with connection:
        reply = await connection.request(PortsRequest())
    return [validated(Attachment, item) for item in reply.data]
