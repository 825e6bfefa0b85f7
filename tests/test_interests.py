"""One device, and all who want it: people, wishes, programs; each goes through one keeper."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.importing import Bell, NoticingImporter
from tests.patience import patience
from tests.residing import BRISK, Here, history_of, residing
from tests.serving import QUICK, Running, at, running_server, state_of
from tests.waiting import eventually
from usb_remote import errors, protocol
from usb_remote.agent import backoff, wishes
from usb_remote.agent.times import Times
from usb_remote.agent_protocol import AgentEvent, AttachRequest, DetachRequest, Kind, Loss, Stage
from usb_remote.config import WishConfig
from usb_remote.connection import AgentConnection, connect
from usb_remote.events import Kind as EventKind
from usb_remote.model import Attachment, Cause, Device, State, with_ids
from usb_remote.values import DeviceName
from usb_remote.virtual import KINDS, VirtualDevices

HOLD = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})


@contextlib.asynccontextmanager
async def board(folder: Path, bench: Running) -> AsyncIterator[Here]:
    """An agent whose configuration wishes for what sits in 1-1, attached."""
    wish = WishConfig(device="1-1", name=DeviceName("board"))
    async with residing(folder, at(bench), attach=(wish,)) as here:
        await eventually(lambda: here.stages() == {"board": Stage.ATTACHED})
        yield here


class Bob:
    """Another machine."""

    def __init__(self, bench: Running, bus_id: str = "1-1") -> None:
        self._bench = bench
        self._who = {"bus": bus_id, "user": "bob", "host": "pc", "client": "other"}

    async def takes_it(self, **more: Any) -> None:
        async with await connect(self._bench.server, 2.0) as connection:
            words = {**self._who, **more}
            await connection.request(protocol.build(protocol.AttachRequest, words))

    async def gives_it_back(self) -> None:
        async with await connect(self._bench.server, 2.0) as connection:
            words = {**self._who, "command": "detach"}
            await connection.request(protocol.build(protocol.DeviceRequest, words))


@contextlib.asynccontextmanager
async def relabelled(
    serials: dict[str, str] | None = None,
) -> AsyncIterator[tuple[Running, dict[str, str]]]:
    """A server whose devices have the serial numbers of a table, which may change."""
    table = {} if serials is None else serials

    class Relabelled(VirtualDevices):
        def list_devices(self) -> tuple[Device, ...]:
            return with_ids(
                device.model_copy(update={"serial": table.get(device.bus_id, device.serial)})
                for device in super().list_devices()
            )

    async with running_server(*KINDS, times=QUICK, bus=Relabelled) as running:
        yield running, table


def devices(here: Here) -> tuple[Device, ...]:
    return tuple(device for view in here.world.views.values() for device in view.devices)


async def flap(here: Here, bench: Running, name: str) -> None:
    """Lose the device so often that it is attached again with delay."""
    for _ in range(Times.flapping):
        here.pull(bench, "serial")
        await eventually(lambda: here.stages()[name] is Stage.ABSENT)
        bench.devices.plug("serial")
        await eventually(lambda: here.stages()[name] in (Stage.ATTACHED, Stage.DELAYED))
    assert here.stages()[name] is Stage.DELAYED


async def hear(connection: AgentConnection, kind: str) -> AgentEvent:
    """Read on to an event of that kind; `attached` also tells that nodes have changed."""
    async with asyncio.timeout(patience(5)):
        async for event in connection.events():
            if event.event == kind:
                return event
    raise AssertionError("no such event")


# -- people


async def test_people_who_ask_for_one_device_at_once_get_the_same(
    here: Here, quick: Running
) -> None:
    both = await asyncio.gather(here.attach("1-1"), here.attach("1-1"))
    assert both[0]["attachment"] == both[1]["attachment"]
    assert here.importer.count == 1
    assert [event.kind for event in await history_of(2, quick.server)].count(EventKind.ENDED) == 0
    assert state_of(quick, "1-1") is State.IN_USE


async def test_who_asks_in_vain_for_a_wish_that_had_ended_leaves_it_ended(
    quick: Running, tmp_path: Path
) -> None:
    async with board(tmp_path, quick) as here:
        bob = Bob(quick)
        await bob.takes_it(force=True)
        here.notice()
        await eventually(lambda: here.stages() == {"board": Stage.ENDED})
        with pytest.raises(errors.Busy, match="bob@pc"):
            await here.attach("board")
        await eventually(lambda: here.stages() == {"board": Stage.ENDED})
        (status,) = await here.status()
        assert "taken over by bob@pc" in (status.note or "")
    async with residing(tmp_path, at(quick), attach=(WishConfig(device="1-1"),)) as here:
        assert list(here.stages().values()) == [Stage.ENDED]
        await bob.gives_it_back()
        await here.attach("1-1")
        assert list(here.stages().values()) == [Stage.ATTACHED]


async def test_a_person_does_not_wait_for_the_delay_of_a_wish(
    quick: Running, tmp_path: Path
) -> None:
    async with board(tmp_path, quick) as here:
        await flap(here, quick, "board")
        attached = await here.attach("1-1")
        assert attached["name"] == "board"
        assert here.stages() == {"board": Stage.ATTACHED}
        assert [p.name for p in (tmp_path / "dev").iterdir()] == ["board"]


async def test_who_is_in_the_queue_already_waits_there_for_all_of_this_machine(
    here: Here, quick: Running
) -> None:
    bob = Bob(quick)
    await bob.takes_it()
    await here.attach("1-1", keep=True)
    assert here.stages() == {"1-1": Stage.WAITING}
    words = "^1209:0001:VIRTUAL0001 is in use by bob@pc; this machine is in the queue"
    with pytest.raises(errors.Busy, match=words) as busy:
        await here.attach("1-1")
    assert busy.value.holder is not None
    with pytest.raises(errors.Busy, match="bob@pc"):
        await here.attach("1-1", wait=0.05)
    async with await here.talk() as program:
        places: list[int] = []
        waiting = asyncio.create_task(
            program.request(
                HOLD.model_copy(update={"wait": 0}), lambda event: places.append(event.place)
            )
        )
        await eventually(lambda: 1 in places)
        await bob.gives_it_back()
        held = await asyncio.wait_for(waiting, patience(5))
        assert held.data["name"] == "1-1"
    assert here.importer.count == 1
    assert here.stages() == {"1-1": Stage.ATTACHED}


async def test_force_does_not_wait_behind_a_wish_of_this_machine(
    here: Here, quick: Running
) -> None:
    await Bob(quick).takes_it()
    await here.attach("1-1", keep=True)
    attached = await asyncio.wait_for(here.attach("1-1", force=True), patience(20))
    assert attached["name"] == "1-1"
    assert here.stages() == {"1-1": Stage.ATTACHED}


async def test_who_goes_away_while_it_is_attached_for_him_alone_leaves_nothing(
    here: Here, quick: Running
) -> None:
    await Bob(quick).takes_it()
    async with await here.talk() as person:
        request = protocol.build(AttachRequest, {"handle": "1-1", "wait": 0})
        asking = asyncio.create_task(person.request(request))
        await eventually(lambda: list(here.stages().values()) == [Stage.WAITING])
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: here.agent.statuses() == [])


async def test_detach_says_so_if_it_means_several(here: Here, quick: Running) -> None:
    await here.attach("1-1")
    await here.attach("1-2")
    with pytest.raises(errors.Ambiguous, match="several devices that are attached"):
        await here.ask(protocol.build(DetachRequest, {"id": "*"}))
    done = await here.ask(protocol.build(DetachRequest, {"id": "*", "first": True}))
    assert done["device"]["bus_id"] == "1-1"
    assert state_of(quick, "1-2") is State.IN_USE
    await here.ask(protocol.build(DetachRequest, {"id": "*"}))  # one is left


async def test_detach_by_a_whole_id_takes_nothing_that_only_begins_so(tmp_path: Path) -> None:
    async with relabelled() as (quick, serials), residing(tmp_path, at(quick)) as here:
        serials.update({"1-1": "A10", "1-2": "A1"})
        quick.devices.pull("keyboard")
        await eventually(lambda: {"A1", "A10"} == {d.serial for d in devices(here)})
        await here.attach("1-1")
        await here.attach("1-2")
        done = await here.detach(devices(here)[1].id)
        assert done["device"]["bus_id"] == "1-2"
        await here.detach(done["device"]["id"])  # is a success, and not that of 1-1
        assert state_of(quick, "1-1") is State.IN_USE


async def test_a_device_of_two_wishes_is_detached_for_both(quick: Running, tmp_path: Path) -> None:
    serial = next(d.serial for d in quick.control.snapshot.devices if d.bus_id == "1-1")
    both = (
        WishConfig(device="1-1", name=DeviceName("a")),
        WishConfig(serial=serial, name=DeviceName("b")),
    )
    async with residing(tmp_path, at(quick), attach=both) as here:
        await eventually(lambda: set(here.stages().values()) == {Stage.ATTACHED})
        done = await here.detach("1-1")
        assert done["attachment"] is not None
        assert here.stages() == {"a": Stage.ENDED, "b": Stage.ENDED}
        assert state_of(quick, "1-1") is State.AVAILABLE


async def test_what_is_kept_and_then_attached_once_keeps_its_directory_until_it_is_gone(
    here: Here, tmp_path: Path
) -> None:
    kept = await here.attach("1-1", keep=True)
    once = await here.attach("1-1", keep=False)
    assert once["paths"] == kept["paths"]
    (status,) = await here.status()
    assert status.kind is Kind.ONCE
    await here.detach("1-1")
    assert list((tmp_path / "dev").iterdir()) == []


async def test_what_was_kept_and_has_ended_can_be_attached_once(here: Here, quick: Running) -> None:
    await here.attach("1-1", keep=True)
    await Bob(quick).takes_it(force=True)
    here.notice()
    await eventually(lambda: here.stages() == {"1-1": Stage.ENDED})
    await Bob(quick).gives_it_back()
    await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)
    await here.attach("1-1", keep=False)
    (status,) = await here.status()
    assert (status.kind, status.stage) == (Kind.ONCE, Stage.ATTACHED)


# -- programs


async def test_a_program_uses_the_name_of_the_wish_also_if_that_has_ended(
    quick: Running, tmp_path: Path
) -> None:
    async with board(tmp_path, quick) as here:
        await here.detach("board")
        async with await here.talk() as program:
            held = await program.request(HOLD)
            assert held.data["name"] == "board"
        await eventually(lambda: here.stages() == {"board": Stage.ENDED})
        assert state_of(quick, "1-1") is State.AVAILABLE


async def test_a_program_hears_that_somebody_detached_its_device(
    here: Here, quick: Running
) -> None:
    async with await here.talk() as program:
        await program.request(HOLD)
        await here.detach("1-1")
        event = await hear(program, "lost")
        assert event.loss is not None
        assert event.loss.cause is Cause.DETACHED
        await here.attach("1-1")  # by another person, and so for all
        await hear(program, "attached")


async def test_what_a_program_has_comes_back_to_it_and_stays_for_the_person_who_had_it(
    here: Here, quick: Running
) -> None:
    await here.attach("1-1")
    async with await here.talk() as program:
        await program.request(HOLD)
        here.pull(quick, "serial")
        await hear(program, "lost")
        quick.devices.plug("serial")
        await hear(program, "attached")
    await eventually(lambda: not here.agent._records.keepers[0].is_held)
    (status,) = await here.status()
    assert (status.kind, status.stage) == (Kind.ONCE, Stage.ATTACHED)
    here.pull(quick, "serial")
    await eventually(lambda: here.agent.statuses() == [])


async def test_what_a_person_attaches_besides_a_program_stays_when_that_ends(
    here: Here, quick: Running
) -> None:
    async with await here.talk() as program:
        name = (await program.request(HOLD)).data["name"]
        again = await here.attach("1-1")
        assert (again["already"], again["name"]) == (True, name)
    await eventually(lambda: [s.kind for s in here.agent.statuses()] == [Kind.ONCE])
    assert state_of(quick, "1-1") is State.IN_USE


async def test_a_program_keeps_its_paths_while_the_wish_gets_another_name(
    quick: Running, tmp_path: Path
) -> None:
    def names() -> list[str]:
        return [p.name for p in (tmp_path / "dev").iterdir()]

    named = wishes.of_config(WishConfig(device="1-1", name=DeviceName("scope"), mode="0666"))
    async with board(tmp_path, quick) as here:
        async with await here.talk() as program:
            await program.request(HOLD)
            here.agent.configure([named])
            assert names() == ["board"]
        await eventually(lambda: names() == ["scope"])
        assert here.stages() == {"scope": Stage.ATTACHED}
        assert here.agent._records.keepers[0].wish == named
        here.agent.configure([])
        (status,) = here.agent.statuses()
        assert (status.kind, names()) == (Kind.ONCE, ["scope"])


async def test_of_several_that_programs_have_the_first_that_is_free_is_waited_for(
    here: Here, quick: Running
) -> None:
    def request(**more: Any) -> AttachRequest:
        return protocol.build(AttachRequest, {"id": "*", "first": True, "hold": True, **more})

    async with contextlib.AsyncExitStack() as stack:
        programs = [await stack.enter_async_context(await here.talk()) for _ in range(4)]
        held = [(await p.request(request())).data["device"]["bus_id"] for p in programs[:3]]
        assert held == ["1-1", "1-2", "1-3"]
        with pytest.raises(errors.Busy, match="that match --id"):
            await programs[3].request(request())
        waiting = asyncio.create_task(programs[3].request(request(wait=10)))
        await programs[1].close()
        assert (await asyncio.wait_for(waiting, patience(10))).data["device"]["bus_id"] == "1-2"


# -- wishes


async def test_a_wish_for_the_first_of_several_takes_whichever_is_free_first(
    here: Here, quick: Running
) -> None:
    everybody = [Bob(quick, bus_id) for bus_id in ("1-1", "1-2", "1-3")]
    for bob in everybody:
        await bob.takes_it()
    request = protocol.build(AttachRequest, {"id": "*", "first": True, "keep": True})
    assert (await here.ask(request))["status"]["stage"] == "waiting"
    await everybody[1].gives_it_back()
    await eventually(lambda: list(here.stages().values()) == [Stage.ATTACHED])
    (status,) = await here.status()
    assert status.attached is not None
    assert status.attached.device.bus_id == "1-2"


async def test_a_wish_for_a_serial_number_takes_nothing_else_that_came_in_its_place(
    tmp_path: Path,
) -> None:
    wish = WishConfig(serial="MINE", name=DeviceName("board"))
    times = replace(BRISK, longest_delay=0.5)
    async with (
        relabelled({"1-1": "MINE"}) as (quick, serials),
        residing(tmp_path, at(quick), attach=(wish,), times=times) as here,
    ):
        await eventually(lambda: here.stages() == {"board": Stage.ATTACHED})
        await flap(here, quick, "board")
        attached = here.importer.count
        quick.devices.pull("serial")
        serials["1-1"] = "OTHER"
        quick.devices.plug("serial")
        await eventually(lambda: here.stages() == {"board": Stage.ABSENT})
        assert here.importer.count == attached


async def test_a_change_of_the_configuration_is_done_in_place(
    quick: Running, tmp_path: Path
) -> None:
    async with board(tmp_path, quick) as here:
        changed = WishConfig(device="1-1", name=DeviceName("scope"), group="dialout", mode="0666")
        here.agent.configure([wishes.of_config(changed)])
        (status,) = await here.status()
        assert status.attached is not None
        assert (status.name, status.attached.name) == ("scope", "scope")
        assert status.attached.paths["tty0"] == str(tmp_path / "dev/scope/tty0")
        assert [p.name for p in (tmp_path / "dev").iterdir()] == ["scope"]
        assert here.importer.count == 1


async def test_a_transient_failure_is_tried_again_however_often() -> None:
    times = Times()
    delays = [backoff.after_failures(count, times) for count in (1, 5, 2000)]
    assert all(0 < delay <= times.longest_delay for delay in delays)
    assert backoff.after_losses(2000, times) <= times.longest_delay
    assert backoff.after_losses(times.flapping - 1, times) == 0


async def test_a_port_that_cannot_be_freed_at_once_is_freed_later(
    quick: Running, tmp_path: Path
) -> None:
    bell = Bell()

    class Reluctant(NoticingImporter):
        failures = 2

        async def detach(self, vhci_port: int) -> None:
            if self.failures:
                self.failures -= 1
                raise errors.SystemFault("usbip failed: open vhci_driver")
            await super().detach(vhci_port)

        def list_attachments(self) -> list[Attachment]:
            return [attachment for attachment, _ in self._handles.values()]

    importer, times = Reluctant(bell, tmp_path), replace(BRISK, free_again=0.02)
    async with residing(tmp_path, at(quick), importer=importer, times=times) as here:
        await here.attach("1-1")
        here.pull(quick, "serial")
        await eventually(lambda: importer.list_attachments() == [])
        await eventually(lambda: here.agent.statuses() == [])
    bell.close()


# -- an agent that was started again


async def test_what_was_noted_before_is_not_written_over_by_who_asks_first(
    quick: Running, tmp_path: Path
) -> None:
    async with residing(tmp_path, at(quick)) as here:
        await here.attach("nothing", keep=True)
    async with residing(tmp_path, at(quick), starts=False) as here:
        await here.attach("1-2", keep=True)
        here.agent.start([])
        assert set(here.stages()) == {"nothing", "1-2"}
    async with residing(tmp_path, at(quick)) as here:
        assert set(here.stages()) == {"nothing", "1-2"}


async def test_directories_of_what_has_gone_meanwhile_go_at_the_start(
    quick: Running, tmp_path: Path
) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    async with residing(tmp_path, at(quick), importer=importer) as here:
        await here.attach("1-1", keep=True)
        await here.attach("1-2", keep=True)
    quick.devices.pull("serial")
    await eventually(lambda: len(importer.list_attachments()) == 1)
    async with residing(tmp_path, at(quick), importer=importer) as here:
        assert [p.name for p in (tmp_path / "dev").iterdir()] == ["1-2"]  # and that all the time
        assert here.stages()["1-2"] is Stage.ATTACHED
        await here.detach("1-2")
    bell.close()


async def test_what_is_attached_is_followed_before_its_server_is_heard(tmp_path: Path) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    async with running_server(*KINDS, times=QUICK) as quick:
        async with residing(tmp_path, at(quick), importer=importer) as here:
            await here.attach("1-1", keep=True)
        async with residing(tmp_path, importer=importer) as here:  # knows it from its own notes
            await eventually(lambda: here.world.views)
            assert here.stages() == {"1-1": Stage.ATTACHED}
            assert importer.count == 1
        await quick.control.stop()
        async with residing(tmp_path, importer=importer) as here:  # hears of no server
            assert here.stages() == {"1-1": Stage.ATTACHED}
            assert here.world.views == {}
            here.world._began -= 60  # a minute has passed
            here.world.tell()
            await eventually(lambda: importer.list_attachments() == [])
            await eventually(lambda: here.stages() == {"1-1": Stage.ABSENT})
            (loss,) = here.agent.statuses()[0].losses
            assert loss.blame == "network"
    bell.close()


async def test_what_was_held_waits_for_its_program_and_is_its_own_again(
    quick: Running, tmp_path: Path
) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    async with residing(tmp_path, at(quick), importer=importer) as here:
        program = await here.talk()
        await program.request(HOLD)
        other = await here.talk()
        await other.request(protocol.build(AttachRequest, {"handle": "1-2", "hold": True}))
    await program.close()
    await other.close()
    async with residing(tmp_path, at(quick), importer=importer) as here:
        async with await here.talk() as program:
            await program.request(HOLD)
            here.agent._started = asyncio.get_running_loop().time() - 60
            here.world.tell()
            await eventually(lambda: len(here.agent.statuses()) == 1)
            assert state_of(quick, "1-1") is State.IN_USE
            await eventually(lambda: state_of(quick, "1-2") is State.AVAILABLE)
        await eventually(lambda: here.agent.statuses() == [])
    bell.close()


def test_losses_are_counted_within_a_minute() -> None:
    now = datetime.now(UTC)
    losses = [Loss(at=now.replace(year=2020)), Loss(at=now)]
    assert backoff.count_recent(losses, now, Times.within) == 1


async def test_what_a_wish_has_with_a_program_stays_when_that_ends(tmp_path: Path) -> None:
    wish = WishConfig(serial="MINE", name=DeviceName("board"))
    async with (
        relabelled({"1-1": "OTHER"}) as (quick, serials),
        residing(tmp_path, at(quick), attach=(wish,)) as here,
    ):
        async with await here.talk() as program:
            await program.request(HOLD)
            here.pull(quick, "serial")
            await eventually(lambda: Stage.ATTACHED not in here.stages().values())
            serials["1-1"] = "MINE"
            quick.devices.plug("serial")
            both = {"1-1": Stage.ATTACHED, "board": Stage.ATTACHED}
            await eventually(lambda: here.stages() == both)
            assert here.importer.count == 2
        await eventually(lambda: here.stages() == {"board": Stage.ATTACHED})
        (status,) = here.agent.statuses()
        assert status.losses == ()
        assert (state_of(quick, "1-1"), here.importer.count) == (State.IN_USE, 2)
