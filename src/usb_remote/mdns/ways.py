"""The ways out of this machine: its interfaces, and sockets that ask mDNS questions on them.

Rule of this file: the only importer of ifaddr; sockets and addresses, nothing of DNS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import ifaddr

GROUP4, GROUP6, PORT = "224.0.0.251", "ff02::fb", 5353
"""RFC 6762, section 3."""
LOOPBACK = "127.0.0.1"

Target = tuple[str, int] | tuple[str, int, int, int]


class Interface(NamedTuple):
    """One address of one network interface."""

    address: str
    number: int
    name: str

    @property
    def is_v6(self) -> bool:
        return ":" in self.address

    @property
    def is_link_local(self) -> bool:
        return ipaddress.ip_address(self.address).is_link_local


def list_interfaces(*, loopback: bool = False) -> list[Interface]:
    """Every address of this machine; loopback only where there is nothing else, or on request."""
    found = [
        Interface(str(ip.ip if ip.is_IPv4 else ip.ip[0]), adapter.index or 0, adapter.name)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    outward = [i for i in found if not ipaddress.ip_address(i.address).is_loopback]
    inward = [i for i in found if i.address == LOOPBACK]
    return inward if loopback else outward or inward


def local_addresses() -> set[str]:
    """Every address of this machine, loopback included, without scope."""
    return {i.address for i in (*list_interfaces(), *list_interfaces(loopback=True))}


def one_of_each(interfaces: Iterable[Interface]) -> list[Interface]:
    """One IPv4 and one IPv6 address of each interface, the link-local one first.

    Only one socket of a family can join a multicast group on an interface, so more are no use.
    """
    chosen: dict[tuple[int, bool], Interface] = {}
    for interface in sorted(interfaces, key=lambda i: not i.is_link_local):
        chosen.setdefault((interface.number, interface.is_v6), interface)
    return list(chosen.values())


def address_changes() -> socket.socket:
    """A netlink socket that is readable when a link or an address changes (rtnetlink(7))."""
    groups = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    netlink.setblocking(False)
    netlink.bind((0, groups))
    return netlink


def drain(netlink: socket.socket) -> None:
    """Forget what changed; an overrun (ENOBUFS) also only says that something did."""
    with contextlib.suppress(OSError):
        while netlink.recv(65536):
            pass


class Way(NamedTuple):
    """A socket on one interface; it asks if it has a target, else it only listens."""

    connection: socket.socket
    target: Target | None
    interface: Interface


def open_ways(interfaces: Iterable[Interface]) -> Iterator[Way]:
    """Three sockets for each interface; those that cannot be opened are left out.

    * an ephemeral port: every responder answers straight to it (RFC 6762, 6.7), also when port 5353
      is somebody else's;
    * port 5353 of our own address on this device: the answer passes a firewall that knows nothing
      but mDNS, and another mDNS program here cannot take it, because the kernel prefers the most
      specific socket (measured: 6 of 6 answers instead of 1-4);
    * port 5353 in the group: answers that a responder sends to all.
    """
    for interface in one_of_each(interfaces):
        group: Target = (GROUP4, PORT)
        if interface.is_v6:
            group = (GROUP6, PORT, 0, interface.number)
        for opened, target in ((_ephemeral, group), (_own, group), (_member, None)):
            with contextlib.suppress(OSError):
                yield Way(_open(interface, opened), target, interface)


def _open(
    interface: Interface, finish: Callable[[socket.socket, Interface], None]
) -> socket.socket:
    family = socket.AF_INET6 if interface.is_v6 else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_DGRAM)
    try:
        connection.setblocking(False)
        (_prepare_v6 if interface.is_v6 else _prepare_v4)(connection, interface.number)
        finish(connection, interface)
    except OSError:
        connection.close()
        raise
    return connection


def _prepare_v4(connection: socket.socket, number: int) -> None:
    way_out = struct.pack("@4s4si", bytes(4), bytes(4), number)  # struct ip_mreqn, ip(7)
    connection.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, way_out)
    connection.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)


def _prepare_v6(connection: socket.socket, number: int) -> None:
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)


def _ephemeral(connection: socket.socket, interface: Interface) -> None:
    connection.bind(("::" if interface.is_v6 else "", 0))


def _own(connection: socket.socket, interface: Interface) -> None:
    _share_port(connection)
    _bind_to_device(connection, interface)
    own = (interface.address, PORT, 0, interface.number)
    connection.bind(own if interface.is_v6 else own[:2])


def _member(connection: socket.socket, interface: Interface) -> None:
    """Not bound to the device it would also hear what other sockets joined on other interfaces, and
    IP_MULTICAST_ALL is no way out: then Linux 6.18 hands a packet to any socket of a SO_REUSEPORT
    group (measured: to that of lo).
    """
    _share_port(connection)
    _bind_to_device(connection, interface)
    connection.bind(("::" if interface.is_v6 else "", PORT))
    if interface.is_v6:
        group = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("@I", interface.number)
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    else:
        group = struct.pack("@4s4si", socket.inet_aton(GROUP4), bytes(4), interface.number)
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)


def _bind_to_device(connection: socket.socket, interface: Interface) -> None:
    with contextlib.suppress(PermissionError):  # before Linux 5.7 only root may
        name = socket.if_indextoname(interface.number).encode() + b"\0"  # not the alias eth0:1
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)


def _share_port(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
