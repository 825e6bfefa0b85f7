"""Of several devices one for a program: the first that nobody has.

Rule of this file: what other programs here have is waited for with what other machines have, and
whichever is free first is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from usb_remote import claims, errors
from usb_remote.agent import places
from usb_remote.agent.parts import Parts
from usb_remote.matching import Query
from usb_remote.model import Match

Claimed = tuple[Match, claims.Claim]


async def claim_first(parts: Parts, query: Query, wait: float | None) -> Claimed:
    """A device that matches, and our claim to it.

    One that another machine has is claimed only if that has all of them: to wait in its queue.

    Args:
        parts: what keepers work with.
        query: which ones.
        wait: seconds to wait for one, 0 for as long as it takes, None not at all.

    Raises:
        NotFound: nothing matches.
        Busy: none was free in time.

    """
    try:
        async with asyncio.timeout(wait or None):
            while (claimed := _claim_now(parts, query)) is None:
                if wait is None:
                    break
                await _until_other(parts, query)
    except TimeoutError:
        claimed = None
    if claimed is None:
        raise errors.Busy(
            f"other programs of this machine, or other machines, have all that match {query}",
            hint="usb-remote list shows who; --wait waits for the first that is free",
        )
    return claimed


def _claim_now(parts: Parts, query: Query) -> Claimed | None:
    matches = parts.world.search().select(query)
    free = [match for match in matches if places.is_free(match, parts.client)]
    for match in free or matches or [parts.world.search().choose(query)]:
        if (mine := claims.claim(places.name_of(match))) is not None:
            return match, mine
    return None


async def _until_other(parts: Parts, query: Query) -> None:
    """Wait until another program lets one of them go, or one is there or free that was not."""
    before = _seen(parts, query)

    def is_other() -> bool | None:
        return True if _seen(parts, query) != before else None

    names = [name for name, is_free in before if is_free] or [name for name, _ in before]
    waiting = [asyncio.create_task(_until_dropped(name)) for name in names]
    waiting.append(asyncio.create_task(_until(parts, is_other)))
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _until(parts: Parts, look: Callable[[], bool | None]) -> None:
    await parts.world.until(look)


async def _until_dropped(name: str) -> None:
    (await claims.wait_for(name, None)).drop()


def _seen(parts: Parts, query: Query) -> Sequence[tuple[str, bool]]:
    """Where each of them is, and whether no other machine has it."""
    matches = parts.world.search().select(query)
    return [(places.name_of(m), places.is_free(m, parts.client)) for m in matches]
