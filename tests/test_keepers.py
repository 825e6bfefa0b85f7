"""A kept device goes from stage to stage: each arrow once, against a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nodes import Nodes
from tests.importing import ArrivedAtOnce, Bell, NoticingImporter
from tests.patience import patience
from tests.residing import BRISK, Here, history_of, residing
from tests.serving import QUICK, Running, at, running_server, state_of
from tests.waiting import eventually
from usb_remote import errors, protocol
from usb_remote.agent.following import Following
from usb_remote.agent.strangers import Strangers
from usb_remote.agent.times import Times
from usb_remote.agent_protocol import AttachRequest, Kind, Loss, Stage, Status
from usb_remote.client import How
from usb_remote.config import WishConfig
from usb_remote.connection import connect
from usb_remote.events import Event
from usb_remote.matching import Query
from usb_remote.model import Attachment, Cause, Server, State
from usb_remote.values import BusId, DeviceName
from usb_remote.virtual import KINDS

PATIENT = replace(BRISK, first_delay=600.0, longest_delay=600.0)
"""What was delayed stays so, unless something happens."""


class Failing(NoticingImporter):
    """Fails as it is told, and counts the tries."""

    tries = 0
    fault: Exception | None = None
    stuck: errors.UsbRemoteError | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.detached: list[int] = []

    async def attach(self, *args: Any, **more: Any) -> Attachment:
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        return await super().attach(*args, **more)

    async def detach(self, vhci_port: int) -> None:
        if self.stuck is not None:
            raise self.stuck
        self.detached.append(vhci_port)
        await super().detach(vhci_port)


@contextlib.asynccontextmanager
async def keeping(
    folder: Path,
    bench: Running,
    fault: Exception | None = None,
    times: Times = BRISK,
    wish: WishConfig = WishConfig(device="1-1"),
) -> AsyncIterator[tuple[Here, Failing]]:
    """An agent that wishes for what sits in 1-1, and an importer that fails at first."""
    bell = Bell()
    importer = Failing(bell, folder)
    importer.fault = fault
    async with residing(folder, at(bench), attach=(wish,), importer=importer, times=times) as here:
        yield here, importer
    for attachment in importer.list_attachments():
        await importer.detach(attachment.vhci_port)
    bell.close()


def is_at(here: Here, stage: Stage) -> Callable[[], bool]:
    return lambda: [status.stage for status in here.agent.statuses()] == [stage]


def only(here: Here) -> Status:
    (status,) = here.agent.statuses()
    return status


def says(here: Here, words: str) -> bool:
    """Whether these are part of why it is not attached."""
    error = only(here).error
    return error is not None and words in error.message


async def bob(bench: Running, command: str = "attach", **more: Any) -> None:
    """Another machine asks for 1-1, or gives it back."""
    who = {"bus": "1-1", "user": "bob", "host": "pc", "client": "other"}
    attach = protocol.build(protocol.AttachRequest, {**who, **more})
    detach = protocol.build(protocol.DeviceRequest, {**who, "command": "detach"})
    async with await connect(bench.server, 20.0) as connection:
        await connection.request(attach if command == "attach" else detach)


FAULT = errors.SystemFault("usbip failed", hint="look at dmesg")
REFUSED = errors.Refused("not for you")


# -- its directory


async def test_under_the_same_name_its_directory_is_left_alone(here: Here, quick: Running) -> None:
    """A program may be in it."""
    await here.attach("1-1", keep=True)
    opened = os.open(here.folder / "dev/1-1", os.O_RDONLY)
    folder = Path(f"/proc/self/fd/{opened}")
    nodes = list(folder.iterdir())
    await here.attach("1-1", keep=False)
    assert only(here).kind is Kind.ONCE
    assert list(folder.iterdir()) == nodes != []
    os.close(opened)


class Faulty(Nodes):
    """Whoever asks for the nodes meets a fault of ours, once that is set."""

    fault: Exception | None = None

    def list_parts(self, local_bus_id: str) -> list[tuple[str, str]]:
        if self.fault is not None:
            raise self.fault
        return super().list_parts(local_bus_id)


async def test_a_fault_of_ours_leaves_no_directory(quick: Running, tmp_path: Path) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    importer.nodes = nodes = Faulty(tmp_path / "nodes")
    wish = WishConfig(device="1-1")
    async with residing(
        tmp_path, at(quick), attach=(wish,), importer=importer, times=PATIENT
    ) as here:
        await eventually(is_at(here, Stage.ATTACHED))
        assert (tmp_path / "dev/1-1").is_dir()
        nodes.fault = RuntimeError("oops")
        bell.ring()
        await eventually(is_at(here, Stage.DELAYED))
        assert not (tmp_path / "dev/1-1").exists()
    await importer.detach(0)
    bell.close()


# -- from trying


async def test_trying_to_attached_in_the_name_of_the_agents_own_user(
    quick: Running, tmp_path: Path
) -> None:
    async with keeping(tmp_path, quick) as (here, importer):
        await eventually(is_at(here, Stage.ATTACHED))
        assert importer.tries == 1
        (holder,) = {d.holder for d in quick.control.snapshot.devices if d.holder}
        assert holder.user == getpass.getuser()


async def test_trying_to_delayed_and_attached_when_the_fault_is_over(
    quick: Running, tmp_path: Path
) -> None:
    async with keeping(tmp_path, quick, FAULT) as (here, importer):
        await eventually(lambda: importer.tries > 2)
        await eventually(is_at(here, Stage.DELAYED))
        status = only(here)
        assert status.error is not None
        assert (status.error.message, status.error.hint) == (FAULT.message, FAULT.hint)
        assert status.retry_at is not None
        assert status.retry_at > status.since
        importer.fault = None
        await eventually(is_at(here, Stage.ATTACHED))
        assert (only(here).error, only(here).retry_at) == (None, None)


async def test_trying_to_stopped_where_only_another_device_is_a_reason_to_try_again(
    quick: Running, tmp_path: Path
) -> None:
    async with keeping(tmp_path, quick, REFUSED) as (here, importer):
        await eventually(is_at(here, Stage.STOPPED))
        importer.fault = None
        await bob(quick)  # what others do with it is none
        await eventually(lambda: state_of(quick, "1-1") is State.IN_USE)
        await bob(quick, "detach")
        await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)
        assert (only(here).stage, importer.tries) == (Stage.STOPPED, 1)
        assert only(here).error is not None
        quick.devices.pull("serial")
        await eventually(is_at(here, Stage.ABSENT))
        quick.devices.plug("serial")
        await eventually(is_at(here, Stage.ATTACHED))


async def test_trying_to_delayed_by_a_fault_of_ours_and_on(quick: Running, tmp_path: Path) -> None:
    times = replace(BRISK, longest_delay=0.05)
    async with keeping(tmp_path, quick, RuntimeError("oops"), times) as (here, importer):
        await eventually(lambda: importer.tries > 2)
        importer.fault = None
        await eventually(is_at(here, Stage.ATTACHED))


async def test_absent_with_an_error_as_long_as_several_are_meant(
    quick: Running, tmp_path: Path
) -> None:
    wish = WishConfig(id="1209:*", name=DeviceName("any"))
    async with keeping(tmp_path, quick, wish=wish) as (here, importer):
        for words, kind in (("matches 3 devices", "disk"), ("matches 2 devices", "keyboard")):
            await eventually(partial(says, here, words))
            assert only(here).stage is Stage.ABSENT
            quick.devices.pull(kind)
        await eventually(is_at(here, Stage.ATTACHED))
        quick.devices.pull("serial")
        here.notice()
        await eventually(is_at(here, Stage.ABSENT))
        assert only(here).error is None
        assert importer.tries == 1


# -- from waiting


async def test_waiting_to_attached_when_its_turn_comes(quick: Running, tmp_path: Path) -> None:
    await bob(quick)
    async with keeping(tmp_path, quick) as (here, importer):
        await eventually(is_at(here, Stage.WAITING))
        assert only(here).note == "in use by bob@pc; place 1 in the queue"
        await bob(quick, "detach")
        await eventually(is_at(here, Stage.ATTACHED))
        assert only(here).note is None
        assert importer.tries == 1


async def test_waiting_to_ended_by_a_person_who_thereby_leaves_the_queue(
    quick: Running, tmp_path: Path
) -> None:
    await bob(quick)
    async with keeping(tmp_path, quick) as (here, importer):
        await eventually(is_at(here, Stage.WAITING))
        await here.detach("1-1")
        assert only(here).stage is Stage.ENDED
        assert only(here).note == f"detached by {getpass.getuser()}"
        await eventually(lambda: not any(d.waiting for d in quick.control.snapshot.devices))
        await bob(quick, "detach")
        await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)
        assert importer.tries == 0


async def test_what_is_meant_by_the_time_of_its_turn_has_a_turn_of_its_own(
    quick: Running, tmp_path: Path
) -> None:
    async with keeping(tmp_path, quick, wish=WishConfig(device="none")) as (here, importer):
        one, other = (
            here.agent._parts.lock(here.world.search().choose(Query(handle=bus_id)))
            for bus_id in ("1-1", "1-2")
        )
        async with other:
            async with one:
                request = {"id": "*", "first": True, "keep": True}
                asking = asyncio.create_task(here.ask(protocol.build(AttachRequest, request)))
                await eventually(lambda: len(here.stages()) == 2)
                await bob(quick)
                await eventually(lambda: here.world.search().listings[0].snapshot.devices[0].holder)
            for _ in range(3):  # as long as a try would take
                await history_of(20, quick.server)
            assert importer.tries == 0
        assert (await asyncio.wait_for(asking, patience(20)))["device"]["bus_id"] == "1-2"


# -- from delayed and stopped


@pytest.mark.parametrize(("fault", "stage"), [(FAULT, Stage.DELAYED), (REFUSED, Stage.STOPPED)])
@pytest.mark.parametrize("reason", ["a person asks", "it is plugged again"])
async def test_a_pause_ends_at_once_for(
    quick: Running, tmp_path: Path, fault: Exception, stage: Stage, reason: str
) -> None:
    async with keeping(tmp_path, quick, fault, PATIENT) as (here, importer):
        await eventually(is_at(here, stage))
        importer.fault = None
        if reason == "a person asks":
            await here.attach("1-1")
        else:
            quick.devices.pull("serial")
            quick.devices.plug("serial")
        await eventually(is_at(here, Stage.ATTACHED))
        assert importer.tries == 2


@pytest.mark.parametrize(("fault", "stage"), [(FAULT, Stage.DELAYED), (REFUSED, Stage.STOPPED)])
async def test_a_pause_ends_with_its_wish(
    quick: Running, tmp_path: Path, fault: Exception, stage: Stage
) -> None:
    async with keeping(tmp_path, quick, fault, PATIENT) as (here, importer):
        await eventually(is_at(here, stage))
        await here.detach("1-1")
        assert only(here).stage is Stage.ENDED
        assert importer.tries == 1


async def test_a_queue_that_was_left_is_told_to_nobody(quick: Running, tmp_path: Path) -> None:
    await bob(quick)
    async with keeping(tmp_path, quick, FAULT, PATIENT) as (here, importer):
        await eventually(is_at(here, Stage.WAITING))
        await bob(quick, "detach")
        await eventually(is_at(here, Stage.DELAYED))
        importer.fault = None
        assert (await here.attach("1-1"))["name"] == "1-1"


async def test_who_asks_in_vain_hears_why_and_the_wish_goes_on(
    quick: Running, tmp_path: Path
) -> None:
    async with keeping(tmp_path, quick, FAULT, PATIENT) as (here, importer):
        await eventually(is_at(here, Stage.DELAYED))
        with pytest.raises(errors.SystemFault, match="usbip failed"):
            await here.attach("1-1")
        await eventually(is_at(here, Stage.DELAYED))
        assert importer.tries == 2


async def test_who_asks_in_vain_for_himself_leaves_nothing(quick: Running, tmp_path: Path) -> None:
    wish = WishConfig(device="none")
    async with keeping(tmp_path, quick, FAULT, wish=wish) as (here, importer):
        for more in ({}, {"hold": True}):
            with pytest.raises(errors.SystemFault, match="usbip failed"):
                await here.attach("1-2", **more)
            await eventually(lambda: list(here.stages()) == ["none"])
        assert importer.tries == 2
        assert state_of(quick, "1-2") is State.AVAILABLE
        importer.fault = None
        assert (await here.attach("1-2", hold=True))["name"] == "1-2"  # its claim was dropped


# -- from attached


async def once(here: Here, bench: Running, cause: Cause) -> None:
    """Make an end of what is attached."""
    if cause is Cause.UNPLUGGED:
        bench.devices.pull("serial")
    elif cause is Cause.TAKEN_OVER:
        await bob(bench, force=True)
    elif cause is Cause.SERVER_STOPPED:
        await bench.control.stop()
        await bench.leases.stop()
    here.notice()


@pytest.mark.parametrize(
    ("cause", "blame", "after"),
    [
        (Cause.UNPLUGGED, "device", Stage.ABSENT),
        (Cause.TAKEN_OVER, "user", Stage.ENDED),
        (Cause.TIME_UP, "user", Stage.ENDED),
        (Cause.SERVER_STOPPED, "network", Stage.ABSENT),
    ],
)
async def test_attached_to_what_the_cause_says(
    tmp_path: Path, cause: Cause, blame: str, after: Stage
) -> None:
    async with running_server(*KINDS, times=QUICK) as quick:
        quick.devices.pull("serial")
        async with keeping(tmp_path, quick) as (here, _):
            await eventually(is_at(here, Stage.ABSENT))
            time = 0.3 if cause is Cause.TIME_UP else None
            quick.devices.plug("serial")
            await eventually(lambda: quick.control.snapshot.devices[0].bus_id == "1-1")
            if time:  # for all of this machine, as somebody was quicker than the wish
                await here.detach("1-1")
                await eventually(is_at(here, Stage.ENDED))
                await here.attach("1-1", duration=time)
            else:
                await eventually(is_at(here, Stage.ATTACHED))
            await once(here, quick, cause)
            await eventually(is_at(here, after))
            loss = only(here).losses[-1]
            assert loss.blame == blame
            assert loss.cause in (cause, None)
            tty = tmp_path / "dev/1-1"
            assert not tty.exists()
            assert here.importer.list_attachments() == []


async def test_what_a_person_had_only_once_is_nobodys_after_its_loss(
    here: Here, quick: Running
) -> None:
    await here.attach("1-1")
    await bob(quick, force=True)
    here.notice()
    await eventually(lambda: here.agent.statuses() == [])


async def test_a_program_does_not_get_back_what_was_taken_from_it(
    here: Here, quick: Running
) -> None:
    async with await here.talk() as program:
        await program.request(protocol.build(AttachRequest, {"handle": "1-1", "hold": True}))
        await bob(quick, force=True)
        here.notice()
        await eventually(is_at(here, Stage.ENDED))
        await bob(quick, "detach")
        await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)
        assert here.importer.count == 1
        assert only(here).kind is Kind.HELD
    await eventually(lambda: here.agent.statuses() == [])


async def test_after_an_unplug_the_old_list_of_its_server_is_no_reason_to_try(
    quick: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "usb_remote.agent")
    times = replace(PATIENT, last_word=0.02, ask_again=600.0)
    async with keeping(tmp_path, quick, times=times) as (here, importer):
        await eventually(is_at(here, Stage.ATTACHED))
        world: Any = here.world
        see, missed = world._see, list[Any]()
        world._see = missed.append  # a slow network
        quick.devices.pull("serial")
        here.notice()
        await eventually(lambda: not here.importer.list_attachments())
        await eventually(lambda: "lost 1-1" in caplog.text)
        for _ in range(3):  # as long as a try would take
            await history_of(20, quick.server)
        assert (only(here).stage, importer.tries) == (Stage.TRYING, 1)
        await eventually(lambda: missed)
        world._see = see
        for change in missed:
            see(change)
        await eventually(is_at(here, Stage.ABSENT))
    assert "trying again" not in caplog.text
    assert only(here).losses[-1].cause is Cause.UNPLUGGED


async def test_what_cannot_be_detached_is_followed_on(quick: Running, tmp_path: Path) -> None:
    async with keeping(tmp_path, quick) as (here, importer):
        await eventually(is_at(here, Stage.ATTACHED))
        importer.stuck = errors.SystemFault("usbip failed: open vhci_driver")
        with pytest.raises(errors.SystemFault, match="vhci_driver"):
            await here.detach("1-1")
        assert only(here).stage is Stage.ATTACHED
        importer.stuck = None
        here.pull(quick, "serial")
        await eventually(is_at(here, Stage.ABSENT))


async def test_nodes_that_drivers_make_later_are_shown_to_people_and_programs(
    quick: Running, tmp_path: Path
) -> None:
    wish = WishConfig(device="1-1", mode="0666")
    heard: list[dict[str, str]] = []
    async with keeping(tmp_path, quick, wish=wish) as (here, importer):
        await eventually(is_at(here, Stage.ATTACHED))
        (keeper,) = here.agent._records.keepers
        async with await here.talk() as program:
            await program.request(protocol.build(AttachRequest, {"handle": "1-1", "hold": True}))
            node = importer.nodes.add("9-1", "hidraw", "hidraw0")
            here.bell.ring()
            async for event in program.events():
                if event.attached is not None:
                    heard.append(event.attached.paths)
                if heard and "hidraw0" in heard[-1]:
                    break
            assert keeper.attached is not None
            assert keeper.attached.paths == heard[-1]
            assert node.stat().st_mode & 0o777 == 0o666
            importer.nodes.remove("9-1", "hidraw0")
            here.bell.ring()
            await eventually(lambda: keeper.attached and "hidraw0" not in keeper.attached.paths)
        assert [path.name for path in (tmp_path / "dev/1-1").iterdir()] in (
            ["usb", "tty0"],
            ["tty0", "usb"],
        )


async def test_nodes_belong_to_whoever_has_the_device(here: Here, quick: Running) -> None:
    async with await here.talk() as program:
        await program.request(protocol.build(AttachRequest, {"handle": "1-1", "hold": True}))
        (keeper,) = here.agent._records.keepers
        assert keeper._interests.access.user == getpass.getuser()
    await eventually(lambda: here.agent.statuses() == [])
    await here.attach("1-2")
    (keeper,) = here.agent._records.keepers
    assert keeper._interests.access.user == getpass.getuser()


async def test_a_wish_remembers_its_newest_losses(here: Here, quick: Running) -> None:
    await here.attach("1-1", keep=True)
    (keeper,) = here.agent._records.keepers
    for number in range(20):
        keeper._display.note_loss(Loss(at=only(here).since, by=str(number)))
    here.pull(quick, "serial")
    await eventually(is_at(here, Stage.ABSENT))
    assert [loss.by for loss in only(here).losses] == [*map(str, range(5, 20)), None]


# -- attachments that nobody here has made


async def attach_as_stock_usbip(here: Here, bench: Running, bus_id: str = "1-1") -> None:
    attachment = await here.importer.attach(
        "127.0.0.1", BusId(bus_id), usbip_port=bench.exporter.port, timeout=20
    )
    await eventually(lambda: here.importer.local_bus_id(attachment))


async def test_what_somebody_else_has_attached_is_followed_after_a_while(
    quick: Running, tmp_path: Path
) -> None:
    times = replace(BRISK, adopt_after=0.2)
    async with residing(tmp_path, at(quick), times=times) as here:
        await attach_as_stock_usbip(here, quick)
        here.world.look()
        await asyncio.sleep(0)
        assert here.agent.statuses() == []
        await eventually(is_at(here, Stage.ATTACHED))
        assert (only(here).kind, only(here).by) == (Kind.ONCE, "somebody")
        assert (tmp_path / "dev" / only(here).name / "tty0").exists()
        assert here.importer.count == 1
        here.pull(quick, "serial")
        await eventually(lambda: here.agent.statuses() == [])


async def test_what_is_attached_for_too_short_or_is_ours_is_nobody_elses(
    quick: Running, tmp_path: Path
) -> None:
    async with residing(tmp_path, at(quick)) as here:
        strangers = Strangers(here.agent._parts, here.agent._records)  # with a clock of its own
        assert not strangers.look(0)
        await here.attach("1-2")
        await attach_as_stock_usbip(here, quick)
        here.world.look()
        assert strangers.look(100.0)
        assert strangers.look(104.9)
        (port,) = (a.vhci_port for a in here.importer.list_attachments() if a.bus_id == "1-1")
        await here.importer.detach(port)
        here.world.look()
        assert not strangers.look(105.1)
        await attach_as_stock_usbip(here, quick)
        here.world.look()
        assert strangers.look(106.0), "its time begins again"
        assert [status.attached for status in here.agent.statuses()] != [None]
        assert len(here.agent.statuses()) == 1
        assert not strangers.look(111.0)
        assert len(here.agent.statuses()) == 2


async def test_what_an_unknown_server_has_given_is_left_alone(
    quick: Running, tmp_path: Path
) -> None:
    times = replace(BRISK, adopt_after=0.0)
    async with residing(tmp_path, times=times) as here:
        await attach_as_stock_usbip(here, quick)
        here.world.look()
        assert not Strangers(here.agent._parts, here.agent._records).look(0.0)
        assert here.agent.statuses() == []


# -- who asks for what


@pytest.mark.parametrize("more", [{"duration": 5.0}, {"force": True}, {"wait": 0}, {"wait": 5.0}])
async def test_a_wish_is_for_ever_and_waits_by_itself(here: Here, more: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageError, match="--keep goes with none of"):
        await here.attach("1-1", keep=True, **more)
    assert here.agent.statuses() == []


async def test_who_waits_for_what_somebody_detaches_hears_that(here: Here, quick: Running) -> None:
    await bob(quick)
    await here.attach("1-1", keep=True)
    waiting = asyncio.create_task(here.attach("1-1", wait=0))
    (keeper,) = here.agent._records.keepers
    await eventually(lambda: keeper._interests.waiters)
    await here.detach("1-1")
    with pytest.raises(errors.Refused, match="1-1 was detached meanwhile"):
        await asyncio.wait_for(waiting, patience(20))


async def test_a_device_of_two_wishes_is_detached_once(quick: Running, tmp_path: Path) -> None:
    async with keeping(tmp_path, quick) as (here, importer):
        await eventually(is_at(here, Stage.ATTACHED))
        await here.ask(protocol.build(AttachRequest, {"serial": "VIRTUAL0001", "keep": True}))
        assert len(here.agent.statuses()) == 2
        await here.detach("1-1")
        assert importer.detached == [0]
        for status in here.agent.statuses():
            assert status.stage is Stage.ENDED
            assert [loss.by for loss in status.losses] == [getpass.getuser()]


async def test_after_a_restart_what_people_have_stays_and_what_no_program_claims_goes(
    quick: Running, tmp_path: Path
) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    async with residing(tmp_path, at(quick), importer=importer) as here:
        await here.attach("1-1", name="mine")
        await here.attach("1-2", keep=True)
        program = await here.talk()
        await program.request(protocol.build(AttachRequest, {"handle": "1-3", "hold": True}))
    await program.close()
    times = replace(BRISK, claim_again=0.1)
    async with residing(tmp_path, at(quick), importer=importer, times=times) as here:
        assert set(here.stages().values()) == {Stage.ATTACHED}
        await eventually(lambda: set(here.stages()) == {"mine", "1-2"})
        await eventually(lambda: state_of(quick, "1-3") is State.AVAILABLE)
        assert sorted(p.name for p in (tmp_path / "dev").iterdir()) == ["1-2", "mine"]
        for bus_id in ("1-1", "1-2"):
            await here.detach(bus_id)
    bell.close()


async def test_each_failure_makes_the_next_delay_longer(quick: Running, tmp_path: Path) -> None:
    def delay() -> float:
        status = only(here)
        return (status.retry_at - status.since).total_seconds() if status.retry_at else 0.0

    times = replace(BRISK, first_delay=0.04)
    async with keeping(tmp_path, quick, FAULT, times) as (here, _):
        await eventually(lambda: delay() > 0.08)


async def test_a_program_that_ends_just_when_its_device_arrives_leaves_nothing(
    here: Here, quick: Running
) -> None:
    request = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
    for _ in range(2):  # its claim is dropped, too
        holding = asyncio.create_task(here.agent.hold(request, "ann", How()))
        while not any(status.attached for status in here.agent.statuses()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not holding.done()
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        assert holding.cancelled()
        assert here.agent.statuses() == []
        assert here.importer.list_attachments() == []


async def test_who_waits_with_a_program_that_ends_goes_on_waiting(
    here: Here, quick: Running
) -> None:
    await bob(quick)
    request = protocol.build(AttachRequest, {"handle": "1-1", "hold": True, "wait": 0})
    holding = asyncio.create_task(here.agent.hold(request, "ann", How(wait=0)))
    await eventually(is_at(here, Stage.WAITING))
    person = asyncio.create_task(here.attach("1-1", wait=0))
    (keeper,) = here.agent._records.keepers
    await eventually(lambda: keeper._interests.waiters.count == 2)
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    await bob(quick, "detach")
    assert (await asyncio.wait_for(person, patience(20)))["device"]["bus_id"] == "1-1"
    assert (only(here).kind, only(here).stage) == (Kind.ONCE, Stage.ATTACHED)


# -- one attachment


async def followed(here: Here, **parts: Any) -> Following:
    """What follows the attachment of 1-1, beside its keeper."""
    await here.attach("1-1")
    attached = only(here).attached
    assert attached is not None
    return Following(here.agent._parts._replace(**parts), attached)


class LeavingOnArrival(ArrivedAtOnce):
    """The program that waits ends just when the last thing is known about its device."""

    holding: asyncio.Task[object]

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        self.holding.cancel()
        await asyncio.sleep(0)  # that it is gone is seen before what is returned here
        return await super().until_usable(bus_id, timeout)


async def test_what_arrives_just_after_its_program_has_ended_goes_back(
    quick: Running, tmp_path: Path
) -> None:
    arrival, times = LeavingOnArrival(), replace(BRISK, claim_again=0.01)  # not by the start's rule
    async with residing(tmp_path, at(quick), times=times, arrives=lambda: arrival) as here:
        await asyncio.sleep(3 * times.tick)  # the rule has been applied, and says nothing
        request = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
        arrival.holding = asyncio.create_task(here.agent.hold(request, "ann", How()))
        with pytest.raises(asyncio.CancelledError):
            await arrival.holding
        await eventually(lambda: here.agent.statuses() == [])
        assert here.importer.count == 1
        await eventually(lambda: here.importer.list_attachments() == [])
        await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)


async def test_a_port_that_is_free_or_has_another_device_by_now_is_left_alone(
    quick: Running, tmp_path: Path
) -> None:
    wish = WishConfig(device="none")
    async with keeping(tmp_path, quick, wish=wish) as (here, importer):
        await here.attach("1-1")
        attached = next(s.attached for s in here.agent.statuses() if s.attached)
        other = attached.attachment.model_copy(update={"devid": 1})
        gone = attached.attachment.model_copy(update={"vhci_port": 7})
        for attachment in (other, gone):
            lost = attached.model_copy(update={"attachment": attachment})
            await Following(here.agent._parts, lost).free()
        assert importer.detached == []
        await Following(here.agent._parts, attached).free()
        assert importer.detached == [0]


async def test_a_server_may_write_its_history_a_moment_later(here: Here, quick: Running) -> None:
    asked: list[Server] = []

    async def ask_history(server: Server) -> list[Event]:
        asked.append(server)
        return await history_of(20, server) if len(asked) == 3 else []

    times = replace(BRISK, ask_again=0.01)
    following = await followed(here, ask_history=ask_history, times=times)
    waiting = asyncio.create_task(following.until_lost(lambda: None))
    here.pull(quick, "serial")
    loss = await asyncio.wait_for(waiting, patience(20))
    assert loss.cause is Cause.UNPLUGGED
    assert len(asked) == 3


@pytest.mark.parametrize("error", [None, errors.Unreachable("it is off")])
async def test_a_server_that_knows_nothing_of_the_end_is_asked_a_few_times(
    here: Here, quick: Running, error: errors.UsbRemoteError | None
) -> None:
    asked: list[Server] = []

    async def ask_history(server: Server) -> list[Event]:
        asked.append(server)
        if error:
            raise error
        return []

    times = replace(BRISK, ask_again=0.01)
    following = await followed(here, ask_history=ask_history, times=times)
    waiting = asyncio.create_task(following.until_lost(lambda: None))
    here.pull(quick, "serial")
    assert (await asyncio.wait_for(waiting, patience(20))).cause is None
    assert len(asked) == (1 if error else 4)


async def test_a_wish_that_was_attached_before_our_start_is_known_to_its_server_long_since(
    here: Here, quick: Running
) -> None:
    times = replace(BRISK, settle=600.0, last_word=0.01)
    await here.attach("1-2")
    attached = only(here).attached
    assert attached is not None
    parts = here.agent._parts._replace(times=times)
    elsewhere = attached.device.model_copy(update={"bus_id": "1-1"})  # nobody has that one
    for already in (True, False):
        lost = attached.model_copy(update={"device": elsewhere, "already": already})
        waiting = asyncio.create_task(Following(parts, lost).until_lost(lambda: None))
        await asyncio.wait({waiting}, timeout=patience(20) if already else 0.1)
        assert waiting.done() is already
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


class LateArrival(ArrivedAtOnce):
    """Just when the agent has waited long enough for the programs of the one before."""

    async def until_usable(self, bus_id: str, timeout: float) -> tuple[str, ...]:
        await asyncio.sleep(0.5)
        return await super().until_usable(bus_id, timeout)


async def test_what_arrives_when_the_time_to_come_back_is_over_is_not_taken_for_unclaimed(
    quick: Running, tmp_path: Path
) -> None:
    """The first change that the agent sees after that time is the arrival."""
    times = replace(BRISK, claim_again=0.4, tick=60.0, look_again=60.0, slow_look=60.0, storm=0.0)
    async with residing(tmp_path, at(quick), times=times, arrives=LateArrival) as here:
        request = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
        hold = await here.agent.hold(request, "ann", How())
        await asyncio.sleep(0.2)  # as long as it takes to give it back, which must not happen
        assert state_of(quick, "1-1") is State.IN_USE
        assert hold.attached is not None
        await here.agent.release(hold)
