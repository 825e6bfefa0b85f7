"""What a browse makes of packets: no socket, no clock, no privilege."""

from __future__ import annotations

import random

import pytest
from zeroconf import DNSIncoming, DNSPointer, DNSRecord

from tests.packets import (
    ID,
    QUERY,
    WORDS,
    address,
    announcement,
    packet,
    pointer,
    service,
    text,
)
from usb_remote.mdns import TYPE
from usb_remote.mdns.heard import MAX_KNOWN, MAX_SERVERS, Heard, Limits, question
from usb_remote.model import Server

SENDER, SCOPE = "10.0.0.7", "eth0"


def hear(heard: Heard, *packets: bytes, sender: str = SENDER, scope: str = SCOPE) -> list[Server]:
    """What is told after all of these packets."""
    return [server for data in packets for server in heard.receive(data, sender, scope)]


def hear_one(*packets: bytes, sender: str = SENDER, scope: str = SCOPE) -> Server:
    (server,) = hear(Heard(), *packets, sender=sender, scope=scope)
    return server


# -- a server is told when it is complete


def test_a_server_is_what_its_records_say() -> None:
    assert hear_one(announcement()) == Server(
        id=ID,
        name="bench",
        addresses=("10.0.0.7",),
        port=5055,
        usbip_port=3241,
        version="3.0.0",
    )


def test_the_additional_records_of_an_answer_are_enough() -> None:
    answer = packet(pointer(), more=(service(), text(*WORDS), address()))
    assert hear_one(answer) == hear_one(announcement())


PARTS: list[DNSRecord] = [pointer(), service(), text(*WORDS), address()]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_a_server_is_told_with_the_last_of_its_records_whatever_their_order(
    order: tuple[int, ...],
) -> None:
    heard = Heard()
    told = [hear(heard, packet(PARTS[part])) for part in order]
    assert [len(servers) for servers in told] == [0, 0, 0, 1]
    assert told[-1] == [hear_one(announcement())]


@pytest.mark.parametrize("missing", range(4))
def test_a_server_that_lacks_a_record_is_not_told(missing: int) -> None:
    parts = [part for number, part in enumerate(PARTS) if number != missing]
    assert hear(Heard(), packet(*parts), packet(*parts)) == []


def test_a_server_that_lacks_a_record_keeps_no_other_one_from_being_told() -> None:
    other = announcement("other", ("id=2",), host="other.local.")
    assert [server.id for server in hear(Heard(), packet(pointer()), other)] == ["2"]


def test_a_text_of_a_server_ends_where_it_says() -> None:
    longer = f"version={'3' * 40}"  # its length is a printable character
    assert hear_one(announcement("x", ("id=1", "name=bench", longer))).name == "bench"


def test_the_addresses_of_another_host_are_not_those_of_the_server() -> None:
    heard = Heard()
    other = packet(pointer(), service(), text(*WORDS), address(host="other.local."))
    assert hear(heard, other) == []
    (server,) = hear(heard, packet(address("10.0.0.8")))
    assert server.addresses == ("10.0.0.8",)


def test_two_servers_on_one_host_have_its_addresses() -> None:
    second = packet(pointer("second"), service("second", 5056), text("id=2", label="second"))
    first, later = hear(Heard(), announcement(), second)
    assert (first.port, later.port) == (5055, 5056)
    assert later.addresses == first.addresses


def test_names_are_the_same_in_upper_and_lower_case() -> None:
    loud = packet(
        pointer("Bench-1234"),
        service("BENCH-1234", host="BENCH.local."),
        text("id=1", label="bench-1234"),
        address(),
    )
    assert hear_one(loud).name == "Bench-1234"


# -- a server is told once


def test_a_server_that_answers_again_is_told_once() -> None:
    assert len(hear(Heard(), *[announcement()] * 3)) == 1


def test_a_server_that_answers_by_two_interfaces_is_told_once() -> None:
    heard = Heard()
    assert len(hear(heard, announcement(), scope="eth0")) == 1
    assert hear(heard, announcement(), scope="eth1", sender="10.0.0.9") == []


