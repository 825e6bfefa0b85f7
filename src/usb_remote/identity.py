"""Who this machine is: a stable server id that is not an address, and a name.

Rule of this file: the id is the same after every restart, and different on every machine, also on
Raspberry Pis whose cards were copied from one image.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import uuid
from pathlib import Path

from usb_remote import state

APPLICATION = uuid.UUID("5d2f8f0e-3a55-4f0c-9c68-0b1a7e1f9a35").bytes
"""Our application id for sd_id128_get_machine_app_specific(3)."""

MACHINE_ID = Path("/etc/machine-id")
BOARD_SERIAL = Path("/proc/device-tree/serial-number")
"""The board's own serial number: copied cards have the same machine id."""


def server_id(
    salt: str = "", *, machine_id: Path = MACHINE_ID, board_serial: Path = BOARD_SERIAL
) -> str:
    """32 hexadecimal digits; another ``salt`` for another server on the same machine.

    The way of sd_id128_get_machine_app_specific(3): HMAC-SHA256 of the application id, keyed with
    the machine id, cut to 128 bits. Without a machine id a random one is made and kept.
    """
    key = _read(machine_id) or _stored_id()
    board = _read(board_serial).rstrip("\0")
    message = APPLICATION + board.encode() + salt.encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()[:32]


def host_name(full: str | None = None) -> str:
    """The short host name: of this machine, or of this full one."""
    return (socket.gethostname() if full is None else full).partition(".")[0] or "usb-remote"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _stored_id() -> str:
    path = state.directory() / "id"
    if not (known := _read(path)):
        known = uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(known + "\n")
    return known
