"""How long to wait before a device is attached again.

Rule of this file: numbers in, seconds out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import datetime, timedelta

from usb_remote.agent_protocol import Loss

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds, doubled with each failure, between two tries; some of it by chance."""
FLAPPING, WITHIN = 5, 60.0
"""A device that was lost so many times within so many seconds is attached again with delay."""
_DOUBLINGS = 8
"""After so many every delay is the longest one."""


def after_failures(count: int) -> float:
    """Seconds before the next try, after so many failures in a row."""
    delay = min(FIRST_DELAY * 2.0 ** min(count - 1, _DOUBLINGS), LONGEST_DELAY)
    return delay * random.uniform(0.5, 1.0)


def count_recent(losses: Iterable[Loss], now: datetime) -> int:
    return sum(1 for loss in losses if loss.at > now - timedelta(seconds=WITHIN))


def after_losses(count: int) -> float:
    """Seconds before a device that was lost so often within a minute is attached again."""
    if count < FLAPPING:
        return 0.0
    delay = min(2.0 ** min(count - FLAPPING + 1, _DOUBLINGS), LONGEST_DELAY)
    return delay * random.uniform(0.5, 1.0)
