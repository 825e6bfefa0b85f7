"""What an advertiser says on loopback's multicast group; the machine's addresses are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import termios
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from zeroconf import DNSAddress, DNSIncoming, DNSPointer, DNSRecord, DNSService, DNSText

from tests.patience import patience
from tests.waiting import eventually
from usb_remote.mdns import TYPE
from usb_remote.mdns.advertise import Advertiser, listened_on, service_of
from usb_remote.mdns.heard import Heard, question
from usb_remote.mdns.ways import LOOPBACK, Interface, open_ways
from usb_remote.model import Server
from usb_remote.replies import Info

LO = Interface(LOOPBACK, socket.if_nametoindex("lo"), "lo")
SECOND, THIRD = "127.0.0.2", "127.0.0.3"
"""All of 127.0.0.0/8 are addresses of this machine."""
IMPOSSIBLE = "fe80::7%lo"
"""No record has room for a scope, so an announcement of this fails before a socket is open."""


def an_info(name: str = "bench") -> Info:
    return Info(id=uuid.uuid4().hex, name=name, version="3.0.0", usbip_port=3241)


# -- what is announced


def test_an_announcement_is_what_a_client_makes_a_server_of() -> None:
    info = an_info("Lab Pi.3")
    service = service_of(info, 5056, ["10.0.0.7", "fd00::7"])
    assert service.name == f"Lab Pi-3-{info.id[:4]}.{TYPE}"
    assert service.server == f"Lab-Pi-3-{info.id[:4]}.local."
    assert service.port == 5056
    assert service.parsed_addresses() == ["10.0.0.7", "fd00::7"]
    assert service.decoded_properties == {
        "txtvers": "1",
        "proto": "1",
        "id": info.id,
        "name": "Lab Pi.3",
        "version": "3.0.0",
        "usbip": "3241",
    }


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("x" * 63, "x" * 58),
        ("ä" * 63, "ä" * 29),
        ("a" + "ä" * 62, "a" + "ä" * 28),  # no half characters
        ("\U0001d54f" * 63, "\U0001d54f" * 14),
        ("x" * 57 + " y", "x" * 57),
    ],
)
def test_an_instance_has_room_for_the_id_however_long_the_name_is(name: str, label: str) -> None:
    info = an_info(name)
    service = service_of(info, 5055, [])
    assert service.name == f"{label}-{info.id[:4]}.{TYPE}"
    assert len(service.name.partition(".")[0].encode()) <= 63
    assert all(c.isascii() and (c.isalnum() or c == "-") for c in str(service.server).split(".")[0])
    assert len(service.text) < 512


def test_a_name_that_does_not_fit_into_a_string_is_cut() -> None:
    told = service_of(an_info("\U0001d54f" * 63), 5055, []).decoded_properties["name"]
    assert told == "\U0001d54f" * 62, "250 bytes at most, no half characters"


def test_two_servers_of_one_name_are_two_instances_and_two_hosts() -> None:
    one, other = (service_of(an_info(), 5055, []) for _ in range(2))
    assert one.name != other.name
    assert one.server != other.server


# -- on which interfaces


HERE = [
    Interface("10.0.0.7", 2, "eth0"),
    Interface("fd00::7", 2, "eth0"),
    Interface("fe80::7", 2, "eth0"),
    Interface("10.1.0.7", 3, "eth1"),
]


def machine(*, loopback: bool) -> list[Interface]:
    return [LO] if loopback else HERE


@pytest.mark.parametrize(
    ("listen", "announced"),
    [
        (["0.0.0.0", "::"], ["10.0.0.7", "fd00::7", "fe80::7", "10.1.0.7"]),
        (["0.0.0.0"], ["10.0.0.7", "10.1.0.7"]),
        (["::"], ["fd00::7", "fe80::7"]),
        (["10.1.0.7"], ["10.1.0.7"]),
        (["10.1.0.7", "fd00::7"], ["fd00::7", "10.1.0.7"]),
        (["10.1.0.7", LOOPBACK], ["10.1.0.7"]),
        ([LOOPBACK], [LOOPBACK]),
        ([LOOPBACK, "::1"], [LOOPBACK]),
        (["10.9.9.9"], []),
    ],
)
def test_only_addresses_that_are_listened_on_are_announced(
    listen: list[str], announced: list[str]
) -> None:
    assert [i.address for i in listened_on(listen, machine)] == announced


# -- on the wire


@dataclass
class Machine:
    """What an advertiser is told of the machine, and how often it looks."""

    addresses: list[str] = field(default_factory=lambda: [LOOPBACK])
    number: int = LO.number
    looks: int = 0
    bell: socket.socket | None = None

    def list_interfaces(self, *, loopback: bool) -> list[Interface]:
        self.looks += 1
        return [Interface(address, self.number, "lo") for address in self.addresses]

    def address_changes(self) -> socket.socket:
        """The kernel's end stays here."""
        self.bell, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        return theirs

    def change(self, *addresses: str, number: int | None = None) -> None:
        self.addresses = list(addresses)
        self.number = number or self.number
        self.ring()

    def ring(self) -> None:
        assert self.bell
        self.bell.send(b"changed")

    def is_heard(self) -> bool:
        """Whether every ring was read (linux/net/unix/af_unix.c, SIOCOUTQ)."""
        assert self.bell
        return fcntl.ioctl(self.bell, termios.TIOCOUTQ, bytes(4)) == bytes(4)


