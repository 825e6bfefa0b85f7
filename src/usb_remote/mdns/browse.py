"""Find servers: one quick look, or an endless one."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial

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

from usb_remote.mdns import TYPE, ways
from usb_remote.model import Server
from usb_remote.values import clean

log = logging.getLogger(__name__)

PTR, IN, QU = 12, 1, 0x8000
"""RFC 1035, 3.2.2 and 3.2.4; the QU bit of a question is RFC 6762, 5.4."""
MAX_KNOWN = 20
"""Known answers in a question: more fill two packets, and zeroconf answers those 0.4 s late."""
SHOTS = (0.0, 0.06, 0.2)
"""Seconds at which the question is asked: at 10 % loss each way three find all of 10 (FACTS)."""
LEAST, QUIET = 0.25, 0.1
"""A browse ends after 250 ms, when nothing has come for 100 ms; without loss gaps are 24 ms."""
ANSWER = LEAST - SHOTS[-1]
"""Seconds that the last question is given, whenever it was asked: a busy machine asks late."""
LONGEST = 3.0
"""A browse ends after 3 s all the same: a neighbour that changes for ever is not waited for."""
BROWSE_INTERVALS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds between the browses of an endless one; announcements are heard in between."""
MAX_SERVERS = 1024
"""Most servers that one browse believes in."""
MAX_ADDRESSES = 64
"""Most addresses of one server."""


async def browse(
    wait: float = 0, *, loopback: bool = False, again: bool = False
) -> AsyncIterator[Server]:
    """Ask once who is there; each server is yielded the moment its records are in.

    Args:
        wait: seconds to look at least; 0 means as long as it takes.
        loopback: ask only on this machine, not on any network.
        again: yield a server each time that it is heard, not only when it is new or has changed.

    Raises:
        OSError: no question could be asked at all.

    """
    async with _asking(loopback, again) as (heard, ask):
        loop = asyncio.get_running_loop()
        start = last = asked = loop.time()
        shots = list(SHOTS)
        while True:
            now = loop.time()
            if shots and now >= start + shots[0]:
                shots.pop(0)
                ask(heard.known)
                asked = now
            quiet = max(start + max(LEAST, wait), last + QUIET)
            end = max(min(quiet, start + max(LONGEST, wait)), asked + ANSWER)
            if now >= end and not shots:
                for server in heard.waiting():  # it came while this process was not scheduled
                    yield server
                return
            try:
                async with asyncio.timeout_at(start + shots[0] if shots else end):
                    server = await heard.next_server()
            except TimeoutError:
                continue
            last = loop.time()
            yield server  # not inside: the time-out would cancel whoever takes it


async def browse_for_ever() -> AsyncIterator[Server]:
    """Servers as they come, change or announce themselves again, for ever.

    We ask less and less often. Without multicast there is one warning, and the wait goes on.
    """
    warned = False
    for interval in _intervals():
        try:
            async for server in browse(interval, again=True):
                yield server
        except OSError as error:
            log.log(logging.DEBUG if warned else logging.WARNING, "no mDNS: %s", error)
            warned = True
            await asyncio.sleep(interval)


def _intervals() -> Iterator[float]:
    yield from BROWSE_INTERVALS
    while True:
        yield BROWSE_INTERVALS[-1]


