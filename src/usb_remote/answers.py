"""What a server answers to each request that is about one device, or about the past.

Rule of this file: one method for each command; it returns the data of the reply or raises.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from usb_remote import errors, protocol, replies
from usb_remote.history import History
from usb_remote.leases import Leases
from usb_remote.matching import Query, select
from usb_remote.model import Device, Holder, Match, Request, Server, Snapshot, State
from usb_remote.sharing import SharedDevices
from usb_remote.waiting import Tell, Wish

log = logging.getLogger(__name__)

Push = Callable[[bytes], None]


class Answers:
    """Does what clients ask for.

    Args:
        leases: give and take devices.
        shared: what devices are called, and which are hidden.
        history: what happened.
        snapshot: what is there now.
        refresh: to be called when names have changed.

    """

    def __init__(
        self,
        leases: Leases,
        shared: SharedDevices,
        history: History,
        snapshot: Callable[[], Snapshot],
        refresh: Callable[[], None],
    ) -> None:
        self._leases = leases
        self._shared = shared
        self._history = history
        self._snapshot = snapshot
        self._refresh = refresh

    async def device(
        self, request: protocol.WhichDevice, address: str, push: Push
    ) -> dict[str, Any]:
        """Do it, and return the device as it is after that.

        Args:
            request: with the device it is about.
            address: who asks.
            push: sends a line before the reply.

        Raises:
            UsbRemoteError: what is in the way.

        """
        device = self._find(request.query)
        match request:
            case protocol.AttachRequest():
                held = await self._attach(request, device, address, push)
                return replies.device_json(held, legacy=request.legacy)
            case protocol.ReleaseRequest():
                self._ask(device, request, address)
            case protocol.NameRequest():
                self._name(device, request, address)
            case protocol.DeviceRequest(command="detach"):
                await self._leases.release(device, _holder(request, address), request.since)
        return replies.device_json(self._now(device), legacy=request.legacy)

    async def _attach(
        self, request: protocol.AttachRequest, device: Device, address: str, push: Push
    ) -> Device:
        """Returns it as its new holder has it; the one before may still be shown to others."""
        wish = Wish(_holder(request, address), request.duration, request.force)
        tell = None if request.wait is None else _teller(push)
        try:
            async with asyncio.timeout(request.wait or None):
                await self._leases.reserve(device, wish, tell)
        except TimeoutError:
            holder = self._now(device).holder
            raise errors.Busy(
                f"{device.label} is still in use by {holder} after {request.wait:g} s",
                hint=f"ask for it: usb-remote release {device.label}",
                holder=holder.model_dump(mode="json") if holder else None,
            ) from None
        held = {"state": State.IN_USE, "holder": wish.holder}
        return self._now(device).model_copy(update=held)

    def _ask(self, device: Device, request: protocol.ReleaseRequest, address: str) -> None:
        holder = self._now(device).holder
        if holder is not None and holder.is_same_client(_holder(request, address)):
            raise errors.UsageError(
                f"{device.label} is with this machine itself ({holder})",
                hint=f"give it back: usb-remote detach {device.label}",
            )
        self._leases.ask(device, _request(request, address))

    def _name(self, device: Device, request: protocol.NameRequest, address: str) -> None:
        self._shared.names.give(device, request.name, self._snapshot().devices)
        who = _holder(request, address)
        log.info("%s is called %s by %s", device.id, request.name or "nothing", who)
        self._refresh()

    def history(self) -> list[dict[str, Any]]:
        """Everything that is known, oldest first."""
        return [event.model_dump(mode="json") for event in self._history.events]

    def _now(self, device: Device) -> Device:
        here = (d for d in self._snapshot().devices if d.bus_id == device.bus_id)
        return next(here, device)

    def _find(self, query: Query) -> Device:
        """The one device that is meant; the words are those of 2.x (usbdevice.py, get_device)."""
        here = Server(name="here")
        devices = self._snapshot().devices
        found = [m.device for m in select((Match(here, d) for d in devices), query)]
        if not found:
            raise errors.NotFound("No matching USB device found.")
        if len(found) > 1 and not query.first:
            listed = "\n".join(
                f"  - {d.description} (id={d.hardware_id}, bus={d.bus_id})" for d in found
            )
            raise errors.Ambiguous(
                "Multiple matching USB devices found. Please refine your criteria.\n"
                f"Matching devices:\n{listed}"
            )
        return found[0]


def _holder(request: protocol.WhichDevice, address: str) -> Holder:
    return Holder(
        user=request.user,
        host=request.host or address,
        client=request.client,
        address=address,
    )


def _request(request: protocol.ReleaseRequest, address: str) -> Request:
    return Request(by=str(_holder(request, address)), message=request.message)


def _teller(push: Push) -> Tell:
    """Tell a client its place, each time that it or the holder changes."""
    last: list[tuple[int, str]] = []

    def tell(place: int, holder: Holder | None) -> None:
        news = (place, str(holder))
        if news not in last:
            last[:] = [news]
            push(replies.queued_event(place, holder))

    return tell