def test_who_wants_to_hear_each_announcement_is_told_each_time() -> None:
    heard = Heard(again=True)
    assert len(hear(heard, announcement(), announcement(), announcement())) == 3


def test_only_an_announcement_of_its_own_is_one_to_tell_again() -> None:
    heard = Heard(again=True)
    assert len(hear(heard, announcement())) == 1
    assert hear(heard, packet(address()), packet(text(*WORDS))) == []
    other = announcement("other", ("id=2",), host="other.local.")
    assert [server.id for server in hear(heard, other)] == ["2"]


def test_a_server_that_has_one_more_address_is_told_with_both() -> None:
    first, later = hear(Heard(), announcement(), packet(address("10.0.0.8")))
    assert first.addresses == ("10.0.0.7",)
    assert set(later.addresses) == {"10.0.0.7", "10.0.0.8"}


def test_a_record_of_a_name_replaces_the_one_before() -> None:
    heard = Heard(again=True)
    hear(heard, announcement())
    moved = packet(pointer(), service(port=5056), text("id=2", "name=moved"))
    (server,) = hear(heard, moved)
    assert (server.port, server.id, server.name) == (5056, "2", "moved")


def test_a_server_that_says_goodbye_is_not_told_and_not_known_any_more() -> None:
    heard = Heard()
    hear(heard, announcement())
    assert len(heard.known) == 1
    assert hear(heard, packet(pointer(ttl=0)), packet(address("10.0.0.8"))) == []
    assert heard.known == []


def test_a_server_that_is_back_after_its_goodbye_is_told_again() -> None:
    heard = Heard()
    assert len(hear(heard, announcement(), packet(pointer(ttl=0)), announcement())) == 2


def test_a_goodbye_of_nobody_is_nothing() -> None:
    heard = Heard()
    assert hear(heard, packet(pointer("stranger", ttl=0)), announcement()) != []


# -- where it is


def test_the_address_that_the_answer_came_from_is_tried_first() -> None:
    far = announcement("bench-1234", WORDS, "172.17.0.1", "10.0.0.7", "fd00::7")
    assert hear_one(far, sender="10.0.0.7").addresses == ("10.0.0.7", "172.17.0.1", "fd00::7")
    assert hear_one(far, sender="fd00::7").addresses == ("fd00::7", "172.17.0.1", "10.0.0.7")


def test_an_address_that_the_server_does_not_tell_is_not_added() -> None:
    assert hear_one(announcement(), sender="10.0.0.99").addresses == ("10.0.0.7",)


def test_a_link_local_address_is_kept_with_the_interface_it_came_in_on() -> None:
    told = announcement("bench-1234", WORDS, "fd00::7", "fe80::7", "169.254.0.7")
    server = hear_one(told, sender="fe80::7%eth1", scope="eth1")
    assert server.addresses == ("fe80::7%eth1", "fd00::7", "169.254.0.7")


def test_a_link_local_address_on_two_interfaces_is_two_ways() -> None:
    heard = Heard()
    told = announcement("bench-1234", WORDS, "fe80::7")
    hear(heard, told, sender="fe80::7%eth0", scope="eth0")
    (server,) = hear(heard, told, sender="fe80::7%eth1", scope="eth1")
    assert set(server.addresses) == {"fe80::7%eth0", "fe80::7%eth1"}


# -- what is none of ours


def test_a_question_tells_nothing() -> None:
    parts = (pointer(), service(), text(*WORDS), address())
    assert hear(Heard(), packet(*parts, flags=QUERY)) == []


def test_other_services_tell_nothing_and_are_not_kept() -> None:
    kind = "_ipp._tcp.local."
    printer = packet(
        pointer("laser", kind=kind),
        service("laser", kind=kind),
        text("id=1", label="laser", kind=kind),
        address(),
    )
    heard = Heard(limits=Limits(servers=1))
    assert hear(heard, printer) == []
    assert len(hear(heard, announcement())) == 1, "the printer has taken no place"


def test_a_pointer_to_another_service_is_no_server_and_is_not_kept() -> None:
    kind = "_ipp._tcp.local."
    foreign = DNSPointer(TYPE, 12, 1, 120, f"laser.{kind}")
    parts = (service("laser", kind=kind), text("id=1", label="laser", kind=kind), address())
    heard = Heard(limits=Limits(servers=1))
    assert hear(heard, packet(foreign, *parts)) == []
    assert len(hear(heard, announcement())) == 1


