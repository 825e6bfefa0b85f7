"""mDNS packets as responders send them, made of records.

What belongs here: what makes packets and takes them apart; no socket.
"""

from __future__ import annotations

import ipaddress

from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSRecord, DNSService, DNSText

from usb_remote.mdns import TYPE

A, PTR, TXT, AAAA, SRV, IN, FLUSH = 1, 12, 16, 28, 33, 1, 0x8000
QUERY, RESPONSE = 0x0000, 0x8400
TTL = 120
ID = "1234" + "0" * 28
WORDS = (f"id={ID}", "name=bench", "version=3.0.0", "usbip=3241")


def pointer(label: str = "bench-1234", ttl: int = TTL, kind: str = TYPE) -> DNSPointer:
    return DNSPointer(kind, PTR, IN, ttl, f"{label}.{kind}")


def service(
    label: str = "bench-1234", port: int = 5055, host: str = "bench.local.", kind: str = TYPE
) -> DNSService:
    return DNSService(f"{label}.{kind}", SRV, IN | FLUSH, TTL, 0, 0, port, host)


def text(*words: str | bytes, label: str = "bench-1234", kind: str = TYPE) -> DNSText:
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    data = b"".join(bytes([len(word)]) + word for word in encoded)
    return DNSText(f"{label}.{kind}", TXT, IN | FLUSH, TTL, data)


def address(ip: str = "10.0.0.7", host: str = "bench.local.") -> DNSAddress:
    packed = ipaddress.ip_address(ip).packed
    return DNSAddress(host, A if len(packed) == 4 else AAAA, IN | FLUSH, TTL, packed)


def packet(*answers: DNSRecord, more: tuple[DNSRecord, ...] = (), flags: int = RESPONSE) -> bytes:
    """One packet with these answers, and these additional records."""
    out = DNSOutgoing(flags)
    for record in answers:
        out.add_answer_at_time(record, 0)
    for record in more:
        out.add_additional_answer(record)
    (data,) = out.packets()
    return bytes(data)


def announcement(
    label: str = "bench-1234",
    words: tuple[str | bytes, ...] = WORDS,
    *ips: str,
    port: int = 5055,
    host: str = "bench.local.",
) -> bytes:
    """All of one server; at 10.0.0.7 unless another address is given."""
    return packet(
        pointer(label),
        service(label, port, host),
        text(*words, label=label),
        *(address(ip, host) for ip in ips or ("10.0.0.7",)),
    )
