"""The agent against real servers on loopback and its real unix socket; the kernel is a fake."""

from __future__ import annotations

import asyncio
import gc
import grp
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.importing import Bell, NoticingImporter
from tests.patience import patience
from tests.residing import Here, residing
from tests.serving import HOST, QUICK, Running, at, running_server, state_of
from tests.waiting import eventually
from usb_remote import agent_protocol, aio, errors, protocol
from usb_remote.agent import listening
from usb_remote.agent.desk import Desk
from usb_remote.agent.links import Access, Links, name_nodes
from usb_remote.agent.session import Session
from usb_remote.agent.times import Times
from usb_remote.agent.wishes import Wish, WishBook
from usb_remote.agent_protocol import (
    AgentInfo,
    Attached,
    AttachRequest,
    Kind,
    ListRequest,
    Stage,
    Told,
    View,
)
from usb_remote.client import How
from usb_remote.config import WishConfig
from usb_remote.connection import connect
from usb_remote.matching import Query
from usb_remote.model import (
    Attachment,
    Cause,
    Device,
    Ended,
    Holder,
    Match,
    Server,
    State,
)
from usb_remote.state import StateFile
from usb_remote.values import DeviceName
from usb_remote.virtual import KINDS

ATTACH = b'{"command":"attach","handle":"1-1","v":1}'

# -- what people ask for


async def test_attach_through_the_agent_makes_a_directory_that_detach_takes_away(
    here: Here, quick: Running
) -> None:
    attached = await here.attach("1-1")
    folder = Path(attached["directory"])
    assert (folder / "tty0").readlink() == here.folder / "nodes/ttyACM1"
    assert attached["paths"]["tty0"] == str(folder / "tty0")
    assert state_of(quick, "1-1") is State.IN_USE
    done = await here.detach("1-1")
    assert done["attachment"]["vhci_port"] == attached["attachment"]["vhci_port"]
    assert not folder.exists()
    assert state_of(quick, "1-1") is State.AVAILABLE
    assert here.agent.statuses() == []


async def test_attaching_what_is_attached_says_so(here: Here) -> None:
    first = await here.attach("1-1")
    again = await here.attach("1-1")
    assert (first["already"], again["already"]) == (False, True)
    assert again["attachment"] == first["attachment"]
    assert here.importer.count == 1


async def test_the_holder_is_the_user_at_the_other_end_of_the_socket(
    here: Here, quick: Running
) -> None:
    await here.attach("1-1")
    holder = next(d.holder for d in quick.control.snapshot.devices if d.bus_id == "1-1")
    assert holder is not None
    assert holder.user == "root" if os.geteuid() == 0 else holder.user


async def test_what_is_not_there_is_not_found_and_what_is_meant_twice_is_listed(
    here: Here,
) -> None:
    with pytest.raises(errors.NotFound, match="no device matches nonsense"):
        await here.attach("nonsense")
    with pytest.raises(errors.Ambiguous, match="matches 3 devices"):
        await here.ask(protocol.build(AttachRequest, {"id": "*"}))
    with pytest.raises(errors.InvalidRequest, match="which device"):
        await here.ask(protocol.build(AttachRequest, {}))


async def test_list_is_what_the_servers_say_and_who_is_lost_stays_listed_with_its_error(
    tmp_path: Path,
) -> None:
    async with running_server(*KINDS) as bench, residing(tmp_path, at(bench)) as here:
        await eventually(lambda: here.world.views)
        (view,) = agent_protocol.parse_views(await here.ask(ListRequest(v=1)))
        assert [d.bus_id for d in view.devices] == ["1-1", "1-2", "1-3"]
        await bench.control.stop()
        await eventually(lambda: any(v.error for v in here.world.views.values()))
        (view,) = agent_protocol.parse_views(await here.ask(ListRequest(v=1)))
        assert view.devices == ()
        assert view.error is not None


async def test_a_server_that_was_not_there_at_first_is_listed_once(tmp_path: Path) -> None:
    async with running_server(*KINDS) as bench:
        port = bench.control.port
        await bench.control.stop()
        async with residing(tmp_path, at(bench)) as here:
            await eventually(lambda: [bool(v.error) for v in here.world.views.values()] == [True])
            bench.control._servers.clear()
            await bench.control.start([HOST], port)
            await eventually(lambda: not all(v.error for v in here.world.views.values()))
            assert len(agent_protocol.parse_views(await here.ask(ListRequest(v=1)))) == 1


