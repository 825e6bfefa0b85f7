"""Advertise and browse on the loopback interface; tests/network has more than one machine."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from tests.commands import VirtualServer
from tests.patience import patience
from usb_remote.mdns.advertise import Advertiser
from usb_remote.mdns.browse import LEAST, QUIET, browse, browse_for_ever
from usb_remote.mdns.ways import LOOPBACK
from usb_remote.model import Server
from usb_remote.replies import Info


async def heard(id: str) -> Server:
    async with asyncio.timeout(patience(30)):
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


async def test_a_server_announces_itself_unless_that_is_not_wanted(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    for folder in ("loud", "quiet"):
        (tmp_path / folder).mkdir()
    quiet = VirtualServer(tmp_path / "quiet", name=f"{name}-quiet")
    with quiet.process, VirtualServer(tmp_path / "loud", name=name, advertise=True).process:
        names: list[str] = []
        async with asyncio.timeout(patience(30)):
            while name not in names:
                names = [server.name async for server in browse(loopback=True)]
        assert f"{name}-quiet" not in names


async def test_a_browse_looks_as_long_as_is_wanted_and_tells_of_each_announcement() -> None:
    info = Info(id=uuid.uuid4().hex, name="late", version="3")
    advertiser = Advertiser(info, 5055, [LOOPBACK])
    told = 0
    async with asyncio.timeout(patience(20)), aclosing(endless()) as found:
        coming = asyncio.ensure_future(anext(found))
        await asyncio.sleep(LEAST + QUIET)  # a look for a moment would be over
        await advertiser.start()
        while told < 2:
            told += (await coming).id == info.id
            coming = asyncio.ensure_future(anext(found))
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await advertiser.stop()


def endless() -> AsyncGenerator[Server, None]:
    """As nobody says how to look, but on this machine only."""
    look = inspect.signature(browse_for_ever).parameters["look"].default
    found = browse_for_ever(partial(look, loopback=True), (600.0,))
    assert isinstance(found, AsyncGenerator)
    return found
