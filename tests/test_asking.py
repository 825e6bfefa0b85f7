"""What a request says of who asks, and of which device; and what comes back."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.scripted import Scripted, says, scripted
from usb_remote import errors, protocol, replies
from usb_remote.asking import Asking
from usb_remote.connection import Connection, connect
from usb_remote.model import Device, Match
from usb_remote.values import BusId

SCOPE = Device(
    bus_id=BusId("1-1.4"), vendor_id="0403", product_id="6001", serial="A1*[?]B", id="scope-1"
)
GIVEN = says(protocol.encode({"status": "success", "data": replies.device_json(SCOPE)}))
ASKING = Asking("c" * 32, lambda: "ada")


@asynccontextmanager
async def asked(
    act: Any = GIVEN, **of_server: object
) -> AsyncIterator[tuple[Scripted, Connection]]:
    async with scripted(act) as there:
        server = there.server.model_copy(update={"host_name": None, **of_server})
        async with await connect(server, 20) as connection:
            yield there, connection


def said(there: Scripted) -> dict[str, Any]:
    (request,) = there.requests
    told: dict[str, Any] = json.loads(request)
    return told


async def ask(connection: Connection, **more: object) -> Device:
    match = Match(connection.server, SCOPE)
    return await ASKING.ask(connection, protocol.AttachRequest, match, **more)  # type: ignore[arg-type]


async def test_a_request_says_who_asks_and_names_the_device_and_no_other_one() -> None:
    async with asked() as (there, connection):
        assert (await ask(connection, wait=5.0)).bus_id == "1-1.4"
    told = said(there)
    assert (told["user"], told["host"], told["client"]) == ("ada", socket.gethostname(), "c" * 32)
    assert (told["bus"], told["id"], told["wait"]) == ("1-1.4", "0403:6001", 5.0)
    assert told["serial"] == "A1???]B", "what would be a pattern stands for itself"


async def test_a_device_without_a_serial_number_is_one_without() -> None:
    async with asked() as (there, connection):
        bare = Match(connection.server, SCOPE.model_copy(update={"serial": None}))
        await ASKING.ask(connection, protocol.AttachRequest, bare)
    assert said(there)["serial"] == ""


async def test_a_2x_server_is_told_the_place_alone() -> None:
    """It binds whatever has the bus id."""
    async with asked(version=None) as (there, connection):
        await ask(connection)
    told = said(there)
    assert told["bus"] == "1-1.4"
    assert not told.get("id")
    assert not told.get("serial")


async def test_another_user_may_be_named() -> None:
    async with asked() as (there, connection):
        await ask(connection, user="grace")
    assert said(there)["user"] == "grace"


@pytest.mark.parametrize("since", [None, datetime(2026, 1, 2, tzinfo=UTC)])
async def test_what_is_given_back_is_the_session_that_is_meant(since: datetime | None) -> None:
    async with asked() as (there, connection):
        await ASKING.give_back(connection, Match(connection.server, SCOPE), since)
    told = said(there)
    assert told["command"] == "detach"
    assert told["client"] == "c" * 32
    given = told.get("since")
    assert (given and datetime.fromisoformat(given)) == since


async def test_what_cannot_be_asked_is_said_before_anything_is_sent() -> None:
    async with asked() as (there, connection):
        with pytest.raises(errors.UsageError, match="wait"):
            await ask(connection, wait=-1)
    assert there.requests in ([], [b""])


async def test_what_comes_before_the_answer_is_told() -> None:
    events: list[replies.WatchEvent] = []
    queued = replies.queued_event(2, None)
    answer = protocol.encode({"status": "success", "data": replies.device_json(SCOPE)})
    async with asked(says(queued, answer)) as (_, connection):
        await ask(connection, tell=events.append, wait=5.0)
    assert [event.place for event in events] == [2]


@pytest.mark.parametrize(
    ("host_name", "where"), [("pi", "pi"), (None, "scripted")], ids=["its own name", "ours"]
)
@pytest.mark.parametrize("hint", ["sudo modprobe usbip_host", None])
async def test_a_fault_of_the_servers_machine_is_said_to_be_there(
    host_name: str | None, where: str, hint: str | None
) -> None:
    fault = replies.failure(errors.SystemFault("no module", hint=hint), legacy=False)
    async with asked(says(fault), host_name=host_name) as (_, connection):
        with pytest.raises(errors.SystemFault) as caught:
            await ask(connection)
    assert caught.value.message == f"on {where}: no module"
    assert caught.value.hint == (f"on {where}, {hint}" if hint else None)


@pytest.mark.parametrize("make", [errors.NotFound, errors.Busy, errors.Refused])
async def test_any_other_answer_is_passed_on_as_it_is(
    make: Callable[..., errors.UsbRemoteError],
) -> None:
    refusal = replies.failure(make("no", hint="why"), legacy=False)
    async with asked(says(refusal)) as (_, connection):
        with pytest.raises(errors.UsbRemoteError) as caught:
            await ask(connection)
    assert (type(caught.value), caught.value.message, caught.value.hint) == (make, "no", "why")
