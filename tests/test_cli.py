"""The command line as its users have it: processes, exit statuses, stdout and stderr."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "usb_remote"]


def usb_remote(*arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    options = ["--config", str(config)] if config else []
    return subprocess.run(
        [*COMMAND, *options, *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


class VirtualServer:
    """`usb-remote server --virtual` on loopback, and a configuration that knows only it."""

    def __init__(self, folder: Path) -> None:
        options = ["--listen", "127.0.0.1", "--port", "0", "--usbip-port", "0", "--no-advertise"]
        self.process = subprocess.Popen(
            [*COMMAND, "server", "--virtual", "--name", "bench", *options],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = ""
        self.port = self._read_port()
        self.config = folder / "config"
        self.config.write_text(f"discovery: false\nservers: ['127.0.0.1:{self.port}']\n")

    def _read_port(self) -> int:
        assert self.process.stderr
        while not (found := re.search(r"on ports (\d+) \(control\)", self.said)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.said}"
            self.said += line
        return int(found[1])

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.said += self.process.communicate(timeout=20)[1]
        return self.process.returncode


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VirtualServer]:
    running = VirtualServer(tmp_path)
    yield running
    if running.process.returncode is None:
        running.stop()


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    path = tmp_path / "nobody"
    path.write_text("discovery: false\nserver_port: 1\n")
    return path


def test_version() -> None:
    done = usb_remote("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"usb-remote \d+\.\d+\.\d+\n", done.stdout)


def test_list_is_data_on_stdout_and_nothing_else(server: VirtualServer) -> None:
    done = usb_remote("list", config=server.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 4
    assert "available" in done.stdout


def test_json_has_a_schema_version(server: VirtualServer) -> None:
    content: dict[str, Any] = json.loads(usb_remote("list", "--json", config=server.config).stdout)
    assert content["schema"] == 1
    (entry,) = content["servers"]
    assert entry["devices"][0]["id"] == "1209:0001:VIRTUAL0001"
    assert content["failures"] == []


def test_find_prints_the_one_device(server: VirtualServer) -> None:
    done = usb_remote("find", "--desc", "keyb", "--json", config=server.config)
    assert json.loads(done.stdout)["device"]["bus_id"] == "1-3"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["find", "nothing"], 3, "error: no device matches nothing\nhint: usb-remote list"),
        (["find", "--id", "1209:*"], 3, "error: --id 1209:* matches 3 devices:\n"),
        (["find"], 2, "error: which device?\nhint: "),
        (["attach"], 2, "error: which device?\nhint: "),
        (["list", "--host", "127.0.0.1:1"], 6, "error: 127.0.0.1:1: connection refused"),
        (["list", "--host", "a b"], 2, "error: 'a b' is not a host"),
        (["fly"], 2, "No such command"),
        (["config", "set-timeout", "0"], 2, "error: the timeout is a number of seconds"),
    ],
)
def test_failures_end_in_error_hint_and_status(
    server: VirtualServer, arguments: list[str], status: int, said: str
) -> None:
    done = usb_remote(*arguments, config=server.config)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_anywhere_is_explained(nobody: Path) -> None:
    done = usb_remote("list", config=nobody)
    assert done.returncode == 3
    assert "error: no usb-remote server found" in done.stderr
    assert "hint: start one with: usb-remote server" in done.stderr


def test_a_broken_configuration_is_an_error_with_file_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text("servers: []\ncolour: red\n")
    done = usb_remote("list", config=path)
    assert done.returncode == 2
    assert f"error: {path}:2: colour: unknown key" in done.stderr
    assert "hint: known keys: servers" in done.stderr


def test_attach_says_what_this_machine_lacks(server: VirtualServer) -> None:
    """Where it lacks anything; the kernel tests show what happens where it does not."""
    done = usb_remote("attach", "VIRTUAL0001", config=server.config)
    if Path("/sys/devices/platform/vhci_hcd.0").exists():
        pytest.skip("this machine could really attach it")
    assert done.returncode == 5
    assert "hint: " in done.stderr
    listed = usb_remote("list", config=server.config).stdout
    assert "in use" not in listed


def test_ports_of_a_machine_without_any() -> None:
    if Path("/sys/devices/platform/vhci_hcd.0").exists():
        pytest.skip("this machine may have some")
    done = usb_remote("ports")
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(usb_remote("ports", "--json").stdout) == {"schema": 1, "ports": []}


def test_watch_prints_one_object_per_change(server: VirtualServer) -> None:
    with subprocess.Popen(
        [*COMMAND, "--config", str(server.config), "watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        assert watching.stdout
        assert len(json.loads(watching.stdout.readline())["devices"]) == 3
        server.say("pull disk")
        assert [d["bus_id"] for d in json.loads(watching.stdout.readline())["devices"]] == [
            "1-1", "1-3",
        ]  # fmt: skip
        server.say("plug disk")
        assert len(json.loads(watching.stdout.readline())["devices"]) == 3
        server.stop()
        assert json.loads(watching.stdout.readline())["event"] == "lost"
        watching.send_signal(signal.SIGINT)
        rest, said = watching.communicate(timeout=20)
    assert (watching.returncode, rest, said) == (130, "", "")


def test_watch_on_a_terminal_is_a_live_table(server: VirtualServer) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "--config", str(server.config), "watch"],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
    ) as watching:  # fmt: skip
        os.close(theirs)
        seen = ""
        while seen.count("Keyboard") < 2:
            seen += os.read(ours, 65536).decode()
            if seen.count("Keyboard") == 1 and "pulled" not in seen:
                server.say("pull disk")
                seen += "pulled"
        watching.send_signal(signal.SIGINT)
        watching.wait(timeout=20)
    os.close(ours)
    assert "Small disk" in seen.partition("pulled")[0]
    assert "Small disk" not in seen.partition("pulled")[2]


def test_a_server_stops_cleanly_on_sigterm(server: VirtualServer) -> None:
    server.say("pull nothing")
    assert server.stop() == 0
    assert "warning: 'nothing' is none of serial, disk, keyboard" in server.said
    assert "stopping" in server.said
    assert "Traceback" not in server.said


def test_a_taken_control_port_is_named(server: VirtualServer) -> None:
    done = usb_remote(
        "server", "--virtual", "--no-advertise", "--listen", "127.0.0.1",
        "--usbip-port", "0", "--port", str(server.port),
    )  # fmt: skip
    assert done.returncode == 5
    assert f"error: cannot listen on port {server.port}" in done.stderr
    assert "hint: who has it? type: sudo ss -tlnp" in done.stderr


def test_configuration_by_command(tmp_path: Path) -> None:
    path = tmp_path / "new"
    path.write_text("# mine\n")
    assert usb_remote("config", "add-server", "bench3", config=path).returncode == 0
    assert usb_remote("config", "add-server", "bench3", config=path).returncode == 0
    assert usb_remote("config", "set-timeout", "1.5", config=path).returncode == 0
    shown = usb_remote("config", "show", config=path)
    assert 'servers: ["bench3"]\n' in shown.stdout
    assert "timeout: 1.5\n" in shown.stdout
    assert usb_remote("config", "path", config=path).stdout == f"{path}\n"
    assert usb_remote("config", "rm-server", "bench3", config=path).returncode == 0
    assert "# mine" in path.read_text()


def test_a_closed_pipe_is_no_error(server: VirtualServer) -> None:
    command = f"{' '.join(COMMAND)} --config {server.config} list | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_demo_shows_the_main_job_and_cleans_up() -> None:
    done = usb_remote("demo")
    assert done.returncode == 0, done.stderr
    for part in ("found demo at 127.0.0.1", "it is gone", "ms after the plug", "it came back",
                 "'usb-remote virtual disk'", "the client has seen it", "cleaned up"):  # fmt: skip
        assert part in done.stdout
    assert "server --virtual" not in subprocess.run(
        ["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True
    ).stdout.replace(f" {os.getpid()} ", "")
