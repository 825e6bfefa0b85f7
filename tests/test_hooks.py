"""What `on_event` gives to a command, and what a command cannot do to the server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
import signal
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience
from tests.serving import running_server
from tests.waiting import eventually
from usb_remote import hooks
from usb_remote.events import Event, Kind
from usb_remote.hooks import Hook
from usb_remote.model import Cause, Holder

ANN = Holder(user="ann", host="pc", client="ann", address="10.0.0.1")
EVENT = Event(
    at=datetime(2026, 1, 1, tzinfo=UTC), kind=Kind.ENDED, device="0403:6001:A5XK", bus_id="1-1.4",
    name="scope", serial="A5XK", holder=ANN, cause=Cause.TAKEN_OVER, by="bob@pc", seconds=7.5,
)  # fmt: skip
PLUGGED = Event(at=EVENT.at, kind=Kind.PLUGGED, device="1209:0001@1-1", bus_id="1-1")

Run = Callable[..., Coroutine[Any, Any, float]]


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture) -> Run:
    """Run a command for one event, or several, to its end; returns how long that took."""
    caplog.set_level(logging.INFO)

    async def run(
        *command: str,
        event: Event = EVENT,
        times: int = 1,
        limit: float = 10,
        kill_time: float = 30,  # what is killed shall be told of, however late
    ) -> float:
        hook = Hook(list(command), "bench", limit, kill_time)
        started = time.monotonic()
        for _ in range(times):
            hook(event)
        async with asyncio.timeout(patience(60)):
            await hook.stop()
        return time.monotonic() - started

    return run


def is_running(pid: int) -> bool:
    """Whether that process still does something; one that waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- what it gets -------------------------------------------------------------------------------


async def test_the_event_is_json_on_stdin(run: Run, tmp_path: Path) -> None:
    await run("sh", "-c", f"cat > {tmp_path}/event")
    text = (tmp_path / "event").read_text()
    assert text.count("\n") == 1
    assert json.loads(text) == EVENT.model_dump(mode="json")


async def test_its_facts_are_in_the_environment(run: Run, tmp_path: Path) -> None:
    await run("sh", "-c", f"env | grep ^USB_REMOTE_ | grep -v _NO_SKIP | sort > {tmp_path}/facts")
    assert (tmp_path / "facts").read_text().split() == [
        "USB_REMOTE_BUS_ID=1-1.4", "USB_REMOTE_BY=bob@pc", "USB_REMOTE_CAUSE=taken_over",
        "USB_REMOTE_DEVICE=0403:6001:A5XK", "USB_REMOTE_EVENT=ended", "USB_REMOTE_HOST=pc",
        "USB_REMOTE_NAME=scope", "USB_REMOTE_SERIAL=A5XK", "USB_REMOTE_SERVER=bench",
        "USB_REMOTE_USER=ann",
    ]  # fmt: skip


async def test_the_server_that_it_is_of_goes_before_our_own(tmp_path: Path) -> None:
    hook = Hook(["sh", "-c", f"echo $USB_REMOTE_SERVER >> {tmp_path}/log"], "bench")
    hook(PLUGGED)
    hook(PLUGGED, "other")
    await hook.stop()
    assert sorted((tmp_path / "log").read_text().split()) == ["bench", "other"]


def test_what_there_is_not_is_an_empty_text() -> None:
    facts = hooks.environment(PLUGGED, "bench")
    assert facts["USB_REMOTE_EVENT"] == "plugged"
    empty = {"NAME", "SERIAL", "USER", "HOST", "CAUSE", "BY"}
    assert {key for key, value in facts.items() if not value} == {f"USB_REMOTE_{k}" for k in empty}


async def test_its_output_goes_to_the_log(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    await run("sh", "-c", r"echo heard; printf 'a\033[31mb\n' >&2")
    assert "on_event: heard" in caplog.messages
    assert "on_event: a [31mb" in caplog.messages


async def test_no_command_is_no_hook() -> None:
    hook = Hook([])
    hook(EVENT)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await hook.stop()


async def test_there_is_no_shell(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    await run("echo", "$HOME; true")
    assert "on_event: $HOME; true" in caplog.messages


# -- what it cannot do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/nowhere/at-all"], "on_event: /nowhere/at-all: No such file or directory"),
        (["/etc/passwd"], "on_event: /etc/passwd: Permission denied"),
        (["sh", "-c", "exit 3"], "on_event for ended ended with 3"),
        (["sh", "-c", "kill -9 $$"], "on_event for ended ended with -9"),
    ],
)
async def test_a_command_that_fails_is_a_warning(
    run: Run, caplog: pytest.LogCaptureFixture, command: list[str], said: str
) -> None:
    await run(*command)
    assert said in [r.message for r in caplog.records if r.levelno == logging.WARNING]


