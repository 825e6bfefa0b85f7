"""Claims: one device for one program of this machine."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import pytest

from tests.patience import patience
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
    again = claims.claim(NAME)
    assert again is not None
    mine.drop()  # and takes it from nobody
    assert claims.claim(NAME) is None
    again.drop()


async def test_a_claim_of_a_program_without_stdin_can_be_dropped() -> None:
    """The kernel gives the lowest number that is free."""
    stdin = os.dup(0)
    os.close(0)
    try:
        mine = claims.claim(NAME)
        assert mine is not None
        assert mine._listening.fileno() == 0
        mine.drop()
        again = claims.claim(NAME)
        assert again is not None
        again.drop()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


async def test_programs_of_all_versions_agree_on_the_names_of_claims() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(f"\0usb-remote/claim/{NAME}")
        assert claims.claim(NAME) is None


async def test_in_time_or_not_at_all() -> None:
    mine = claims.claim(NAME)
    assert mine is not None
    for timeout in (0, 0.05):
        with pytest.raises(errors.Busy, match="another program of this machine has 1-1"):
            await claims.wait_for(NAME, timeout)
    mine.drop()


async def test_those_who_gave_up_are_in_nobodys_way() -> None:
    mine = claims.claim(NAME, max_waiting=2)
    assert mine is not None
    for _ in range(3 * 2):
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
    mine = claims.claim(NAME, max_waiting=4)
    assert mine is not None
    waiting = [asyncio.create_task(claims.wait_for(NAME, 0.6)) for _ in range(20)]
    await eventually(lambda: len(mine._waiting) == 4)
    before = resource.getrusage(resource.RUSAGE_SELF)
    failures = await asyncio.gather(*waiting, return_exceptions=True)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert {type(failure) for failure in failures} == {errors.Busy}
    assert after.ru_utime - before.ru_utime < 0.3  # spinning would take all of it
    mine.drop()


@pytest.mark.parametrize("name", ["n" * 200 + "/1-1", "\N{SNOWMAN}" * 60], ids=["long", "wide"])
async def test_a_name_may_be_long(name: str) -> None:
    mine, other = claims.claim(name), claims.claim(name + "2")
    assert mine is not None
    assert other is not None
    assert claims.claim(name) is None
    mine.drop()
    other.drop()


async def test_who_fills_the_last_place_closes_the_door_until_somebody_leaves() -> None:
    """More than that are not let in: each would cost the holder a descriptor."""
    mine = claims.claim(NAME, max_waiting=2)
    assert mine is not None
    waiting = [asyncio.create_task(claims.wait_for(NAME, None)) for _ in range(6)]
    await eventually(lambda: len(mine._waiting) == 2)
    first = set(mine._waiting)
    waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.gather(*waiting[:2], return_exceptions=True)
    await eventually(lambda: len(mine._waiting - first) == 2)
    assert len(mine._waiting) == 2
    mine.drop()
    for task in asyncio.as_completed(waiting[2:], timeout=patience(30)):
        (await task).drop()  # one after the other, each as the one before drops it


async def test_a_turn_is_left_and_taken_again() -> None:
    async with claims.Turn(NAME, 0) as turn:
        assert not turn.was_left
        await turn.resume()  # it is ours already
        with pytest.raises(errors.Busy):
            await claims.Turn(NAME, 0).__aenter__()
        turn.leave()
        async with claims.Turn(NAME, 0):
            with pytest.raises(errors.Busy):
                await turn.resume()
        await turn.resume()
        assert turn.was_left
        assert claims.claim(NAME) is None
    free = claims.claim(NAME)
    assert free is not None
    free.drop()


async def test_who_waits_looks_again_even_if_nobody_tells_him() -> None:
    """A holder that is stopped lets nobody in, and when it ends, those that it did not let in."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(claims._address(NAME))  # bound, but it does not listen
        waiting = asyncio.create_task(claims.wait_for(NAME, None))
        await asyncio.sleep(0.01)  # in which it would have it
        assert not waiting.done()
    (await asyncio.wait_for(waiting, patience(10))).drop()
