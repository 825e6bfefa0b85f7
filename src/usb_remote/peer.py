"""Whether the other end of a TCP connection is still there: what its kernel acknowledges.

Rule of this file: it asks our own kernel (TCP_INFO) and gives a verdict; it sends nothing and
closes nothing. TCP_USER_TIMEOUT cannot serve here: it also ends a connection whose program does not
read for a while (zero window), although the kernel on that side answers every probe.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Self

_TCP_INFO_SIZE = 232
"""Bytes of struct tcp_info (include/uapi/linux/tcp.h) up to the end of tcpi_snd_wnd, Linux 5.4."""
_UNACKED, _LAST_ACK_RECV, _NOTSENT_BYTES, _SND_WND = 24, 56, 144, 228
"""Offsets of its fields tcpi_unacked, …; each is a 32-bit number of the machine's byte order."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far what we sent has come.

    Attributes:
        in_flight: segments that are sent and not acknowledged.
        unsent: bytes that wait, usually for the window to open.
        window: bytes that the other kernel would take now; 0 if its program does not read.
        silence: seconds since the last acknowledgement of any kind.

    """

    in_flight: int = 0
    unsent: int = 0
    window: int = 65535
    silence: float = 0.0

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Ask the kernel; raises OSError if it is no TCP connection any more."""
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        info = info.ljust(_TCP_INFO_SIZE, b"\xff")  # before Linux 5.4: a window that is open

        def number(offset: int) -> int:
            return int(struct.unpack_from("=I", info, offset)[0])

        return cls(
            in_flight=number(_UNACKED),
            unsent=number(_NOTSENT_BYTES),
            window=number(_SND_WND),
            silence=number(_LAST_ACK_RECV) / 1000,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the other kernel has everything."""
        return not (self.in_flight or self.unsent)

    @property
    def is_stopped(self) -> bool:
        """Whether only the other program keeps us from sending: its window is closed.

        Then our kernel probes it at intervals that grow to 120 s (TCP_RTO_MAX).
        """
        return self.window == 0 or (self.unsent > 0 and not self.in_flight)


class Presence:
    """Follows one connection from look to look.

    Args:
        silence: seconds without an acknowledgement, while something is in flight, after which the
            other machine is gone.
        probe_silence: the same while the other program does not read.

    """

    def __init__(self, silence: float, probe_silence: float) -> None:
        self._silence = silence
        self._probe_silence = probe_silence
        self._owed_since: float | None = None

    def expect(self, now: float) -> None:
        """Something was sent just now, so an acknowledgement is due."""
        if self._owed_since is None:
            self._owed_since = now

    def is_gone(self, delivery: Delivery, now: float) -> bool:
        """Whether it is time to give the other side up; `now` is of the clock of :meth:`expect`."""
        if delivery.is_complete:
            self._owed_since = None
            return False
        self.expect(now)
        assert self._owed_since is not None
        self._owed_since = max(self._owed_since, now - delivery.silence)
        limit = self._probe_silence if delivery.is_stopped else self._silence
        return now - self._owed_since >= limit