def test_a_pointer_of_another_service_announces_nothing() -> None:
    foreign = DNSPointer("_ipp._tcp.local.", 12, 1, 120, f"bench-1234.{TYPE}")
    assert hear(Heard(), packet(foreign, service(), text(*WORDS), address())) == []


def test_a_packet_that_breaks_off_is_not_believed() -> None:
    whole = bytearray(announcement())
    assert whole[6:8] == b"\0\x04"
    whole[7] += 1  # one more record than there is
    assert hear(Heard(), bytes(whole)) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff" * 12,
        bytes(9001),
        announcement()[:40],
        b"\0\0\x84\0\0\1\0\1\0\0\0\0\xc0\x0c\0\x0c\0\1",  # a name that points to itself
        b"\0\0\x84\0\xff\xff\xff\xff\xff\xff\xff\xff",  # more records than bytes
    ],
)
def test_a_broken_packet_tells_nothing_and_does_no_harm(data: bytes) -> None:
    heard = Heard()
    assert hear(heard, data) == []
    assert hear(heard, announcement()) == [hear_one(announcement())]


def test_whatever_a_packet_has_in_it_is_taken_in_without_an_error() -> None:
    chance = random.Random(77)
    whole, heard = announcement("bench-1234", WORDS, "fe80::7", "10.0.0.7"), Heard()
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        heard.receive(bytes(data[: chance.randint(0, len(data))]), SENDER, SCOPE)
        heard.receive(bytes(data), SENDER, SCOPE)


# -- texts are anybody's


def test_without_an_id_there_is_none() -> None:
    assert hear_one(announcement(words=("name=bench",))).id is None
    assert hear_one(announcement(words=("id=", "name=bench"))).id is None
    assert hear_one(announcement(words=())).id is None


def test_without_a_name_the_instance_is_its_name() -> None:
    assert hear_one(announcement("Lab Pi-1234", ())).name == "Lab Pi-1234"
    assert hear_one(announcement("Lab Pi-1234", ("name=",))).name == "Lab Pi-1234"


def test_a_text_of_nothing_that_can_be_seen_is_none() -> None:
    server = hear_one(announcement("Lab Pi-1234", ("name=\x07\u202e", "id=\x1b")))
    assert (server.name, server.id) == ("Lab Pi-1234", None)


def test_the_first_of_a_key_counts_in_upper_or_lower_case() -> None:
    server = hear_one(announcement(words=("NAME=first", "name=second", "iD=1=2", "odd")))
    assert (server.name, server.id) == ("first", "1=2")


HOSTILE = "evil\x1b[31m\r\n9-9 \u202eforged"


def test_a_text_is_cleaned_of_what_a_terminal_must_not_see() -> None:
    words = (f"id={HOSTILE}", f"name={HOSTILE}", f"version={HOSTILE}", b"name2=\xff\xfe")
    server = hear_one(announcement(words=words))
    assert {server.id, server.name, server.version} == {"evil [31m 9-9 forged"}
    assert hear_one(announcement(HOSTILE, ())).name == "evil [31m 9-9 forged"


def test_a_text_is_cut() -> None:
    assert len(hear_one(announcement(words=("name=" + "x" * 200,))).name) == 128


@pytest.mark.parametrize("value", ["", "x", "-1", "65536", "99999", "1e3", "3240 ", "0", "9" * 240])
def test_a_port_that_cannot_be_is_the_usual_one(value: str) -> None:
    assert hear_one(announcement(words=(f"usbip={value}",))).usbip_port == 3240


@pytest.mark.parametrize("value", ["1", "3239", "65535"])
def test_a_port_that_can_be_is_believed(value: str) -> None:
    assert hear_one(announcement(words=(f"usbip={value}",))).usbip_port == int(value)


def test_a_string_that_is_said_to_be_longer_than_it_is_ends_with_the_text() -> None:
    cut = packet(pointer(), service(), text("id=7"), address())
    data = cut.replace(b"\x04id=7", b"\xffid=7")
    assert data != cut
    assert hear_one(data).id == "7"


