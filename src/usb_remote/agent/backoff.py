"""How long to wait before a device is attached again.

Rule of this file: numbers in, seconds out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import datetime, timedelta

from usb_remote.agent.times import Times
from usb_remote.agent_protocol import Loss

_DOUBLINGS = 8
"""After so many every delay is the longest one."""


def after_failures(count: int, times: Times) -> float:
    """Seconds before the next try, after so many failures in a row."""
    delay = min(times.first_delay * 2.0 ** min(count - 1, _DOUBLINGS), times.longest_delay)
    return delay * random.uniform(0.5, 1.0)


def count_recent(losses: Iterable[Loss], now: datetime, within: float) -> int:
    return sum(1 for loss in losses if loss.at > now - timedelta(seconds=within))


def after_losses(count: int, times: Times) -> float:
    """Seconds before a device that was lost so often within a minute is attached again."""
    if count < times.flapping:
        return 0.0
    delay = min(2.0 ** min(count - times.flapping + 1, _DOUBLINGS), times.longest_delay)
    return delay * random.uniform(0.5, 1.0)
