"""`release`, `name` and `history`: how people who share devices get along."""

from __future__ import annotations

from usb_remote import errors, wiring
from usb_remote.cli import output
from usb_remote.config import Config
from usb_remote.events import Event, about
from usb_remote.finder import Failure
from usb_remote.matching import Query
from usb_remote.model import Server
from usb_remote.protocol import HistoryRequest
from usb_remote.replies import parse_history


def release(config: Config, query: Query, message: str | None, *, as_json: bool) -> None:
    match = wiring.run(wiring.client(config).release(query, message))
    server, device = match
    if as_json:
        output.print_json(**output.device_json(server, device))
    elif device.holder is None:
        print(f"nobody has it: {output.describe_device(match)}")
    else:
        print(f"asked {device.holder} to release {output.describe_device(match)}")
        output.note("usb-remote attach --wait attaches it as soon as it is free")


def name(config: Config, query: Query, name: str | None, *, remove: bool, as_json: bool) -> None:
    if remove == bool(name):
        raise errors.UsageError("either NAME or --remove", hint="usb-remote name 1-1.4 scope")
    server, device = wiring.run(wiring.client(config).name(query, name or ""))
    if as_json:
        output.print_json(**output.device_json(server, device))
    elif device.name and remove:
        print(f"{server.name}/{device.bus_id}: the server's configuration calls it {device.name}")
    elif device.name:
        print(f"named: {server.name}/{device.bus_id} is {device.name}")
    else:
        print(f"no name any more: {server.name}/{device.bus_id} {device.id}")


def history(config: Config, word: str | None, host: str | None, *, as_json: bool) -> None:
    found, failures = wiring.run(_histories(config, word, host))
    if as_json:
        output.print_json(
            servers=[
                {
                    "server": output.server_json(server),
                    "events": [event.model_dump(mode="json") for event in events],
                }
                for server, events in found
            ],
            failures=[output.failure_json(failure) for failure in failures],
        )
        return
    for server, events in found:
        for event in events:
            print(output.describe_event(server, event))
    for failure in failures:
        output.warn(failure.error.message)
    if not failures and not any(events for _, events in found):
        output.note("nothing has happened yet" if word is None else f"nothing is known of {word}")


async def _histories(
    config: Config, word: str | None, host: str | None
) -> tuple[list[tuple[Server, list[Event]]], list[Failure]]:
    """Each server's history of what the word means; SERVER/WORD asks one server only."""
    from usb_remote.connection import connect

    if word and "/" in word:
        host, _, word = word.partition("/")
    search = await wiring.finder(config).search(host)
    if not search.listings:
        raise search.why_nobody(host)
    found = []
    failures = list(search.failures)
    for listing in search.listings:
        try:
            async with await connect(listing.server, config.timeout) as connection:
                reply = await connection.request(HistoryRequest())
            events = about(parse_history(reply.data), word, listing.snapshot.devices)
            found.append((listing.server, events))
        except errors.UsbRemoteError as error:
            failures.append(Failure(listing.server, error))
    return found, failures