async def test_a_watch_shows_every_server_at_once_and_after_each_change(
    here: Here, quick: Running
) -> None:
    await eventually(lambda: here.world.views)
    async with await here.talk() as connection:
        events = connection.watch()
        first = await anext(events)
        assert first.view is not None
        assert len(first.view.devices) == 3
        assert (await anext(events)).event == "ping"
        quick.devices.pull("disk")
        changed = await anext(events)
        assert changed.view is not None
        assert len(changed.view.devices) == 2
        await events.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_that_is_rejected_is_closed_and_the_agent_goes_on(
    here: Here, quick: Running
) -> None:
    await eventually(lambda: here.world.views)
    reader, writer = await asyncio.open_unix_connection(here.socket)
    writer.write(b'{"command":"watch","v":1}\n' + b"[" * 17)
    async with asyncio.timeout(patience(20)):
        said = (await reader.read()).splitlines()
    assert b"not a JSON object" in said[-1]
    writer.close()
    await writer.wait_closed()
    quick.devices.pull("disk")
    await eventually(lambda: [len(view.devices) for view in here.world.views.values()] == [2])
    assert len(agent_protocol.parse_views(await here.ask(ListRequest(v=1)))) == 1


# -- wishes


async def test_what_is_kept_comes_back_under_the_same_path(here: Here, quick: Running) -> None:
    attached = await here.attach("1-1", keep=True)
    folder = Path(attached["directory"])
    here.pull(quick, "serial")
    await eventually(lambda: here.stages() == {"1-1": Stage.ABSENT})
    assert not folder.exists()
    quick.devices.plug("serial")
    await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})
    assert (folder / "tty0").is_symlink()
    (status,) = await here.status()
    assert [loss.cause for loss in status.losses] == [Cause.UNPLUGGED]
    assert status.losses[0].blame == "device"


async def test_what_is_attached_once_does_not_come_back(here: Here, quick: Running) -> None:
    await here.attach("1-1")
    here.pull(quick, "serial")
    await eventually(lambda: here.agent.statuses() == [])
    quick.devices.plug("serial")
    await eventually(lambda: len(quick.control.snapshot.devices) == 3)
    assert here.importer.list_attachments() == []


async def test_a_wish_for_what_is_not_there_is_kept_and_shown(here: Here, quick: Running) -> None:
    quick.devices.pull("serial")
    await eventually(lambda: [len(v.devices) for v in here.world.views.values()] == [2])
    answer = await here.attach("1-1", keep=True)
    assert answer["status"]["stage"] == "absent"
    quick.devices.plug("serial")
    await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})


async def test_the_configuration_wishes_by_serial_wherever_it_is_plugged(
    quick: Running, tmp_path: Path
) -> None:
    serial = next(d.serial for d in quick.control.snapshot.devices if d.bus_id == "1-2")
    wish = WishConfig(serial=serial, name=DeviceName("disk"))
    async with residing(tmp_path, at(quick), attach=(wish,)) as here:
        await eventually(lambda: here.stages() == {"disk": Stage.ATTACHED})
        assert (tmp_path / "dev/disk/usb").is_symlink()


async def test_a_detach_by_a_person_ends_a_wish_until_it_is_asked_for_again(
    quick: Running, tmp_path: Path
) -> None:
    wish = WishConfig(device="1-1")
    async with residing(tmp_path, at(quick), attach=(wish,)) as here:
        await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})
        done = await here.detach("1-1")
        assert done["wish"] == "1-1"
        assert here.stages() == {"1-1": Stage.ENDED}
    async with residing(tmp_path, at(quick), attach=(wish,)) as here:  # also after a restart
        await eventually(lambda: here.world.views)
        assert here.stages() == {"1-1": Stage.ENDED}
        assert state_of(quick, "1-1") is State.AVAILABLE
        await here.attach("1-1")
        assert here.stages() == {"1-1": Stage.ATTACHED}
        here.pull(quick, "serial")
        await eventually(lambda: here.stages() == {"1-1": Stage.ABSENT})


