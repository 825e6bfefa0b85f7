"""What people see: stdout is data, everything else goes to stderr. Plain text, no colour needed."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from usb_remote.cli import table
from usb_remote.errors import UsbRemoteError
from usb_remote.model import Attachment, Device, Listing, Match, Server

if TYPE_CHECKING:
    from usb_remote.agent_protocol import AgentEvent
    from usb_remote.events import Event
    from usb_remote.finder import Failure
    from usb_remote.replies import WatchEvent

SCHEMA = 1
"""Version of what ``--json`` prints (docs/reference/json.md)."""


def log_to_stderr(*, verbose: bool = False, progress: bool = False) -> None:
    """Send the log to stderr: warnings, with ``progress`` what a server does, with --debug all."""
    level = logging.DEBUG if verbose else logging.INFO if progress else logging.WARNING
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Form(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # what zeroconf logs as an error it also raises, and mdns/ says it in our words; and its
    # debugging is of bytes in packets
    logging.getLogger("zeroconf").setLevel(logging.WARNING if verbose else logging.CRITICAL)


class _Form(logging.Formatter):
    """A warning starts with ``warning:``, progress with nothing."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        loud = record.levelno >= logging.WARNING and not text[:4].isdigit()
        return f"{record.levelname.lower()}: {text}" if loud else text


def report(error: UsbRemoteError) -> None:
    """``error: …`` and ``hint: …``, the two lines in which every failure ends."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def note(text: str) -> None:
    """Something for people that is no data."""
    print(text, file=sys.stderr)


def next_step(command: str, what: str = "") -> None:
    """What mostly comes next, for somebody at a terminal."""
    if sys.stderr.isatty():
        note(f"next: sudo usb-remote {command}{what}")


def handle(server: str, device: Device) -> str:
    """A word of the command line that means this device and no other."""
    return shlex.quote(f"{server}/{device.name or device.bus_id}")


def print_json(**content: Any) -> None:
    """One object on one line, flushed, so that a reader of a pipe has it now."""
    print(json.dumps({"schema": SCHEMA, **content}, ensure_ascii=False), flush=True)


def server_json(server: Server) -> dict[str, Any]:
    return server.model_dump(mode="json")


def device_json(server: Server, device: Device) -> dict[str, Any]:
    return {"server": server_json(server), "device": device.model_dump(mode="json")}


def error_json(error: UsbRemoteError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def failure_json(failure: Failure) -> dict[str, object]:
    return {"server": server_json(failure.server), "error": error_json(failure.error)}


def print_listing(listing: Listing) -> None:
    """A server and its devices, one a line, in columns."""
    for line in listing_lines(listing):
        print(line)
    sys.stdout.flush()


def listing_lines(listing: Listing) -> list[str]:
    devices = [device.model_dump(mode="json") for device in listing.snapshot.devices]
    return list(table.listing_lines(server_json(listing.server), devices))


def describe_server(server: Server) -> str:
    return table.server_line(server_json(server))


def describe_device(match: Match) -> str:
    """``bench3/1-1.4 scope, FTDI FT232R``: where it is, what it is called, what it is."""
    server, device = match
    name = f"{device.name}, " if device.name else ""
    return f"{server.name}/{device.bus_id} {name}{device.description}"


def describe_event(server: Server, event: Event) -> str:
    return f"{local_time(event.at)}  {server.name}/{event.bus_id}  {event}"


def local_time(moment: datetime) -> str:
    """Date and time of this place, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def print_place(event: WatchEvent | AgentEvent) -> None:
    """Where somebody who waits is in the queue."""
    if event.event == "queued":
        holder = f"in use by {event.holder}" if event.holder else "being handed over"
        note(f"{holder}; your place in the queue: {event.place}")


def describe_attachment(attachment: Attachment) -> str:
    remote = f"{attachment.address or 'unknown server'}/{attachment.bus_id or '?'}"
    nodes = " ".join(attachment.nodes) or "no device nodes"
    return f"vhci port {attachment.vhci_port}: {remote}  {nodes}"
