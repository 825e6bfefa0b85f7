"""Claims: one device for one program of this machine."""

from __future__ import annotations

import asyncio
import os
import resource

import pytest

from tests.waiting import eventually
from usb_remote import claims, errors

NAME = f"{os.getpid():x}/1-1"


async def test_who_waits_has_it_as_soon_as_it_is_dropped() -> None:
    mine = claims.claim(NAME)
    assert mine is not None
    assert claims.claim(NAME) is None
    waiting = asyncio.create_task(claims.wait_for(NAME, None))
    await eventually(lambda: mine._waiting)
    mine.drop()
    (await asyncio.wait_for(waiting, claims.LOOK_AGAIN / 2)).drop()
    mine.drop()  # which does nothing any more


async def test_in_time_or_not_at_all() -> None:
    mine = claims.claim(NAME)
    assert mine is not None
    for timeout in (0, 0.05):
        with pytest.raises(errors.Busy, match="another program of this machine has 1-1"):
            await claims.wait_for(NAME, timeout)
    mine.drop()


async def test_those_who_gave_up_are_in_nobodys_way() -> None:
    mine = claims.claim(NAME)
    assert mine is not None
    for _ in range(3 * claims.MAX_WAITING):
        waiting = asyncio.create_task(claims.wait_for(NAME, None))
        await eventually(lambda: mine._waiting)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: not mine._waiting)
    waiting = asyncio.create_task(claims.wait_for(NAME, None))
    await eventually(lambda: mine._waiting)
    mine.drop()
    (await asyncio.wait_for(waiting, claims.LOOK_AGAIN / 2)).drop()


async def test_however_many_wait_they_sleep() -> None:
    mine = claims.claim(NAME)
    assert mine is not None
    waiting = [asyncio.create_task(claims.wait_for(NAME, 1.5)) for _ in range(200)]
    await eventually(lambda: len(mine._waiting) == claims.MAX_WAITING)
    before = resource.getrusage(resource.RUSAGE_SELF)
    failures = await asyncio.gather(*waiting, return_exceptions=True)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert {type(failure) for failure in failures} == {errors.Busy}
    assert after.ru_utime - before.ru_utime < 1.2  # spinning would take all of it
    mine.drop()


@pytest.mark.parametrize("name", ["n" * 200 + "/1-1", "\N{SNOWMAN}" * 60], ids=["long", "wide"])
async def test_a_name_may_be_long(name: str) -> None:
    mine, other = claims.claim(name), claims.claim(name + "2")
    assert mine is not None
    assert other is not None
    assert claims.claim(name) is None
    mine.drop()
    other.drop()
