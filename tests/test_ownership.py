"""Whose a device is, by what both sides say of it."""

from __future__ import annotations

import socket

import pytest

from usb_remote.model import Attachment, Device, Holder, Match, Server, State
from usb_remote.ownership import Ownership
from usb_remote.values import BusId

HERE = "192.0.2.1"
SERVER = Server(name="lab", addresses=("192.0.2.9", "fe80::9%eth0"), version="3")
OLD_SERVER = Server(name="lab", addresses=("192.0.2.9",))
ME = Holder(user="ann", host=socket.gethostname(), client="c1", address=HERE)
MINE = Device(
    bus_id=BusId("1-4"), vendor_id="0403", product_id="6001", serial="A", bus=1, devnum=7,
    state=State.IN_USE, holder=ME,
)  # fmt: skip
UNREAD = Attachment(vhci_port=0, devid=1 << 16 | 7, hardware_id="0403:6001", serial="A")
"""What who is not root sees of an import."""
READ = UNREAD.model_copy(update={"bus_id": "1-4", "address": "192.0.2.9"})


@pytest.fixture
def ownership() -> Ownership:
    return Ownership("c1", lambda: {HERE, "127.0.0.1"})


@pytest.mark.parametrize(
    ("holder", "is_me"),
    [
        (ME, True),
        (ME.model_copy(update={"user": "bob", "address": "10.0.0.1"}), True),
        (ME.model_copy(update={"client": "c2"}), False),
        (ME.model_copy(update={"host": "a copy of this machine"}), False),
        (Holder(host="anything", address=HERE), True),
        (Holder(host=socket.gethostname(), address="192.0.2.2"), False),
    ],
)
def test_who_is_this_machine(ownership: Ownership, holder: Holder, is_me: bool) -> None:
    assert ownership.is_me(holder) == is_me
    assert ownership.is_mine(MINE.model_copy(update={"holder": holder})) == is_me


def test_what_nobody_has_is_not_mine(ownership: Ownership) -> None:
    assert not ownership.is_mine(MINE.model_copy(update={"holder": None}))
    assert not ownership.is_mine(MINE.model_copy(update={"state": State.AVAILABLE}))


@pytest.mark.parametrize(
    ("local", "device", "belongs"),
    [
        (READ, MINE, True),
        (READ, MINE.model_copy(update={"holder": None}), True),
        (READ.model_copy(update={"address": "fe80::9%wlan0"}), MINE, True),
        (READ.model_copy(update={"address": "192.0.2.8"}), MINE, False),
        (READ.model_copy(update={"bus_id": "1-5"}), MINE, False),
        (UNREAD, MINE, True),
        (UNREAD, MINE.model_copy(update={"holder": None}), False),
        (UNREAD, MINE.model_copy(update={"devnum": 8}), False),
        (UNREAD, MINE.model_copy(update={"bus": 2}), False),
        (UNREAD, MINE.model_copy(update={"serial": "B"}), False),
        (UNREAD, MINE.model_copy(update={"product_id": "6002"}), False),
    ],
)
def test_whether_an_import_is_of_a_device(
    ownership: Ownership, local: Attachment, device: Device, belongs: bool
) -> None:
    assert ownership.belongs(local, Match(SERVER, device)) == belongs


@pytest.mark.parametrize(
    ("server", "device", "is_alive"),
    [
        (SERVER, MINE, True),
        (SERVER, MINE.model_copy(update={"holder": None}), False),
        (SERVER, MINE.model_copy(update={"devnum": 8}), False),
        (OLD_SERVER, MINE.model_copy(update={"holder": None}), True),
        (OLD_SERVER, MINE.model_copy(update={"holder": None, "devnum": 8}), False),
    ],
)
def test_whether_a_server_still_knows_of_an_import(
    ownership: Ownership, server: Server, device: Device, is_alive: bool
) -> None:
    assert ownership.is_alive(READ, Match(server, device)) == is_alive
