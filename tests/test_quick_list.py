"""`usb-remote list` in a hurry says what the ordinary way says, or steps aside where it cannot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.commands import Shell
from tests.residing import Here, residing
from tests.serving import Running, at, running_server
from tests.waiting import eventually
from usb_remote import agent_protocol, config_file, protocol
from usb_remote.cli import quick
from usb_remote.virtual import KINDS


@pytest.fixture
def shell(informed: Here, bench: Running, tmp_path: Path) -> Shell:
    return Shell(tmp_path, informed.socket, at(bench))


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_it_says_the_same_as_the_ordinary_way(
    informed: Here, shell: Shell, options: tuple[str, ...]
) -> None:
    await informed.attach("1-1")
    quickly = await shell.list(*options)
    assert quickly == await shell.list(*options, USB_REMOTE_AGENT="")
    assert quickly[0] == 0
    assert "in use by" in quickly[1] or '"in_use"' in quickly[1]


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_a_lost_server_is_a_warning_and_hides_nothing(
    bench: Running, tmp_path: Path, options: tuple[str, ...]
) -> None:
    async with running_server(*KINDS) as other:
        dead = at(other)
    async with residing(tmp_path, at(bench), dead) as here:
        await eventually(lambda: here.world.is_settled and len(here.world.views) == 2)
        shell = Shell(tmp_path, here.socket, at(bench), dead)
        status, out, err = await shell.list(*options)
        assert (status, out, err) == await shell.list(*options, USB_REMOTE_AGENT="")
        assert err.startswith("warning: ")


async def test_it_loads_next_to_nothing(shell: Shell) -> None:
    code = (
        "import sys; sys.argv[1:] = ['list']\n"
        "from usb_remote.cli import main; main()\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    status, out, err = await shell.python("-c", code)
    assert status == 0
    assert "1-1" in out
    assert not set(err.split()) & {
        "pydantic",
        "typer",
        "zeroconf",
        "asyncio",
        "ruamel.yaml",
        "rich",
    }
    ours = {name for name in err.split() if name.startswith("usb_remote.")}
    assert ours == {"usb_remote.cli", "usb_remote.cli.quick", "usb_remote.cli.table"}


async def test_it_prints_what_the_agent_knows(
    informed: Here, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USB_REMOTE_AGENT", informed.socket)
    assert await asyncio.to_thread(quick.list_devices, [])
    out, err = capsys.readouterr()
    assert (out.count("VIRTUAL"), err) == (3, "")


async def test_a_reader_that_has_gone_is_no_error(shell: Shell) -> None:
    code = "import os, runpy; os.close(r := os.pipe()[0]); os.dup2(r + 1, 1)\n"
    code += (
        "import sys; sys.argv[1:] = ['list']; runpy.run_module('usb_remote', run_name='__main__')"
    )
    assert await shell.python("-c", code) == (0, "", "")


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"nonsense\n",
        b"[]\n",
        b'{"status":"success"}\n',
        b'{"status":"success","data":"views"}\n',
        b'{"status":"success","data":{"a":1}}\n',
        b'{"status":"success","data":[1]}\n',
        b'{"status":"success","data":[{"error":null,"server":{}}]}\n',
        b'{"status":"error","message":"no"}\n',
    ],
)
async def test_an_agent_that_talks_nonsense_is_none(
    bench: Running, tmp_path: Path, says: bytes
) -> None:
    def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()

    path = str(tmp_path / "socket")
    shell = Shell(tmp_path, path, at(bench))
    async with await asyncio.start_unix_server(answer, path):
        status, out, err = await shell.list()
    assert (status, err) == (0, "")
    assert "1-1" in out


async def test_without_a_socket_it_goes_the_ordinary_way(bench: Running, tmp_path: Path) -> None:
    status, out, _ = await Shell(tmp_path, str(tmp_path / "nobody"), at(bench)).list()
    assert status == 0
    assert "1-1" in out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_whoever_may_not_use_the_socket_goes_the_ordinary_way(
    informed: Here, shell: Shell
) -> None:
    code = (
        "import os, socket; from usb_remote.cli import quick; os.setuid(65534)\n"
        f"print(quick._ask({informed.socket!r}))"
    )
    nobody = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}  # could not write it
    assert await shell.python("-c", code, **nobody) == (0, "None\n", "")


async def test_if_all_servers_are_lost_the_ordinary_way_says_so(
    bench: Running, informed: Here, shell: Shell
) -> None:
    await bench.control.stop()
    await eventually(lambda: all(view.error for view in informed.world.views.values()))
    status, out, err = await shell.list()
    assert (status, out) == (6, "")
    assert err.startswith("error: ")


async def test_other_options_go_the_ordinary_way(shell: Shell, bench: Running) -> None:
    status, out, _ = await shell.list("--host", at(bench))
    assert status == 0
    assert "1-1" in out


def test_it_knows_the_same_numbers_as_the_rest() -> None:
    assert quick.SOCKET == agent_protocol.SOCKET
    assert quick.MAX_REPLY == protocol.MAX_REPLY
    assert agent_protocol.VARIABLE == "USB_REMOTE_AGENT"


@pytest.mark.parametrize(
    ("variables", "file"),
    [
        ({}, None),
        ({"USB_REMOTE_CONFIG": "own"}, "own"),
        ({"USB_REMOTE_CONFIG": ""}, None),
        ({"USB_REMOTE_CONFIG_PATH": "own"}, "own"),
        ({}, ".usb-remote.config"),
        ({}, "home/.config/usb-remote/usb-remote.config"),
        ({"XDG_CONFIG_HOME": "xdg"}, "xdg/usb-remote/usb-remote.config"),
        ({"XDG_CONFIG_HOME": "xdg"}, "home/.config/usb-remote/usb-remote.config"),
    ],
)
def test_it_agrees_about_whose_configuration_is_in_force(
    variables: Mapping[str, str], file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("USB_REMOTE_CONFIG", "USB_REMOTE_CONFIG_PATH", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    if file:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    in_force = config_file.find_path(None)
    assert quick._has_own_configuration() is (in_force not in (None, config_file.SYSTEM))
