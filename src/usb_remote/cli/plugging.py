"""`server --virtual`: devices that are plugged and pulled by words typed at the server.

Rule of this file: only a server of virtual devices loads it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from stat import S_ISCHR, S_ISFIFO

from usb_remote import errors
from usb_remote.virtual import VirtualDevices

log = logging.getLogger(__name__)


def obey_commands(devices: VirtualDevices) -> None:
    """Obey ``plug KIND`` and ``pull KIND`` from a terminal or a pipe on stdin, to our end."""
    mode = os.fstat(sys.stdin.fileno()).st_mode if sys.stdin else 0
    if S_ISFIFO(mode) or (S_ISCHR(mode) and os.isatty(sys.stdin.fileno())):
        log.info("type `pull KIND` or `plug KIND` and Enter; kinds: %s", ", ".join(devices.kinds))
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _obey, devices)


def _obey(devices: VirtualDevices) -> None:
    data = os.read(sys.stdin.fileno(), 4096)
    if not data:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    for line in data.decode(errors="replace").splitlines():
        verb, _, kind = line.strip().partition(" ")
        actions = {"plug": devices.plug, "pull": devices.pull}
        try:
            if verb not in actions:
                raise errors.UsageError(f"{verb!r} is neither plug nor pull")
            actions[verb](kind.strip())
        except errors.UsageError as error:
            log.warning("%s", error)
