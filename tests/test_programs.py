"""Other programs: what they say, how they end, and that they end in time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import patience
from tests.waiting import eventually
from usb_remote import programs

LONG = patience(30)


@contextmanager
def typed(words: str) -> Iterator[None]:
    """Somebody types at the terminal that we were started on."""
    before = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, words.encode())
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        for fd in (before, reading, writing):
            os.close(fd)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `there` that is in the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "there"
    path.write_text('#!/bin/sh\nexec "$@"\n')
    path.chmod(0o755)
    return path


async def test_what_looks_tells_all_that_it_says_and_its_status(script: Path) -> None:
    command = ["there", "sh", "-c", "echo out; echo err >&2; exit 7"]
    assert await programs.ask(command, LONG) == (7, "out\nerr\n")


async def test_what_does_tells_its_complaints_and_its_status(script: Path) -> None:
    command = [str(script), "sh", "-c", "echo out; echo err >&2; exit 7"]
    assert await programs.run(command, LONG) == (7, "err\n")


async def test_programs_speak_english_and_are_asked_nothing(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    command = ["there", "sh", "-c", 'echo "$LC_ALL"; read word; echo "$word"']
    with typed("secret\n"):
        assert await programs.ask(command, LONG) == (0, "C\n\n")


async def test_what_cannot_be_run_has_the_status_that_a_shell_gives_it(script: Path) -> None:
    assert await programs.ask(["not-there"], LONG) == (127, "not-there: not found")
    script.write_text("#!/not/there\n")
    assert await programs.ask(["there"], LONG) == (126, "there: No such file or directory")
    assert await programs.ask(["sleep", "99"], 0.05) == (124, "sleep: no answer within 0.05 s")


async def test_what_takes_too_long_is_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    """Not killed: sudo passes on SIGTERM only, and `usbip` gives the device back. Meanwhile the
    event loop goes on.
    """
    ready, ticks = tmp_path / "ready", 0
    trap = f"trap 'sleep 0.2; echo tidied > {tmp_path}/log; exit' TERM"
    body = f"{trap}; touch {ready}; while :; do sleep 0.01; done"
    running = asyncio.create_task(programs.run(["sh", "-c", body], LONG))
    await eventually(ready.exists)
    running.cancel()
    while not running.done():
        ticks += 1
        await asyncio.wait({running}, timeout=0.01)
    assert ticks > 2
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tmp_path / "log").read_text() == "tidied\n"


async def test_in_time_or_not_at_all() -> None:
    with pytest.raises(TimeoutError):
        await programs.run(["sleep", "99"], 0.05)


def test_programs_of_root_are_found_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert programs.find("modprobe") or programs.find("ldconfig")


async def test_a_module_that_cannot_be_loaded_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is said by whoever looks afterwards."""
    tool = tmp_path / "modprobe"
    tool.write_text(f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/log\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    await programs.modprobe("vhci-hcd")
    await programs.modprobe("vhci-hcd", [str(tool), "--as"])
    await programs.modprobe("vhci-hcd", ["/not/there"])
    assert (tmp_path / "log").read_text().splitlines() == [
        f"{tool} vhci-hcd", f"{tool} --as {tool} vhci-hcd",
    ]  # fmt: skip
