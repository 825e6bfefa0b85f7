"""What a program has: which devices are meant, in which order they are taken, what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience
from tests.residing import Here
from tests.serving import Running, state_of
from tests.waiting import eventually
from usb_remote import errors, protocol
from usb_remote.agent.hold import Hold
from usb_remote.agent_protocol import Attached, Loss
from usb_remote.client import How
from usb_remote.config import Config
from usb_remote.connection import connect
from usb_remote.finder import Failure, Search
from usb_remote.holding.by_agent import ByAgent
from usb_remote.holding.by_ourselves import _Ourselves
from usb_remote.holding.choosing import choose_all, place
from usb_remote.holding.device import AttachedDevice
from usb_remote.holding.holder import Holder, Wanted
from usb_remote.matching import Query
from usb_remote.model import Attachment, Device, Listing, Match, Server, Snapshot, State
from usb_remote.wiring import Resident

ANY = Query(id="0403:*", first=True)


def device(bus_id: str, **more: Any) -> Device:
    words = {"bus_id": bus_id, "vendor_id": "0403", "product_id": "6001", **more}
    return Device.model_validate(words)


def listing(name: str, *bus_ids: str) -> Listing:
    devices = tuple(map(device, bus_ids))
    server = Server(name=name, id=name * 32, version="3")
    return Listing(server=server, snapshot=Snapshot(revision=1, devices=devices))


LAB = Search(listings=[listing("b", "1-1", "1-10"), listing("a", "1-2")])


def words(matches: Sequence[Match]) -> list[str]:
    return [f"{match.server.name}/{match.device.bus_id}" for match in matches]


# -- which ones are meant


@pytest.mark.parametrize(
    ("queries", "chosen"),
    [
        ([Query(handle="b/1-1"), Query(handle="a/1-2")], ["b/1-1", "a/1-2"]),
        ([Query(handle="b/1-1"), Query(bus="1-1")], ["b/1-1", "b/1-1"]),
        ([ANY, ANY, ANY], ["b/1-1", "b/1-10", "a/1-2"]),
        ([ANY, Query(handle="b/1-1")], ["b/1-10", "b/1-1"]),
        ([], []),
    ],
)
def test_the_first_of_several_is_one_that_is_not_meant_otherwise(
    queries: list[Query], chosen: list[str]
) -> None:
    assert words(choose_all(LAB, queries, may_wait=False)) == chosen


@pytest.mark.parametrize(
    ("search", "queries", "error"),
    [
        (LAB, [Query(handle="none")], errors.NotFound),
        (LAB, [Query(handle="none").model_copy(update={"first": True})], errors.NotFound),
        (LAB, [ANY] * 4, errors.NotFound),
        (
            Search(failures=[Failure(Server(name="c"), errors.Unreachable("c is dead"))]),
            [Query(handle="c/1-1")],
            errors.Unreachable,
        ),
    ],
)
def test_what_is_not_there_is_waited_for_or_missed(
    search: Search, queries: list[Query], error: type[errors.UsbRemoteError]
) -> None:
    assert choose_all(search, queries, may_wait=True) == []
    with pytest.raises(error):
        choose_all(search, queries, may_wait=False)


def test_what_means_several_is_never_waited_for() -> None:
    with pytest.raises(errors.Ambiguous):
        choose_all(LAB, [Query(id="*")], may_wait=True)


def test_places_are_in_the_order_of_server_bus_and_port() -> None:
    lab = Search(listings=[listing("b", "1-10", "2-1", "1-9.2", "1-9"), listing("a", "3-1")])
    matches = [match for each in lab.listings for match in each.matches]
    ordered = ["a/3-1", "b/1-9", "b/1-9.2", "b/1-10", "b/2-1"]
    assert words(sorted(matches, key=place)) == ordered


# -- all or none, in one order


class Slow(Holder):
    """Finds all of LAB; each attach takes some time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[tuple[str, How, str | None]] = []
        self.wait: float | None = -1.0
        self._seconds = seconds

    async def find_all(self, queries: Sequence[Query], wait: float | None) -> list[Match]:
        self.wait = wait
        return choose_all(LAB, queries, may_wait=False)

    async def attach(self, query: Query, how: How, name: str | None = None) -> AttachedDevice:
        await asyncio.sleep(self._seconds)
        self.asked.append((str(query), how, name))
        return AttachedDevice(attached())


def attached(**more: Any) -> Attached:
    server = Server(name="b", version="3")
    return Attached(
        server=server, device=device("1-1"), attachment=Attachment(vhci_port=0), name="x", **more
    )


