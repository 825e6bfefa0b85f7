"""The agent's socket: who asks, who is told, and what a connection that ends leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.residing import BRISK, Here, residing
from tests.serving import Running, at, state_of
from tests.waiting import eventually
from usb_remote import errors, protocol
from usb_remote.agent.desk import Desk
from usb_remote.agent_protocol import (
    AgentEvent,
    AgentInfo,
    AttachRequest,
    DetachRequest,
    InfoRequest,
    ListRequest,
    PortsRequest,
    ReleaseRequest,
    StatusRequest,
)
from usb_remote.connection import AgentConnection, connect_agent
from usb_remote.model import State


def hold(handle: str, **more: Any) -> AttachRequest:
    return protocol.build(AttachRequest, {"handle": handle, "hold": True, **more})


async def pings(connection: AgentConnection, count: int) -> int:
    """Read so many of them."""
    seen = 0
    async for event in connection.events():
        seen += event.event == "ping"
        if seen == count:
            break
    return seen


async def another(here: Here, name: str = "other.sock", **more: Any) -> tuple[Desk, str]:
    """One more desk of the same agent."""
    desk = Desk(here.agent, here.world, list, AgentInfo(version="3"), **more)
    path = here.folder / name
    await desk.start(path, group="no such group")
    return desk, str(path)


async def talk(path: str) -> AgentConnection:
    connection = await connect_agent(20.0, path)
    assert connection is not None
    return connection


# -- questions


async def test_each_question_has_its_answer(here: Here) -> None:
    await here.attach("1-1")
    assert (await here.ask(InfoRequest(v=1)))["version"] == "3"
    (view,) = await here.ask(ListRequest(v=1))
    assert len(view["devices"]) == 3
    (port,) = await here.ask(PortsRequest(v=1))
    assert port["bus_id"] == "1-1"
    (status,) = await here.ask(StatusRequest(v=1))
    assert status["name"] == "1-1" or status["attached"]["device"]["bus_id"] == "1-1"


@pytest.mark.parametrize("model", [AttachRequest, DetachRequest])
@pytest.mark.parametrize("more", [{}, {"first": True}])
async def test_a_request_for_any_device_at_all_is_refused(
    here: Here, model: type[AttachRequest | DetachRequest], more: dict[str, Any]
) -> None:
    with pytest.raises(errors.InvalidRequest, match="which device"):
        await here.ask(protocol.build(model, more))


async def test_an_agent_that_has_just_started_answers_when_it_has_looked_around(
    quick: Running, tmp_path: Path
) -> None:
    times = replace(BRISK, look_around=600.0)
    async with residing(tmp_path, at(quick), times=times, hears=False) as here:
        asking = [
            asyncio.create_task(here.ask(ListRequest(v=1))),
            asyncio.create_task(here.attach("1-1")),
            asyncio.create_task(here.attach("1-2", keep=True)),
            asyncio.create_task(here.attach("1-3", hold=True)),
        ]
        await eventually(lambda: here.world.views)
        await asyncio.wait(asking, timeout=0.05)
        assert not any(task.done() for task in asking)
        assert here.agent.statuses() == []
        here.world._settled.set()  # ten minutes have passed
        (view,), *_ = await asyncio.gather(*asking)
        assert len(view["devices"]) == 3


async def test_what_nobody_expected_ends_the_connection_and_not_the_desk(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("a fault of ours")

    desk, path = await another(here)
    desk._agent = Broken()  # type: ignore[assignment]
    desk.limits = replace(desk.limits, request_timeout=600.0)  # not because it is idle
    async with await talk(path) as connection:
        with pytest.raises(errors.Unreachable, match="closed the connection"):
            await connection.request(protocol.build(AttachRequest, {"handle": "1-1"}))
    async with await talk(path) as connection:
        assert (await connection.request(InfoRequest(v=1))).data["version"] == "3"
    await desk.stop()
    assert "failed unexpectedly" in caplog.text


# -- who is told


@pytest.mark.parametrize("why", ["watches", "holds", "waits"])
async def test_who_watches_holds_or_waits_hears_that_we_are_there(here: Here, why: str) -> None:
    desk, path = await another(here, ping_interval=0.02)
    async with await talk(path) as one, await talk(path) as other:
        if why == "watches":
            events = other.watch()
            for _ in range(4):
                await anext(events)
            await events.aclose()  # type: ignore[attr-defined]
        elif why == "holds":
            await other.request(hold("1-1"))
        else:
            heard: list[AgentEvent] = []
            await one.request(hold("1-1"))
            waiting = asyncio.create_task(other.request(hold("1-1", wait=0), heard.append))
            await eventually(lambda: [event.event for event in heard[:3]] == ["ping"] * 3)
            await one.request(ReleaseRequest())
            await waiting
        assert await pings(other, 3) == 3
    await eventually(lambda: not desk._connections)
    await eventually(lambda: desk._ping is None)
    await desk.stop()


async def test_a_watch_begins_with_all_servers_and_the_word_that_these_are_all(here: Here) -> None:
    desk, path = await another(here, ping_interval=0.02)
    async with await talk(path) as connection:
        events = connection.watch()
        assert [(await anext(events)).event for _ in range(2)] == ["view", "ping"]
        assert len(desk._watchers) == 1
        await events.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: not desk._watchers)
    await desk.stop()


# -- ends


async def test_when_there_are_too_many_the_newest_gives_way(here: Here) -> None:
    desk, path = await another(here)
    desk.limits = replace(desk.limits, connections=2)
    async with await talk(path) as one, await talk(path) as other:
        for connection in (one, other):
            await connection.request(InfoRequest(v=1))
        async with await talk(path) as third:
            with pytest.raises(errors.Unreachable):
                await third.request(InfoRequest(v=1))
        for connection in (one, other):
            await connection.request(InfoRequest(v=1))
    await desk.stop()


async def test_who_waits_and_goes_away_waits_no_longer(here: Here, quick: Running) -> None:
    async with await here.talk() as one:
        await one.request(hold("1-1"))
        other = await here.talk()
        waiting = asyncio.create_task(other.request(hold("1-1", wait=0)))
        desk: Any = here.world.on_view.__self__  # type: ignore[attr-defined]
        await eventually(lambda: len(desk._tasks) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await other.close()
        await eventually(lambda: not desk._tasks)
    await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)
    await eventually(lambda: here.agent.statuses() == [])
    assert here.importer.count == 1


async def test_what_is_released_is_back_when_that_is_answered_the_newest_first(
    here: Here, quick: Running
) -> None:
    order: list[int] = []

    async def detach(vhci_port: int, was: Any = here.importer.detach) -> None:
        order.append(vhci_port)
        await was(vhci_port)

    here.importer.detach = detach  # type: ignore[method-assign]
    async with await here.talk() as connection:
        for handle in ("1-1", "1-2", "1-3"):
            await connection.request(hold(handle))
        await connection.request(ReleaseRequest())
        assert here.agent.statuses() == []
        assert {d.state for d in quick.control.snapshot.devices} == {State.AVAILABLE}
        await connection.request(hold("1-1"))  # its claim is free, too
    assert order[:3] == [2, 1, 0]


async def test_a_desk_that_stops_leaves_what_is_held_but_drops_its_claims(
    here: Here, quick: Running
) -> None:
    desk, path = await another(here)
    async with await talk(path) as connection:
        await connection.request(hold("1-1"))
        await desk.stop()
        assert state_of(quick, "1-1") is State.IN_USE
    async with await here.talk() as connection:
        await connection.request(hold("1-1"))  # nobody else has it now
    assert here.importer.count == 1


async def test_a_program_that_ended_while_its_device_was_attached_has_none(
    quick: Running, tmp_path: Path
) -> None:
    async with residing(tmp_path, at(quick), times=BRISK) as here:
        connection = await here.talk()
        desk: Any = here.world.on_view.__self__  # type: ignore[attr-defined]
        asking = asyncio.create_task(connection.request(hold("1-1")))
        await eventually(lambda: here.importer.count == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await connection.close()
        await eventually(lambda: not desk._connections)
        await eventually(lambda: here.agent.statuses() == [])
        await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)
        async with await here.talk() as program:
            await program.request(hold("1-1"))