@contextlib.asynccontextmanager
async def advertised(machine: Machine, info: Info, settle: float = 0.0) -> AsyncIterator[None]:
    listen = ["0.0.0.0", "::"]
    here, changes = machine.list_interfaces, machine.address_changes
    advertiser = Advertiser(info, 5055, listen, here, changes, settle)
    await advertiser.start()
    try:
        yield
    finally:
        await advertiser.stop()
        if machine.bell:
            machine.bell.close()


class Group:
    """A member of the group on loopback; hears the answers about one server."""

    def __init__(self, info: Info) -> None:
        *asking, member = open_ways([LO])
        self._asking = asking
        self.connection = member.connection
        self._name = service_of(info, 5055, []).name
        self.heard = Heard(again=True)
        self.questions: list[bytes] = []  # which have the server's name in them

    async def records(self) -> list[DNSRecord]:
        """Of the next packet about it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(patience(10)):
            while True:
                data, sender = await loop.sock_recvfrom(self.connection, 9000)
                self.told = self.heard.receive(data, sender[0], "lo")
                packet = DNSIncoming(data)
                if packet.is_query() and self._name.partition(".")[0].encode() in data:
                    self.questions.append(data)
                records = packet.answers() if packet.is_response() else []
                if any(isinstance(r, DNSPointer) and r.alias == self._name for r in records):
                    return records

    async def server(self, *addresses: str) -> Server:
        """As it is announced, once it is with these addresses and no others."""
        while True:
            records = await self.records()
            found = {str(socket.inet_ntoa(r.address)) for r in records if isinstance(r, DNSAddress)}
            if not addresses or found == set(addresses):
                return next(s for s in self.told if s.port == 5055)

    def ask(self) -> None:
        way = self._asking[0]
        assert way.target
        way.connection.sendto(question(), way.target)

    async def answer(self) -> None:
        """Whatever is answered straight to our question."""
        async with asyncio.timeout(patience(10)):
            loop = asyncio.get_running_loop()
            while True:
                data = await loop.sock_recv(self._asking[0].connection, 9000)
                if self._name.encode().split(b".")[0] in data:
                    return

    def close(self) -> None:
        for way in self._asking:
            way.connection.close()
        self.connection.close()


@pytest.fixture
def info() -> Info:
    return an_info()


@pytest.fixture
def group(info: Info) -> Iterator[Group]:
    listening = Group(info)
    yield listening
    listening.close()


async def test_a_server_announces_itself_when_it_starts(info: Info, group: Group) -> None:
    async with advertised(Machine(), info):
        server = await group.server()
    assert server == Server(
        id=info.id, name="bench", addresses=(LOOPBACK,), version="3.0.0", usbip_port=3241
    )


async def test_a_question_is_answered_straight(info: Info, group: Group) -> None:
    async with advertised(Machine(), info):
        group.ask()
        await group.answer()


async def test_a_server_that_stops_says_goodbye(info: Info, group: Group) -> None:
    async with advertised(Machine(), info):
        assert {record.ttl == 0 for record in await group.records()} == {False}
    while True:
        goodbye = {type(r): r.ttl for r in await group.records()}
        if goodbye[DNSPointer] == 0:
            break
    assert goodbye[DNSService] == goodbye[DNSText] == 0


async def test_an_address_that_comes_is_announced_and_one_that_goes_is_not(
    info: Info, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    async with advertised(machine, info):
        await group.server(LOOPBACK)
        with caplog.at_level(logging.INFO, "usb_remote"):
            machine.change(LOOPBACK, SECOND)
            await group.server(LOOPBACK, SECOND)
        machine.change(SECOND)
        await group.server(SECOND)
    assert "addresses changed; announcing 127.0.0.1, 127.0.0.2" in caplog.text


async def test_a_change_is_announced_once(
    info: Info, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    async with advertised(machine, info):
        with caplog.at_level(logging.INFO, "usb_remote"):
            machine.change(SECOND)
            await group.server(SECOND)
            await eventually(lambda: len(_told(caplog)) == 1)
            machine.ring()
            await eventually(lambda: machine.looks == 3)
            await asyncio.sleep(0)
    assert _told(caplog) == ["addresses changed; announcing 127.0.0.2"]


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "announcing" in record.message]


async def test_an_instance_is_visible_at_once_for_it_is_not_probed_for(
    info: Info, group: Group
) -> None:
    async with advertised(Machine(), info):
        await group.records()
    assert group.questions == []


async def test_a_change_that_is_none_of_ours_changes_nothing(
    info: Info, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine([LOOPBACK, THIRD, SECOND])
    async with advertised(machine, info):
        with caplog.at_level(logging.INFO, "usb_remote"):
            machine.change(LOOPBACK, SECOND, THIRD)  # another order is no change
            await eventually(lambda: machine.looks == 2)
            await asyncio.sleep(0)
    assert "announcing" not in caplog.text


async def test_changes_that_come_in_a_bunch_are_one(info: Info) -> None:
    machine = Machine()
    async with advertised(machine, info, settle=0.1):
        for _ in range(5):
            machine.ring()
            await asyncio.sleep(0.001)
        await eventually(lambda: machine.looks == 2)
        await asyncio.sleep(0.12)  # in which it would look once more
    assert machine.looks == 2


def sockets() -> set[str]:
    """Those of this process, by inode."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(fd))  # noqa: PTH115 - as the kernel says it
    return {name for name in found if name.startswith("socket")}