async def test_what_was_kept_is_forgotten_when_a_person_detaches_it(
    here: Here, quick: Running, tmp_path: Path
) -> None:
    await here.attach("1-1", keep=True)
    await here.detach("1-1")
    assert here.agent.statuses() == []
    assert "kept" not in (tmp_path / "wishes.jsonl").read_text()


async def test_a_takeover_ends_the_wish_and_says_by_whom(here: Here, quick: Running) -> None:
    await here.attach("1-1", keep=True)
    async with await connect(quick.server, 2.0) as other:
        request = protocol.build(
            protocol.AttachRequest,
            {"bus": "1-1", "user": "bob", "host": "pc", "client": "other", "force": True},
        )
        await other.request(request)
    here.notice()
    await eventually(lambda: here.stages() == {"1-1": Stage.ENDED})
    (status,) = await here.status()
    assert status.losses[-1].cause is Cause.TAKEN_OVER
    assert status.losses[-1].by == "bob@pc"
    assert status.losses[-1].blame == "user"


async def test_the_agent_tells_when_time_is_nearly_up_and_when_somebody_asks(
    here: Here, quick: Running, caplog: pytest.LogCaptureFixture
) -> None:
    await here.attach("1-1", duration=1.5)
    async with await connect(quick.server, 2.0) as other:
        theirs = {"bus": "1-1", "user": "bob", "host": "pc", "message": "demo at two"}
        await other.request(protocol.build(protocol.ReleaseRequest, theirs))
    await eventually(lambda: here.agent.statuses()[0].note == "wanted by bob@pc: demo at two")
    await eventually(lambda: "nearly up" in caplog.text, patience(20))
    said = [r.message.partition("1-1: ")[2] for r in caplog.records if "wanted" in r.message]
    assert said[0] == "wanted by bob@pc: demo at two"
    assert said[1].startswith("its time is nearly up: until ")
    assert said[1].endswith(" UTC; wanted by bob@pc: demo at two")
    assert len(said) == 2, "each once"


async def test_a_kept_device_that_somebody_has_is_waited_for_in_the_queue(
    here: Here, quick: Running
) -> None:
    theirs = {"bus": "1-1", "user": "bob", "host": "pc", "client": "other"}
    async with await connect(quick.server, 2.0) as other:
        await other.request(protocol.build(protocol.AttachRequest, theirs))
        answer = await here.attach("1-1", keep=True)
        assert answer["status"]["stage"] == "waiting"
        assert "bob@pc" in answer["status"]["note"]
        give_back = protocol.build(protocol.DeviceRequest, {"command": "detach", **theirs})
        await other.request(give_back)
    await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})


async def test_keep_and_once_turn_one_into_the_other(here: Here, quick: Running) -> None:
    await here.attach("1-1")
    kept = await here.attach("1-1", keep=True)
    assert (kept["already"], here.importer.count) == (True, 1)
    (status,) = await here.status()
    assert status.kind is Kind.KEPT
    await here.attach("1-1", keep=False)
    (status,) = await here.status()
    assert status.kind is Kind.ONCE
    here.pull(quick, "serial")
    await eventually(lambda: here.agent.statuses() == [])


# -- trouble


async def test_a_server_that_comes_back_gives_the_device_back(tmp_path: Path) -> None:
    async with running_server(*KINDS, times=QUICK) as bench:
        port = bench.control.port
        async with residing(tmp_path, at(bench)) as here:
            await here.attach("1-1", keep=True)
            bench.leases  # noqa: B018
            await bench.control.stop()
            await bench.leases.stop()
            here.notice()
            await eventually(lambda: here.stages() == {"1-1": Stage.ABSENT})
            (status,) = here.agent.statuses()
            assert status.losses[-1].blame == "network"
        assert port


