"""All wishes of a machine: found, named, noted, and one of several devices for a program."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.importing import Bell, NoticingImporter
from tests.patience import patience
from tests.residing import Here, residing
from tests.serving import Running, at, state_of
from tests.waiting import eventually
from usb_remote import claims, errors, protocol
from usb_remote.agent import places
from usb_remote.agent.claiming import claim_first
from usb_remote.agent.keeper import Keeper
from usb_remote.agent.records import MAX_WISHES, Records
from usb_remote.agent.wishes import Wish
from usb_remote.agent_protocol import AttachRequest, Kind, Loss, Stage
from usb_remote.config import WishConfig
from usb_remote.connection import connect
from usb_remote.finder import Search
from usb_remote.matching import Query
from usb_remote.model import Cause, Match, State

LOSS = Loss(at=datetime(2026, 1, 1, tzinfo=UTC), cause=Cause.DETACHED)
ANY = Query(id="*", first=True)


def wish(handle: str, kind: Kind = Kind.KEPT, **more: Any) -> Wish:
    return Wish(query=Query(handle=handle), kind=kind, **more)


@pytest.fixture
def records(informed: Here) -> Records:
    return informed.agent._records


def match_at(here: Here, bus_id: str) -> Match:
    return here.world.search().choose(Query(handle=bus_id))


# -- names


def test_two_never_share_a_directory_but_with_one_that_has_ended(records: Records) -> None:
    first, second = records.add(wish("a")), records.add(wish("b", name="a"))
    assert (first.name, second.name) == ("a", "a-2")
    first.finish(LOSS)
    third = records.add(wish("c", name="a"))
    assert third.name == "a"
    records.rename(first)
    assert first.name == "a-3"
    second.finish(LOSS)
    records.rename(third)  # its own name is not another's
    assert third.name == "a"


async def test_a_program_keeps_the_name_that_it_has(records: Records) -> None:
    keeper = records.add(wish("a"))
    claim = claims.claim("records/a")
    assert claim is not None
    hold = keeper.hold(claim, "ann")
    records.become(keeper, wish("b"))
    assert (keeper.name, str(keeper.wish)) == ("a", "b")
    keeper.let_go(hold)
    claim.drop()
    records.rename(keeper)
    assert keeper.name == "b"


# -- found


def test_a_lasting_wish_is_found_by_what_it_is_for(records: Records) -> None:
    kept, spread = (
        records.add(wish("Scope")),
        records.add_spread(Wish(query=Query(bus="1-*"), kind=Kind.KEPT)),
    )
    records.add(wish("once", Kind.ONCE))
    records.add(wish("held", Kind.HELD))
    assert records.with_key("scope") is kept
    assert records.with_key("--bus 1-*") is spread
    assert records.with_key("once") is None
    assert records.with_key("held") is None


def test_what_somebody_types_is_a_wish_or_its_name_unless_that_has_ended(records: Records) -> None:
    ended, goes_on = records.add(wish("A", name="x")), records.add(wish("B", name="y"))
    ended.finish(LOSS)
    assert records.called(Query(handle="a")) is None
    assert records.called(Query(handle="x")) is None
    assert records.called(Query(handle="b")) is goes_on
    assert records.called(Query(handle="y")) is goes_on
    assert records.called(Query(handle="Y")) is None
    assert records.query_called("x") == Query(handle="A")
    assert records.query_called(None) is None
    records.become(goes_on, goes_on.wish.once("y"))
    assert records.query_called("y") is None


def test_what_is_over_and_nobodys_wish_is_forgotten(records: Records) -> None:
    kept, once, trying = (
        records.add(wish(h, k)) for h, k in (("a", Kind.KEPT), ("b", Kind.ONCE), ("c", Kind.ONCE))
    )
    for keeper in (kept, once):
        keeper.finish(LOSS)
    records.tidy()
    assert records.keepers == [kept, trying]
    assert [note.wish.key for note in records.notes()] == ["a"]


def test_what_must_outlive_us_is_noted(records: Records) -> None:
    one = records.add(wish("kept"))
    records.add(wish("configured", Kind.CONFIGURED))
    records.add(wish("part", parent="--bus 1-*"))
    records.add(wish("once", Kind.ONCE))
    ended = records.add(wish("over", Kind.CONFIGURED))
    ended.finish(LOSS)
    many = records.add_spread(Wish(query=Query(bus="1-*"), kind=Kind.KEPT))
    of_file = records.add_spread(Wish(query=Query(bus="2-*"), kind=Kind.CONFIGURED))
    noted = [(str(note.wish), note.ended) for note in records.notes()]
    assert noted == [("--bus 1-*", None), (str(one.wish), None), ("over", LOSS)]
    of_file.ended = LOSS
    assert [str(note.wish) for note in records.notes()][:2] == ["--bus 1-*", "--bus 2-*"]
    many.ended = LOSS
    assert records.notes()[0].ended == LOSS


def test_the_nearest_to_a_device_takes_it(records: Records, informed: Here) -> None:
    place = match_at(informed, "1-1")
    stages = [Stage.ENDED, Stage.ABSENT, Stage.STOPPED, Stage.DELAYED, Stage.TRYING, Stage.WAITING]
    assert records.keeper_for(place) is None
    for number, stage in enumerate(stages):
        keeper: Keeper = records.add(wish("1-1", name=f"k{number}"))
        keeper._display.set(stage)
        assert records.keeper_for(place) is keeper
    records.add(wish("1-2"))
    records.add(wish("none"))
    assert records.keeper_for(match_at(informed, "1-3")) is None


def test_a_stage_has_begun_when_it_was_first_reached(records: Records) -> None:
    display = records.add(wish("a"))._display
    display.set(Stage.WAITING, note="place 2")
    since = display.status.since
    display.set(Stage.WAITING, note="place 1")
    assert (display.status.since, display.status.note) == (since, "place 1")
    display.set(Stage.DELAYED)
    assert display.status.since > since
    assert display.status.note is None


async def test_more_wishes_than_there_may_be_are_said_and_the_others_are_kept(
    informed: Here, caplog: pytest.LogCaptureFixture
) -> None:
    many = [wish(f"none-{n}", Kind.CONFIGURED) for n in range(MAX_WISHES + 2)]
    informed.agent.configure(many)
    assert len(informed.agent.statuses()) == MAX_WISHES
    assert caplog.text.count("256 wishes already") == 2


def test_what_a_keeper_goes_for_is_no_strangers(records: Records, informed: Here) -> None:
    strangers, place = informed.agent._strangers, match_at(informed, "1-1")
    keeper = records.add(wish("1-1"))
    for stage in Stage:
        keeper._display.set(stage)
        assert not strangers._is_wanted(place)
    keeper._getting.match = place
    for stage in Stage:
        keeper._display.set(stage)
        assert strangers._is_wanted(place) is (stage in (Stage.TRYING, Stage.WAITING))
    assert not strangers._is_wanted(match_at(informed, "1-2"))


# -- restored


async def test_another_device_in_the_same_port_is_not_taken_for_ours(
    quick: Running, tmp_path: Path
) -> None:
    async with residing(tmp_path, at(quick)) as here:
        await here.attach("1-1", keep=True)
        lost = here.agent.statuses()[0].attached
        assert lost is not None
        assert here.agent._sources._is_here(lost)
        other = lost.attachment.model_copy(update={"devid": 1})
        assert not here.agent._sources._is_here(lost.model_copy(update={"attachment": other}))
        free = lost.attachment.model_copy(update={"vhci_port": 7})
        assert not here.agent._sources._is_here(lost.model_copy(update={"attachment": free}))


async def test_what_had_ended_and_was_attached_by_a_person_ends_with_its_loss(
    quick: Running, tmp_path: Path
) -> None:
    bell = Bell()
    importer, entry = NoticingImporter(bell, tmp_path), (WishConfig(device="1-1"),)
    async with residing(tmp_path, at(quick), attach=entry, importer=importer) as here:
        await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})
        await here.detach("1-1")
        async with await here.talk() as program:
            hold = protocol.build(AttachRequest, {"handle": "1-1", "hold": True})
            await program.request(hold)
            (note,) = here.agent._records.notes()
            assert note.ended is not None
            assert note.attached is not None
            await here.agent.stop()
    async with residing(tmp_path, at(quick), attach=entry, importer=importer) as here:
        await eventually(lambda: here.stages() == {"1-1": Stage.ATTACHED})
        assert not here.agent._records.keepers[0].is_wanted
        here.pull(quick, "serial")
        await eventually(lambda: here.stages() == {"1-1": Stage.ENDED})
    bell.close()


# -- one of several


async def bob(bench: Running, bus_id: str, command: str = "attach") -> None:
    who = {"bus": bus_id, "user": "bob", "host": "pc", "client": "other"}
    async with await connect(bench.server, 20.0) as connection:
        attach = protocol.build(protocol.AttachRequest, who)
        detach = protocol.build(protocol.DeviceRequest, {**who, "command": "detach"})
        await connection.request(attach if command == "attach" else detach)


def devices(here: Here, state: State) -> list[str]:
    (listing,) = here.world.search().listings
    return [d.bus_id for d in listing.snapshot.devices if d.state is state]


async def test_the_first_that_is_free_everywhere_is_claimed(here: Here, quick: Running) -> None:
    await bob(quick, "1-1")
    await eventually(lambda: devices(here, State.IN_USE) == ["1-1"])
    parts = here.agent._parts
    got = [await claim_first(parts, ANY, None) for _ in range(2)]
    assert [match.device.bus_id for match, _ in got] == ["1-2", "1-3"]
    with pytest.raises(errors.Busy, match="have all that match"):
        await claim_first(parts, ANY, None)
    with pytest.raises(errors.NotFound):
        await claim_first(parts, Query(serial="none", first=True), None)
    for _, claim in got:
        claim.drop()


@pytest.mark.parametrize("what", ["a program lets go", "a machine lets go", "one is plugged"])
async def test_whichever_is_free_first_is_taken(here: Here, quick: Running, what: str) -> None:
    quick.devices.pull("keyboard")
    await bob(quick, "1-1")
    await eventually(lambda: devices(here, State.IN_USE) == ["1-1"])
    await eventually(lambda: devices(here, State.AVAILABLE) == ["1-2"])
    parts = here.agent._parts
    _, theirs = await claim_first(parts, ANY, None)
    waiting = asyncio.create_task(claim_first(parts, ANY, 0))
    searches: list[Search] = []
    world: Any = here.world
    search = world.search

    def counted() -> Search:
        searches.append(search())
        return searches[-1]

    world.search = counted
    await asyncio.wait({waiting}, timeout=0.05)
    world.search = search
    assert not waiting.done()
    assert len(searches) < 10, "it sleeps meanwhile"
    if what == "a program lets go":
        theirs.drop()
    elif what == "a machine lets go":
        await bob(quick, "1-1", "detach")
    else:
        quick.devices.plug("keyboard")
    match, claim = await asyncio.wait_for(waiting, patience(20))
    expected = {"a program": "1-2", "a machine": "1-1", "one is pl": "1-3"}[what[:9]]
    assert match.device.bus_id == expected
    claim.drop()
    theirs.drop()


async def test_if_other_machines_have_all_of_them_the_first_is_queued_for(
    here: Here, quick: Running
) -> None:
    for bus_id in ("1-1", "1-2", "1-3"):
        await bob(quick, bus_id)
    await eventually(lambda: len(devices(here, State.IN_USE)) == 3)
    match, claim = await claim_first(here.agent._parts, ANY, 0)
    assert match.device.bus_id == "1-1"
    claim.drop()


async def test_who_waits_for_one_of_several_waits_no_longer_than_he_said(
    here: Here, quick: Running
) -> None:
    parts = here.agent._parts
    got = [await claim_first(parts, ANY, None) for _ in range(3)]
    with pytest.raises(errors.Busy, match="have all that match"):
        await asyncio.wait_for(claim_first(parts, ANY, 0.05), patience(20))
    for _, claim in got:
        claim.drop()
    again = await claim_first(parts, ANY, 0.05)
    assert places.name_of(again[0]).endswith("/1-1")
    again[1].drop()
    assert state_of(quick, "1-1") is State.AVAILABLE