# -- how much is remembered


def crowd(count: int, first: int = 0) -> list[bytes]:
    """That many servers, each on its own host."""
    return [
        announcement(f"s{n}", (f"id={n}",), f"10.1.{n // 256}.{n % 256}", host=f"h{n}.local.")
        for n in range(first, first + count)
    ]


def test_no_more_servers_are_believed_than_the_limit() -> None:
    heard = Heard(limits=Limits(servers=3))
    assert [server.id for server in hear(heard, *crowd(5))] == ["0", "1", "2"]
    assert len(heard.known) == 3


def test_those_who_are_known_may_change_when_nobody_new_is_let_in() -> None:
    heard = Heard(again=True, limits=Limits(servers=2, hosts=2, addresses=2))
    hear(heard, *crowd(3))
    (server,) = hear(heard, packet(address("10.9.9.9", "h1.local.")))
    assert "10.9.9.9" in server.addresses
    (server,) = hear(heard, packet(pointer("s1"), service("s1", 7, "h1.local.")))
    assert server.port == 7


def test_the_place_of_one_who_has_said_goodbye_is_free() -> None:
    heard = Heard(limits=Limits(servers=1))
    hear(heard, packet(pointer("gone")), packet(pointer("gone", ttl=0)))
    assert [server.id for server in hear(heard, *crowd(2))] == ["0"]


@pytest.mark.parametrize("kind", ["services", "texts", "addresses"])
def test_records_of_servers_that_nobody_has_named_do_not_fill_the_memory(kind: str) -> None:
    heard = Heard(limits=Limits(servers=3, hosts=3))
    for n in range(10):
        label, host = f"s{n}", f"h{n}.local."
        hear(heard, packet(service(label), text("id=1", label=label), address("10.0.0.1", host)))
    assert len(getattr(heard, f"_{kind}")) == 3


def test_no_more_addresses_of_a_server_are_believed_than_the_limit() -> None:
    heard = Heard(limits=Limits(addresses=2))
    many = announcement("bench-1234", WORDS, *(f"10.0.0.{n}" for n in range(1, 5)))
    (server,) = hear(heard, many)
    assert server.addresses == ("10.0.0.1", "10.0.0.2")
    assert hear(heard, packet(address("10.0.0.5"))) == []
    assert hear(heard, many) == []


def test_the_limits_are_those_of_the_page() -> None:
    assert Limits() == Limits(servers=1024, addresses=64, hosts=8192)
    assert len(hear(Heard(), *crowd(MAX_SERVERS + 2))) == MAX_SERVERS


# -- the question


def parse(data: bytes) -> DNSIncoming:
    parsed = DNSIncoming(data)
    assert parsed.valid
    assert parsed.is_query()
    return parsed


def test_the_question_wants_an_answer_straight_to_us() -> None:
    parsed = parse(question())
    (asked,) = parsed.questions
    assert (asked.name, asked.type, asked.class_) == (TYPE, 12, 1)
    assert asked.unique, "the QU bit"
    assert parsed.answers() == []


def test_a_question_tells_what_is_known_already() -> None:
    heard = Heard()
    hear(heard, *crowd(2), packet(pointer("incomplete")))
    answers = parse(question(heard.known)).answers()
    assert answers == [pointer("s0"), pointer("s1")]
    assert [record.ttl for record in answers] == [120, 120]


def test_a_question_tells_no_more_than_the_limit() -> None:
    known = [pointer(f"s{n}") for n in range(MAX_KNOWN + 5)]
    parsed = parse(question(known))
    assert parsed.answers() == known[:MAX_KNOWN]
    assert MAX_KNOWN == 20


@pytest.mark.parametrize("count", [19, 20, 30])
def test_a_question_is_one_packet_however_long_the_names_are(count: int) -> None:
    known = [pointer(f"{n:03}" + "x" * 60) for n in range(count)]
    parsed = parse(question(known))
    assert not parsed.truncated, "zeroconf answers that 0.4 s late"
    assert 15 < len(parsed.answers()) <= MAX_KNOWN
