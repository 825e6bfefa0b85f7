"""`attach`, `detach` and `ports`."""

from __future__ import annotations

import re

from usb_remote.cli import output, wiring
from usb_remote.client import Attached, Detached, How
from usb_remote.config import Config
from usb_remote.errors import UsageError
from usb_remote.matching import Query
from usb_remote.protocol import MAX_SECONDS, WatchEvent

_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_TIME = re.compile(r"\d+(\.\d+)?|(\d+(\.\d+)?[smhd])+")


def attach(
    config: Config,
    query: Query,
    wait: str | None,
    duration: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    how = How(
        wait=None if wait is None else parse_time("--wait", wait, least=0),
        duration=None if duration is None else parse_time("--for", duration, least=1),
        force=force,
        tell=_print_place,
    )
    done = wiring.run(wiring.client(config).attach(query, how))
    if done.already and how.duration:
        output.warn("it was attached already, so --for has no effect; detach it first")
    if as_json:
        output.print_json(
            **output.device_json(done.match.server, done.match.device),
            attachment=done.attachment.model_dump(mode="json"),
            already=done.already,
        )
    else:
        _print_attached(done)


def parse_time(option: str, text: str, *, least: float) -> float:
    """``90``, ``90s``, ``30m``, ``2h``, ``1h30m``, ``1d`` in seconds; raises UsageError."""
    sizes = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    if not (text and _TIME.fullmatch(text)):
        raise UsageError(f"{option}: {text!r} is no time such as 90s, 30m, 2h or 1h30m")
    seconds = sum(float(number) * sizes[unit] for number, unit in _PART.findall(text))
    if not least <= seconds <= MAX_SECONDS:
        raise UsageError(f"{option}: between {least:g} s and {MAX_SECONDS / 86400:g} days")
    return seconds


def _print_place(event: WatchEvent) -> None:
    if event.event == "queued":
        holder = f"in use by {event.holder}" if event.holder else "being handed over"
        output.note(f"{holder}; your place in the queue: {event.place}")


def _print_attached(done: Attached) -> None:
    verb = "already attached" if done.already else "attached"
    print(f"{verb}: {output.describe_device(done.match)}")
    print(f"  vhci port {done.attachment.vhci_port}")
    for node in done.attachment.nodes:
        print(f"  {node}")
    if not done.attachment.nodes:
        output.warn("no driver has made a device node yet; see the end of: sudo dmesg")


def detach(config: Config, query: Query, *, as_json: bool) -> None:
    done = wiring.run(wiring.client(config).detach(query))
    if as_json:
        device = output.device_json(*done.match) if done.match else {}
        port = done.attachment.vhci_port if done.attachment else None
        output.print_json(**device, vhci_port=port)
    else:
        print(_described(done))


def _described(done: Detached) -> str:
    what = "?"
    if done.match:
        what = output.describe_device(done.match)
    elif done.attachment:
        what = f"{done.attachment.address}/{done.attachment.bus_id}"
    if done.attachment is None:
        return f"not attached here: {what}"
    return f"detached: {what} (vhci port {done.attachment.vhci_port})"


def list_ports(*, as_json: bool) -> None:
    from usb_remote import vhci
    from usb_remote.udev.nodes import list_nodes

    attachments = [
        a.model_copy(update={"nodes": list_nodes(a.local_bus_id)}) if a.local_bus_id else a
        for a in vhci.Vhci().list_attachments()
    ]
    if as_json:
        output.print_json(ports=[a.model_dump(mode="json") for a in attachments])
        return
    for attachment in attachments:
        print(output.describe_attachment(attachment))
    if not attachments:
        output.note("nothing is attached to this machine")
