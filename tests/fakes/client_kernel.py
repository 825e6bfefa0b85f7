"""The kernel of a client in a folder: vhci's files, and a program `usbip` that fills them.

What belongs here: what can be seen of drivers/usb/usbip/vhci_sysfs.c, and what usbip-utils 2.0 says
and leaves in /var/run. tests/contracts/importing.py holds it to the real ones. The imports are real
USB/IP, into this process.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import threading
from pathlib import Path

import usbip

from usb_remote.values import BusId
from usb_remote.virtual import import_device

PORTS = 8
"""Of each speed; all of one controller."""
HEADER = "hub port sta spd dev      sockfd local_busid\n"
TOOL = """#!/bin/sh
mkfifo {root}/answer.$$
echo "$$ $*" > {root}/asked
read -r status text < {root}/answer.$$
[ -z "$text" ] || echo "$text" >&2
exit $status
"""
REFUSALS = {1: "Request Failed", 2: "Device busy (exported)", 4: "Device not found"}


class ClientKernel:
    """A controller whose ports are imports of this process.

    Args:
        root: has sys, state and bin/usbip; the last one has to be first in PATH.
        enumeration: seconds in which an import is connected, but not known by a local bus id yet.

    """

    def __init__(self, root: Path, enumeration: float = 0.02) -> None:
        self.root, self.enumeration = root, enumeration
        self.status = root / "sys/devices/platform/vhci_hcd.0/status"
        self.devices = root / "sys/bus/usb/devices"
        self.state = root / "state"
        for folder in (self.status.parent, self.devices, self.state, root / "bin"):
            folder.mkdir(parents=True)
        self._lock = threading.RLock()
        self._imports: dict[int, usbip.Handle] = {}
        self._local: dict[int, str] = {}
        self._threads: list[threading.Thread] = []
        self._is_closed = threading.Event()
        self._show()
        (root / "bin/usbip").write_text(TOOL.format(root=root))
        (root / "bin/usbip").chmod(0o755)
        os.mkfifo(root / "asked")
        self._asked = os.open(root / "asked", os.O_RDWR)
        self._start(self._answer_all)

    def close(self) -> None:
        """The machine is switched off."""
        self._is_closed.set()
        os.write(self._asked, b"\n")
        with self._lock:
            for handle in self._imports.values():
                with contextlib.suppress(OSError):  # the other side was faster
                    handle.conn.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        os.close(self._asked)

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    # the program

    def _answer_all(self) -> None:
        with os.fdopen(os.dup(self._asked)) as asked:
            for line in asked:
                if self._is_closed.is_set():
                    return
                pid, *words = line.split()
                self._start(self._answer, pid, words)

    def _answer(self, pid: str, words: list[str]) -> None:
        match words:
            case ["--tcp-port", port, "attach", "--remote", address, "--busid", bus_id]:
                said = self._attach(address, int(port), BusId(bus_id))
            case ["detach", "--port", number]:
                said = self._detach(int(number))
            case _:
                said = "1 usbip: error: invalid command"
        answer = os.open(self.root / f"answer.{pid}", os.O_RDWR)  # it may have been killed
        os.write(answer, f"{said}\n".encode())
        self._is_closed.wait(0.2)  # for it to open the file, too
        os.close(answer)

    def _attach(self, address: str, port: int, bus_id: BusId) -> str:
        try:
            handle = import_device(address, port, bus_id)
        except ConnectionRefusedError:
            return "1 usbip: error: tcp connect"
        except Exception as error:  # "import rejected (status 4)", or it hung up in the middle
            status = re.search(r"status (\d)", str(error))
            reason = REFUSALS[int(status[1]) if status else 1]
            return f"1 usbip: error: Attach Request for {bus_id} failed - {reason}"
        with self._lock:
            place = next(number for number in range(PORTS) if number not in self._imports)
            self._imports[place] = handle
            (self.state / f"port{place}").write_text(f"{address} {port} {bus_id}\n")
            self._show()
        self._start(self._carry, place, handle, handle.conn.sock.dup())
        return "0"

    def _detach(self, place: int) -> str:
        with self._lock:
            if place not in self._imports:
                return f"0 usbip: info: Port {place} is already detached!"
            self._free(place)
        return f"0 usbip: info: Port {place} is now detached!"

    # the driver

    def _carry(self, place: int, handle: usbip.Handle, connection: socket.socket) -> None:
        """Enumerate the device, and notice when the other side hangs up."""
        poll = select.poll()
        with connection:
            poll.register(connection, select.POLLRDHUP)
            if not poll.poll(self.enumeration * 1000):
                with self._lock:
                    if self._imports.get(place) is handle:
                        self._enumerate(place, handle)
                poll.poll()
        with self._lock:
            if self._imports.get(place) is handle:
                self._free(place)

    def _enumerate(self, place: int, handle: usbip.Handle) -> None:
        local = self._local[place] = f"3-{place + 1}"
        self._show()  # as soon as it has an address; what it is, is read later
        device = self.devices / local
        device.mkdir()
        info = handle.conn.info
        (device / "idVendor").write_text(f"{info['idVendor']:04x}\n")
        (device / "idProduct").write_text(f"{info['idProduct']:04x}\n")
        (device / "serial").write_text(f"VIRTUAL{info['idProduct']:04}\n")

    def _free(self, place: int) -> None:
        handle = self._imports.pop(place)
        with contextlib.suppress(OSError):
            handle.conn.sock.shutdown(socket.SHUT_RDWR)
        handle.close()
        if local := self._local.pop(place, None):
            shutil.rmtree(self.devices / local)
        self._show()

    def _show(self) -> None:
        rows = [self._row("hs", place) for place in range(PORTS)]
        rows += [self._row("ss", place) for place in range(PORTS, 2 * PORTS)]
        new = self.status.with_name("new")  # the kernel shows all of it at a moment
        new.write_text(HEADER + "".join(rows))
        new.rename(self.status)

    def _row(self, hub: str, place: int) -> str:
        if (handle := self._imports.get(place)) is None:
            return f"{hub}  {place:04} 004 000 00000000 000000 0-0\n"
        if (local := self._local.get(place)) is None:
            return f"{hub}  {place:04} 005 000 00000000 000000 0-0\n"
        return f"{hub}  {place:04} 006 002 {handle.conn.devid:08x} 000003 {local}\n"
