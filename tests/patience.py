"""How long a test may wait: the one place that turns seconds into a bound.

What belongs here: nothing but :func:`patience` and how it knows the machine's speed. A bound ends a
test that hangs; it proves nothing, so it may grow with the machine. What is promised to users is
measured with the kernel's or the guest's own clock, or as an order of events.
"""

from __future__ import annotations

import time
from collections import deque

REFERENCE = 0.045
"""Seconds that :func:`_work` takes on the machine for which the bounds were written."""
MEASURE_AGAIN = 10.0
"""Seconds after which the speed is measured again: load comes and goes."""
MOST = 20.0
"""The largest factor: a test that needs more has hung."""

_measured: deque[float] = deque(maxlen=4)
_last = float("-inf")


def patience(seconds: float) -> float:
    """That many seconds of a machine of usual speed, as seconds of this one.

    Never less than `seconds`. The speed is measured at the first call, and again every
    MEASURE_AGAIN seconds; the slowest of the last four measurements counts.
    """
    return seconds * factor()


def factor() -> float:
    """How many times slower than usual this machine is now, from 1 to MOST."""
    global _last
    if time.monotonic() - _last > MEASURE_AGAIN:
        _measured.append(_time_of_work() / REFERENCE)
        _last = time.monotonic()
    return min(MOST, max(1.0, *_measured))


def _time_of_work() -> float:
    """Wall time, not CPU time: what others take of the machine counts, too."""
    start = time.monotonic()
    _work()
    return time.monotonic() - start


def _work() -> int:
    total = 0
    for number in range(1_000_000):
        total += number
    return total