async def test_an_interface_that_was_made_anew_with_its_old_address_is_joined_anew(
    info: Info, group: Group
) -> None:
    """Its membership is gone with it; it looks the same but for its number."""
    machine = Machine([SECOND])
    async with advertised(machine, info):
        await group.server()
        before = sockets()
        machine.change(SECOND, number=LO.number + 1000)
        await eventually(lambda: len(before - sockets()) == 1)
        await eventually(lambda: len(sockets() - before) == 1)
        group.ask()
        await group.answer()


async def test_without_an_address_nothing_but_loopback_is_left_until_one_is_back(
    info: Info, group: Group
) -> None:
    machine = Machine()
    async with advertised(machine, info):
        machine.change()
        await eventually(lambda: machine.looks == 2)
        machine.change(LOOPBACK)
        await group.server(LOOPBACK)


async def test_what_cannot_be_announced_is_one_warning_and_tried_at_the_next_change(
    info: Info, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine([IMPOSSIBLE])
    async with advertised(machine, info):
        (told,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
        assert told.startswith("not announced by mDNS: ")
        assert told.endswith("; clients need this server's address")
        machine.change(LOOPBACK)
        await group.server(LOOPBACK)


async def test_an_advertiser_that_stops_before_its_next_look_does_not_take_it(info: Info) -> None:
    before = sockets()
    machine = Machine()
    async with advertised(machine, info, settle=0.05):
        machine.ring()
        await eventually(machine.is_heard)
    await asyncio.sleep(0.06)  # in which it would look
    assert machine.looks == 1
    assert sockets() <= before


async def test_an_advertiser_that_stops_in_the_middle_of_a_change_leaves_nothing(
    info: Info, group: Group
) -> None:
    before = sockets()
    machine = Machine()
    async with advertised(machine, info):
        await group.server()
        machine.change(LOOPBACK, SECOND)
        await eventually(lambda: machine.looks == 2)
    assert [t for t in asyncio.all_tasks() if "Advertiser" in repr(t)] == []
    assert sockets() <= before


async def test_a_change_in_the_middle_of_another_is_followed_after_it(
    info: Info, group: Group
) -> None:
    """It is announced three times, which takes half a second."""
    machine = Machine()
    async with advertised(machine, info):
        await group.server()
        machine.change(LOOPBACK, SECOND)
        await group.server(LOOPBACK, SECOND)
        machine.change(LOOPBACK, THIRD)
        await group.server(LOOPBACK, SECOND)
        assert machine.looks == 2
        await group.server(LOOPBACK, THIRD)
