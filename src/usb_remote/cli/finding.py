"""`list`, `find` and `info`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from usb_remote import wiring
from usb_remote.cli import output
from usb_remote.config import Config
from usb_remote.connection import agent_socket
from usb_remote.finder import Failure, Search
from usb_remote.matching import Query
from usb_remote.model import Listing, Snapshot, State


def list_devices(
    config: Config, option: Path | None, host: str | None, wait: float, *, as_json: bool
) -> None:
    """Print each server as soon as it has answered on a terminal, else all in order."""
    live = sys.stdout.isatty() and not as_json
    search = wiring.run(_search(config, option, host, wait, live=live))
    if as_json:
        output.print_json(
            servers=[
                {
                    "server": output.server_json(listing.server),
                    "revision": listing.snapshot.revision,
                    "devices": [d.model_dump(mode="json") for d in listing.snapshot.devices],
                }
                for listing in search.listings
            ],
            failures=_failures_json(search),
        )
    elif not live:
        for listing in search.listings:
            output.print_listing(listing)
    _end(search, host)
    if live:
        _say_next(search)


def _say_next(search: Search) -> None:
    """How to attach, for who has never done so: nothing is attached here, and there is no agent."""
    there = [(one.server.name, d) for one in search.listings for d in one.snapshot.devices]
    free = [(name, device) for name, device in there if device.state is State.AVAILABLE]
    if free and not wiring.list_attachments() and not os.path.exists(agent_socket()):  # noqa: PTH110
        output.next_step(f"attach {output.handle(*free[0])}")


async def _search(
    config: Config, option: Path | None, host: str | None, wait: float, *, live: bool
) -> Search:
    if not live:
        return await wiring.search(config, host, wait, option)
    found = Search()
    async for answer in wiring.listings(config, host, wait, option):
        if isinstance(answer, Failure):
            found.failures.append(answer)
        else:
            found.listings.append(answer)
            output.print_listing(answer)
    return found


def _failures_json(search: Search) -> list[dict[str, object]]:
    return [output.failure_json(failure) for failure in search.failures]


def _end(search: Search, host: str | None) -> None:
    """One warning for each server that failed; an error only if nobody answered."""
    if not search.listings:
        raise search.why_nobody(host)
    for failure in search.failures if host is None else ():
        output.warn(failure.error.message)


def find(config: Config, option: Path | None, query: Query, *, as_json: bool) -> None:
    match = wiring.run(wiring.search(config, query.host, option=option)).choose(query)
    if as_json:
        output.print_json(**output.device_json(match.server, match.device))
        return
    only = Snapshot(devices=(match.device,))
    output.print_listing(Listing(server=match.server, snapshot=only))


def info(
    config: Config, option: Path | None, host: str | None, wait: float, *, as_json: bool
) -> None:
    search = wiring.run(wiring.search(config, host, wait, option))
    servers = [listing.server for listing in search.listings]
    if as_json:
        output.print_json(
            servers=[output.server_json(s) for s in servers], failures=_failures_json(search)
        )
    for listing in search.listings if not as_json else ():
        server = listing.server
        print(output.describe_server(server))
        print(f"  id         {server.id or 'none (2.x)'}")
        print(f"  addresses  {' '.join(server.addresses)}")
        print(f"  ports      {server.port} (control), {server.usbip_port} (USB/IP)")
        print(f"  devices    {len(listing.snapshot.devices)}")
    _end(search, host)