async def test_a_command_that_hangs_is_killed_with_its_children(
    run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = f"echo $$ > {tmp_path}/1; sleep 99 & echo $! > {tmp_path}/2; wait"
    limit = patience(0.5)
    assert await run("sh", "-c", script, limit=limit) < patience(30)
    assert f"took over {limit:g} s: killed" in caplog.text
    for name in ("1", "2"):
        pid = int((tmp_path / name).read_text())
        await eventually(lambda pid=pid: not is_running(pid))


async def test_what_a_command_said_before_it_hung_is_in_the_log(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    limit = patience(0.5)
    await run("sh", "-c", "echo cannot reach the wiki; sleep 99", limit=limit)
    assert caplog.messages == [
        "on_event: cannot reach the wiki", f"on_event for ended took over {limit:g} s: killed",
    ]  # fmt: skip


async def test_children_that_stay_behind_are_killed_too(run: Run, tmp_path: Path) -> None:
    script = f"sleep 99 >/dev/null 2>&1 & echo $! > {tmp_path}/1"
    assert await run("sh", "-c", script) < patience(30)
    pid = int((tmp_path / "1").read_text())
    await eventually(lambda: not is_running(pid))


async def test_a_daemon_that_keeps_the_output_open_delays_nothing_beyond_the_limit(
    run: Run,
) -> None:
    """It has a session of its own, so nothing can know that it belongs to the command."""
    assert await run("setsid", "--fork", "sleep", "60", limit=0.3) < patience(30)


async def test_much_output_costs_little(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """200 MB take not even 50."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await run("head", "-c", "200000000", "/dev/zero", limit=patience(30))
    assert "killed" not in caplog.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert sum(map(len, caplog.messages)) < 2 * hooks.MAX_OUTPUT


async def test_many_lines_of_output_are_cut(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    await run("seq", "1000000")
    assert len(caplog.messages) <= 100


async def test_output_without_an_end_ends_with_the_limit(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert await run("yes", limit=0.1) < patience(30)
    assert "killed" in caplog.text


@pytest.mark.parametrize("command", [["true"], ["sleep", "0.1"], ["sh", "-c", "exec <&-; sleep 0"]])
async def test_it_need_not_read_its_input(
    run: Run, caplog: pytest.LogCaptureFixture, command: list[str]
) -> None:
    big = EVENT.model_copy(update={"note": "x" * 1_000_000})
    assert await run(*command, event=big) < patience(30)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_only_a_few_run_at_a_time(run: Run, tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    script = f"echo + >> {log}; while [ ! -e {gate} ]; do sleep 0.01; done; echo - >> {log}"
    all_of_them = asyncio.create_task(run("sh", "-c", script, times=2 * hooks.AT_A_TIME, limit=60))
    await eventually(lambda: log.read_text().count("+") >= hooks.AT_A_TIME)
    await asyncio.sleep(0.1)  # in which a fifth would come
    gate.touch()
    await all_of_them
    running = most = 0
    for sign in log.read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert most == hooks.AT_A_TIME


async def test_a_killed_process_is_waited_for_even_if_that_is_cancelled_twice() -> None:
    """Or the garbage collector finds a process that nobody has waited for, some time later."""
    process = await asyncio.create_subprocess_exec("sleep", "99")
    reaping = asyncio.create_task(hooks.reap(process))
    await asyncio.sleep(0)
    for _ in range(2):
        reaping.cancel()
        await asyncio.sleep(0)
        assert not reaping.done()
    process.kill()
    with pytest.raises(asyncio.CancelledError):
        await reaping
    assert process.returncode == -signal.SIGKILL


async def test_beyond_a_number_events_are_dropped_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook = Hook(["sleep", "99"], "bench", 0.1, 0.0)
    for _ in range(hooks.MAX_WAITING + 3):
        hook(PLUGGED)
    dropped = caplog.text.count("on_event is too slow: dropped 1209:0001@1-1 plugged")
    await hook.stop()
    assert dropped == 3


async def test_a_stop_waits_for_one_time_limit_whatever_is_left(
    run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """That is for two times as many as run at a time; with a limit for each, all would be run."""
    log = tmp_path / "log"
    log.touch()
    script = f"echo x >> {log}; exec sleep 99"
    await run("sh", "-c", script, times=100, limit=0.1, kill_time=0.05)
    dropped = re.search(r"too slow: dropped the last (\d+) events", caplog.text)
    assert dropped
    assert int(dropped[1]) >= 100 - 2 * hooks.AT_A_TIME
    assert len(log.read_text().split()) <= 3 * hooks.AT_A_TIME, "what was dropped was not run"


async def test_a_stop_ends_also_while_commands_are_being_started(run: Run) -> None:
    """Nothing is given any time: all four are cancelled in the midst of their start."""
    assert await run("sleep", "99", times=4, limit=0, kill_time=0) < patience(30)
    assert await run("/nowhere/at-all", times=4, limit=0, kill_time=0) < patience(30)


async def test_a_stop_waits_as_long_as_one_event_may_take(run: Run, tmp_path: Path) -> None:
    await run("sh", "-c", f"sleep 0.3; echo x >> {tmp_path}/log", limit=10, kill_time=0)
    assert (tmp_path / "log").read_text() == "x\n"


async def test_what_has_happened_before_a_stop_is_still_told(run: Run, tmp_path: Path) -> None:
    await run("sh", "-c", f"echo x >> {tmp_path}/log", times=20)
    assert (tmp_path / "log").read_text() == "x\n" * 20


async def test_nobody_waits_for_it() -> None:
    async with running_server("disk") as bench:
        hook = Hook(["sleep", "99"], "bench", 0.1, 0.0)
        bench.history.on_event = hook
        started = time.monotonic()
        for _ in range(10):
            bench.devices.pull("disk")
            bench.control.refresh()
            bench.devices.plug("disk")
            bench.control.refresh()
        assert len(bench.history.events) == 20
        assert time.monotonic() - started < patience(30)  # no 99 s
        await hook.stop()


async def test_no_descriptor_is_left(run: Run) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await run("true")
    before = count()
    await run("sh", "-c", "exit 1", times=10)
    await run("sleep", "99", times=4, limit=0.1)
    await run("/nowhere", times=4)
    await asyncio.sleep(0)
    assert count() <= before
