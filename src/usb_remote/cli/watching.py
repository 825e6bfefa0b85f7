"""`watch`: a live table on a terminal, one JSON object per change otherwise."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from usb_remote import errors, wiring
from usb_remote.cli import output
from usb_remote.config import Config
from usb_remote.events import Event, changes
from usb_remote.hooks import Hook
from usb_remote.model import Listing, Snapshot
from usb_remote.watcher import Change

LATEST = 5
"""Events below the table."""
SILENCE = 3.0
"""Seconds after which a watch says that there is nobody to watch."""


def watch(
    config: Config,
    option: Path | None,
    host: str | None,
    *,
    as_json: bool,
    silence: float = SILENCE,
) -> None:
    told = _told(Hook(config.on_event), wiring.changes(config, host, option))
    wiring.run(_print_changes(told, host, silence) if as_json else _show_table(told))


async def _told(
    hook: Hook, following: AsyncGenerator[Change, None]
) -> AsyncIterator[tuple[Change, list[Event]]]:
    """Each change with what has happened since the one before; ``on_event`` hears of it, too."""
    known: dict[str, Snapshot] = {}
    try:
        async for change in following:
            happened: list[Event] = []
            if change.listing is not None:
                key, snapshot = change.server.id or change.server.name, change.listing.snapshot
                if before := known.get(key):
                    now = datetime.now(UTC)
                    happened = list(changes(before.devices, snapshot.devices, now))
                known[key] = snapshot
            for event in happened:
                hook(event, change.server.name)
            yield change, happened
    finally:
        await hook.stop()


async def _print_changes(
    told: AsyncIterator[tuple[Change, list[Event]]], host: str | None, patience: float
) -> None:
    nobody = f"no usb-remote server{f' that is called {host}' if host else ''} yet; waiting for one"
    silence = asyncio.get_running_loop().call_later(patience, output.note, nobody)
    async for change, _ in told:
        silence.cancel()
        if change.listing is None:
            error = output.error_json(change.error or errors.Unreachable("lost"))
            output.print_json(event="lost", server=output.server_json(change.server), error=error)
            continue
        output.print_json(
            event="snapshot",
            server=output.server_json(change.server),
            revision=change.listing.snapshot.revision,
            devices=[d.model_dump(mode="json") for d in change.listing.snapshot.devices],
        )


async def _show_table(told: AsyncIterator[tuple[Change, list[Event]]]) -> None:
    from rich.live import Live
    from rich.text import Text

    shown: dict[str, Listing | Change] = {}
    latest: deque[str] = deque(maxlen=LATEST)
    with Live(Text("looking for servers …"), auto_refresh=False) as live:
        async for change, happened in told:
            shown[change.server.id or change.server.name] = change.listing or change
            latest += [output.describe_event(change.server, event) for event in happened]
            lines = [line for entry in shown.values() for line in _lines(entry)]
            live.update(Text("\n".join([*lines, *latest])), refresh=True)


def _lines(entry: Listing | Change) -> list[str]:
    if isinstance(entry, Listing):
        return output.listing_lines(entry)
    return [f"{entry.server.name}: {entry.error}; trying again"]