async def test_a_restarted_agent_takes_up_what_is_attached_and_attaches_nothing_twice(
    quick: Running, tmp_path: Path
) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    async with residing(tmp_path, at(quick), importer=importer) as here:
        await here.attach("1-1", keep=True)
        await here.attach("1-2")
    async with residing(tmp_path, at(quick), importer=importer) as here:
        await eventually(
            lambda: (
                sorted(s.kind for s in here.agent.statuses() if s.attached)
                == [Kind.KEPT, Kind.ONCE]
            )
        )
        assert importer.count == 2
        assert len(importer.list_attachments()) == 2
        await here.detach("1-1")
        await here.detach("1-2")
    bell.close()


async def test_a_flapping_device_is_damped_and_reported(here: Here, quick: Running) -> None:
    await here.attach("1-1", keep=True)
    for _ in range(Times.flapping):
        here.pull(quick, "serial")
        await eventually(lambda: here.stages() == {"1-1": Stage.ABSENT})
        quick.devices.plug("serial")
        await eventually(lambda: here.stages()["1-1"] in (Stage.ATTACHED, Stage.DELAYED))
    assert here.stages() == {"1-1": Stage.DELAYED}
    (status,) = await here.status()
    assert status.error is not None
    assert "5 times within 60 s" in status.error.message
    assert status.retry_at is not None


async def test_two_wishes_for_one_device_do_not_race(quick: Running, tmp_path: Path) -> None:
    serial = next(d.serial for d in quick.control.snapshot.devices if d.bus_id == "1-1")
    both = (
        WishConfig(device="1-1", name=DeviceName("a")),
        WishConfig(serial=serial, name=DeviceName("b")),
    )
    async with residing(tmp_path, at(quick), attach=both) as here:
        await eventually(lambda: here.stages() == {"a": Stage.ATTACHED, "b": Stage.ATTACHED})
        assert here.importer.count == 1


# -- holding


async def test_what_is_held_is_given_back_when_its_program_ends(here: Here, quick: Running) -> None:
    async with await here.talk() as connection:
        request = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
        await connection.request(request)
        assert state_of(quick, "1-1") is State.IN_USE
    await eventually(lambda: here.agent.statuses() == [])
    assert state_of(quick, "1-1") is State.AVAILABLE


async def test_what_one_program_holds_another_one_does_not_get(here: Here, quick: Running) -> None:
    request = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
    async with await here.talk() as one, await here.talk() as other:
        await one.request(request)
        with pytest.raises(errors.Busy, match="another program of this machine"):
            await other.request(request)
        waiting = asyncio.create_task(other.request(request.model_copy(update={"wait": 5.0})))
        await one.close()
        await waiting
        assert state_of(quick, "1-1") is State.IN_USE


async def test_what_is_kept_stays_when_a_program_that_had_it_ends(
    here: Here, quick: Running
) -> None:
    await here.attach("1-1", keep=True)
    async with await here.talk() as connection:
        held = await connection.request(
            protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
        )
        assert held.data["name"] == "1-1"
    assert here.stages() == {"1-1": Stage.ATTACHED}


# -- the python API through the agent


async def test_a_program_has_its_device_for_a_block_and_hears_of_its_loss(
    through_agent: Here, quick: Running
) -> None:
    async with aio.attach("1-1", name="scope") as device:
        assert device.tty.endswith("/dev/scope/tty0")
        assert state_of(quick, "1-1") is State.IN_USE
        through_agent.pull(quick, "serial")
        loss = await asyncio.wait_for(device.wait_lost(), patience(5))
        assert (loss.cause, loss.blame) == (Cause.UNPLUGGED, "device")
        quick.devices.plug("serial")
        await asyncio.wait_for(device.wait_attached(), patience(5))
        assert device.tty.endswith("/dev/scope/tty0")
        with pytest.raises(errors.NotFound, match="has no disk here; it has usb, tty0"):
            _ = device.disk
    await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)


async def test_all_or_none(through_agent: Here, quick: Running) -> None:
    async with await connect(quick.server, 2.0) as other:
        theirs = {"bus": "1-2", "user": "bob", "host": "pc", "client": "other"}
        await other.request(protocol.build(protocol.AttachRequest, theirs))
        with pytest.raises(errors.Busy, match="bob@pc"):
            async with aio.holding() as holder:
                await holder.attach_all([aio.Wanted(Query(handle=h)) for h in ("1-2", "1-1")])
    await eventually(lambda: state_of(quick, "1-1") is State.AVAILABLE)


