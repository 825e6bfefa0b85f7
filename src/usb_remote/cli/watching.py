"""`watch`: a live table on a terminal, one JSON object per change otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator

from usb_remote import errors
from usb_remote.cli import output, wiring
from usb_remote.config import Config
from usb_remote.matching import is_called
from usb_remote.mdns.browse import browse_for_ever
from usb_remote.model import Listing, Server
from usb_remote.watcher import Change, Watcher


def watch(config: Config, host: str | None, *, as_json: bool) -> None:
    wiring.run(_print_changes(config, host) if as_json else _show_table(config, host))


async def _changes(config: Config, host: str | None) -> AsyncIterator[Change]:
    found = browse_for_ever() if config.discovery else _nobody()
    if host is not None:
        config = _only(config, host)
    async for change in Watcher(config, found).watch():
        if host is None or is_called(change.server, host):
            yield change


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
    async for change in _changes(config, host):
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
    with Live(Text("looking for servers …"), auto_refresh=False) as live:
        async for change in _changes(config, host):
            shown[change.server.id or change.server.name] = change.listing or change
            lines = [line for entry in shown.values() for line in _lines(entry)]
            live.update(Text("\n".join(lines)), refresh=True)


def _lines(entry: Listing | Change) -> list[str]:
    if isinstance(entry, Listing):
        devices = output.device_lines(entry.snapshot.devices) or ["  no devices"]
        return [output.describe_server(entry.server), *devices]
    return [f"{entry.server.name}: {entry.error}; trying again"]
