"""Put the client's parts together, and run it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, TypeVar

from usb_remote.client import Client
from usb_remote.config import Config
from usb_remote.model import Attachment, BusId, Server

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels what is under way and lets it clean up."""
    return asyncio.run(work)


def browse(wait: float = 0) -> AsyncIterator[Server]:
    """Look for servers by mDNS, once."""
    from usb_remote import mdns

    return mdns.browse(wait)


def finder(config: Config, wait: float = 0) -> Client:
    """A client that only looks: without pyudev and the usbip command."""
    return Client(config, partial(browse, wait), _NoImporter(), _no_nodes)


def importer(config: Config) -> Client:
    """A client that can attach."""
    from usb_remote import udev, usbip

    return Client(config, browse, usbip.Vhci(), udev.wait_until_usable)


class _NoImporter:
    async def prepare(self) -> None:
        raise NotImplementedError

    def list_attachments(self) -> list[Attachment]:
        return []

    async def attach(
        self, address: str, bus_id: BusId, *, usbip_port: int, timeout: float
    ) -> Attachment:
        raise NotImplementedError

    async def detach(self, vhci_port: int) -> None:
        raise NotImplementedError


async def _no_nodes(_bus_id: str, _timeout: float) -> tuple[str, ...]:
    return ()
