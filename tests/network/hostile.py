"""A bad neighbour on the mDNS group: a program that the tests run on a host of the lab.

flood COUNT ADDRESS…    mutated and random packets to the group and to the addresses, then the end
lie                     announces services with nasty names, ports and addresses, for ever
change                  announces one service with ever new addresses, for ever
"""

from __future__ import annotations

import ipaddress
import itertools
import random
import socket
import sys
import time
from collections.abc import Iterator

from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSQuestion, DNSService, DNSText

TYPE = "_usbremote._tcp.local."
A, PTR, TXT, AAAA, SRV, IN = 1, 12, 16, 28, 33, 1
QUERY, RESPONSE = 0x0000, 0x8400
GROUP = ("224.0.0.251", 5353)
TTL = 120
FLOOD_PACE = 0.001
"""Seconds between packets of a flood, so that it lasts while others work."""
PACE = 0.02
"""Seconds between announcements: less than a browse waits for the next answer."""

ESCAPES = "evil\x1b[31m\r\n\x07\u202e\x9b2J"
NOBODY = "10.77.0.200"


def announcement(label: str, name: str, port: int, *addresses: str) -> bytes:
    instance, host = f"{label}.{TYPE}", f"{label}.local."
    words = [f"name={name}", f"id={name}", f"version={ESCAPES}", "usbip=99999"]
    text = b"".join(bytes([len(word)]) + word for word in (w.encode()[:255] for w in words))
    out = DNSOutgoing(RESPONSE)
    out.add_answer_at_time(DNSPointer(TYPE, PTR, IN, TTL, instance), 0)
    out.add_answer_at_time(DNSService(instance, SRV, IN, TTL, 0, 0, port, host), 0)
    out.add_answer_at_time(DNSText(instance, TXT, IN, TTL, text), 0)
    for address in addresses:
        ip = ipaddress.ip_address(address)
        kind = A if ip.version == 4 else AAAA
        out.add_answer_at_time(DNSAddress(host, kind, IN, TTL, ip.packed), 0)
    [packet] = out.packets()
    return bytes(packet)


def question() -> bytes:
    out = DNSOutgoing(QUERY)
    out.add_question(DNSQuestion(TYPE, PTR, IN))
    [packet] = out.packets()
    return bytes(packet)


def lies() -> list[bytes]:
    return [
        announcement(ESCAPES, ESCAPES, 5055, NOBODY),
        announcement("evil-zero", "evil\nzero", 0, NOBODY),
        announcement("evil-huge", "evil\thuge" + "x" * 200, 65535, NOBODY),
        announcement("evil-anywhere", "evil anywhere", 9, "0.0.0.0", "224.0.0.1"),
        announcement("evil-link", "evil link", 9, "fe80::77"),
        announcement("evil-broadcast", "evil broadcast", 9, "255.255.255.255"),
    ]


def changes() -> Iterator[bytes]:
    """Every packet has one more address of nobody."""
    for number in itertools.count(1):
        yield announcement("changer", "changer", 5055, f"10.78.{number >> 8 & 255}.{number & 255}")


def mutated(packet: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut off or doubled."""
    data = bytearray(packet)
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    if chance.random() < 0.1:
        data *= 2
    return bytes(data)


def flood(count: int, *addresses: str) -> None:
    chance = random.Random(77)
    templates = [announcement("mutant", "mutant", 5055, NOBODY), question()]
    targets = [GROUP, *((address, 5353) for address in addresses)]
    connection = opened()
    print("flooding", flush=True)
    for _ in range(count):
        nonsense = chance.randbytes(chance.randint(0, 1400))
        packet = mutated(chance.choice(templates), chance)
        connection.sendto(chance.choice([nonsense, packet, packet]), chance.choice(targets))
        time.sleep(FLOOD_PACE)


def announce_for_ever(packets: Iterator[bytes], said: str) -> None:
    connection = opened()
    for number, packet in enumerate(packets):
        connection.sendto(packet, GROUP)
        if number == 0:
            print(said, flush=True)
        time.sleep(PACE)


def opened() -> socket.socket:
    """From port 5353, as RFC 6762 wants it of a responder."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    connection.bind(("", 5353))
    return connection


def main(what: str, *words: str) -> None:
    if what == "flood":
        flood(int(words[0]), *words[1:])
    elif what == "lie":
        announce_for_ever(itertools.cycle(lies()), "lying")
    else:
        announce_for_ever(changes(), "changing")


if __name__ == "__main__":
    main(*sys.argv[1:])
