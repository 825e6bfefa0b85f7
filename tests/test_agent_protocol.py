"""What is asked of the agent and what it answers, as values."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import get_args

import pytest

from usb_remote import agent_protocol, errors, protocol
from usb_remote.agent_protocol import AgentEvent, Loss, Told, View
from usb_remote.matching import Query
from usb_remote.model import Cause, Server

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cause", "blame", "words"),
    [
        (None, "network", "its server cannot be reached"),
        (Cause.DETACHED, "user", "detached"),
        (Cause.UNPLUGGED, "device", "unplugged"),
        (Cause.DEVICE_RESET, "device", "device reset"),
        (Cause.CLIENT_LOST, "network", "client lost"),
        (Cause.TIME_UP, "user", "time up"),
        (Cause.TAKEN_OVER, "user", "taken over"),
        (Cause.FORBIDDEN, "user", "forbidden"),
        (Cause.SERVER_STOPPED, "network", "server stopped"),
    ],
)
def test_whose_doing_a_loss_was(cause: Cause | None, blame: str, words: str) -> None:
    loss = Loss(at=NOW, cause=cause)
    assert (loss.blame, str(loss)) == (blame, words)
    assert str(loss.model_copy(update={"by": "bob@pc"})) == f"{words} by bob@pc"


def test_every_cause_is_somebodys_doing() -> None:
    assert {Loss(at=NOW, cause=cause).blame for cause in Cause} == {"network", "user", "device"}
    assert len(Cause) == 8, "and each of them is in the table above"


@pytest.mark.parametrize(
    "asked",
    [
        {"handle": "scope"},
        {"id": "0403:*", "bus": "1-1", "serial": "S", "desc": "d", "host": "pi", "first": True},
    ],
)
@pytest.mark.parametrize("command", ["attach", "detach"])
def test_a_request_says_which_device(command: str, asked: dict[str, object]) -> None:
    line = protocol.encode({"v": 1, "command": command, **asked})
    request = agent_protocol.parse_request(line)
    assert isinstance(request, agent_protocol.Which)
    assert request.query == Query.model_validate(asked)


@pytest.mark.parametrize("kind", get_args(agent_protocol.AgentRequest))
def test_a_request_is_called_as_its_command(kind: type[protocol.StrictRequest]) -> None:
    line = protocol.request_line(kind())
    command = kind.__name__.removesuffix("Request").lower()
    said = json.loads(line)
    assert (said["v"], said["command"]) == (1, command)
    assert agent_protocol.parse_request(line) == kind(v=1)


def test_an_attach_asks_for_nothing_that_it_does_not_say() -> None:
    request = agent_protocol.parse_request(b'{"v":1,"command":"attach","bus":"1-1"}')
    assert request.model_dump(exclude_defaults=True) == {"v": 1, "bus": "1-1"}
    assert isinstance(request, agent_protocol.AttachRequest)
    asked = (request.wait, request.duration, request.force, request.keep, request.hold)
    assert asked == (None, None, False, None, False)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("fly", "known are list, watch, attach, detach, release, ports, status, info"),
        ("status", "unknown key 'handle'"),
    ],
)
def test_a_wrong_request_is_explained(command: str, named: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=named):
        agent_protocol.parse_request(protocol.encode({"command": command, "handle": "x"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"wait": -1}, {"wait": protocol.MAX_SECONDS + 1}, {"duration": 0}, {"name": "a/b"},
        {"duration": protocol.MAX_SECONDS + 1}, {"handle": "x" * 257}, {"keep": "yes"},
    ],
)  # fmt: skip
def test_an_attach_is_bounded(wrong: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidRequest, match=next(iter(wrong))):
        agent_protocol.parse_request(protocol.encode({"command": "attach", "bus": "1-1", **wrong}))


def test_an_error_is_the_same_after_its_way_through_the_agent() -> None:
    error = Told.of(errors.Busy("in use", hint="wait")).error
    assert (type(error), error.message, error.hint) == (errors.Busy, "in use", "wait")


def test_a_view_of_a_lost_server_keeps_its_error_on_the_wire() -> None:
    server = Server(name="pi", addresses=("10.0.0.3",))
    lost = View(server=server, revision=7, error=Told(code="unreachable", message="gone"))
    event = AgentEvent(event="view", view=lost)
    assert agent_protocol.parse_event(agent_protocol.event_line(event)) == event
    assert lost.listing.snapshot.revision == 7
    assert (lost.listing.server, lost.listing.matches) == (server, [])


def test_an_event_says_only_what_there_is_to_say() -> None:
    line = agent_protocol.event_line(AgentEvent(event="ping"))
    assert json.loads(line) == {"event": "ping", "place": 0, "name": ""}


def test_what_is_left_out_of_a_view_is_not_known_yet() -> None:
    view = View.model_validate({"server": {"name": "pi"}})
    assert (view.revision, view.devices, view.error) == (0, (), None)
