"""The USB/IP handshake on TCP 3240, as pure bytes <-> messages.

Rule of this file: the layout of Documentation/usb/usbip_protocol.rst of the Linux kernel, version
1.1.1, and nothing else. What follows the handshake (URBs) belongs to the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from usb_remote.errors import InvalidRequest
from usb_remote.values import BusId

VERSION = 0x0111
HEADER_SIZE = 8
BUS_ID_SIZE = 32
RECORD_SIZE = 312

_HEADER = struct.Struct(">HHI")  # version, code, status
_RECORD = struct.Struct(">256s32sIIIHHHBBBBBB")  # struct usbip_usb_device
_INTERFACE = struct.Struct(">BBBx")
_COUNT = struct.Struct(">I")


class Code(IntEnum):
    """Operation codes (usbip_network.h): a reply is its request without the top bit."""

    REQ_DEVLIST = 0x8005
    REP_DEVLIST = 0x0005
    REQ_IMPORT = 0x8003
    REP_IMPORT = 0x0003


class Status(IntEnum):
    """Reply status (usbip_common.h, ST_*), with what the stock tool makes of it."""

    OK = 0
    FAILED = 1  # "Request Failed"
    BUSY = 2  # "Device busy (exported)"
    ERROR = 3  # "Device in error state"
    NO_DEVICE = 4  # "Device not found"


SPEEDS = {"1.5": 1, "12": 2, "480": 3, "5000": 5, "10000": 5, "20000": 5}
"""sysfs ``speed`` (Mbit/s) -> enum usb_device_speed (include/uapi/linux/usb/ch9.h).

SuperSpeedPlus goes as SUPER (5), not as SUPER_PLUS (6): ``valid_args()`` of a client's kernel
(drivers/usb/usbip/vhci_sysfs.c) refuses what it does not list, and Linux 6.1 ends at SUPER.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """What the handshake says of one device; numbers as in its descriptors."""

    path: str
    bus_id: BusId
    busnum: int
    devnum: int
    speed: int
    vendor: int
    product: int
    bcd_device: int
    device_class: tuple[int, int, int]
    configuration: int
    configurations: int
    interfaces: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class DevlistRequest:
    """Which devices are there?"""


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """I want this device."""

    bus_id: BusId


def body_size(header: bytes) -> int:
    """How many bytes follow this request header.

    Raises:
        InvalidRequest: it is not the header of a USB/IP request.

    """
    version, code, _status = _HEADER.unpack(header)
    if version != VERSION:
        raise InvalidRequest(f"USB/IP version {version:#06x} is not {VERSION:#06x}")
    if code not in (Code.REQ_DEVLIST, Code.REQ_IMPORT):
        raise InvalidRequest(f"{code:#06x} is not a USB/IP request that a server knows")
    return BUS_ID_SIZE if code == Code.REQ_IMPORT else 0


def parse_request(header: bytes, body: bytes) -> DevlistRequest | ImportRequest:
    """The request of an already checked header (see :func:`body_size`) and its body.

    Raises:
        InvalidRequest: the bus id is none.

    """
    if not body:
        return DevlistRequest()
    try:
        return ImportRequest(BusId(body.partition(b"\0")[0].decode("ascii")))
    except ValueError as error:
        raise InvalidRequest(f"import: {error}") from None


def pack_devlist_request() -> bytes:
    """What a client sends to see what there is."""
    return _HEADER.pack(VERSION, Code.REQ_DEVLIST, 0)


def parse_devlist_reply(header: bytes) -> int:
    """The version of whoever answers a request for the list; raises InvalidRequest."""
    version, code, _ = _HEADER.unpack(header)
    if code != Code.REP_DEVLIST:
        raise InvalidRequest(f"not the answer of a USB/IP server: {header.hex()}")
    return int(version)


def pack_devlist(records: Iterable[Record]) -> bytes:
    """The reply to a devlist request."""
    records = list(records)
    parts = [_HEADER.pack(VERSION, Code.REP_DEVLIST, Status.OK), _COUNT.pack(len(records))]
    for record in records:
        record = replace(record, interfaces=record.interfaces[:255])
        parts += [_pack_record(record), *(_INTERFACE.pack(*i) for i in record.interfaces)]
    return b"".join(parts)


def pack_import(record: Record | None, status: Status = Status.OK) -> bytes:
    """The reply to an import request: the record follows only a success."""
    header = _HEADER.pack(VERSION, Code.REP_IMPORT, status)
    return header + _pack_record(record) if record and status is Status.OK else header


def _pack_record(record: Record) -> bytes:
    return _RECORD.pack(
        record.path.encode()[:255],
        record.bus_id.encode(),
        record.busnum,
        record.devnum,
        record.speed,
        record.vendor,
        record.product,
        record.bcd_device,
        *record.device_class,
        record.configuration,
        record.configurations,
        len(record.interfaces),
    )


def interfaces_of(descriptors: bytes, configuration: int = 0) -> tuple[tuple[int, int, int], ...]:
    """Class triple of every interface (alternate setting 0) in a configuration.

    ``descriptors`` is the sysfs file of that name: the device descriptor, then each configuration
    with all its parts (USB 2.0, 9.6). It is there whichever driver has the device.
    ``configuration`` 0 means the first.
    """
    triples: list[tuple[int, int, int]] = []
    current = first = None
    for item in _descriptors(descriptors):
        if item[1] == 2 and len(item) >= 6:  # CONFIGURATION: bConfigurationValue
            current = item[5]
            first = current if first is None else first
        elif (
            item[1] == 4 and len(item) >= 8 and item[3] == 0 and current == (configuration or first)
        ):
            triples.append((item[5], item[6], item[7]))  # INTERFACE, bAlternateSetting 0
    return tuple(triples)


def _descriptors(blob: bytes) -> Iterable[bytes]:
    start = 0
    while start + 2 <= len(blob) and blob[start] >= 2:
        yield blob[start : start + blob[start]]
        start += blob[start]
