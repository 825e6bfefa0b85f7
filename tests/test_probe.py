"""Whether multicast goes out and comes in, as a probe sees it; on loopback."""

from __future__ import annotations

import errno
import socket

from zeroconf import DNSIncoming

from tests.patience import patience
from usb_remote.mdns.probe import Probed, probe_by, probe_on
from usb_remote.mdns.ways import LOOPBACK, Interface, Way

LO = Interface(LOOPBACK, socket.if_nametoindex("lo"), "lo")
NOWHERE = Interface("10.0.0.7", 2**31 - 1, "gone0")
LONG = patience(30)


def an_ear() -> socket.socket:
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.setblocking(False)
    ear.bind((LOOPBACK, 0))
    return ear


def asking(target: socket.socket) -> Way:
    return Way(an_ear(), target.getsockname(), LO)


def closed(*ways: Way) -> bool:
    return all(way.connection.fileno() == -1 for way in ways)


async def test_on_loopback_multicast_goes_out_and_comes_in() -> None:
    assert await probe_on([LO]) == [Probed("lo", LOOPBACK, None, True)]


async def test_an_interface_is_probed_once_for_each_kind_of_address() -> None:
    more = [LO, Interface("127.0.0.2", LO.number, "lo"), NOWHERE]
    assert [p.address for p in await probe_on(more)] == [LOOPBACK, "10.0.0.7"]


async def test_an_interface_that_has_gone_is_one_where_nothing_can_be_asked() -> None:
    (probed,) = await probe_on([NOWHERE])
    assert probed.error is not None
    assert (probed.error.errno, probed.heard) == (errno.EADDRNOTAVAIL, False)


async def test_what_comes_back_is_heard_whoever_listens() -> None:
    deaf, hearing = Way(an_ear(), None, LO), Way(an_ear(), None, LO)
    way = asking(hearing.connection)
    assert await probe_by(LO, [way, deaf, hearing], LONG) == Probed("lo", LOOPBACK, None, True)
    assert closed(way, deaf, hearing)


async def test_what_does_not_come_back_is_not_heard() -> None:
    elsewhere, deaf = an_ear(), Way(an_ear(), None, LO)
    with elsewhere:
        way, second = asking(elsewhere), asking(elsewhere)
        assert await probe_by(LO, [way, second, deaf], 0.05) == Probed("lo", LOOPBACK, None, False)
        assert DNSIncoming(elsewhere.recv(9000)).is_query()
    assert closed(way, second, deaf)


async def test_what_others_say_is_not_taken_for_ours() -> None:
    listening = Way(an_ear(), None, LO)
    with an_ear() as elsewhere, an_ear() as stranger:
        stranger.sendto(b"anything", listening.connection.getsockname())
        probed = await probe_by(LO, [asking(elsewhere), listening], 0.05)
    assert not probed.heard


async def test_ours_is_heard_after_what_others_say() -> None:
    listening = Way(an_ear(), None, LO)
    with an_ear() as stranger:
        stranger.sendto(b"anything", listening.connection.getsockname())
        probed = await probe_by(LO, [asking(listening.connection), listening], LONG)
    assert probed.heard


async def test_where_nobody_can_listen_nothing_is_heard() -> None:
    with an_ear() as elsewhere:
        assert await probe_by(LO, [asking(elsewhere)], LONG) == Probed("lo", LOOPBACK, None, False)


async def test_why_a_question_cannot_be_sent_is_told() -> None:
    with an_ear() as elsewhere:
        way, listening = asking(elsewhere), Way(an_ear(), None, LO)
        unreachable = way._replace(target=("255.255.255.255", 9))  # not allowed to broadcast
        probed = await probe_by(LO, [unreachable, listening], 0.05)
    assert probed.error is not None
    assert (probed.error.errno, probed.heard) == (errno.EACCES, False)
    assert closed(way, listening)
