"""One device of a server that is not simply free: who has it, who waits, whether it is bound.

Rule of this file: what is known of one lease, and nothing that decides between several.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from usb_remote import errors
from usb_remote.events import Event
from usb_remote.model import Device, Ended, Holder, State
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId
from usb_remote.waiting import Queue, Wish


@dataclass(frozen=True)
class Times:
    """How long things may take, in seconds.

    Attributes:
        reservation: between our `attach` reply and the client's `usbip attach`.
        grace: that a device stays bound after its session, for the same client to come back.
        reset: that the kernel may take to reset a device after a session.
        notice: before the end of a session that was asked for so long; for short ones a tenth.

    """

    reservation: float = 15.0
    grace: float = 2.0
    reset: float = 5.0
    notice: float = 60.0


class ExportHost(Protocol):
    """What exports devices: usbip_host.Host or virtual.VirtualDevices."""

    def check(self) -> None: ...
    async def load(self) -> None: ...
    def list_bound(self) -> list[BusId]: ...
    async def bind(self, bus_id: BusId) -> None: ...
    async def unbind(self, bus_id: BusId) -> None: ...
    async def export(self, bus_id: BusId, fd: int) -> None: ...
    async def release(self, bus_id: BusId) -> None: ...
    async def wait_free(self, bus_id: BusId, timeout: float) -> None: ...


class Journal(Protocol):
    """Where events go, and what is known of the past: history.History."""

    def record(self, event: Event) -> None: ...
    def last_session(self, device: str) -> Ended | None: ...


@dataclass
class Lease:
    """What is known of one device that is not simply free.

    Attributes:
        wish: what was asked for by whoever holds it.
        session: the connection over which the holder has it, None while it is only reserved.
        device: what the holder asked for, as it was then: the bus id is only its place.
        record: what the client of the newest session was told of it.
        fault: why it could not be bound.
        expires: when the reservation, or the grace, is over.
        leaving: who has let go, until the end is recorded.
        is_called: whether the next one is the holder already, and the kernel has still to reset the
            device.

    """

    wish: Wish | None = None
    session: socket.socket | None = None
    device: Device | None = None
    record: Record | None = None
    bound: bool = False
    fault: errors.UsbRemoteError | None = None
    expires: float = inf
    queue: Queue = field(default_factory=Queue)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holder: Holder | None = None
    leaving: Holder | None = None
    is_called: bool = False

    def is_open_to(self, holder: Holder) -> bool:
        """Nobody has it, or the same client."""
        return self.holder is None or self.holder.is_same_client(holder)

    def hold(self, wish: Wish, device: Device) -> None:
        """Keep this device for whoever wants it."""
        self.wish, self.holder, self.device = wish, wish.holder, device
        self.fault = None

    def clear(self) -> None:
        """Nobody has it."""
        self.wish = self.holder = self.device = None

    async def bind(self, host: ExportHost, bus_id: BusId) -> None:
        """Give the device to what exports it; whoever reserved it may ask why that failed."""
        self.bound = True
        try:
            await host.bind(bus_id)
        except errors.UsbRemoteError as error:
            self.bound = False
            self.fault = error if self.holder is not None else None
            raise

    def stop_timers(self) -> None:
        while self.timers:
            self.timers.pop().cancel()


def refuse_protected(device: Device) -> None:
    if device.state is State.PROTECTED:
        raise errors.Refused(f"{device.label} is protected: {device.reason}")


def refuse_another(device: Device, meant: Device | None) -> None:
    """What was asked for is one device, not whatever is plugged in at its place by now."""
    if meant is not None and not device.is_same(meant):
        raise errors.NotFound(f"{meant.label} is not at {device.bus_id} any more")


def busy(device: Device, lease: Lease) -> errors.Busy:
    holder = lease.holder
    since = f" since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder and holder.since else ""
    return errors.Busy(
        f"{device.label} ({device.description}) is in use by {holder}{since}",
        hint=f"usb-remote attach {device.label} --wait waits for it, "
        f"usb-remote release {device.label} asks for it",
        holder=holder.model_dump(mode="json") if holder else None,
    )
