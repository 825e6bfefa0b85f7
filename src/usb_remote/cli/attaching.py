"""`attach`, `detach` and `ports`."""

from __future__ import annotations

from usb_remote.cli import output, wiring
from usb_remote.client import Attached, Detached
from usb_remote.config import Config
from usb_remote.matching import Query


def attach(config: Config, query: Query, *, as_json: bool) -> None:
    done = wiring.run(wiring.client(config).attach(query))
    if as_json:
        output.print_json(
            **output.device_json(done.match.server, done.match.device),
            attachment=done.attachment.model_dump(mode="json"),
            already=done.already,
        )
    else:
        _print_attached(done)


def _print_attached(done: Attached) -> None:
    server, device = done.match
    verb = "already attached" if done.already else "attached"
    print(f"{verb}: {server.name}/{device.bus_id} {device.description}")
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
        what = (
            f"{done.match.server.name}/{done.match.device.bus_id} {done.match.device.description}"
        )
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
