"""Wishes for all ports of a hub: each is a record of its own, and a keeper for each device."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.residing import Here, residing
from tests.serving import Running, at, state_of
from tests.waiting import eventually
from usb_remote import errors, protocol
from usb_remote.agent import wishes
from usb_remote.agent.records import MAX_WISHES
from usb_remote.agent_protocol import AgentEvent, AttachRequest, DetachRequest, Kind, Stage
from usb_remote.config import WishConfig
from usb_remote.model import State
from usb_remote.values import DeviceName

ALL = {"rack-1-1", "rack-1-2", "rack-1-3"}


def rack(bench: Running) -> WishConfig:
    return WishConfig(port="1-*", server=at(bench), name=DeviceName("rack"))


@contextlib.asynccontextmanager
async def keeping(folder: Path, bench: Running) -> AsyncIterator[Here]:
    """An agent with all of them attached."""
    async with residing(folder, at(bench), attach=(rack(bench),)) as here:
        await eventually(lambda: attached(here) == ALL)
        yield here


def attached(here: Here) -> set[str]:
    return {status.name for status in here.agent.statuses() if status.attached}


async def test_it_is_one_for_each_device_and_shown_itself(quick: Running, tmp_path: Path) -> None:
    async with keeping(tmp_path, quick) as here:
        statuses = {status.name: status for status in await here.status()}
        assert statuses["rack"].stage is Stage.ATTACHED
        assert "rack-1-1, rack-1-2, rack-1-3" in (statuses["rack"].note or "")
        here.pull(quick, "disk")
        await eventually(lambda: here.stages()["rack-1-2"] is Stage.ABSENT)
        quick.devices.plug("disk")
        await eventually(lambda: attached(here) == ALL)
        (loss,) = next(s for s in here.agent.statuses() if s.name == "rack-1-2").losses
        assert loss.blame == "device"


async def test_one_for_what_is_not_there_is_shown(quick: Running, tmp_path: Path) -> None:
    wish = WishConfig(port="7-*", name=DeviceName("elsewhere"))
    async with residing(tmp_path, at(quick), attach=(wish,)) as here:
        assert here.stages() == {"elsewhere": Stage.ABSENT}


async def test_a_detach_of_one_device_is_for_that_one(quick: Running, tmp_path: Path) -> None:
    async with keeping(tmp_path, quick) as here:
        await here.detach("1-1")
        here.pull(quick, "disk")  # the others are looked after as before
        await eventually(lambda: here.stages()["rack-1-2"] is Stage.ABSENT)
        quick.devices.plug("disk")
        await eventually(lambda: attached(here) == {"rack-1-2", "rack-1-3"})
        assert here.stages()["rack-1-1"] is Stage.ENDED
    async with residing(tmp_path, at(quick), attach=(rack(quick),)) as here:
        await eventually(lambda: attached(here) == {"rack-1-2", "rack-1-3"})
        assert here.stages()["rack-1-1"] is Stage.ENDED
        await here.attach("1-1")
        assert attached(here) == ALL


async def test_all_of_them_are_detached_by_their_name(quick: Running, tmp_path: Path) -> None:
    async with keeping(tmp_path, quick) as here:
        assert set((await here.detach("rack"))["names"]) == ALL
        assert here.importer.list_attachments() == []


async def test_a_kept_one_outlives_the_agent_and_ends_as_a_whole(
    quick: Running, tmp_path: Path
) -> None:
    request = protocol.build(AttachRequest, {"bus": "1-*", "keep": True})
    async with residing(tmp_path, at(quick)) as here:
        answer = await here.ask(request)
        assert answer["status"]["wish"] == "--bus 1-*"
        await eventually(lambda: len(attached(here)) == 3)
        here.pull(quick, "disk")
        await eventually(lambda: len(attached(here)) == 2)
    async with residing(tmp_path, at(quick)) as here:
        quick.devices.plug("disk")
        await eventually(lambda: len(attached(here)) == 3)
        done = await here.ask(protocol.build(DetachRequest, {"bus": "1-*"}))
        assert done["wish"] == "--bus 1-*"
        assert len(done["names"]) == 3
        assert here.agent.statuses() == []
        assert state_of(quick, "1-2") is State.AVAILABLE
    async with residing(tmp_path, at(quick)) as here:
        await eventually(lambda: here.world.views)
        assert here.agent.statuses() == []


async def test_a_program_that_has_one_of_them_hears_when_it_is_back(
    quick: Running, tmp_path: Path
) -> None:
    heard: list[str] = []
    async with keeping(tmp_path, quick) as here, await here.talk() as program:
        held = await program.request(protocol.build(AttachRequest, {"handle": "1-1", "hold": True}))
        assert held.data["name"] == "rack-1-1"
        here.pull(quick, "serial")
        async for event in program.events():
            if event.event == "lost":
                quick.devices.plug("serial")
            heard += [event.event] if isinstance(event, AgentEvent) else []
            if "lost" in heard and event.event == "attached":  # one before: its nodes changed
                break
    assert [event for event in heard if event != "ping"][-2:] == ["lost", "attached"]


async def test_it_takes_nothing_from_a_wish_of_another_server(
    quick: Running, tmp_path: Path
) -> None:
    other = WishConfig(port="1-*", server="no-such-server")
    mine = WishConfig(port="1-2", first=True, name=DeviceName("mine"))
    async with residing(tmp_path, at(quick), attach=(mine, other)) as here:
        await eventually(lambda: here.stages().get("mine") is Stage.ATTACHED)
        here.pull(quick, "disk")
        await eventually(lambda: here.stages().get("mine") is Stage.ABSENT)


async def test_a_place_with_a_wish_of_its_own_keeps_it(quick: Running, tmp_path: Path) -> None:
    own = WishConfig(port="1-2", server=quick.control.info.id, first=True, name=DeviceName("mine"))
    async with residing(tmp_path, at(quick), attach=(own, rack(quick))) as here:
        await eventually(lambda: attached(here) == {"mine", "rack-1-1", "rack-1-3"})


async def test_a_changed_configuration_renames_and_ends_all_of_them(
    quick: Running, tmp_path: Path
) -> None:
    async with keeping(tmp_path, quick) as here:
        named = WishConfig(port="1-*", server=at(quick), name=DeviceName("shelf"))
        here.agent.configure([wishes.of_config(named)])
        assert attached(here) == {"shelf-1-1", "shelf-1-2", "shelf-1-3"}
        assert sorted(p.name for p in (tmp_path / "dev").iterdir()) == sorted(attached(here))
        here.agent.configure([])
        statuses = here.agent.statuses()
        assert [status.kind for status in statuses] == [Kind.ONCE] * 3
        assert here.importer.count == 3


async def test_too_many_wishes_do_not_end_the_agent(quick: Running, tmp_path: Path) -> None:
    many = tuple(WishConfig(device=f"nothing-{n}") for n in range(MAX_WISHES - 2))
    async with residing(tmp_path, at(quick), attach=(*many, rack(quick))) as here:
        await eventually(lambda: len(attached(here)) == 1)
        (status,) = (s for s in here.agent.statuses() if s.name == "rack")
        assert status.error is not None
        assert "256 wishes already" in status.error.message
        assert not any(task.done() for task in here.tasks)
        here.agent.configure([wishes.of_config(rack(quick))])
        await eventually(lambda: attached(here) == ALL)
        assert [s.error for s in here.agent.statuses() if s.name == "rack"] == [None]


async def test_one_of_many_is_not_taken_out(here: Here) -> None:
    await here.ask(protocol.build(AttachRequest, {"bus": "1-*", "keep": True}))
    await eventually(lambda: len(attached(here)) == 3)
    with pytest.raises(errors.Refused, match=r"is one of those that --bus 1-\* keeps"):
        await here.attach("1-1", keep=False)
    assert len(attached(here)) == 3


async def test_all_of_them_can_be_asked_for_again(quick: Running, tmp_path: Path) -> None:
    async with keeping(tmp_path, quick) as here:
        words = {"bus": "1-*", "host": at(quick)}
        done = await here.ask(protocol.build(DetachRequest, words))
        assert len(done["names"]) == 3
        await eventually(lambda: here.stages() == {"rack": Stage.ENDED})
        answer = await here.ask(protocol.build(AttachRequest, {**words, "keep": True}))
        assert answer["status"]["wish"] == done["wish"]
        await eventually(lambda: len(attached(here)) == 3)
        assert here.stages()["rack"] is Stage.ATTACHED
