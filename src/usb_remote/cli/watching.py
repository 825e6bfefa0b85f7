"""`watch`: a live table on a terminal, one JSON object per change otherwise."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from usb_remote import errors
from usb_remote.cli import output, wiring
from usb_remote.config import Config
from usb_remote.events import Event, changes
from usb_remote.hooks import Hook
from usb_remote.matching import is_called
from usb_remote.mdns.browse import browse_for_ever
from usb_remote.model import Listing, Server, Snapshot
from usb_remote.watcher import Change, Watcher

LATEST = 5
"""Events below the table."""


def watch(config: Config, host: str | None, *, as_json: bool) -> None:
    wiring.run(_print_changes(config, host) if as_json else _show_table(config, host))


async def _changes(config: Config, host: str | None) -> AsyncIterator[Change]:
    found = browse_for_ever() if config.discovery else _nobody()
    if host is not None:
        config = _only(config, host)
    async for change in Watcher(config, found).watch():
        if host is None or is_called(change.server, host):
            yield change


async def _told(config: Config, host: str | None) -> AsyncIterator[tuple[Change, list[Event]]]:
    """Each change with what has happened since the one before; ``on_event`` hears of it, too."""
    hook = Hook(config.on_event)
    known: dict[str, Snapshot] = {}
    try:
        async for change in _changes(config, host):
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


def _only(config: Config, host: str) -> Config:
    """The same configuration with at most this server; a mere name is for mDNS to find."""
    servers = [text for text in config.servers if is_called(config.server_at(text), host)]
    if not servers and (not config.discovery or "." in host or ":" in host):
        servers = [config.server_at(host).name]
    return config.model_copy(update={"servers": servers, "server_ranges": []})


async def _nobody() -> AsyncIterator[Server]:
    return
    yield


async def _print_changes(config: Config, host: str | None) -> None:
    async for change, _ in _told(config, host):
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


async def _show_table(config: Config, host: str | None) -> None:
    from rich.live import Live
    from rich.text import Text

    shown: dict[str, Listing | Change] = {}
    latest: deque[str] = deque(maxlen=LATEST)
    with Live(Text("looking for servers …"), auto_refresh=False) as live:
        async for change, happened in _told(config, host):
            shown[change.server.id or change.server.name] = change.listing or change
            latest += [f"{output.local_time(event.at)}  {event}" for event in happened]
            lines = [line for entry in shown.values() for line in _lines(entry)]
            live.update(Text("\n".join([*lines, *latest])), refresh=True)


def _lines(entry: Listing | Change) -> list[str]:
    if isinstance(entry, Listing):
        devices = output.device_lines(entry.snapshot.devices) or ["  no devices"]
        return [output.describe_server(entry.server), *devices]
    return [f"{entry.server.name}: {entry.error}; trying again"]
