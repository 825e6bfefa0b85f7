"""The sockets that ask on each interface, and which interfaces there are; on loopback."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.patience import patience
from usb_remote.mdns import ways
from usb_remote.mdns.ways import LOOPBACK, Interface, Way

NUMBER = socket.if_nametoindex("lo")
LO = Interface(LOOPBACK, NUMBER, "lo")
LO6 = Interface("::1", NUMBER, "lo")
GONE = Interface("10.0.0.7", 2**31 - 1, "gone0")


@contextmanager
def opened(*interfaces: Interface) -> Iterator[list[Way]]:
    found = list(ways.open_ways(interfaces))
    try:
        yield found
    finally:
        for way in found:
            way.connection.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


# -- interfaces


def test_loopback_is_asked_for_or_all_there_is() -> None:
    assert ways.list_interfaces(loopback=True) == [LO]
    found = ways.list_interfaces()
    assert found
    inward = [i for i in found if i.address in (LOOPBACK, "::1")]
    assert inward in ([], found), "loopback only where there is nothing else"
    assert {i.address for i in found} | {LOOPBACK} == ways.local_addresses()


def test_the_name_and_number_of_an_interface_are_the_kernels() -> None:
    for interface in ways.list_interfaces():
        assert socket.if_indextoname(interface.number) == interface.name.partition(":")[0]


def test_one_address_of_each_kind_is_enough_and_the_link_local_one_is_the_best() -> None:
    eth0 = [
        Interface("10.0.0.7", 2, "eth0"),
        Interface("10.0.0.8", 2, "eth0"),
        Interface("fd00::7", 2, "eth0"),
        Interface("fe80::7", 2, "eth0"),
    ]
    eth1 = [Interface("10.1.0.7", 3, "eth1"), Interface("fd01::7", 3, "eth1")]
    chosen = ways.one_of_each([*eth0, *eth1])
    assert {i.address for i in chosen} == {"10.0.0.7", "fe80::7", "10.1.0.7", "fd01::7"}
    assert len(chosen) == 4


@pytest.mark.parametrize(
    ("address", "is_v6", "is_link_local"),
    [
        ("10.0.0.7", False, False),
        ("169.254.0.7", False, True),
        ("fd00::7", True, False),
        ("fe80::7", True, True),
    ],
)
def test_what_kind_an_address_is_of(address: str, is_v6: bool, is_link_local: bool) -> None:
    interface = Interface(address, 2, "eth0")
    assert (interface.is_v6, interface.is_link_local) == (is_v6, is_link_local)


# -- sockets


def test_an_interface_has_two_sockets_that_ask_and_one_that_listens() -> None:
    with opened(LO) as (ephemeral, own, member):
        assert ephemeral.connection.getsockname()[1] not in (0, 5353)
        assert own.connection.getsockname() == (LOOPBACK, 5353)
        assert member.connection.getsockname() == ("0.0.0.0", 5353)
        assert ephemeral.target == own.target == ("224.0.0.251", 5353)
        assert member.target is None
        assert {way.interface for way in (ephemeral, own, member)} == {LO}


def test_questions_leave_by_their_interface_with_the_ttl_of_mdns() -> None:
    with opened(LO) as found:
        for way in found:
            option = way.connection.getsockopt
            assert not way.connection.getblocking()
            assert option(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 255
        for way in found[1:]:
            assert way.connection.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
            assert way.connection.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1


def test_the_socket_that_listens_is_a_member_of_the_group_on_its_interface_alone() -> None:
    """The kernel lets only a member leave."""
    group = socket.inet_aton("224.0.0.251")
    with opened(LO) as (_, own, member):
        leave = struct.pack("@4s4si", group, bytes(4), NUMBER)
        member.connection.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, leave)
        for not_a_member in (own, member):
            with pytest.raises(OSError, match="assign requested address"):
                not_a_member.connection.setsockopt(
                    socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, leave
                )


def test_what_uses_port_5353_is_bound_to_its_interface() -> None:
    with opened(LO) as (ephemeral, own, member):
        for way, device in ((ephemeral, b""), (own, b"lo"), (member, b"lo")):
            bound = way.connection.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
            assert bound.rstrip(b"\0") == device


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_has_its_own_group_by_its_own_interface() -> None:
    with opened(LO6) as found:
        assert [way.connection.family for way in found] == [socket.AF_INET6] * len(found)
        ephemeral, own = found[:2]
        assert ephemeral.target == own.target == ("ff02::fb", 5353, 0, NUMBER)
        assert own.connection.getsockname()[:2] == ("::1", 5353)
        for way in found:
            option = way.connection.getsockopt
            assert option(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 255
            assert option(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF) == NUMBER
            assert option(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


async def test_what_is_sent_to_the_group_is_heard_by_the_member() -> None:
    loop = asyncio.get_running_loop()
    with opened(LO) as (ephemeral, own, member):
        for way in (ephemeral, own):
            assert way.target
            mark = os.urandom(16)
            way.connection.sendto(mark, way.target)
            async with asyncio.timeout(patience(10)):
                while True:
                    data, sender = await loop.sock_recvfrom(member.connection, 9000)
                    if data == mark:
                        break
            assert sender[1] == way.connection.getsockname()[1]


async def test_an_answer_to_our_own_port_comes_to_us_whoever_else_listens_there() -> None:
    loop = asyncio.get_running_loop()
    pid = os.getpid()
    ours = Interface(f"127.{pid >> 14 & 127}.{pid >> 7 & 127}.{pid & 127 | 128}", NUMBER, "lo")
    with (
        opened(LO),
        opened(ours) as (_, own, _),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answering,
    ):
        for number in range(10):
            answering.sendto(b"%d" % number, (ours.address, 5353))
            async with asyncio.timeout(patience(10)):
                assert await loop.sock_recv(own.connection, 9000) == b"%d" % number


def test_sockets_that_cannot_be_opened_are_left_out_and_closed() -> None:
    with opened(GONE) as found:
        assert found == []
    with opened(GONE._replace(number=NUMBER)) as found:  # not our address
        assert [way.target is None for way in found] == [False, True]
    with opened(LO, GONE) as found:
        assert {way.interface for way in found} == {LO}


# -- changes


def test_the_kernel_is_asked_for_changes_of_links_and_of_addresses() -> None:
    with ways.address_changes() as netlink:
        assert netlink.getsockname()[1] == 0x1 | 0x10 | 0x100
        with pytest.raises(BlockingIOError):
            netlink.recv(1)


def test_all_that_has_changed_is_forgotten_at_once() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel, ours:
        ours.setblocking(False)
        for _ in range(3):
            kernel.send(b"changed")
        ways.drain(ours)
        with pytest.raises(BlockingIOError) as caught:
            ours.recv(1)
        assert caught.value.errno == errno.EAGAIN
        ways.drain(ours)
