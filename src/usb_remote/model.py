"""The nouns: what a device, a server, a holder is.

Rule of this file: values only. Everything is immutable, nothing here reads a file, a socket or a
clock. The words are those of docs/reference/glossary.md; the JSON keys are the field names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict

from usb_remote.values import BusId, Hex4, Moment, OptionalText, Port, Text, clean


class Model(BaseModel):
    """The base of all nouns: immutable; what a newer peer adds is ignored.

    Validators are built when they are used first: no process needs all of them (1 MB less).
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True, allow_inf_nan=False)


class State(StrEnum):
    """What a device can be asked for. It is never hidden because of its state."""

    AVAILABLE = "available"
    IN_USE = "in_use"
    PROTECTED = "protected"


class Cause(StrEnum):
    """Why a session ended; one of these is observed for each (docs/reference/causes.md)."""

    DETACHED = "detached"
    UNPLUGGED = "unplugged"
    DEVICE_RESET = "device_reset"
    CLIENT_LOST = "client_lost"
    TIME_UP = "time_up"
    TAKEN_OVER = "taken_over"
    FORBIDDEN = "forbidden"
    SERVER_STOPPED = "server_stopped"


MAX_MESSAGE = 256
"""Longest message to a holder, in characters."""


def _clean_message(text: object) -> str | None:
    return None if text is None else clean(text, MAX_MESSAGE)


class Request(Model):
    """Somebody asks the holder to let a device go."""

    by: Text
    message: Annotated[str | None, BeforeValidator(_clean_message)] = None


class Holder(Model):
    """Whose session a device is in.

    Attributes:
        user: the name at the client, or None where the client did not say (stock ``usbip``).
        host: the client's host name, or its address where it did not say.
        client: an id of the client's machine, None where it did not say (2.x, stock ``usbip``).
        address: the client's IP address.
        since: when the session began, by the server's clock.
        until: when it will end by itself, if it was asked for so long.
        ends_soon: whether that is within a minute.
        asked: the newest request to let the device go.

    """

    user: OptionalText = None
    host: Text = ""
    client: OptionalText = None
    address: Text = ""
    since: Moment | None = None
    until: Moment | None = None
    ends_soon: bool = False
    asked: Request | None = None

    def __str__(self) -> str:
        host = self.host or self.address or "an unknown client"
        return f"{self.user}@{host}" if self.user else host

    def is_same_client(self, other: Holder) -> bool:
        """Whether both are one machine; an address tells only where a client says nothing else.

        Machines that are copies of one image have one id, so their host names count, too.
        """
        if self.client or other.client:
            return (self.client, self.host) == (other.client, other.host)
        return self.address == other.address


class Ended(Model):
    """The last session of a device: whose it was, when and why it ended, and by whom."""

    holder: Holder
    at: Moment
    cause: Cause
    by: OptionalText = None


class Device(Model):
    """A USB device on a server. The first eight fields are those of usb-remote 2.x.

    Attributes:
        bus_id: where it is plugged in.
        vendor_id: four hexadecimal digits, as is ``product_id``.
        device_name: the server's own node, ``/dev/bus/usb/BBB/DDD``.
        serial: the serial number string, or None.
        description: udev's hardware database, else the device's own strings.
        id: the device id, stable as long as the device can be told from its twins.
        classes: class/subclass/protocol of each interface, hexadecimal: ``08/06/50``.
        speed: Mbit/s as in sysfs: 1.5, 12, 480, 5000 …
        devnum: the server's device number; a new one tells that it was plugged in again.
        holder: who has it, if ``state`` is in_use.
        waiting: how many clients wait for it.
        last_session: how the one before ended, None if there was none.
        reason: why it is refused, if ``state`` is protected.

    """

    bus_id: BusId
    vendor_id: Hex4
    product_id: Hex4
    bus: int = 0
    port_numbers: tuple[int, ...] = ()
    device_name: Text = ""
    serial: OptionalText = None
    description: Text = "unknown"
    id: Text = ""
    name: OptionalText = None
    manufacturer: OptionalText = None
    product: OptionalText = None
    classes: tuple[Text, ...] = ()
    speed: float | None = None
    devnum: int = 0
    state: State = State.AVAILABLE
    holder: Holder | None = None
    waiting: int = 0
    last_session: Ended | None = None
    reason: OptionalText = None

    @property
    def hardware_id(self) -> str:
        return f"{self.vendor_id}:{self.product_id}"

    def is_same(self, other: Device) -> bool:
        """Whether both are one device in one place; its id changes when a twin is plugged in."""
        return (self.bus_id, self.hardware_id, self.serial) == (
            other.bus_id, other.hardware_id, other.serial,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """What a person calls it: its name, else its id."""
        return self.name or self.id or self.bus_id


class Server(Model):
    """A machine that exports devices.

    Attributes:
        id: stable, not an address; None for a 2.x server.
        name: what people call it: the configured text, else what it says itself.
        host_name: what it says itself.
        addresses: host names or IP addresses (link-local ones with %scope), best first.
        port: TCP port of the control protocol.
        usbip_port: TCP port of the exporter.
        version: of usb-remote there, None for 2.x.

    """

    id: OptionalText = None
    name: Text
    host_name: OptionalText = None
    addresses: tuple[Text, ...] = ()
    port: Port = 5055
    usbip_port: Port = 3240
    version: OptionalText = None


class Snapshot(Model):
    """All devices of a server at one moment; ``revision`` grows with every change."""

    revision: int = 0
    devices: tuple[Device, ...] = ()


class Listing(Model):
    """What one server answered."""

    server: Server
    snapshot: Snapshot

    @property
    def matches(self) -> list[Match]:
        return [Match(self.server, device) for device in self.snapshot.devices]


class Match(NamedTuple):
    """A device and the server it is on."""

    server: Server
    device: Device

    def __str__(self) -> str:
        device = self.device
        words = [f"{self.server.name}/{device.bus_id}", device.name, device.id, device.description]
        return "  ".join(word for word in words if word)


class Attachment(Model):
    """A device that is imported here.

    Attributes:
        vhci_port: the client's slot, counted over all controllers as ``usbip port`` does.
        address: the server's address as it was given to ``usbip attach``, "" if not known.
        bus_id: the bus id *at the server*, None if not known (only root may read it).
        local_bus_id: the bus id here, None until the kernel has enumerated it.
        devid: busnum << 16 | devnum at the server (linux/drivers/usb/usbip/vhci_sysfs.c).
        nodes: local device nodes, best for a person first.

    """

    vhci_port: int
    address: Text = ""
    usbip_port: int = 3240
    bus_id: BusId | None = None
    local_bus_id: str | None = None
    devid: int = 0
    hardware_id: str | None = None
    serial: OptionalText = None
    description: Text = ""
    nodes: tuple[str, ...] = ()


def with_ids(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Give each device of one server its device id, and order them by position.

    ``vid:pid:serial`` where that is unique on the server, else ``vid:pid@bus-id``: two devices
    with the same serial both fall back to their position.
    """
    ordered = sorted(devices, key=lambda d: (d.bus_id.bus, d.bus_id.port_numbers))
    count = Counter((d.hardware_id, d.serial) for d in ordered)
    return tuple(
        d.model_copy(update={"id": _device_id(d, count[d.hardware_id, d.serial])}) for d in ordered
    )


def _device_id(device: Device, twins: int) -> str:
    if device.serial and twins == 1:
        return f"{device.hardware_id}:{device.serial}"
    return f"{device.hardware_id}@{device.bus_id}"
