"""USB devices that are programs (PyPI ``usbip``): for demos, tests, and machines without USB.

Rule of this file: the only importer of ``usbip``. :class:`VirtualDevices` offers what
``udev.Devices``, ``udev.Monitor`` and ``usbip.Host`` offer together, so a server cannot tell the
difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import usbip
from usbip import protocol as urb_protocol
from usbip.classes.device import CDCACM, MSC, hid
from usbip.classes.host.msc import MSCDriver

from usb_remote import errors
from usb_remote.model import Device, with_ids
from usb_remote.usbip_wire import RECORD_SIZE, SPEEDS, Code, Record
from usb_remote.values import BusId

VENDOR = 0x1209
"""pid.codes: a vendor id for projects without one; 0001-000f are for tests (https://pid.codes)."""
BLOCK = 512
DISK_BLOCKS = 2048
DISK_TEXT = b"usb-remote virtual disk\n"
MAX_TRANSFER = 1 << 20
"""Longest URB payload that a virtual device takes, in bytes; Linux sends at most 120 kB."""
FULL_SPEED = "12"
_HANDSHAKE_REPLY = 8 + RECORD_SIZE


class _Disk:
    """1 MiB of memory whose first sector says what it is."""

    block_size = BLOCK
    num_blocks = DISK_BLOCKS

    def __init__(self) -> None:
        self._data = bytearray(BLOCK * DISK_BLOCKS)
        self._data[: len(DISK_TEXT)] = DISK_TEXT

    def read(self, lba: int, count: int) -> bytes:
        return bytes(self._data[lba * BLOCK : (lba + count) * BLOCK])

    def write(self, lba: int, count: int, data: bytes) -> None:
        self._data[lba * BLOCK : (lba + count) * BLOCK] = data


def _echo(port: Any, data: bytes) -> None:
    port.write(bytes(data))


def _keyboard() -> hid.HID:
    return hid.HID(
        hid.keyboard_report_descriptor(),
        subclass=hid.SUBCLASS_BOOT,
        protocol=hid.PROTOCOL_KEYBOARD,
    )


_KINDS: dict[str, tuple[int, str, Callable[[], Any]]] = {
    "serial": (1, "Echo serial port", lambda: CDCACM(on_rx=_echo)),
    "disk": (2, "Small disk", lambda: MSC(_Disk(), product="Small disk", serial="VIRTUAL0002")),
    "keyboard": (3, "Keyboard", _keyboard),
}
KINDS = tuple(_KINDS)
"""What can be plugged in, each once, at a position of its own: bus ids 1-1, 1-2, 1-3."""


def bus_id_of(kind: str) -> BusId:
    """Where one of KINDS is plugged in."""
    return BusId(f"1-{_KINDS[kind][0]}")


class VirtualDevices:
    """A bus of programs. ``plug`` and ``pull`` may be called while a server shares it."""

    kinds = KINDS

    def __init__(self, *kinds: str) -> None:
        self._plugged: dict[BusId, usbip.USBDevice] = {}
        self._bound: set[BusId] = set()
        self._sessions: dict[BusId, socket.socket] = {}
        self._threads: set[threading.Thread] = set()
        self._devnum = 1
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for kind in kinds:
            self.plug(kind)

    # a hand at the bus

    def plug(self, kind: str) -> Device:
        """Plug in one of KINDS; raises UsageError for any other word, or if it is there already."""
        number, product, function = self._kind(kind)
        bus_id = BusId(f"1-{number}")
        if bus_id in self._plugged:
            raise errors.UsageError(f"{kind} is plugged in already")
        self._devnum += 1
        device = usbip.USBDevice(
            VENDOR, number, manufacturer="usb-remote", product=product, serial=f"VIRTUAL{number:04}"
        )
        device.add(function())
        device.set_busid(bus_id)
        device.plug(via=_Position(self._devnum))
        self._plugged[bus_id] = device
        self._changed()
        return next(d for d in self.list_devices() if d.bus_id == bus_id)

    def pull(self, kind: str) -> None:
        """Pull it out, also from a client's hands."""
        bus_id = BusId(f"1-{self._kind(kind)[0]}")
        if self._plugged.pop(bus_id, None) is None:
            raise errors.UsageError(f"{kind} is not plugged in")
        self._unbind(bus_id)
        self._changed()

    def _kind(self, kind: str) -> tuple[int, str, Callable[[], Any]]:
        if kind not in _KINDS:
            raise errors.UsageError(f"{kind!r} is none of {', '.join(KINDS)}")
        return _KINDS[kind]

    def close(self) -> None:
        """Pull everything and end all threads."""
        for bus_id in list(self._plugged):
            self._unbind(bus_id)
        self._plugged.clear()
        for thread in list(self._threads):
            thread.join(timeout=5)
        os.close(self._wakeup)

    # as udev.Devices

    def list_devices(self) -> tuple[Device, ...]:
        return with_ids(_described(device) for device in list(self._plugged.values()))

    def find(self, bus_id: BusId) -> Device | None:
        return next((d for d in self.list_devices() if d.bus_id == bus_id), None)

    def record(self, bus_id: BusId) -> Record | None:
        device = self._plugged.get(bus_id)
        return _record(device) if device else None

    # as udev.Monitor

    def fileno(self) -> int:
        return self._wakeup

    def drain(self) -> bool:
        os.eventfd_read(self._wakeup)
        return True

    def _changed(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    # as usbip.Host: nothing needs a driver, a module or root

    def check(self) -> None:
        """Virtual devices can always be exported."""

    async def load(self) -> None:
        """No module is needed."""

    def list_bound(self) -> list[BusId]:
        return list(self._bound)

    async def bind(self, bus_id: BusId) -> None:
        if bus_id not in self._plugged:
            raise errors.SystemFault(f"cannot bind {bus_id}: it is not plugged in")
        self._bound.add(bus_id)

    async def unbind(self, bus_id: BusId) -> None:
        """A program has no driver of its own that waits for it, but its session ends."""
        self._unbind(bus_id)

    def _unbind(self, bus_id: BusId) -> None:
        self._bound.discard(bus_id)
        if connection := self._sessions.pop(bus_id, None):
            _shut(connection)

    async def export(self, bus_id: BusId, fd: int) -> None:
        """Serve the device on a connected socket whose handshake is done."""
        if bus_id not in self._bound:
            raise errors.SystemFault(f"cannot export {bus_id}: it is not bound")
        if bus_id in self._sessions:
            raise errors.Busy(f"{bus_id} is in use")
        connection = self._sessions[bus_id] = socket.socket(fileno=os.dup(fd))
        arguments = (self._plugged[bus_id], bus_id, connection)
        thread = threading.Thread(target=self._serve, args=arguments, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _serve(self, device: usbip.USBDevice, bus_id: BusId, connection: socket.socket) -> None:
        try:
            urb_protocol.serve_connection(_HandshakeDone(connection, bus_id), [device])
        finally:
            _shut(connection)
            if self._sessions.get(bus_id) is connection:
                del self._sessions[bus_id]
            connection.close()
            self._threads.discard(threading.current_thread())

    async def release(self, bus_id: BusId) -> None:
        """End the session; :meth:`wait_free` says when the device can have another."""
        if connection := self._sessions.get(bus_id):
            _shut(connection)

    async def wait_free(self, bus_id: BusId, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while bus_id in self._sessions:  # noqa: ASYNC110 - its thread tells nobody
                    await asyncio.sleep(0.005)


class _Position(usbip.Transport):  # type: ignore[misc]  # the library has no types
    """Gives a device its place on the bus; who is served, and where, the exporter decides."""

    def __init__(self, devnum: int) -> None:
        self._devnum = devnum

    def serve(self, device: usbip.USBDevice) -> None:
        device.busnum, device.devnum = 1, self._devnum


class _HandshakeDone:
    """The library's view of a socket: it sees the import request that the exporter has answered."""

    def __init__(self, connection: socket.socket, bus_id: BusId) -> None:
        self._connection = connection
        request = b"\x01\x11" + Code.REQ_IMPORT.to_bytes(2, "big") + bytes(4)
        self._unread = request + bus_id.encode().ljust(32, b"\0")
        self._unsent = _HANDSHAKE_REPLY

    def recv(self, size: int) -> bytes:
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        if size > MAX_TRANSFER:
            raise OSError("URB too long")
        return self._connection.recv(size)

    def sendall(self, data: bytes) -> None:
        skipped = min(self._unsent, len(data))
        self._unsent -= skipped
        self._connection.sendall(data[skipped:])

    def close(self) -> None:
        _shut(self._connection)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the peer was faster


def _described(device: usbip.USBDevice) -> Device:
    bus_id = BusId(device.busid)
    manufacturer, product, serial = device._strings[1:4]
    return Device(
        bus_id=bus_id,
        vendor_id=f"{device.vid:04x}",
        product_id=f"{device.pid:04x}",
        bus=bus_id.bus,
        port_numbers=bus_id.port_numbers,
        device_name=f"/dev/bus/usb/001/{device.devnum:03d}",
        serial=serial,
        description=f"{manufacturer} {product}",
        manufacturer=manufacturer,
        product=product,
        classes=tuple("{:02x}/{:02x}/{:02x}".format(*i) for i in device.interface_triples()),
        speed=float(FULL_SPEED),
        devnum=device.devnum,
    )


def _record(device: usbip.USBDevice) -> Record:
    return Record(
        path=f"/sys/devices/virtual/usb1/{device.busid}",
        bus_id=BusId(device.busid),
        busnum=device.busnum,
        devnum=device.devnum,
        speed=SPEEDS[FULL_SPEED],
        vendor=device.vid,
        product=device.pid,
        bcd_device=device.bcdDevice,
        device_class=(device.device_class, device.device_subclass, device.device_protocol),
        configuration=1,
        configurations=1,
        interfaces=tuple(device.interface_triples()),
    )


# -- a client in user space: no driver, no root -------------------------------------------------


class _Address(usbip.Transport):  # type: ignore[misc]
    def __init__(self, address: str, port: int, timeout: float) -> None:
        self._target = (address, port)
        self._timeout = timeout
        self._connection: socket.socket | None = None

    def connect(self) -> socket.socket:
        self._connection = socket.create_connection(self._target, self._timeout)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def import_device(address: str, port: int, bus_id: BusId, timeout: float = 5.0) -> usbip.Handle:
    """Import a device over USB/IP without any driver; close the handle to give it back."""
    transport = _Address(address, port, timeout)
    try:
        return usbip.open(busid=bus_id, transport=transport)
    except BaseException:  # the library leaves it open
        transport.close()
        raise


def echo(handle: usbip.Handle, line: bytes) -> bytes:
    """Send a line to the echo serial port and return what comes back."""
    handle.bulk_out(0x01, line)
    answer: bytes = handle.bulk_in(0x81, len(line))
    return answer


def first_sector(handle: usbip.Handle) -> bytes:
    """Read the first sector of the small disk."""
    sector: bytes = MSCDriver(handle).read_blocks(0, 1, BLOCK)
    return sector