async def test_programs_that_take_several_in_another_order_do_not_wait_for_each_other(
    through_agent: Here,
) -> None:
    async def take(*handles: str) -> int:
        async with aio.holding() as holder:
            queries = [Query(handle=handle) for handle in handles]
            return len(await holder.attach_all([aio.Wanted(q, How(wait=20)) for q in queries]))

    taking = [take("1-1", "1-2"), take("1-2", "1-1"), take("1-2", "1-1"), take("1-1", "1-2")]
    assert await asyncio.wait_for(asyncio.gather(*taking), patience(20)) == [2, 2, 2, 2]


async def test_of_several_that_match_each_program_gets_another_one(
    through_agent: Here,
) -> None:
    async with (
        aio.attach(id="*", first=True) as one,
        aio.attach(id="*", first=True) as other,
        aio.attach(id="*", first=True) as third,
    ):
        assert {d.device.bus_id for d in (one, other, third)} == {"1-1", "1-2", "1-3"}
        with pytest.raises(errors.Busy):
            async with aio.attach(id="*", first=True):
                pass


# -- pure parts


def test_nodes_are_called_by_what_they_are() -> None:
    nodes = [
        ("usb", "/dev/bus/usb/001/004"),
        ("tty", "/dev/ttyUSB7"),
        ("tty", "/dev/ttyACM1"),
        ("hidraw", "/dev/hidraw3"),
        ("input", "/dev/input/event5"),
        ("block", "/dev/sdb"),
        ("block", "/dev/sdb1"),
        ("block", "/dev/sdb12"),
        ("block", "/dev/sdc"),
        ("video4linux", "/dev/video2"),
        ("sound", "/dev/snd/pcmC1D0c"),
    ]
    assert name_nodes(nodes) == {
        "usb": "/dev/bus/usb/001/004",
        "tty0": "/dev/ttyUSB7",
        "tty1": "/dev/ttyACM1",
        "hidraw0": "/dev/hidraw3",
        "event0": "/dev/input/event5",
        "disk": "/dev/sdb",
        "disk-part1": "/dev/sdb1",
        "disk-part12": "/dev/sdb12",
        "disk1": "/dev/sdc",
        "video0": "/dev/video2",
        "pcmCD0c0": "/dev/snd/pcmC1D0c",
    }


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (Query(handle="scope"), "scope"),
        (Query(handle="bench3/1-1.4"), "bench3-1-1.4"),
        (Query(serial="A5 0/2"), "A5-0-2"),
        (Query(id="0403:6001", host="bench3"), "0403-6001-bench3"),
        (Query(handle="../../etc"), "etc"),
    ],
)
def test_the_directory_is_called_as_the_wish(words: Query, name: str) -> None:
    assert Wish(query=words, kind=Kind.KEPT).name_for(None) == name


ME, OTHER = Holder(client="me", host="here"), Holder(client="other", host="pc")
T0, T1 = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
TIMES = Times()
PORT = Attachment(vhci_port=3, devid=65541)
SERVER = Server(name="bench", id="b" * 32, version="3")


def device(**more: Any) -> Device:
    return Device.model_validate(
        {"bus_id": "1-1", "vendor_id": "0403", "product_id": "6001", **more}
    )


def view(*devices: Device, error: errors.UsbRemoteError | None = None) -> View:
    told = Told.of(error) if error else None
    return View(server=SERVER, devices=devices, error=told)


def session(**more: Any) -> Session:
    attached = Attached(server=SERVER, device=device(**more), attachment=PORT)
    return Session(attached, lambda holder: holder.client == "me", 0.0)


HELD = ME.model_copy(update={"since": T0})
MINE = {"state": "in_use", "holder": HELD}


def test_a_session_is_there_as_long_as_both_sides_say_so() -> None:
    here = session()
    assert here.loss(PORT, view(device(**MINE)), 1.0) is None
    assert here.is_settled


def test_a_server_that_has_not_told_yet_is_given_time() -> None:
    here = session()
    assert here.loss(PORT, view(device()), TIMES.settle - 0.1) is None
    assert not here.is_settled
    assert here.loss(PORT, view(device()), TIMES.settle) is None
    assert here.loss(PORT, view(device()), TIMES.settle + TIMES.last_word) is not None


