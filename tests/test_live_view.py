"""What the agent knows is what commands and programs say, without asking a server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Forked, Shell
from tests.residing import Here, residing
from tests.serving import Running, at, running_server
from tests.waiting import eventually
from usb_remote import agent_protocol, aio
from usb_remote.virtual import KINDS


@pytest.fixture
def shell(informed: Here, tmp_path: Path) -> Shell:
    """Commands that know the agent, and no server themselves."""
    return Shell(tmp_path, informed.socket)


@pytest.mark.parametrize(
    "words",
    [
        "list --host {}",
        "list --host {} --json",
        "info --json",
        "info --host {}",
        "find VIRTUAL0001",
        "find --bus 1-1 --host {} --json",
    ],
)
async def test_it_is_said_as_without_an_agent(
    shell: Shell, bench: Running, tmp_path: Path, words: str
) -> None:
    command = words.format(at(bench)).split()
    told = await shell.run(*command)
    assert told[0] == 0
    asking = Shell(tmp_path, "", at(bench))
    assert told == await asking.run(*command)


async def test_a_directory_gets_the_name_that_is_asked_for(informed: Here, shell: Shell) -> None:
    command = ("attach", "--keep", "1-1", "--name", "board")
    status, out, _ = await shell.run(*command)
    assert status == 0
    assert str(informed.folder / "dev/board/tty0") in out
    status, _, err = await shell.run(*command[:-1], "no/name")
    assert (status, "name" in err) == (2, True)
    status, _, err = await shell.run(command[0], *command[2:], USB_REMOTE_AGENT="")
    assert (status, "--name: there is no agent" in err) == (3, True)


async def test_what_the_agent_does_not_know_is_asked_for(shell: Shell) -> None:
    async with running_server("serial") as other:
        status, out, _ = await shell.list("--host", at(other))
        assert (status, out.count("VIRTUAL0001")) == (0, 1)
        status, out, _ = await shell.run("find", "1-1", "--host", at(other))
        assert (status, out.count("VIRTUAL0001")) == (0, 1)


async def test_whoever_looks_for_longer_looks_himself(shell: Shell) -> None:
    status, out, err = await shell.list("--wait", "0.1")
    assert (status, out) == (3, "")
    assert "no usb-remote server found" in err


async def test_watch_goes_on_without_the_agent_when_that_is_stopped(
    bench: Running, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, str(tmp_path / "agent.sock"))
    command = ["watch", "--host", at(bench), "--json"]
    with Forked(*command, stdout=subprocess.PIPE, env=shell.environment) as process:
        hear = partial(asyncio.to_thread, partial(json_line, process))
        async with residing(tmp_path, at(bench)) as here:
            await eventually(lambda: here.world.views)
            first = await hear()
            assert [d["bus_id"] for d in first["devices"]] == ["1-1", "1-2", "1-3"]
            assert len(bench.control._watchers) == 1  # the agent's own: it is the agent who tells
            bench.devices.pull("disk")
            second = await hear()
            assert len(second["devices"]) == 2
        third = await hear()
        assert third["devices"] == second["devices"]
        bench.devices.plug("disk")
        fourth = await hear()
        assert len(fourth["devices"]) == 3


def json_line(process: Forked) -> Any:
    assert process.stdout
    return json.loads(process.stdout.readline())


async def test_programs_have_it_too(
    informed: Here, bench: Running, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USB_REMOTE_CONFIG", shell.environment["USB_REMOTE_CONFIG"])
    monkeypatch.setenv(agent_protocol.VARIABLE, informed.socket)
    assert [m.device.bus_id for m in await aio.list_devices()] == ["1-1", "1-2", "1-3"]
    async with aclosing(aio.watch()) as changes:
        change = await anext(changes)
        assert change.listing is not None
        assert len(change.listing.matches) == len(KINDS)
        assert len(bench.control._watchers) == 1
        await bench.control.stop()
        lost = await anext(changes)
        assert lost.listing is None
        assert lost.error is not None
