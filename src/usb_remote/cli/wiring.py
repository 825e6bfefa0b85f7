"""Put the client's parts together, and run them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from usb_remote.config import Config
from usb_remote.finder import Finder
from usb_remote.mdns.browse import browse

if TYPE_CHECKING:
    from usb_remote.client import Client

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels what is under way and lets it clean up."""
    return asyncio.run(work)


def finder(config: Config, wait: float = 0) -> Finder:
    """What looks for servers and devices, for at least ``wait`` seconds."""
    return Finder(config, partial(browse, wait))


def client(config: Config) -> Client:
    """What attaches: needs pyudev and the usbip command."""
    from usb_remote import client, identity, vhci
    from usb_remote.mdns.ways import local_addresses
    from usb_remote.udev.nodes import Arrival

    return client.Client(
        config,
        browse,
        vhci.Vhci(),
        Arrival,
        identity.server_id("client"),
        local_addresses,
    )