def test_a_server_that_hung_up_may_live_and_its_devices_too() -> None:
    here = session()
    lost = view(error=errors.Unreachable("closed the connection"))
    assert here.loss(PORT, lost, 100.0) is None
    loss = here.loss(None, lost, 100.0)
    assert loss is not None
    assert (loss.cause, loss.blame) == (None, "network")


def test_a_silent_server_is_dead() -> None:
    here = session()
    lost = view(error=errors.Silent("did not answer"))
    loss = here.loss(PORT, lost, 1.0, silent=True)
    assert loss is not None
    assert loss.blame == "network"


def test_what_the_server_has_observed_is_the_cause() -> None:
    here = session()
    here.loss(PORT, view(device(**MINE)), 1.0)
    ended = Ended(holder=HELD, at=T1, cause=Cause.TAKEN_OVER, by="bob@pc")
    loss = here.loss(PORT, view(device(last_session=ended)), 2.0)
    assert loss is not None
    assert (loss.cause, loss.by, loss.blame) == (Cause.TAKEN_OVER, "bob@pc", "user")


def test_an_older_session_of_ours_is_no_cause() -> None:
    ended = Ended(holder=ME.model_copy(update={"since": T0}), at=T0, cause=Cause.TAKEN_OVER)
    here = session(last_session=ended)
    assert here.loss(PORT, view(device(last_session=ended)), 1.0) is None


def test_somebody_elses_session_is_no_cause_of_ours() -> None:
    here = session()
    here.loss(PORT, view(device(**MINE)), 1.0)
    ended = Ended(holder=OTHER, at=T1, cause=Cause.TAKEN_OVER)
    now = view(device(last_session=ended))
    assert here.loss(None, now, 2.0) is None  # it may still say more
    loss = here.loss(None, now, 2.0 + TIMES.last_word)
    assert loss is not None
    assert loss.cause is None


def test_a_broken_state_file_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "wishes.jsonl"
    file.write_text('{"wish": {"query": {"handle": "scope"}, "kind": "kept"}}\n{"wish": 3}\n')
    (note,) = WishBook(StateFile(file)).read()
    assert note.wish.query.handle == "scope"
    assert [p.name for p in tmp_path.iterdir()] == ["wishes.jsonl.broken-1"]


