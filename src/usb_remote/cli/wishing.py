"""`status`: what is wished for on this machine, and how that goes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from usb_remote import errors, wiring
from usb_remote.agent_protocol import Stage, Status, StatusRequest, parse_statuses
from usb_remote.cli import output

NO_AGENT = "there is no agent on this machine"
HOW_TO_START = "sudo systemctl start usb-remote-agent, or by hand: sudo usb-remote agent"


def show_status(option: Path | None, *, as_json: bool) -> None:
    statuses = wiring.run(_statuses(option))
    if as_json:
        output.print_json(wishes=[status.model_dump(mode="json") for status in statuses])
        return
    for status in statuses:
        for line in describe(status):
            print(line)
    if not statuses:
        output.note("nothing is wished for; usb-remote attach --keep DEVICE changes that")


async def _statuses(option: Path | None) -> tuple[Status, ...]:
    connection = await wiring.agent(option)
    if connection is None:
        raise errors.NotFound(NO_AGENT, hint=HOW_TO_START)
    async with connection:
        return parse_statuses((await connection.request(StatusRequest())).data)


def describe(status: Status) -> list[str]:
    """A wish as people read it: the first line says it all, the others why."""
    since = output.local_time(status.since)
    lines = [f"{status.name}  {status.stage} since {since}  ({_what(status)})"]
    if status.attached:
        attached = status.attached
        lines.append(f"  {output.describe_device(attached.match)}")
        lines.append(f"  vhci port {attached.attachment.vhci_port}, {attached.directory or '-'}")
    if status.error:
        lines.append(f"  {status.error.message}" + _again(status.retry_at))
        lines += [f"  hint: {status.error.hint}"] if status.error.hint else []
    if status.note:
        lines.append(f"  {status.note}")
    if status.stage is Stage.ENDED:
        lines.append(f"  usb-remote attach {status.wish} asks for it again")
    lines += [f"  lost {output.local_time(loss.at)}: {loss}" for loss in status.losses[-3:]]
    return lines


def _what(status: Status) -> str:
    return f"{status.kind} by {status.by}: {status.wish}"


def _again(moment: datetime | None) -> str:
    return f"; trying again at {output.local_time(moment)}" if moment else ""
