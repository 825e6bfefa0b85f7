"""sd_notify(3), sd_listen_fds(3): what a service tells systemd, and what systemd keeps for it.

Rule of this file: it costs nothing where nobody listens, and never stops what it reports on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import MutableMapping, Sequence

log = logging.getLogger(__name__)

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"
FDS, FD_NAMES, FDS_PID = "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"
FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
TIMEOUT = 1.0
"""Seconds that systemd may take to receive a message; it only does not when it is stuck itself."""


class Service:
    """What systemd knows of this process.

    Args:
        environment: what systemd has set; it is taken out, so that programs which we start do not
            speak for us.
        first_fd: the first of the descriptors that it has passed.

    """

    def __init__(
        self, environment: MutableMapping[str, str] = os.environ, first_fd: int = FIRST_FD
    ) -> None:
        self._address = environment.pop(SOCKET, "")
        pid = environment.pop(WATCHDOG_PID, "")
        interval = int(environment.pop(WATCHDOG, "") or 0) / 1_000_000
        self._ping_every = interval / 2 if pid in ("", str(os.getpid())) else 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stored = _passed(environment, first_fd)

    def ready(self, status: str = "") -> None:
        """It does its work now: after the start, and after each reload."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))
        if self._timer is None and self._ping_every:
            self._ping()

    def reloading(self) -> None:
        """It reads its configuration again; :meth:`ready` says when that is done."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """It ends; there are no more pings from now on, but systemd asks for none either."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._send("STOPPING=1")

    def store(self, name: str, fd: int) -> None:
        """Have it kept open, and given to the next process of this service, if there is one."""
        self._send("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", fds=[fd])

    def forget(self, name: str) -> None:
        """Have what was stored under this name closed."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def stored(self) -> dict[str, socket.socket]:
        """The sockets that the process before this one has stored, once; they are the caller's."""
        found, self._stored = self._stored, {}
        return {name: socket.socket(fileno=fd) for name, fd in found.items()}

    def _ping(self) -> None:
        """Show at half of the time given that the event loop is alive."""
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._ping_every, self._ping)

    def _send(self, *lines: str, fds: Sequence[int] = ()) -> None:
        if not self._address:
            return
        abstract = self._address.startswith("@")
        address = f"\0{self._address[1:]}" if abstract else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(TIMEOUT)
                sender.connect(address)
                socket.send_fds(sender, ["\n".join(lines).encode()], fds)
        except OSError as error:
            log.warning("systemd does not hear %s: %s", lines[0], error)


def _passed(environment: MutableMapping[str, str], first: int) -> dict[str, int]:
    """Name -> descriptor of what this process was given; none of it is for its children."""
    pid, count = environment.pop(FDS_PID, ""), environment.pop(FDS, "")
    names = environment.pop(FD_NAMES, "").split(":")
    if pid != str(os.getpid()):
        return {}
    found = dict(zip(names, range(first, first + int(count or 0)), strict=False))
    for fd in found.values():
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    return found
