"""What a wish is: its key, its name, its file; and how long one waits before the next try."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from usb_remote import errors
from usb_remote.agent import backoff, places
from usb_remote.agent.hold import Hold
from usb_remote.agent.interests import Interests
from usb_remote.agent.links import Access
from usb_remote.agent.session import Session
from usb_remote.agent.times import Times
from usb_remote.agent.waiters import Waiters
from usb_remote.agent.wishes import MAX_NAME, Note, Wish, WishBook, of_config, path_name
from usb_remote.agent_protocol import Attached, Kind, Loss, Told, View
from usb_remote.client import How
from usb_remote.config import WishConfig
from usb_remote.events import Event
from usb_remote.events import Kind as EventKind
from usb_remote.matching import Query
from usb_remote.model import Attachment, Cause, Device, Ended, Holder, Match, Server, State
from usb_remote.replies import WatchEvent
from usb_remote.state import StateFile
from usb_remote.values import DeviceName

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LOSS = Loss(at=T0, cause=Cause.DETACHED, by="ann")
SERVER = Server(name="bench 3", id="b" * 32, version="3")


def device(**more: Any) -> Device:
    return Device.model_validate(
        {"bus_id": "1-4", "vendor_id": "0403", "product_id": "6001", **more}
    )


PLACE = Match(SERVER, device())
SCOPE = Match(SERVER, device(name="scope"))


def wish(kind: Kind = Kind.KEPT, name: str | None = None, **words: Any) -> Wish:
    return Wish(query=Query(**words), kind=kind, name=name)


# -- what it is


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ({"handle": "Scope"}, {"handle": "scope"}, True),
        ({"serial": "AbC"}, {"serial": "aBc"}, True),
        ({"handle": "scope"}, {"handle": "scope", "first": True}, True),
        ({"handle": "scope"}, {"handle": "scope2"}, False),
        ({"handle": "1-1"}, {"bus": "1-1"}, False),
        ({"bus": "1-1"}, {"bus": "1-1", "host": "bench3"}, False),
    ],
)
def test_two_wishes_for_the_same_are_one_however_it_is_written(
    one: dict[str, Any], other: dict[str, Any], is_same: bool
) -> None:
    kept, configured = wish(**one), wish(Kind.CONFIGURED, "another", **other)
    assert (kept.key == configured.key) is is_same


@pytest.mark.parametrize(
    ("kind", "is_lasting", "holder"),
    [
        (Kind.CONFIGURED, True, None),
        (Kind.KEPT, True, "ann"),
        (Kind.HELD, False, "ann"),
        (Kind.ONCE, False, "ann"),
    ],
)
def test_its_kind_says_how_long_it_lasts_and_whose_session_it_is(
    kind: Kind, is_lasting: bool, holder: str | None
) -> None:
    one = Wish(query=Query(handle="x"), kind=kind, by="ann")
    assert (one.is_lasting, one.holder) == (is_lasting, holder)


@pytest.mark.parametrize(
    ("bus", "is_for_many"),
    [("1-*", True), ("1-?", True), ("1-[12]", True), ("1-1", False), (None, False)],
)
def test_it_is_for_many_if_its_place_is_a_pattern(bus: str | None, is_for_many: bool) -> None:
    assert wish(serial="*", bus=bus).is_for_many is is_for_many


@pytest.mark.parametrize(
    ("one", "match", "name"),
    [
        (wish(handle="scope", name="own"), SCOPE, "own"),
        (wish(handle="a/b", kind=Kind.ONCE), SCOPE, "scope"),
        (wish(handle="x", kind=Kind.ONCE), PLACE, "bench-3-1-4"),
        (wish(handle="x", kind=Kind.ONCE), None, "x"),
        (wish(handle="x", kind=Kind.HELD), SCOPE, "x"),
        (wish(handle="x", kind=Kind.KEPT), SCOPE, "x"),
        (wish(serial="A5", host="b"), None, "A5-b"),
    ],
)
def test_its_directory_is_called_by_its_own_name_or_what_it_is_for(
    one: Wish, match: Match | None, name: str
) -> None:
    assert one.name_for(match) == name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--serial A --bus 1-1", "A-1-1"),
        ("a--serial b", "a--serial-b"),
        ("-.x.-", "x"),
        ("///", "device"),
        ("é_1", "é_1"),
        ("x" * 99, "x" * MAX_NAME),
    ],
)
def test_words_become_one_part_of_a_path(words: str, name: str) -> None:
    assert path_name(words) == name


def test_once_is_the_same_device_under_the_same_name_and_nobodys_child() -> None:
    kept = Wish(query=Query(handle="x"), kind=Kind.KEPT, by="ann", parent="--bus 1-*", mode=0o600)
    once = kept.once("board")
    assert once == kept.model_copy(update={"kind": Kind.ONCE, "name": "board", "parent": None})
    assert kept.once("board", "bob").by == "bob"


@pytest.mark.parametrize(
    ("server", "name", "host", "directory"),
    [
        (SERVER, "rack", SERVER.id, "rack-1-4"),
        (SERVER, None, SERVER.id, "bench-3-1-4"),
        (SERVER.model_copy(update={"id": None}), "rack", "bench 3", "rack-1-4"),
    ],
)
def test_a_wish_for_many_is_one_for_whatever_sits_in_each_place(
    server: Server, name: str | None, host: str, directory: str
) -> None:
    many = Wish(query=Query(bus="1-*", host="b*"), kind=Kind.KEPT, name=name, group="lab")
    one = many.at(Match(server, device()))
    assert one.query == Query(bus="1-4", host=host, first=True)
    assert (one.name, one.parent, one.group) == (directory, many.key, "lab")
    assert not one.is_for_many


def test_the_configuration_says_all_of_it() -> None:
    entry = WishConfig(
        device="d", id="i", serial="s", port="1-1", server="b", first=True,
        name=DeviceName("n"), user="u", group="g", mode="0640",
    )  # fmt: skip
    assert of_config(entry) == Wish(
        query=Query(handle="d", id="i", serial="s", bus="1-1", host="b", first=True),
        kind=Kind.CONFIGURED, by="the configuration", name="n", user="u", group="g", mode=0o640,
    )  # fmt: skip
    assert of_config(entry).access == Access("u", "g", 0o640)
    assert of_config(WishConfig(device="d")).access == Access()


# -- who wants it


@pytest.mark.parametrize(
    ("kind", "ended", "version", "wait"),
    [
        (Kind.KEPT, None, "3", 0),
        (Kind.CONFIGURED, None, "3", 0),
        (Kind.KEPT, None, None, None),  # 2.x has no queue
        (Kind.KEPT, LOSS, "3", None),
        (Kind.ONCE, None, "3", None),
    ],
)
def test_only_what_lasts_waits_in_the_queue_for_ever(
    kind: Kind, ended: Loss | None, version: str | None, wait: float | None
) -> None:
    interests = Interests(Wish(query=Query(handle="x"), kind=kind, by="ann"))
    interests.ended = ended
    how = interests.how(Match(SERVER.model_copy(update={"version": version}), device()))
    assert how == How(wait=wait, user=None if kind is Kind.CONFIGURED else "ann")
    assert interests.are_any is interests.are_lasting
    assert interests.are_lasting is (kind is not Kind.ONCE and not ended)


def test_a_program_is_an_interest_that_lasts_and_its_user_has_the_nodes() -> None:
    interests = Interests(Wish(query=Query(handle="x"), kind=Kind.ONCE, mode=0o600))
    interests.holds += [Hold.__new__(Hold), Hold.__new__(Hold)]
    interests.holds[0].user, interests.holds[1].user = "ann", "bob"
    assert interests.are_lasting
    assert interests.access == Access("ann", None, 0o600)
    interests.wish = interests.wish.model_copy(update={"user": "eve"})
    assert interests.access == Access("eve", None, 0o600)


# -- its file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wishes.jsonl"


def test_what_was_noted_is_read_after_a_restart(path: Path) -> None:
    attached = Attached(server=SERVER, device=device(), attachment=Attachment(vhci_port=1))
    notes = [
        Note(wish=wish(handle="a"), attached=attached),
        Note(wish=wish(handle="b"), ended=LOSS),
    ]
    WishBook(StateFile(path)).write(notes)
    book = WishBook(StateFile(path))
    assert book.read() == notes
    assert book.list_servers() == [SERVER]


@pytest.mark.parametrize(
    "broken", ['{"wish": 3}', '{"wish": {"query": {}, "kind": "for ever"}}', "half a li", "[]"]
)
def test_what_follows_a_line_that_says_nothing_is_not_taken_for_a_wish(
    path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    WishBook(StateFile(path)).write([Note(wish=wish(handle=name)) for name in "ab"])
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{broken}\n{second}\n")
    names = [str(note.wish) for note in WishBook(StateFile(path)).read()]
    assert names == ["a"]
    assert [p.name for p in path.parent.iterdir()] == ["wishes.jsonl.broken-1"]
    assert "line 2" in caplog.text


def test_it_is_read_once_and_written_only_if_something_is_new(path: Path) -> None:
    book = WishBook(StateFile(path))
    one, other = Note(wish=wish(handle="a")), Note(wish=wish(handle="b"))
    book.write([one])
    assert book.read() == [one]
    path.unlink()
    book.write([one])
    assert not path.exists()
    assert book.read() == [one]
    book.write([one, other])
    assert len(path.read_text().splitlines()) == 2
    book.write([])
    assert path.read_text() == ""


def test_a_disk_that_cannot_be_written_is_a_warning_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # what is to be replaced is no file
    (path / "x").touch()
    book = WishBook(StateFile(path))
    notes = [Note(wish=wish(handle="a"))]
    book.write(notes)
    book.write(notes)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


# -- how long one waits


TIMES = Times()


@pytest.mark.parametrize(
    ("count", "longest"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (9, 30), (5000, 30)]
)
def test_after_each_failure_one_waits_twice_as_long_up_to_half_a_minute(
    count: int, longest: float
) -> None:
    delays = [backoff.after_failures(count, TIMES) for _ in range(50)]
    assert longest / 2 <= min(delays) < max(delays) <= longest


@pytest.mark.parametrize(
    ("count", "longest"), [(0, 0), (4, 0), (5, 2), (6, 4), (9, 30), (5000, 30)]
)
def test_a_device_that_comes_and_goes_waits_from_the_fifth_time_on(
    count: int, longest: float
) -> None:
    delays = [backoff.after_losses(count, TIMES) for _ in range(50)]
    assert longest / 2 <= min(delays) <= max(delays) <= longest


@pytest.mark.parametrize(("ago", "counts"), [(0, True), (59.9, True), (60, False), (3600, False)])
def test_a_loss_counts_for_a_minute(ago: float, counts: bool) -> None:
    loss = Loss(at=T0 - timedelta(seconds=ago))
    assert backoff.count_recent([loss], T0, TIMES.within) == counts


# -- places


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"state": State.IN_USE, "holder": Holder(user="ann")}, False),
        ({"waiting": 2}, False),
        ({"last_session": Ended(holder=Holder(), at=T0, cause=Cause.DETACHED)}, False),
        ({"state": State.PROTECTED}, True),
        ({"devnum": 9}, True),
        ({"serial": "X"}, True),
        ({"product_id": "6002"}, True),
    ],
)
def test_what_others_do_with_a_device_makes_no_other_one_of_it(
    change: dict[str, Any], is_other: bool
) -> None:
    now = device().model_copy(update=change)
    assert (places.lasting_facts(now) != places.lasting_facts(device())) is is_other


def test_a_place_is_one_of_one_server_whatever_sits_there() -> None:
    other_server = PLACE.server.model_copy(update={"id": "c" * 32})
    assert places.is_same(PLACE, SCOPE)
    assert not places.is_same(PLACE, Match(other_server, PLACE.device))
    assert not places.is_same(PLACE, Match(PLACE.server, device(bus_id="1-5")))
    assert places.query_for(SCOPE) == Query(handle="bench 3/1-4")


# -- a session: what a server and this machine say of one attachment


ME = Holder(client="me", host="here", since=T0)
HERE = Attachment(vhci_port=3, devid=65541)


def session(server: Server = SERVER, **more: Any) -> Session:
    attached = Attached(server=server, device=device(**more), attachment=HERE)
    return Session(attached, lambda holder: holder.client == "me", 0.0, TIMES)


def view(*devices: Device, error: errors.UsbRemoteError | None = None) -> View:
    return View(server=SERVER, devices=devices, error=Told.of(error) if error else None)


MINE = view(device(state="in_use", holder=ME))
GONE = view(device(bus_id="1-5"))
ELSEWHERE = HERE.model_copy(update={"devid": 65542})
AGAIN = view(device(state="in_use", holder=ME.model_copy(update={"since": T0 + timedelta(1)})))


@pytest.mark.parametrize("gone", [None, ELSEWHERE])
def test_what_is_over_here_is_over_once_its_server_had_time_to_say_why(
    gone: Attachment | None,
) -> None:
    one = session()
    assert one.loss(HERE, MINE, 1.0) is None
    assert one.is_settled
    assert one.loss(gone, MINE, 2.0) is None
    assert not one.is_settled
    assert one.loss(gone, MINE, 4.9) is None
    loss = one.loss(gone, MINE, 5.0)
    assert loss is not None
    assert loss.cause is None


def test_a_port_that_is_there_again_in_time_was_never_lost() -> None:
    one = session()
    one.loss(HERE, MINE, 1.0)
    one.loss(None, MINE, 2.0)
    assert one.loss(HERE, MINE, 3.0) is None
    assert one.loss(None, MINE, 6.0) is None
    assert one.loss(None, MINE, 9.0) is not None


def test_another_session_of_ours_in_the_same_place_is_not_this_one() -> None:
    one = session()
    one.loss(HERE, MINE, 1.0)
    assert one.loss(HERE, AGAIN, 2.0) is None
    assert one.loss(HERE, AGAIN, 5.0) is not None


def test_a_device_that_its_server_does_not_list_is_lost_at_once() -> None:
    assert session().loss(HERE, GONE, 0.1) is not None


def test_a_server_of_which_nothing_was_heard_yet_says_nothing() -> None:
    one = session()
    assert one.loss(HERE, None, 100.0) is None
    assert one.loss(HERE, None, 100.0, silent=True) is not None
    assert one.loss(None, None, 100.0) is not None


def test_an_old_server_says_no_more_than_that_the_device_is_there() -> None:
    one = session(SERVER.model_copy(update={"version": None}))
    assert one.loss(HERE, view(device()), 100.0) is None
    assert one.is_settled
    assert one.loss(HERE, GONE, 100.0) is not None


ENDS = [
    Event(device="d", at=T0, kind=EventKind.ENDED, bus_id="1-4", holder=ME, cause=Cause.UNPLUGGED),
    Event(device="d", at=T0, kind=EventKind.ENDED, bus_id="1-4", holder=ME, cause=Cause.TIME_UP),
]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({}, Cause.TIME_UP),
        ({"bus_id": "1-5"}, Cause.UNPLUGGED),
        ({"kind": EventKind.ATTACHED}, Cause.UNPLUGGED),
        ({"holder": Holder(client="other", since=T0)}, Cause.UNPLUGGED),
        ({"holder": ME.model_copy(update={"since": T0 + timedelta(1)})}, Cause.UNPLUGGED),
        ({"holder": None}, Cause.UNPLUGGED),
    ],
)
def test_its_end_is_the_newest_of_its_own_in_the_history(
    change: dict[str, Any], cause: Cause
) -> None:
    one = session()
    one.loss(HERE, MINE, 1.0)
    events = [ENDS[0], ENDS[1].model_copy(update=change)]
    found = one.find_in(events)
    assert found is not None
    assert found.cause is cause
    assert one.find_in([]) is None


# -- who waits


async def test_each_who_waits_does_so_as_long_as_he_said() -> None:
    waiters = Waiters()
    heard: Counter[str] = Counter()

    def how(name: str, wait: float | None, *, force: bool = False) -> How:
        return How(wait=wait, tell=lambda event: heard.update([name]), user=name, force=force)

    queue = WatchEvent(event="queued", place=2, holder=Holder(user="bob", host="pc"))
    at_once, ever = waiters.join(how("ann", None)), waiters.join(how("eve", 0))
    waiters.begin(SCOPE)
    waiters.queued(queue)
    with pytest.raises(errors.Busy, match=r"is in use by bob@pc.*at place 2") as busy:
        await waiters.outcome(at_once)
    assert busy.value.holder
    assert heard == {"eve": 1}
    late = waiters.join(how("joe", 5))
    with pytest.raises(errors.Busy):
        await waiters.outcome(waiters.join(how("kim", None)))
    forced = waiters.join(how("max", None, force=True))
    assert heard == {"eve": 1, "joe": 1}
    assert not forced.outcome.done()
    assert waiters.want_force
    assert waiters.how(How(user="own")) == How(wait=0, force=True, user="eve")
    waiters.fail(errors.Busy("taken"), How())  # those who may wait have not been in a queue yet
    assert [w.outcome.done() for w in (ever, late, forced)] == [False, False, True]
    waiters.fail(errors.Busy("taken"), How(wait=1))
    assert [w.outcome.done() for w in (ever, late)] == [True, True]
    assert not waiters
    for one in (ever, late, forced):
        assert one.outcome.exception()


@pytest.mark.parametrize(
    ("own", "asked", "together"),
    [
        (None, [], None),
        (None, [None], None),
        (None, [None, 3.0, 5.0], 5.0),
        (None, [3.0, 0], 0),
        (0, [3.0], 0),
        (2.0, [None], 2.0),
    ],
)
async def test_who_waits_longest_says_how_long_all_are_in_the_queue(
    own: float | None, asked: list[float | None], together: float | None
) -> None:
    waiters = Waiters()
    for wait in asked:
        waiters.join(How(wait=wait, duration=4.0))
    how = waiters.how(How(wait=own))
    assert how.wait == together
    assert how.duration == (4.0 if asked else None)


async def test_a_success_is_for_all_who_still_wait() -> None:
    waiters = Waiters()
    one, other = waiters.join(How(wait=0)), waiters.join(How())
    other.outcome.cancel()
    attached = Attached(server=SERVER, device=device(), attachment=HERE)
    waiters.succeed(attached)
    assert await waiters.outcome(one) == attached
    waiters.leave(one)
    assert not waiters


async def test_who_waits_in_a_queue_for_too_long_is_told_who_has_it() -> None:
    waiters = Waiters()
    one = waiters.join(How(wait=0.01))
    waiters.begin(SCOPE)
    waiters.queued(WatchEvent(event="queued", place=1, holder=None))
    with pytest.raises(errors.Busy, match="scope is being handed over"):
        await waiters.outcome(one)
    waiters.leave_queue()
    waiting = asyncio.ensure_future(waiters.outcome(waiters.join(How(wait=0.01))))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done(), "a try goes on, in no queue: its outcome is waited for"
    waiting.cancel()