async def test_devices_are_taken_in_one_order_and_given_in_that_of_the_program() -> None:
    holder = Slow()
    wanted = [Wanted(Query(handle=h), name=h[-1]) for h in ("b/1-10", "a/1-2", "b/1-1", "b/1-10")]
    devices = await holder.attach_all(wanted)
    assert [query for query, _, _ in holder.asked] == ["a/1-2", "b/1-1", "b/1-10"]
    assert [name for _, _, name in holder.asked] == ["2", "1", "0"]
    assert devices[0] is devices[3]
    assert len({id(device) for device in devices}) == 3


@pytest.mark.parametrize(
    ("waits", "longest"),
    [
        ([None, None], None),
        ([None, 3.0], 3.0),
        ([5.0, 3.0], 5.0),
        ([0, 3.0], 0),
        ([None, 0], 0),
    ],
)
async def test_all_are_waited_for_as_long_as_for_the_most_patient(
    waits: list[float | None], longest: float | None
) -> None:
    holder = Slow()
    handles = ("a/1-2", "b/1-1")
    await holder.attach_all(
        [Wanted(Query(handle=h), How(wait=w)) for h, w in zip(handles, waits, strict=True)]
    )
    assert holder.wait == longest


@pytest.mark.parametrize("wait", [None, 0, 60.0, 0.001])
async def test_who_waits_for_several_waits_no_longer_in_all(wait: float | None) -> None:
    holder = Slow(seconds=0.02)
    await holder.attach_all([Wanted(Query(handle=h), How(wait=wait)) for h in ("a/1-2", "b/1-1")])
    first, second = (how.wait for _, how, _ in holder.asked)
    if not wait:
        assert (first, second) == (wait, wait)
    else:
        assert first is not None
        assert second is not None
        assert first >= second > 0
        assert second <= max(wait - 0.02, 0.01)


# -- what a device tells


async def test_each_loss_is_heard_once_and_the_device_may_be_back() -> None:
    held = AttachedDevice(attached())
    first, second = (Loss(at=datetime.now(UTC), by=name) for name in ("one", "other"))
    twice = asyncio.create_task(held.wait_lost(2))
    held.note_loss(first)
    assert await held.wait_lost() == first
    assert not held.is_attached
    back = asyncio.create_task(held.wait_attached())
    await asyncio.sleep(0)
    assert not back.done()
    assert not twice.done()
    held.note_attached(attached(paths={"tty0": "/dev/ttyX"}))
    await back
    assert held.is_attached
    assert held.tty == "/dev/ttyX"
    held.note_loss(second)
    assert await twice == second
    assert held.losses == [first, second]


@pytest.mark.parametrize(
    ("is_there", "soon", "late", "hears"),
    [(True, 0.0, 600.0, False), (False, 600.0, 0.0, False), (False, 0.0, 600.0, True)],
)
async def test_after_a_failure_one_waits_longer_for_the_cause_if_a_node_is_gone(
    tmp_path: Path, is_there: bool, soon: float, late: float, hears: bool
) -> None:
    node = tmp_path / "tty"
    node.touch()
    paths = {"usb": str(tmp_path), "tty0": str(node if is_there else tmp_path / "gone")}
    held = AttachedDevice(attached(paths=paths), soon=soon, late=late)
    hearing = asyncio.create_task(held.hear_why())
    if hears:
        await asyncio.wait({hearing}, timeout=0.05)
        assert not hearing.done()
        held.note_loss(Loss(at=datetime.now(UTC)))
    await asyncio.wait_for(hearing, patience(20))
    assert bool(held.losses) is hears


async def test_what_is_known_already_is_not_waited_for(tmp_path: Path) -> None:
    held = AttachedDevice(attached(paths={"tty0": str(tmp_path / "gone")}), soon=600, late=600)
    held.note_loss(Loss(at=datetime.now(UTC)))
    await asyncio.wait_for(held.hear_why(), patience(20))


@pytest.mark.parametrize("name", ["tty0", "disk", "hidraw0", "video0", "usb"])
def test_each_node_has_a_name_and_what_is_missing_is_said(name: str) -> None:
    word = name.rstrip("0")
    has = AttachedDevice.__new__(AttachedDevice)
    has._now = attached(paths={name: "/dev/n", "other": "/dev/o"})
    assert getattr(has, word) == "/dev/n"
    has._now = attached(paths={"other": "/dev/o"})
    with pytest.raises(errors.NotFound, match=f"x has no {name} here; it has other"):
        getattr(has, word)
    has._now = attached()
    with pytest.raises(errors.NotFound, match=r"it has none$"):
        getattr(has, word)
    assert repr(has) == f"<AttachedDevice {has.now.match}>"


