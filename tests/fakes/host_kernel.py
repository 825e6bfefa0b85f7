"""The kernel of a server in a folder: real files, and what usbip-host does when one is written.

What belongs here: what can be seen in sysfs of drivers/usb/usbip/stub_main.c and stub_dev.c, and of
drivers/base/bus.c (Linux 6.1). tests/contracts/exporting.py holds it to the real kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from usb_remote import usbip_host

PLACES = 16
AVAILABLE, USED = 1, 2


@dataclass
class _Entry:
    """A row of busid_table; ``removed`` is STUB_BUSID_REMOV, ``known`` that it has a udev."""

    removed: bool = False
    known: bool = False


class HostKernel:
    """Devices, their drivers, and usbip-host.

    Args:
        root: instead of /sys.
        module: whether usbip_host is loaded.
        reset: seconds that the kernel takes to reset a device after a session.

    Attributes:
        write: what `usbip_host.Host` writes with.
        written: what was written, in order, as ``driver/attribute text``.
        refusals: ``driver/attribute`` -> the errno with which the next write to it fails.
        crashes: what would have crashed a real kernel.
        may_reset: while it is not set, a device that was in use stays so.

    """

    def __init__(self, root: Path, *, module: bool = True, reset: float = 0.02) -> None:
        self.root, self.reset = root, reset
        self.written: list[str] = []
        self.refusals: dict[str, int] = {}
        self.crashes: list[str] = []
        self.may_reset = threading.Event()
        self.may_reset.set()
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._sessions: dict[str, socket.socket] = {}
        self._resets: dict[str, threading.Event] = {}
        self._devices = root / "bus/usb/devices"
        self._drivers = root / "bus/usb/drivers"
        self._devices.mkdir(parents=True)
        (root / "bus/usb/drivers_probe").touch()
        self._add_driver("usb", "bind", "unbind")
        if module:
            self._add_driver("usbip-host", "bind", "unbind", "match_busid", "rebind")

    def _add_driver(self, name: str, *attributes: str) -> None:
        (self._drivers / name).mkdir(parents=True)
        for attribute in attributes:
            (self._drivers / name / attribute).touch()

    # a hand at the bus, and an eye

    def plug(self, bus_id: str) -> None:
        device = self.root / "devices/pci0000:00/usb1" / bus_id
        device.mkdir(parents=True)
        (self._devices / bus_id).symlink_to(device)
        self._take(bus_id, "usb")

    def pull(self, bus_id: str) -> None:
        self.begin_pull(bus_id)
        self.end_pull(bus_id)

    def begin_pull(self, bus_id: str) -> None:
        """The driver's files go first: for a moment the device is bound, but has no status."""
        with self._lock:
            if self.driver(bus_id) == "usbip-host":
                self._disconnect(bus_id)

    def end_pull(self, bus_id: str) -> None:
        with self._lock:
            self._let_go(bus_id)
            (self._devices / bus_id).resolve().rmdir()
            (self._devices / bus_id).unlink()

    def driver(self, bus_id: str) -> str | None:
        link = self._devices / bus_id / "driver"
        return link.readlink().name if link.is_symlink() else None

    def is_resetting(self, bus_id: str) -> bool:
        """Whether a session has ended, and the device is not ready for the next one yet."""
        return bus_id in self._resets

    @property
    def places(self) -> set[str]:
        """What is in match_busid."""
        return set(self._entries)

    def close(self) -> None:
        """End all sessions."""
        self.may_reset.set()
        with self._lock:
            for connection in self._sessions.values():
                _shut(connection)

    # what is written

    def write(self, path: Path, text: str) -> None:
        usbip_host.write_attribute(path, text)
        file = path.resolve()
        attribute = f"{file.parent.name}/{file.name}"
        if file.name == "usbip_sockfd" and (reset := self._resets.get(file.parent.name)):
            reset.wait()  # as the driver's lock makes it do
        with self._lock:
            self.written.append(f"{attribute} {text}")
            if code := self.refusals.pop(attribute, 0) or self._store(attribute, text):
                raise OSError(code, os.strerror(code), str(path))

    def _store(self, attribute: str, text: str) -> int:
        driver, _, action = attribute.partition("/")
        match driver, action, *text.split():
            case "usbip-host", "match_busid", "add", bus_id:
                return self._add(bus_id)
            case "usbip-host", "match_busid", "del", bus_id:
                return self._delete(bus_id)
            case "usbip-host", "rebind", bus_id:
                return self._rebind(bus_id)
            case "usb", "drivers_probe", bus_id:
                return self._attach(bus_id)
            case _, "bind", bus_id:
                return self._bind(driver, bus_id)
            case _, "unbind", bus_id:
                return self._unbind(driver, bus_id)
            case bus_id, "usbip_sockfd", fd:
                return self._set_socket(bus_id, int(fd))
        return errno.EINVAL

    def _add(self, bus_id: str) -> int:
        if bus_id not in self._entries and len(self._entries) == PLACES:
            return errno.ENOMEM
        self._entries.setdefault(bus_id, _Entry())
        return 0

    def _delete(self, bus_id: str) -> int:
        if (entry := self._entries.get(bus_id)) is None:
            return errno.ENODEV
        entry.removed = entry.removed or self.driver(bus_id) == "usbip-host"
        return 0

    def _rebind(self, bus_id: str) -> int:
        """It looks at a device that it may never have had, and forgets one that it still has."""
        if (entry := self._entries.pop(bus_id, None)) is None:
            return errno.ENODEV
        if not entry.known or self.driver(bus_id) == "usbip-host":
            self.crashes.append(f"rebind {bus_id}")
        return self._attach(bus_id)

    def _attach(self, bus_id: str) -> int:
        if not (self._devices / bus_id).exists():
            return errno.ENODEV
        if self.driver(bus_id) is None:
            self._take(bus_id, "usb")
        return 0

    def _bind(self, driver: str, bus_id: str) -> int:
        if not (self._devices / bus_id).exists():
            return errno.ENODEV
        if self.driver(bus_id) is not None:
            return errno.EBUSY
        if driver == "usbip-host":
            entry = self._entries.get(bus_id)
            if entry is None or entry.removed:
                return errno.ENODEV
            entry.known = True
            (self._devices / bus_id / "usbip_sockfd").touch()
            self._set_status(bus_id, AVAILABLE)
        self._take(bus_id, driver)
        return 0

    def _unbind(self, driver: str, bus_id: str) -> int:
        if self.driver(bus_id) != driver:
            return errno.ENODEV
        if driver == "usbip-host":
            self._disconnect(bus_id)
        self._let_go(bus_id)
        return 0

    def _take(self, bus_id: str, driver: str) -> None:
        (self._devices / bus_id / "driver").symlink_to(self._drivers / driver)
        (self._drivers / driver / bus_id).symlink_to(self._devices / bus_id)

    def _let_go(self, bus_id: str) -> None:
        if driver := self.driver(bus_id):
            (self._devices / bus_id / "driver").unlink()
            (self._drivers / driver / bus_id).unlink()

    def _disconnect(self, bus_id: str) -> None:
        for name in ("usbip_status", "usbip_sockfd"):
            (self._devices / bus_id / name).unlink(missing_ok=True)
        if connection := self._sessions.pop(bus_id, None):
            _shut(connection)

    def _set_status(self, bus_id: str, status: int) -> None:
        (self._devices / bus_id / "usbip_status").write_text(f"{status}\n")

    # sessions

    def _set_socket(self, bus_id: str, fd: int) -> int:
        session = self._sessions.get(bus_id)
        if fd == -1:
            return _shut(session) if session else errno.EINVAL
        if session:
            return errno.EINVAL
        try:
            connection = socket.socket(fileno=os.dup(fd))
        except OSError:
            return errno.EINVAL
        self._sessions[bus_id] = connection
        self._set_status(bus_id, USED)
        threading.Thread(target=self._carry, args=(bus_id, connection)).start()
        return 0

    def _carry(self, bus_id: str, connection: socket.socket) -> None:
        """Until a side hangs up; then the device is reset."""
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        poll.poll()
        reset = self._resets[bus_id] = threading.Event()
        _shut(connection)
        reset.wait(self.reset)
        self.may_reset.wait()
        with self._lock, connection:
            if self._sessions.get(bus_id) is connection:
                del self._sessions[bus_id]
                self._set_status(bus_id, AVAILABLE)
            if self._resets.get(bus_id) is reset:
                del self._resets[bus_id]
            reset.set()


def _shut(connection: socket.socket) -> int:
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)
    return 0
