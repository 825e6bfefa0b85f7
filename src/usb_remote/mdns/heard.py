"""What the packets of others say: bytes in, servers and what we know already out.

Rule of this file: no socket and no clock. Whatever is in a packet is somebody's claim: what cannot
be right is left out, and nobody can make us remember more than LIMITS.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from zeroconf import (
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSRecord,
    DNSService,
    DNSText,
)

from usb_remote.mdns import TYPE
from usb_remote.model import Server
from usb_remote.values import clean

PTR, IN, QU = 12, 1, 0x8000
"""RFC 1035, 3.2.2 and 3.2.4; the QU bit of a question is RFC 6762, 5.4."""
MAX_KNOWN = 20
"""Known answers in a question: more fill two packets, and zeroconf answers those 0.4 s late."""
MAX_SERVERS = 1024
"""Most servers that one browse believes in."""
MAX_ADDRESSES = 64
"""Most addresses of one server."""
MAX_HOSTS = 8192
"""Most hosts whose addresses are kept: all of the network announce theirs, not only servers."""

_R = TypeVar("_R")


@dataclass(frozen=True)
class Limits:
    """How much one browse remembers."""

    servers: int = MAX_SERVERS
    addresses: int = MAX_ADDRESSES
    hosts: int = MAX_HOSTS


class Heard:
    """What the answers say, record by record, until a server is complete.

    Args:
        again: tell of a server each time that it is heard, not only when it is new or has changed.
        limits: how much to remember.

    """

    def __init__(self, again: bool = False, limits: Limits = Limits()) -> None:
        self._again = again
        self._limits = limits
        self._pointers: dict[str, DNSPointer] = {}
        self._services: dict[str, DNSService] = {}
        self._texts: dict[str, DNSText] = {}
        self._addresses: dict[str, dict[str, None]] = {}
        self._told: dict[str, set[str]] = {}  # the addresses that were told

    @property
    def known(self) -> list[DNSPointer]:
        """What we need not hear again (RFC 6762, 7.1)."""
        return [p for name, p in self._pointers.items() if name in self._told]

    def receive(self, data: bytes, sender: str, scope: str) -> list[Server]:
        """Take in a packet; one that is not a valid answer is ignored.

        Args:
            data: the packet.
            sender: address it came from, which can evidently be reached.
            scope: interface it came in on.

        Returns:
            The servers that are complete now, and have not been told as they are.

        """
        packet = DNSIncoming(data)
        if not packet.valid or not packet.is_response():
            return []
        for record in packet.answers():
            self._note(record, scope)
        return list(self._news(sender))

    def _note(self, record: DNSRecord, scope: str) -> None:
        if isinstance(record, DNSPointer) and record.key == TYPE:
            self._note_pointer(record)
        elif isinstance(record, DNSService) and _is_ours(record.key):
            _keep(self._services, record.key, record, self._limits.servers)
        elif isinstance(record, DNSText) and _is_ours(record.key):
            _keep(self._texts, record.key, record, self._limits.servers)
        elif isinstance(record, DNSAddress):
            host = self._addresses.get(record.key, {})
            _keep(host, _with_scope(record.address, scope), None, self._limits.addresses)
            _keep(self._addresses, record.key, host, self._limits.hosts)

    def _note_pointer(self, pointer: DNSPointer) -> None:
        if pointer.ttl == 0:  # goodbye
            self._pointers.pop(pointer.alias_key, None)
            self._told.pop(pointer.alias_key, None)
        elif _is_ours(pointer.alias_key):
            _keep(self._pointers, pointer.alias_key, pointer, self._limits.servers)
            if self._again:
                self._told.pop(pointer.alias_key, None)

    def _news(self, sender: str) -> Iterator[Server]:
        for name, pointer in self._pointers.items():
            service, text = self._services.get(name), self._texts.get(name)
            if service is None or text is None or service.server_key not in self._addresses:
                continue
            addresses = self._addresses[service.server_key]
            if self._told.get(name) != addresses.keys():
                self._told[name] = set(addresses)
                yield _server(pointer, service, text, list(addresses), sender)


def question(known: Sequence[DNSPointer] = ()) -> bytes:
    """Who offers our service? Answer straight to me (the QU bit).

    One packet: what is known of servers with long names is told of fewer of them.
    """
    packets = _question(known[:MAX_KNOWN])
    return packets[0] if len(packets) == 1 else question(known[: min(len(known), MAX_KNOWN) - 1])


def _question(known: Sequence[DNSPointer]) -> list[bytes]:
    out = DNSOutgoing(0)
    out.add_question(DNSQuestion(TYPE, PTR, IN | QU))
    for pointer in known:
        out.add_answer_at_time(pointer, 0)
    packets: list[bytes] = out.packets()
    return packets


def _is_ours(key: str) -> bool:
    """Whether this is the name of an instance of our service."""
    return key.endswith("." + TYPE)


def _keep(kept: dict[str, _R], key: str, value: _R, most: int) -> None:
    """The newest of a name replaces the one before; beyond the limit nobody new is let in."""
    if key in kept or len(kept) < most:
        kept[key] = value


def _server(
    pointer: DNSPointer, service: DNSService, text: DNSText, addresses: list[str], sender: str
) -> Server:
    """What the records say; a peer's TXT is untrusted, a wrong number is a missing one."""
    values = _txt(text.text)
    first = [a for a in addresses if a.partition("%")[0] == sender.partition("%")[0]]
    return Server(
        id=values.get("id") or None,
        name=values.get("name") or pointer.alias[: -len("." + TYPE)],
        addresses=tuple(dict.fromkeys((*first, *addresses))),
        port=service.port,
        usbip_port=_port(values.get("usbip", "")) or 3240,
        version=values.get("version"),
    )


def _port(text: str) -> int:
    """A TCP port, 0 for anything else."""
    number = int(text) if text.isdecimal() else 0
    return number if number < 1 << 16 else 0


def _txt(data: bytes) -> dict[str, str]:
    """Strings ``key=value``, each after its length (RFC 6763, 6.3); the first of a key counts."""
    values: dict[str, str] = {}
    while data:
        size = data[0]
        key, _, value = data[1 : 1 + size].decode(errors="replace").partition("=")
        values.setdefault(key.lower(), clean(value))
        data = data[1 + size :]
    return values


def _with_scope(packed: bytes, scope: str) -> str:
    """An address as text; a link-local one is only good with its interface."""
    address = ipaddress.ip_address(packed)
    return f"{address}%{scope}" if address.version == 6 and address.is_link_local else str(address)