@pytest.mark.parametrize("name", ["../evil", "", ".", "..", "a/b", "/etc", ".hidden", "a\n"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "evil"
    victim.mkdir()
    links = Links(lambda bus_id: [("usb", "/dev/null")], tmp_path / "dev")
    for work in (links.remove, links.directory):
        with pytest.raises(ValueError, match="cannot be the name"):
            work(name)
    with pytest.raises(ValueError, match="cannot be the name"):
        links.update(name, "1-1", Access())
    assert victim.is_dir()


@pytest.mark.parametrize("hostile", ["../../../tmp/evil", "/", "..", "a\x1bb", "x" * 200])
def test_what_a_server_calls_things_becomes_a_harmless_name(hostile: str) -> None:
    match = Match(SERVER.model_copy(update={"name": hostile}), device(name=hostile))
    nameless = Match(match.server, device())
    for one in (match, nameless):
        name = Wish(query=Query(handle="x"), kind=Kind.ONCE).name_for(one)
        Links(lambda bus_id: [], Path("/nowhere")).directory(name)
        assert len(name) <= 64


def test_nodes_are_granted_once_and_again_when_they_are_made_or_handled_by_udev_anew(
    tmp_path: Path,
) -> None:
    node, about = tmp_path / "ttyX", tmp_path / "c0:0"
    node.touch(0o600)
    nodes = [("tty", str(node))]
    links = Links(lambda bus_id: nodes, tmp_path / "dev", tmp_path)

    def mode(wanted: int = 0o666) -> int:
        links.update("board", "9-1", Access(mode=wanted))
        return stat.S_IMODE(node.stat().st_mode)

    assert mode() == 0o666
    node.chmod(0o640)
    assert mode() == 0o640  # somebody here has reasons
    about.touch()
    assert mode() == 0o666  # udev's rules have none
    node.rename(tmp_path / "former")
    node.touch(0o600)
    assert mode() == 0o666
    assert mode(0o660) == 0o660  # the wish says something else


def test_the_socket_is_handed_to_the_group_and_keeps_its_owner(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    with listening.listen(tmp_path / "sock", group):
        status = (tmp_path / "sock").stat()
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert stat.S_IMODE(status.st_mode) == 0o660


async def test_an_agent_that_cannot_listen_says_so(here: Here, tmp_path: Path) -> None:
    desk = Desk(here.agent, here.world, list, AgentInfo(version="3"))
    with pytest.raises(errors.SystemFault, match="another agent listens"):
        await desk.start(Path(here.socket))


@pytest.mark.parametrize("request_", [b'{"command":"ports","v":1}', ATTACH])
async def test_a_request_that_fails_unexpectedly_ends_its_connection_without_a_wrong_answer(
    here: Here, tmp_path: Path, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    def broken(*_: object) -> list[Attachment]:
        raise ZeroDivisionError

    agent: Any = SimpleNamespace(attach=broken)
    desk = Desk(agent, here.world, broken, AgentInfo(version="3"))
    await eventually(lambda: here.world.is_settled)
    await desk.start(tmp_path / "other.sock", group="no such group")
    try:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "other.sock"))
        writer.write(request_ + b'\n{"command":"info","v":1}\n')
        async with asyncio.timeout(patience(20)):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    finally:
        await desk.stop()
    assert "failed unexpectedly" in caplog.text


async def test_a_wish_for_what_is_not_there_is_answered_at_once(here: Here, quick: Running) -> None:
    quick.devices.pull("serial")
    await eventually(lambda: [len(v.devices) for v in here.world.views.values()] == [2])
    async with asyncio.timeout(patience(5)):
        answer = await here.attach("1-1", keep=True)
    assert answer["status"]["stage"] == "absent"


async def test_a_wish_that_had_ended_is_asked_for_again_by_keep(
    quick: Running, tmp_path: Path
) -> None:
    async with residing(tmp_path, at(quick), attach=(WishConfig(device="1-1"),)) as here:
        await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})
        await here.detach("1-1")
        attached = await here.attach("1-1", keep=True)
        assert attached["name"] == "1-1"
        assert here.stages() == {"1-1": Stage.ATTACHED}


async def test_an_error_that_nobody_expected_ends_no_wish(
    quick: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bell = Bell()

    class Broken(NoticingImporter):
        async def attach(self, *args: Any, **more: Any) -> Attachment:
            raise RuntimeError("a fault of ours")

    wish = WishConfig(device="1-1")
    async with residing(
        tmp_path, at(quick), attach=(wish,), importer=Broken(bell, tmp_path)
    ) as here:
        await eventually(lambda: here.stages() == {"1-1": Stage.DELAYED})
        (status,) = await here.status()
        assert status.error is not None
        assert "a fault of ours" in status.error.message
    bell.close()
    assert "please report it" in caplog.text


async def test_a_wish_can_be_asked_for_by_its_own_name(quick: Running, tmp_path: Path) -> None:
    wish = WishConfig(port="1-1", server=at(quick), name=DeviceName("board"))
    async with residing(tmp_path, at(quick), attach=(wish,)) as here:
        await eventually(lambda: here.stages() == {"board": Stage.ATTACHED})
        await here.detach("board")
        assert (await here.attach("board"))["name"] == "board"
        assert here.stages() == {"board": Stage.ATTACHED}
        with pytest.raises(errors.Refused, match="kept by the configuration"):
            await here.attach("board", keep=False)


SOAK = pytest.mark.soak
TURNS = [pytest.param(n, marks=() if n in (4, 11, 23) else SOAK) for n in range(4, 24)]


@pytest.mark.parametrize("turns", TURNS)
async def test_an_agent_that_is_stopped_at_once_leaves_no_connection_open(
    quick: Running, tmp_path: Path, turns: int
) -> None:
    async with residing(tmp_path, at(quick), hears=False):
        for _ in range(turns):  # of the loop: it connects meanwhile
            await asyncio.sleep(0)
    gc.collect()
