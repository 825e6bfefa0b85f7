"""Announce one server on all interfaces, whatever their addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from zeroconf import Error, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from usb_remote.mdns import TYPE, ways
from usb_remote.protocol import VERSION
from usb_remote.replies import Info

log = logging.getLogger(__name__)

ADDRESS_SETTLE = 0.3
"""Seconds after an address change until the next look: addresses come in bunches."""

MAX_LABEL = 63
"""Bytes of one part of a name (RFC 1035, 2.3.4)."""
MAX_STRING = 255
"""Bytes of one string of a TXT record (RFC 6763, 6.1)."""


class ListInterfaces(Protocol):
    def __call__(self, *, loopback: bool) -> list[ways.Interface]: ...


class Advertiser:
    """Announces one server for as long as it runs, on all interfaces, whatever their addresses.

    Args:
        info: who we are.
        port: of the control protocol.
        listen: what the server listens on; addresses it does not listen on are not announced.
        list_interfaces: what this machine has.
        address_changes: opens a socket that is readable when that changes.
        settle: seconds after a change until the next look.

    """

    def __init__(
        self,
        info: Info,
        port: int,
        listen: Sequence[str],
        list_interfaces: ListInterfaces = ways.list_interfaces,
        address_changes: Callable[[], socket.socket] = ways.address_changes,
        settle: float = ADDRESS_SETTLE,
    ) -> None:
        self._info = info
        self._port = port
        self._listen = listen
        self._list_interfaces = list_interfaces
        self._address_changes = address_changes
        self._settle = settle
        self._zeroconf: AsyncZeroconf | None = None
        self._service: ServiceInfo | None = None
        self._bound: dict[str, int] = {}
        self._netlink: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._update: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Announce; if that is impossible, say so and try again when an address changes."""
        self._netlink = self._address_changes()
        asyncio.get_running_loop().add_reader(self._netlink, self._on_change)
        await self._announce()

    async def stop(self) -> None:
        """Say goodbye."""
        if self._timer is not None:
            self._timer.cancel()
        if self._update is not None:
            self._update.cancel()
            await asyncio.gather(self._update, return_exceptions=True)
        if self._netlink is not None:
            asyncio.get_running_loop().remove_reader(self._netlink)
            self._netlink.close()
        await self._withdraw()

    async def _announce(self) -> None:
        interfaces = listened_on(self._listen, self._list_interfaces)
        self._bound = {i.address: i.number for i in ways.one_of_each(interfaces)}
        try:
            self._service = service_of(self._info, self._port, [i.address for i in interfaces])
            self._zeroconf = AsyncZeroconf(interfaces=list(self._bound) or [ways.LOOPBACK])
            await self._zeroconf.async_register_service(self._service, cooperating_responders=True)
        except (OSError, Error, RuntimeError) as error:
            log.warning("not announced by mDNS: %s; clients need this server's address", error)
            await self._withdraw()

    async def _withdraw(self) -> None:
        if self._zeroconf is not None:
            zeroconf, self._zeroconf = self._zeroconf, None
            await zeroconf.async_close()  # which says goodbye

    # -- addresses come and go

    def _on_change(self) -> None:
        if self._netlink is not None:
            ways.drain(self._netlink)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._settle, self._look_again)

    def _look_again(self) -> None:
        if self._update is None or self._update.done():
            self._update = asyncio.create_task(self._follow_addresses())
        else:
            self._on_change()

    async def _follow_addresses(self) -> None:
        interfaces = listened_on(self._listen, self._list_interfaces)
        bound = {i.address: i.number for i in ways.one_of_each(interfaces)}
        addresses = sorted(i.address for i in interfaces)
        if self._zeroconf is None or self._service is None:
            await self._announce()
        elif bound != self._bound or addresses != sorted(self._service.parsed_addresses()):
            log.info("addresses changed; announcing %s", ", ".join(addresses) or "none")
            self._service = service_of(self._info, self._port, addresses)
            # before rebinding, which announces for half a second whatever is registered then
            announced = await self._zeroconf.async_update_service(self._service)
            await self._rebind(self._zeroconf, bound)
            await announced

    async def _rebind(self, zeroconf: AsyncZeroconf, bound: dict[str, int]) -> None:
        """In two steps: an interface that was made anew with its old address looks the same to
        zeroconf, but its group membership is gone (measured: deaf on IPv4 for ever).
        """
        kept = [a for a, number in self._bound.items() if bound.get(a) == number]
        try:
            if len(kept) < len(self._bound):
                await zeroconf.async_update_interfaces(interfaces=kept or [ways.LOOPBACK])
            await zeroconf.async_update_interfaces(interfaces=list(bound) or [ways.LOOPBACK])
            self._bound = bound
        except (OSError, RuntimeError) as error:
            log.warning("mDNS on a changed network: %s; trying again", error)
            self._bound = {}
            self._on_change()


def listened_on(
    listen: Sequence[str], list_interfaces: ListInterfaces = ways.list_interfaces
) -> list[ways.Interface]:
    """The interfaces on which a server that listens so is reached."""
    listening = [ipaddress.ip_address(address) for address in listen]
    found = list_interfaces(loopback=all(address.is_loopback for address in listening))
    return [i for i in found if any(_takes(one, i.address) for one in listening)]


def _takes(
    listening: ipaddress.IPv4Address | ipaddress.IPv6Address,
    address: str,
) -> bool:
    own = ipaddress.ip_address(address)
    return own == listening or (listening.is_unspecified and listening.version == own.version)


def service_of(info: Info, port: int, addresses: list[str]) -> ServiceInfo:
    """The instance name is unique by construction, so that probing can be skipped."""
    label = f"{_cut(info.name, MAX_LABEL - 5)}-{info.id[:4]}"
    host = "".join(c if c.isalnum() and c.isascii() else "-" for c in label)
    return ServiceInfo(
        TYPE,
        f"{label.replace('.', '-')}.{TYPE}",
        port=port,
        server=f"{host}.local.",
        parsed_addresses=addresses,
        properties={
            "txtvers": "1",
            "proto": str(VERSION),
            "id": info.id,
            "name": _cut(info.name, MAX_STRING - len("name=")),
            "version": info.version,
            "usbip": str(info.usbip_port),
        },
    )


def _cut(text: str, size: int) -> str:
    """The beginning, at most so many bytes, no half characters."""
    return text.encode()[:size].decode(errors="ignore").strip()
