"""Advertise and browse on the loopback interface; tests/network has more than one machine."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from usb_remote.mdns.advertise import Advertiser
from usb_remote.mdns.browse import browse
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
