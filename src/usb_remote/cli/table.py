"""Servers and their devices as lines of text, from the JSON of a listing.

Rule of this file: plain dicts in, text out, no import of ours: the quick way of `list` has no time
for the models (docs/reference/json.md has the keys).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def listing_lines(server: Json, devices: Sequence[Json]) -> Iterator[str]:
    """A server and its devices, one a line, in columns."""
    yield server_line(server)
    yield from device_lines(devices) or ["  no devices"]


def server_line(server: Json) -> str:
    addresses = sorted(server["addresses"], key=lambda address: address.startswith("fe80:"))
    where = addresses[0] if addresses else "?"
    version = f"usb-remote {server['version']}" if server["version"] else "usb-remote 2.x"
    return f"{server['name']} ({where}, {version})"


def device_lines(devices: Iterable[Json]) -> list[str]:
    rows = [(d["bus_id"], _label(d), _state(d), d["description"]) for d in devices]
    return [f"  {row}" for row in columns(rows)]


def _label(device: Json) -> str:
    return str(device["name"] or device["id"] or device["bus_id"])


def _state(device: Json) -> str:
    """available, in use by ann@pc since 10:02, or protected with its reason."""
    holder = device["holder"]
    if device["state"] == "in_use" and holder:
        since = f" since {_local(holder['since'])}" if holder["since"] else ""
        return ", ".join([f"in use by {_who(holder)}{since}", *_facts(device, holder)])
    if device["state"] == "protected":
        return f"protected: {device['reason']}"
    return str(device["state"])


def _who(holder: Json) -> str:
    host = holder["host"] or holder["address"] or "an unknown client"
    return f"{holder['user']}@{host}" if holder["user"] else host


def _facts(device: Json, holder: Json) -> Iterator[str]:
    if holder["until"]:
        yield f"until {_local(holder['until'])}" + (" (soon)" if holder["ends_soon"] else "")
    if device["waiting"]:
        yield f"{device['waiting']} waiting"
    if asked := holder["asked"]:
        message = f": {asked['message']}" if asked["message"] else ""
        yield f"wanted by {asked['by']}{message}"


def _local(moment: str) -> str:
    """A time of day of this place, with its date if that is another day."""
    from datetime import datetime

    here = datetime.fromisoformat(moment).astimezone()
    same_day = here.date() == datetime.now().astimezone().date()
    return here.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned text, two spaces between columns, the last one ragged."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
