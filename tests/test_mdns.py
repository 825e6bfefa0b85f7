"""Advertise and browse on the loopback interface; tests/network has more than one machine."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from zeroconf import DNSPointer

from usb_remote.mdns.advertise import Advertiser
from usb_remote.mdns.browse import browse, question
from usb_remote.mdns.ways import LOOPBACK
from usb_remote.model import Server
from usb_remote.replies import Info


async def heard(id: str) -> Server:
    async with asyncio.timeout(30):
        while True:
            async for server in browse(loopback=True):
                if server.id == id:
                    return server


@pytest.mark.parametrize(
    "name",
    [
        "bench",
        "实验室" * 21,  # as many characters as a name may have
        "\U0001d54f" * 63,
        "Ä" * 48,
        "My Lab Server. 2",
        "-",
        "x" * 63,
    ],
)
async def test_a_server_of_any_name_is_announced_and_found(name: str) -> None:
    info = Info(id=uuid.uuid4().hex, name=name, version="3")
    advertiser = Advertiser(info, 5055, [LOOPBACK])
    await advertiser.start()
    try:
        server = await heard(info.id)
    finally:
        await advertiser.stop()
    assert name.startswith(server.name)
    assert len(server.name) > 20 or server.name == name
    assert server.addresses == (LOOPBACK,)


@contextmanager
def announced_by_a_thread() -> Iterator[str]:
    """Somebody who answers while the test's own thread stands still; yields its id."""
    info, over = Info(id=uuid.uuid4().hex, name="bench", version="3"), threading.Event()

    async def announce() -> None:
        advertiser = Advertiser(info, 5055, [LOOPBACK])
        await advertiser.start()
        await asyncio.to_thread(over.wait)
        await advertiser.stop()

    thread = threading.Thread(target=asyncio.run, args=(announce(),))
    thread.start()
    try:
        yield info.id
    finally:
        over.set()
        thread.join()


async def test_what_came_while_this_process_was_not_scheduled_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with announced_by_a_thread() as id:
        await heard(id)
        stalls = [1.0]

        def ask_and_stand_still(known: Sequence[DNSPointer] = ()) -> bytes:
            if stalls:
                asyncio.get_running_loop().call_soon(time.sleep, stalls.pop())
            return question(known)

        monkeypatch.setattr("usb_remote.mdns.browse.question", ask_and_stand_still)
        assert id in [server.id async for server in browse(loopback=True)]
