"""`usb-remote run` as its users have it: a process, in front of a real agent of this one."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import COMMAND, Forked
from tests.patience import patience
from tests.residing import Here, residing
from tests.serving import Running, at, state_of
from tests.waiting import eventually
from usb_remote import protocol
from usb_remote.agent_protocol import Stage
from usb_remote.config import WishConfig
from usb_remote.connection import connect
from usb_remote.model import State
from usb_remote.values import DeviceName

PRINT = "import os; print({k: v for k, v in os.environ.items() if k.startswith('USB_REMOTE_')})"


class Run:
    """`usb-remote run …` as a process.

    Args:
        here: the agent that it asks.
        arguments: after `run`.
        agent: where it is told that the agent is, if not there.
        stdin: its standard input.

    """

    def __init__(
        self,
        here: Here,
        *arguments: str,
        agent: str | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        (here.folder / "config").write_text("discovery: false\n")
        self.environment = {
            **os.environ,
            "USB_REMOTE_AGENT": here.socket if agent is None else agent,
            "USB_REMOTE_CONFIG": str(here.folder / "config"),
        }
        self._arguments = arguments
        self._stdin = stdin

    async def __aenter__(self) -> Run:
        self.process = Forked(
            "run",
            *self._arguments,
            stdin=self._stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        self.process.__exit__(*error)

    async def hear(self, word: str) -> None:
        assert self.process.stdout
        assert (await asyncio.to_thread(self.process.stdout.readline)).strip() == word

    async def end(self) -> tuple[int, str, str]:
        out, err = await asyncio.to_thread(self.process.communicate, patience(30))
        assert self.process.returncode is not None
        return self.process.returncode, out, err


async def run(here: Here, *arguments: str) -> tuple[int, str, str]:
    async with Run(here, *arguments) as running:
        return await running.end()


def are_free(bench: Running) -> bool:
    return all(d.state is State.AVAILABLE for d in bench.control.snapshot.devices)


async def test_the_command_finds_its_devices_in_its_environment(here: Here, quick: Running) -> None:
    command = ["--", sys.executable, "-c", PRINT]
    status, out, err = await run(here, "--with", "bench/1-1", "--with", "1-2", *command)
    assert (status, err) == (0, "")
    folder = here.folder / "dev"
    variables = eval(out)
    assert variables["USB_REMOTE_BENCH_1_1"] == str(folder / "bench-1-1")
    assert variables["USB_REMOTE_BENCH_1_1_TTY0"] == str(folder / "bench-1-1/tty0")
    assert variables["USB_REMOTE_1_2_USB"] == str(folder / "1-2/usb")
    assert are_free(quick)  # when it has ended, not some time later
    assert here.agent.statuses() == []


async def test_a_wish_is_meant_by_its_own_name_also_while_it_is_not_there(
    quick: Running, tmp_path: Path
) -> None:
    wish = WishConfig(port="1-1", server=at(quick), name=DeviceName("board"))
    command = ["--", sys.executable, "-c", PRINT]
    async with residing(tmp_path, at(quick), attach=(wish,)) as here:
        quick.devices.pull("serial")
        await eventually(lambda: here.stages() == {"board": Stage.ABSENT})
        status, _, err = await run(here, "--with", "board", *command)
        assert (status, "no device matches" in err) == (3, True), err
        async with Run(here, "--with", "board", "--wait", *command) as running:
            await eventually(lambda: here_watchers(here))
            quick.devices.plug("serial")
            status, out, err = await running.end()
    assert (status, err) == (0, "")
    assert eval(out)["USB_REMOTE_BOARD_TTY0"] == str(tmp_path / "dev/board/tty0")


async def test_the_names_of_variables_are_the_words_of_the_command_line(here: Here) -> None:
    await here.attach("1-1", keep=True, name="board")  # another one's name for that device
    await here.attach("1-2", keep=True)
    await here.detach("1-2")
    command = ["--", sys.executable, "-c", PRINT]
    status, out, err = await run(here, "--with", "1-1", "--with", "bench/1-2", *command)
    assert (status, err) == (0, "")
    variables = eval(out)
    assert variables["USB_REMOTE_1_1"] == str(here.folder / "dev/board")
    assert variables["USB_REMOTE_BENCH_1_2_TTY0"].startswith(str(here.folder / "dev"))


async def test_ctrl_c_on_a_terminal_is_heard_once(here: Here) -> None:
    script = "trap 'echo got' INT; trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done"
    leader, terminal = pty.openpty()
    own = [*COMMAND, "run", "--with", "1-1", "--", "sh", "-c", script]
    without_stdin = ["sh", "-c", 'exec "$@" </dev/null', "sh", *own]
    process = await asyncio.create_subprocess_exec(
        "setsid", "--ctty", *without_stdin, env=Run(here).environment, stdin=terminal,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        async with asyncio.timeout(patience(20)):
            assert await process.stdout.readline() == b"ready\n"
            os.write(leader, b"\x03")
            assert await process.stdout.readline() == b"got\n"
            process.send_signal(signal.SIGUSR1)  # passed on after what came before
            assert await process.communicate() == (b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(terminal)
        os.close(leader)
    assert process.returncode == 9


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill $$", 143)]
)
async def test_the_exit_status_is_the_commands(here: Here, script: str, status: int) -> None:
    assert await run(here, "--with", "1-1", "--", "sh", "-c", script) == (status, "", "")


@pytest.mark.parametrize("number", ["TERM", "HUP", "USR1", "USR2", "INT"])
async def test_signals_are_for_the_command(here: Here, quick: Running, number: str) -> None:
    script = f"trap 'echo got; exit 9' {number}; echo ready; while :; do sleep 0.02; done"
    async with Run(here, "--with", "1-1", "--", "sh", "-c", script) as running:
        await running.hear("ready")
        running.process.send_signal(signal.Signals[f"SIG{number}"])
        assert await running.end() == (9, "got\n", "")
    assert are_free(quick)


async def test_kill_9_gives_the_device_back(here: Here, quick: Running) -> None:
    command = ("--with", "1-1", "--", "sh", "-c", "echo ready; exec cat")
    async with Run(here, *command, stdin=subprocess.PIPE) as running:
        await running.hear("ready")
        assert state_of(quick, "1-1") is State.IN_USE
        running.process.kill()
        await eventually(lambda: are_free(quick) and here.agent.statuses() == [])


async def test_all_or_none(here: Here, quick: Running) -> None:
    async with await connect(quick.server, 2.0) as other:
        theirs = {"bus": "1-2", "user": "bob", "host": "pc", "client": "other"}
        await other.request(protocol.build(protocol.AttachRequest, theirs))
        status, out, err = await run(here, "--with", "1-1", "--with", "1-2", "--", "echo", "began")
        assert (status, out) == (4, "")
        assert "bob@pc" in err
        assert state_of(quick, "1-1") is State.AVAILABLE


async def test_wait_is_for_a_device_that_appears_later(here: Here, quick: Running) -> None:
    quick.devices.pull("serial")
    await eventually(lambda: [len(v.devices) for v in here.world.views.values()] == [2])
    async with Run(here, "--with", "1-1", "--wait", "--", "echo", "began") as running:
        await eventually(lambda: len(here_watchers(here)) == 1)
        quick.devices.plug("serial")
        assert await running.end() == (0, "began\n", "")


def here_watchers(here: Here) -> set[object]:
    desk = here.world.on_view.__self__  # type: ignore[attr-defined]
    watchers: set[object] = desk._watchers
    return watchers


@pytest.mark.parametrize(("number", "status"), [("TERM", 143), ("INT", 130), ("HUP", 129)])
async def test_a_signal_while_it_waits_ends_it_and_leaves_nothing(
    here: Here, quick: Running, number: str, status: int
) -> None:
    quick.devices.pull("serial")
    await eventually(lambda: [len(v.devices) for v in here.world.views.values()] == [2])
    async with Run(here, "--with", "1-1", "--wait", "--", "echo", "began") as running:
        await eventually(lambda: len(here_watchers(here)) == 1)
        running.process.send_signal(getattr(signal, f"SIG{number}"))
        assert await running.end() == (status, "", "")
    assert are_free(quick)


async def test_wait_has_an_end(here: Here) -> None:
    status, out, err = await run(here, "--with", "none", "--wait=0.5s", "--", "echo", "began")
    assert (status, out) == (3, "")
    assert "no device matches none" in err


async def test_the_options_of_the_command_are_its_own(here: Here) -> None:
    own = ["--wait", "--with", "x", "--json", "--", "--fail-on-loss"]
    status, out, _ = await run(here, "--with", "1-1", "--", "echo", *own)
    assert (status, out) == (0, " ".join(own) + "\n")
    status, out, _ = await run(here, "--with", "1-1", "echo", "--wait")  # also without --
    assert (status, out) == (0, "--wait\n")


async def test_a_command_that_is_not_there(here: Here, quick: Running) -> None:
    status, out, err = await run(here, "--with", "1-1", "--", "no-such-command")
    assert (status, out) == (2, "")
    assert err == "error: no-such-command: No such file or directory\n"
    assert are_free(quick)


async def test_a_device_that_is_not_there(here: Here) -> None:
    status, out, err = await run(here, "--with", "none", "--", "echo", "began")
    assert (status, out) == (3, "")
    assert err.startswith("error: no device matches none")


def until_term(status: int) -> tuple[str, ...]:
    """A command that ends with a status at SIGTERM; what it leaves behind has no file of ours."""
    script = f"trap 'exit {status}' TERM; echo ready; sleep 9 >/dev/null 2>&1 & wait"
    return "--", "sh", "-c", script


async def is_lost_and_ends(here: Here, quick: Running, running: Run) -> tuple[int, str, str]:
    """Its nodes are gone and it fails with that, before anybody has heard why."""
    await running.hear("ready")
    here.importer.nodes.vanish("9-1")
    quick.devices.pull("serial")
    running.process.terminate()
    asyncio.get_running_loop().call_later(0.15, here.bell.ring)
    return await running.end()


@pytest.mark.parametrize(("option", "expected"), [((), 5), (("--fail-on-loss",), 7)])
async def test_a_loss_is_told_with_its_cause(
    here: Here, quick: Running, option: tuple[str, ...], expected: int
) -> None:
    async with Run(here, "--with", "1-1", *option, *until_term(5)) as running:
        status, _, err = await is_lost_and_ends(here, quick, running)
    assert status == expected
    assert err == f"warning: lost 1-1 ({at(quick)}): unplugged\n"


async def test_a_loss_that_is_told_late_counts_also_for_a_command_that_was_content(
    here: Here, quick: Running
) -> None:
    async with Run(here, "--with", "1-1", "--fail-on-loss", *until_term(0)) as running:
        status, _, err = await is_lost_and_ends(here, quick, running)
    assert status == 7
    assert err == f"warning: lost 1-1 ({at(quick)}): unplugged\n"


@pytest.mark.skipif(
    Path("/sys/devices/platform/vhci_hcd.0").exists(), reason="this machine could attach"
)
async def test_without_an_agent_errors_are_the_same(here: Here) -> None:
    async with Run(here, "--with", "1-1", "--", "true", agent="") as running:
        status, _, err = await running.end()
    assert status == 5
    assert err.startswith("error: ")
