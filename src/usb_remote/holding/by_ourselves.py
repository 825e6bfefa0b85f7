"""Devices that this process attaches and follows itself, because there is no agent.

Rule of this file: keepers as in an agent, without its desk and state file; wiring.py makes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence

from usb_remote import wiring
from usb_remote.agent.hold import Hold
from usb_remote.agent.links import ROOT
from usb_remote.agent_protocol import AttachRequest
from usb_remote.client import How, user_name
from usb_remote.config import Config
from usb_remote.holding.choosing import choose_all
from usb_remote.holding.device import AttachedDevice
from usb_remote.holding.holder import Holder
from usb_remote.matching import Query
from usb_remote.model import Match
from usb_remote.protocol import build


@contextlib.asynccontextmanager
async def by_ourselves(config: Config) -> AsyncIterator[Holder]:
    """Follow servers and devices in this process."""
    links = ROOT if os.geteuid() == 0 else None
    async with wiring.resident(config, None, links) as resident:
        ourselves = _Ourselves(config, resident)
        try:
            yield ourselves
        finally:
            await ourselves.release()


class _Ourselves(Holder):
    def __init__(self, config: Config, resident: wiring.Resident) -> None:
        self._config = config
        self._resident = resident
        self._holds: list[Hold] = []

    async def find_all(self, queries: Sequence[Query], wait: float | None) -> list[Match]:
        """Look once as `list` does, so that errors are the same; then follow what changes."""
        await wiring.client(self._config).prepare()
        world = self._resident.world
        search = await wiring.finder(self._config).search()
        found = choose_all(search, queries, wait is not None)
        await world.until(
            lambda: choose_all(world.search(), queries, True) or None,
            wait or None if not found else self._config.timeout,
        )
        return choose_all(world.search(), queries, False)

    async def attach(self, query: Query, how: How, name: str | None = None) -> AttachedDevice:
        request = build(AttachRequest, {**query.model_dump(), "name": name})
        hold = await self._resident.agent.hold(request, user_name(), how)
        self._holds.append(hold)
        assert hold.attached is not None
        device = AttachedDevice(hold.attached)
        hold.on_loss, hold.on_attached = device.note_loss, device.note_attached
        return device

    async def release(self) -> None:
        """Give everything back, the newest first."""
        while self._holds:
            await self._resident.agent.release(self._holds.pop())