class _Heard:
    """What the answers say, record by record, until a server is complete."""

    def __init__(self, again: bool = False) -> None:
        self._again = again
        self._pointers: dict[str, DNSPointer] = {}
        self._services: dict[str, DNSService] = {}
        self._texts: dict[str, DNSText] = {}
        self._addresses: dict[str, dict[str, None]] = {}
        self._told: dict[str, Server] = {}
        self._servers: asyncio.Queue[Server] = asyncio.Queue()

    @property
    def known(self) -> list[DNSPointer]:
        """What we need not hear again (RFC 6762, 7.1)."""
        return [p for name, p in self._pointers.items() if name in self._told]

    async def next_server(self) -> Server:
        return await self._servers.get()

    def waiting(self) -> Iterator[Server]:
        """What was heard and not taken yet."""
        while not self._servers.empty():
            yield self._servers.get_nowait()

    def receive(self, data: bytes, sender: str, scope: str) -> None:
        """Take in a packet; one that is not a valid answer is ignored.

        Args:
            data: the packet.
            sender: address it came from, which can evidently be reached.
            scope: interface it came in on.

        """
        packet = DNSIncoming(data)
        if not packet.valid or not packet.is_response():
            return
        for record in packet.answers():
            self._note(record, scope)
        for name in list(self._pointers):
            self._tell(name, sender)

    def _note(self, record: DNSRecord, scope: str) -> None:
        if isinstance(record, DNSPointer) and record.key == TYPE:
            self._note_pointer(record)
        elif len(self._pointers) >= MAX_SERVERS:
            return
        elif isinstance(record, DNSService):
            self._services[record.key] = record
        elif isinstance(record, DNSText):
            self._texts[record.key] = record
        elif isinstance(record, DNSAddress):
            addresses = self._addresses.setdefault(record.key, {})
            if len(addresses) < MAX_ADDRESSES:
                addresses[_with_scope(record.address, scope)] = None

    def _note_pointer(self, pointer: DNSPointer) -> None:
        if pointer.ttl == 0:  # goodbye
            self._pointers.pop(pointer.alias_key, None)
            self._told.pop(pointer.alias_key, None)
        elif len(self._pointers) < MAX_SERVERS:
            self._pointers.setdefault(pointer.alias_key, pointer)
            if self._again:
                self._told.pop(pointer.alias_key, None)

    def _tell(self, name: str, sender: str) -> None:
        service, text = self._services.get(name), self._texts.get(name)
        if service is None or text is None or service.server_key not in self._addresses:
            return
        addresses = self._addresses[service.server_key]
        server = _server(name, service, text, list(addresses), sender)
        told = self._told.get(name)
        if told is None or set(told.addresses) != set(server.addresses):
            self._told[name] = server
            if self._servers.qsize() < MAX_SERVERS:
                self._servers.put_nowait(server)


def _server(
    name: str, service: DNSService, text: DNSText, addresses: list[str], sender: str
) -> Server:
    """What the records say; a peer's TXT is untrusted, a wrong number is a missing one."""
    values = _txt(text.text)
    first = [a for a in addresses if a.partition("%")[0] == sender.partition("%")[0]]
    return Server(
        id=values.get("id") or None,
        name=values.get("name") or name.removesuffix("." + TYPE),
        addresses=tuple(dict.fromkeys((*first, *addresses))),
        port=service.port,
        usbip_port=_port(values.get("usbip", "")) or 3240,
        version=values.get("version"),
    )


def _port(text: str) -> int:
    """A TCP port, 0 for anything else."""
    number = int(text) if text.isdecimal() and len(text) < 6 else 0
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


_Ask = Callable[[list[DNSPointer]], None]


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, heard: _Heard, scope: str) -> None:
        self._heard = heard
        self._scope = scope

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        self._heard.receive(data, sender[0], self._scope)

    def error_received(self, error: Exception) -> None:
        log.debug("mDNS on %s: %s", self._scope, error)


@contextlib.asynccontextmanager
async def _asking(loopback: bool, again: bool) -> AsyncIterator[tuple[_Heard, _Ask]]:
    """What is heard, and a function that asks everywhere."""
    loop = asyncio.get_running_loop()
    heard = _Heard(again)
    asking: list[tuple[asyncio.DatagramTransport, ways.Target]] = []
    async with contextlib.AsyncExitStack() as stack:
        here = [] if loopback else ways.list_interfaces(loopback=True)
        everywhere = dict.fromkeys((*ways.list_interfaces(loopback=loopback), *here))
        for way in ways.open_ways(everywhere):
            ear = partial(_Ear, heard, way.interface.name)
            transport, _ = await loop.create_datagram_endpoint(ear, sock=way.connection)
            stack.callback(transport.abort)
            if way.target is not None:
                asking.append((transport, way.target))
        if not asking:
            raise OSError("no network interface to ask on")

        def ask(known: list[DNSPointer]) -> None:
            packet = question(known)
            for transport, target in asking:
                transport.sendto(packet, target)

        yield heard, ask
    await asyncio.sleep(0)  # so that the sockets are closed before the loop may be


def question(known: Sequence[DNSPointer] = ()) -> bytes:
    """Who offers our service? Answer straight to me (the QU bit)."""
    out = DNSOutgoing(0)
    out.add_question(DNSQuestion(TYPE, PTR, IN | QU))
    for pointer in known[:MAX_KNOWN]:
        out.add_answer_at_time(pointer, 0)
    packets: list[bytes] = out.packets()
    return packets[0]
