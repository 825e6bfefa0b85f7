"""What people see: stdout is data, everything else goes to stderr. Plain text, no colour needed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from usb_remote.errors import UsbRemoteError
from usb_remote.model import Attachment, Device, Holder, Listing, Match, Server, State

if TYPE_CHECKING:
    from usb_remote.finder import Failure

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
    # what zeroconf logs as an error it also raises, and mdns/ says it in our words
    logging.getLogger("zeroconf").setLevel(logging.DEBUG if verbose else logging.CRITICAL)


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
    print(describe_server(listing.server))
    for line in device_lines(listing.snapshot.devices) or ["  no devices"]:
        print(line)
    sys.stdout.flush()


def describe_server(server: Server) -> str:
    global_first = sorted(server.addresses, key=lambda address: address.startswith("fe80:"))
    where = global_first[0] if global_first else "?"
    version = f"usb-remote {server.version}" if server.version else "usb-remote 2.x"
    return f"{server.name} ({where}, {version})"


def describe_device(match: Match) -> str:
    """``bench3/1-1.4 scope, FTDI FT232R``: where it is, what it is called, what it is."""
    server, device = match
    name = f"{device.name}, " if device.name else ""
    return f"{server.name}/{device.bus_id} {name}{device.description}"


def device_lines(devices: Iterable[Device]) -> list[str]:
    rows = [(d.bus_id, d.label, describe_state(d), d.description) for d in devices]
    return [f"  {row}" for row in columns(rows)]


def describe_state(device: Device) -> str:
    """available, in use by ann@pc since 10:02, or protected with its reason."""
    if device.state is State.IN_USE and device.holder:
        since = f" since {_local(device.holder.since)}" if device.holder.since else ""
        return ", ".join([f"in use by {device.holder}{since}", *_facts(device, device.holder)])
    if device.state is State.PROTECTED:
        return f"protected: {device.reason}"
    return device.state.value


def _facts(device: Device, holder: Holder) -> Iterator[str]:
    if holder.until:
        yield f"until {_local(holder.until)}" + (" (soon)" if holder.ends_soon else "")
    if device.waiting:
        yield f"{device.waiting} waiting"
    if holder.asked:
        message = f": {holder.asked.message}" if holder.asked.message else ""
        yield f"wanted by {holder.asked.by}{message}"


def local_time(moment: datetime) -> str:
    """Date and time of this place, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _local(moment: datetime) -> str:
    here = moment.astimezone()
    same_day = here.date() == datetime.now().astimezone().date()
    return here.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned text, two spaces between columns, the last one ragged."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def describe_attachment(attachment: Attachment) -> str:
    remote = f"{attachment.address or 'unknown server'}/{attachment.bus_id or '?'}"
    nodes = " ".join(attachment.nodes) or "no device nodes"
    return f"vhci port {attachment.vhci_port}: {remote}  {nodes}"
