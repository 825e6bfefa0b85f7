"""Messages as udevd sends them, so that a server's monitor hears of devices that are made up.

The format is that of libudev (systemd, src/libsystemd/sd-device/device-monitor.c, struct
monitor_netlink_header): a header, then the properties, each with a NUL at its end.
"""

from __future__ import annotations

import socket
import struct

NETLINK_KOBJECT_UEVENT = 15
UDEV_GROUP = 2
MAGIC = 0xFEEDCAFE
HEADER = struct.Struct("=8s8I")
"""Native byte order but for magic and hashes, which are big-endian."""


def message(action: str, devpath: str, subsystem: str, sequence: int) -> bytes:
    properties = {
        "ACTION": action, "DEVPATH": devpath, "SUBSYSTEM": subsystem, "DEVTYPE": "usb_device",
        "SEQNUM": str(sequence), "USEC_INITIALIZED": "1",
    }  # fmt: skip
    body = b"".join(f"{key}={value}\0".encode() for key, value in properties.items())
    hashes = (socket.htonl(murmur2(word.encode())) for word in (subsystem, "usb_device"))
    header = HEADER.pack(
        b"libudev\0", socket.htonl(MAGIC), HEADER.size, HEADER.size, len(body), *hashes, 0, 0
    )
    return header + body


def murmur2(data: bytes, seed: int = 0) -> int:
    """MurmurHash2, 32 bits (Austin Appleby, public domain), which udev's socket filter compares."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = seed ^ len(data)
    whole = len(data) - len(data) % 4
    for (k,) in struct.iter_unpack("<I", data[:whole]):
        k = k * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


class Sender:
    """Sends to every monitor of this network namespace; needs root."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
        self._sequence = 0

    def send(self, action: str, devpath: str, subsystem: str = "usb") -> None:
        self._sequence += 1
        packet = message(action, devpath, subsystem, self._sequence)
        self._socket.sendto(packet, (0, UDEV_GROUP))

    def close(self) -> None:
        self._socket.close()
