"""Waiting in tests: for a condition, never for a fixed time.

What belongs here: what waits for anything of this process. Machines have kernel.lab.until.
"""

from __future__ import annotations

import asyncio

from tests.patience import patience


async def eventually(condition: object, timeout: float | None = None) -> None:
    """Wait until something that has no event of its own becomes true."""
    assert callable(condition)
    async with asyncio.timeout(timeout or patience(30)):
        while not condition():  # noqa: ASYNC110 - the point of this function
            await asyncio.sleep(0.005)