# -- through the agent


async def test_what_is_held_is_back_when_the_block_ends(
    through_agent: Here, quick: Running
) -> None:
    here = through_agent
    holder = ByAgent(await here.talk())
    async with holder:
        await holder.attach_all([Wanted(Query(handle=h)) for h in ("1-1", "1-2")])
    assert here.agent.statuses() == []
    assert [state_of(quick, bus_id) for bus_id in ("1-1", "1-2")] == [State.AVAILABLE] * 2


async def test_a_program_waits_until_all_are_there_but_no_longer_than_it_said(
    through_agent: Here, quick: Running
) -> None:
    quick.devices.pull("serial")
    await eventually(lambda: [len(v.devices) for v in through_agent.world.views.values()] == [2])
    both = [Query(handle="1-2"), Query(handle="1-1")]
    async with ByAgent(await through_agent.talk()) as holder:
        with pytest.raises(errors.NotFound):
            await holder.find_all(both, None)
        with pytest.raises(errors.NotFound):
            await asyncio.wait_for(holder.find_all(both, 0.05), patience(20))
        finding = asyncio.create_task(holder.find_all(both, 0))
        await asyncio.wait({finding}, timeout=0.1)
        assert not finding.done()
        quick.devices.plug("serial")
        found = await asyncio.wait_for(finding, patience(20))
    assert [match.device.bus_id for match in found] == ["1-2", "1-1"]


async def test_only_a_lasting_wish_is_meant_by_its_name(through_agent: Here) -> None:
    await through_agent.attach("1-1", name="kept", keep=True)
    await through_agent.attach("1-2", name="only-once")
    async with ByAgent(await through_agent.talk()) as holder:
        (match,) = await holder.find_all([Query(handle="kept")], None)
        assert match.device.bus_id == "1-1"
        with pytest.raises(errors.NotFound):
            await holder.find_all([Query(handle="only-once")], None)


async def test_an_agent_that_goes_while_devices_are_looked_for_is_an_error(
    through_agent: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ByAgent(await through_agent.talk()) as holder:
        monkeypatch.setenv("USB_REMOTE_AGENT", str(through_agent.folder / "gone"))
        with pytest.raises(errors.Unreachable, match="has just gone"):
            await holder.find_all([Query(handle="1-1")], None)


async def test_events_of_what_is_not_held_are_not_ours(here: Here, quick: Running) -> None:
    async with ByAgent(await here.talk()) as one, ByAgent(await here.talk()) as other:
        mine = await one.attach(Query(handle="1-1"), How())
        theirs = await other.attach(Query(handle="1-2"), How())
        here.pull(quick, "disk")
        await asyncio.wait_for(theirs.wait_lost(), patience(20))
        assert mine.losses == []


async def test_who_waits_in_the_queue_hears_his_place(here: Here, quick: Running) -> None:
    places: list[int] = []
    async with ByAgent(await here.talk()) as one, ByAgent(await here.talk()) as other:
        device = await one.attach(Query(handle="1-2"), How())
        assert device.is_attached
        theirs = {"bus": "1-1", "user": "bob", "host": "pc", "client": "other"}
        async with await connect(quick.server, 20.0) as bob:
            await bob.request(protocol.build(protocol.AttachRequest, theirs))
            how = How(wait=0, tell=lambda event: places.append(event.place))
            waiting = asyncio.create_task(other.attach(Query(handle="1-1"), how))
            await eventually(lambda: places)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    assert places[0] == 1


# -- without an agent


async def test_what_a_process_holds_itself_is_given_back_the_newest_first(
    here: Here, quick: Running
) -> None:
    ours = _Ourselves(Config(), Resident(here.agent, here.world))
    devices = [await ours.attach(Query(handle=f"1-{n}"), How(), f"n{n}") for n in (1, 2, 3)]
    assert [device.name for device in devices] == ["n1", "n2", "n3"]
    here.pull(quick, "disk")
    assert (await asyncio.wait_for(devices[1].wait_lost(), patience(20))).blame == "device"
    quick.devices.plug("disk")
    await asyncio.wait_for(devices[1].wait_attached(), patience(20))
    order: list[str] = []
    release = here.agent.release

    async def noted(hold: Hold) -> None:
        order.append(hold.keeper.name)
        await release(hold)

    here.agent.release = noted  # type: ignore[method-assign]
    await ours.release()
    assert order == ["n3", "n2", "n1"]
    assert here.agent.statuses() == []
