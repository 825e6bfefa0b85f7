"""An event loop that never waits: where nothing is left to do, its clock goes on to the next timer.

What belongs here: time that is injected into whatever asks the event loop for it. Sockets are real.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Looks at sockets, and lets time pass instead of waiting for them."""

    def __init__(self, let_pass: Callable[[float], None]) -> None:
        super().__init__()
        self._let_pass = let_pass

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # only a socket can end this
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self._let_pass(timeout)
        return ready


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock is the sum of what was waited for."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self.let_pass))

    def let_pass(self, seconds: float) -> None:
        if seconds > 0:
            self._now += seconds

    def time(self) -> float:
        return self._now


def run(main: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run, in no time."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(main)
