"""The control protocol as usb-remote 2.x speaks it: its requests, its devices, how it says no.

Rule of this file: what deployed 2.x sends and expects (2.3.2) lives here and nowhere else: requests
without newline and version, devices with eight keys. That replies to them have no more than that is
what ``legacy`` means in replies.py.
"""

from __future__ import annotations

import json
import re

from usb_remote import errors
from usb_remote.model import Device
from usb_remote.protocol import AttachRequest, DeviceRequest, ListRequest, Request

DEVICE_KEYS = (
    "bus_id", "vendor_id", "product_id", "bus", "port_numbers", "device_name", "serial",
    "description",
)  # fmt: skip
"""The keys of a device in usb-remote 2.x, in its order (2.3.2, usbdevice.py)."""
_REQUEST_KEYS = ("command", "id", "bus", "serial", "desc", "first")


def is_line(line: bytes | bytearray) -> bool:
    """Whether a line that may not even be a request comes from a 2.x client."""
    return re.search(rb'"v"\s*:', line) is None


def request_line(request: Request) -> bytes:
    """The same request in the words of 2.x: every key, no newline (2.3.2, client.py)."""
    known = request.model_dump()
    data = {key: known[key] for key in _REQUEST_KEYS if key in known}
    return json.dumps(data, separators=(",", ":")).encode()


def knows(request: Request) -> bool:
    """Whether a 2.x server can be asked for that."""
    if isinstance(request, AttachRequest):
        return request.wait is None and request.duration is None and not request.force
    return isinstance(request, ListRequest | DeviceRequest)


def is_rejection(error: errors.UsbRemoteError) -> bool:
    """Whether a 2.x server says with this that it does not know our protocol version."""
    return type(error) is errors.UsbRemoteError and error.message.startswith("Invalid request")


def completed(device: Device) -> Device:
    """A device of a 2.x server, whose number is only in its name, /dev/bus/usb/002/003."""
    number = device.device_name.rpartition("/")[2]
    return device.model_copy(update={"devnum": int(number)}) if number.isdecimal() else device
