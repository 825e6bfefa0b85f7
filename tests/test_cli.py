"""The command line as its users have it: processes, exit statuses, stdout and stderr."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from usbip import protocol as reference

from tests import interrupts
from tests.commands import COMMAND, Forked, VirtualServer, started, usb_remote
from tests.patience import patience


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of a test keeps anything where a real one would."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], VirtualServer]]:
    """Starts servers, and stops them after the test."""
    with contextlib.ExitStack() as stack:

        def start(section: str) -> VirtualServer:
            running = VirtualServer(tmp_path, section)
            stack.callback(lambda: running.process.returncode is None and running.stop())
            return running

        yield start


@pytest.fixture
def server(start: Callable[[str], VirtualServer]) -> VirtualServer:
    return start("{}")


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
        (["fly"], 2, "error: No such command 'fly'\nhint: usb-remote --help\n"),
        (["list", "--fly"], 2, "error: No such option: --fly\nhint: usb-remote list --help\n"),
        (["config", "fly"], 2, "hint: usb-remote config --help\n"),
        (["run"], 2, "hint: usb-remote run --help\n"),
        (["config"], 2, "Usage: usb-remote config"),
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


def test_debug_tells_who_was_asked_and_who_answered(server: VirtualServer, tmp_path: Path) -> None:
    config = tmp_path / "both"
    config.write_text(f"discovery: false\nservers: ['{server.name}', '127.0.0.1:1']\n")
    said = usb_remote("--debug", "find", "1-1", config=config).stderr
    for who in (server.name, "127.0.0.1:1"):
        assert f"asking {who} at 127.0.0.1, TCP port {who.partition(':')[2]}" in said
    assert re.search(rf"{server.name} answers at 127\.0\.0\.1 after \d+\.\d+ s: 3 devices", said)
    assert re.search(r"no answer from 127\.0\.0\.1:1 after \d+\.\d+ s: .*connection refused", said)


def test_no_server_anywhere_is_explained(nobody: Path) -> None:
    done = usb_remote("list", config=nobody)
    assert done.returncode == 3
    assert "error: no usb-remote server found" in done.stderr
    assert "hint: start one with: sudo usb-remote server" in done.stderr


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
    pipe = subprocess.PIPE
    with Forked("--config", str(server.config), "watch", stdout=pipe, stderr=pipe) as watching:
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
        rest, said = watching.communicate(patience(20))
    assert (watching.returncode, rest, said) == (130, "", "")


def test_watch_says_that_there_is_nobody_to_watch(nobody: Path) -> None:
    code = (
        "import sys, pathlib; from usb_remote import config_file\n"
        "from usb_remote.cli import watching\n"
        "config = config_file.load(pathlib.Path(sys.argv[1]))\n"
        "watching.watch(config, None, None, as_json=True, silence=0.1)"
    )
    command = [sys.executable, "-c", code, str(nobody)]
    with started(command, stderr=subprocess.PIPE) as watching:
        assert watching.stderr
        assert watching.stderr.readline() == "no usb-remote server yet; waiting for one\n"


IGNORING = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"]
"""Starts a program as a shell without job control does with `&`: Ctrl-C is for others."""


def test_watch_that_is_told_to_ignore_ctrl_c_does_so_and_ends_on_sigterm(
    server: VirtualServer,
) -> None:
    command = [*IGNORING, *COMMAND, "--config", str(server.config), "watch"]
    with started(command, stdout=subprocess.PIPE) as watching:
        assert watching.stdout
        assert len(json.loads(watching.stdout.readline())["devices"]) == 3
        watching.send_signal(signal.SIGINT)
        server.say("pull disk")
        assert len(json.loads(watching.stdout.readline())["devices"]) == 2
        watching.terminate()
        assert watching.wait(patience(20)) == -signal.SIGTERM


def test_a_server_that_is_told_to_ignore_ctrl_c_does_so_and_ends_on_sigterm(
    tmp_path: Path,
) -> None:
    server = VirtualServer(tmp_path, prefix=IGNORING)
    server.process.send_signal(signal.SIGINT)
    server.reload("{}")
    server.hear("the configuration was loaded again")
    assert server.stop() == 0


def test_programs_of_tests_heed_signals_even_if_the_tests_ignore_them() -> None:
    code = (
        "import os; from tests import interrupts; interrupts.give_to_programs()\n"
        "os.execvp('grep', ['grep', 'SigIgn', '/proc/self/status'])"
    )
    with started([*IGNORING, sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        said = process.communicate(timeout=patience(20))[0]
    ignored = int(said.split()[1], 16)
    assert not [number for number in interrupts.NUMBERS if ignored & 1 << (number - 1)]


def test_watch_on_a_terminal_is_a_live_table(server: VirtualServer) -> None:
    ours, theirs = pty.openpty()
    with Forked(
        "--config", str(server.config), "watch", stdin=theirs, stdout=theirs, stderr=theirs,
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
        watching.wait(patience(20))
    os.close(ours)
    assert "Small disk" in seen.partition("pulled")[0]
    assert "Small disk" not in seen.partition("pulled")[2]


def test_a_server_stops_cleanly_on_sigterm(server: VirtualServer) -> None:
    server.say("pull nothing")
    assert server.stop() == 0
    assert "warning: 'nothing' is none of serial, disk, keyboard" in server.said
    assert "stopping" in server.said
    assert "Traceback" not in server.said


def on_terminal(*arguments: str) -> tuple[int, int]:
    """Start it as somebody at a terminal does; its process, and what it writes."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(COMMAND[0], [*COMMAND, *arguments])
    return child, terminal


def read_until(terminal: int, word: str) -> str:
    """What is on the terminal up to there, or until the program ends."""
    said = b""
    with contextlib.suppress(OSError):  # it has ended (EIO)
        while word.encode() not in said:
            said += os.read(terminal, 4096)
    return said.decode().replace("\r\n", "\n")


def test_what_comes_next_is_said_on_a_terminal_only(server: VirtualServer) -> None:
    child, terminal = on_terminal("--config", str(server.config), "list")
    said = read_until(terminal, "never")
    os.close(terminal)
    os.waitpid(child, 0)
    command = rf"sudo usb-remote attach '?{re.escape(server.name)}/1-1'?"
    assert re.search(rf"Keyboard\nnext: {command}\n$", said), said
    quiet = usb_remote("list", config=server.config)
    assert quiet.stderr == ""


@pytest.mark.parametrize("name", ["a/b", "\x1b"])
def test_a_name_that_no_handle_can_have_is_refused(name: str) -> None:
    done = usb_remote("server", "--virtual", "--no-advertise", "--name", name)
    assert (done.returncode, done.stderr.count("\n")) == (2, 2)
    assert "cannot be the name of a server" in done.stderr


def test_a_server_that_may_open_few_files_goes_on_answering(tmp_path: Path) -> None:
    few = ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash"]
    server = VirtualServer(tmp_path, prefix=few)
    with contextlib.ExitStack() as stack:
        for port in [server.port] * 300 + [server.usbip_port]:
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        assert bus_ids(server) == ["1-1", "1-2", "1-3"]
        with session(server):
            server.hear("attached by 127.0.0.1")
    assert server.stop() == 0
    assert "Traceback" not in server.said


def test_a_server_ends_when_its_terminal_is_closed() -> None:
    options = ["--listen", "127.0.0.1", "--port", "0", "--usbip-port", "0", "--no-advertise"]
    child, terminal = on_terminal("server", "--virtual", "--name", "my pi", *options)
    said = read_until(terminal, "Ctrl-C")
    assert re.search(r"\n  1-3 .* available .*Keyboard\nnext, where you want them: ", said)
    assert "sudo usb-remote attach 'my pi/1-1' (this runs until" in said
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("taken", ["port", "usbip_port"])
def test_a_taken_port_is_named_and_so_is_the_server_that_has_it(
    server: VirtualServer, taken: str
) -> None:
    ports = {"port": 0, "usbip_port": 0, taken: getattr(server, taken)}
    done = usb_remote(
        "server", "--virtual", "--no-advertise", "--listen", "127.0.0.1",
        "--usbip-port", str(ports["usbip_port"]), "--port", str(ports["port"]),
    )  # fmt: skip
    assert done.returncode == 5
    assert f"port {ports[taken]} of 127.0.0.1: Address already in use by usb-remote" in done.stderr
    assert f"hint: type: sudo kill {server.process.pid}\n" in done.stderr


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


def test_the_path_of_the_configuration_as_json(nobody: Path) -> None:
    shown = json.loads(usb_remote("config", "path", "--json", config=nobody).stdout)
    assert shown["path"] == str(nobody)
    assert "/etc/usb-remote/usb-remote.config" in shown["candidates"]


def test_a_missing_configuration_is_made_by_what_the_hint_says(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    done = usb_remote("list", config=path)
    assert done.returncode == 2
    assert f"hint: usb-remote --config {path} config add-server HOST makes it" in done.stderr
    usb_remote("config", "add-server", "pi", config=path)
    assert path.exists()


@pytest.mark.parametrize("arguments", ["list", "list --json", "info", "--version"])
def test_a_full_disk_is_an_error_with_a_hint(server: VirtualServer, arguments: str) -> None:
    words = ["--config", str(server.config), *arguments.split()]
    full = os.open("/dev/full", os.O_WRONLY)
    with Forked(*words, stdout=full, stderr=subprocess.PIPE) as process:
        os.close(full)
        _, said = process.communicate(patience(20))
    assert (process.returncode, said.partition(":")[0]) == (5, "error")
    assert "No space left on device\nhint: " in said
    assert "Traceback" not in said


def test_a_closed_pipe_is_no_error(server: VirtualServer) -> None:
    command = f"{shlex.join(COMMAND)} --config {server.config} list | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_demo_shows_the_main_job_and_cleans_up() -> None:
    mark = uuid.uuid4().hex
    done = usb_remote("demo", USB_REMOTE_MARK=mark)
    assert done.returncode == 0, done.stderr
    for part in ("found demo at 127.0.0.1", "it is gone", "ms after the plug", "it came back",
                 "'usb-remote virtual disk'", "the client has seen it", "cleaned up"):  # fmt: skip
        assert part in done.stdout
    assert not [p for p in Path("/proc").iterdir() if mark.encode() in _environment(p)]


ALONE = ["unshare", "--map-root-user", "--net"]
WITH_THE_PORT_OF_MDNS_TAKEN = """
import socket, subprocess, sys
taken = socket.socket(type=socket.SOCK_DGRAM)
taken.bind(("", 5353))
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
DEMO = """
import sys
from usb_remote import errors
from usb_remote.cli import demo, output
try:
    demo.run(discovery_limit=0.5)
except errors.UsbRemoteError as error:
    output.report(error)
    sys.exit(error.exit_status)
"""


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("true", ["no network interface to ask on\nhint: is the loopback interface up?"]),
        (
            "ip link set lo up",
            ["nothing heard for 0.5 s\nhint: who has its port?",
             "the server: warning: not announced by mDNS: "],
        ),
    ],
)  # fmt: skip
def test_the_demo_says_why_mdns_does_not_work(network: str, said: list[str]) -> None:
    """Without a loopback interface, and where another program has the port for itself."""
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces (unshare)")
    words = [sys.executable, "-c", WITH_THE_PORT_OF_MDNS_TAKEN, sys.executable, "-c", DEMO]
    script = f"{network}; exec {shlex.join(words)}"
    with started(
        [*ALONE, "bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        _, errors = process.communicate(timeout=patience(50))
    assert process.returncode == 5
    assert "error: mDNS does not work on this machine" in errors
    assert [part for part in said if part not in errors] == []


def _environment(process: Path) -> bytes:
    """Of a process, empty if it is none (any more) or not ours."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


# -- sharing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def session(server: VirtualServer, bus_id: str = "1-1") -> Iterator[socket.socket]:
    """A stock client has the device."""
    with socket.create_connection(("127.0.0.1", server.usbip_port), 10) as connection:
        reference.client_import(connection, bus_id.encode())
        yield connection


def ask(server: VirtualServer, command: str) -> Any:
    """What the server itself says, without the start of a program."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(json.dumps({"v": 1, "command": command}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            return json.loads(lines.readline())["data"]


def bus_ids(server: VirtualServer) -> list[str]:
    return [device["bus_id"] for device in ask(server, "list")]


def history(server: VirtualServer) -> list[tuple[str, str | None]]:
    return [(event["kind"], event["cause"]) for event in ask(server, "history")]


def test_sighup_loads_the_configuration_again(server: VirtualServer) -> None:
    server.reload("{share: [{deny: {bus: 1-2}}], names: {scope: {port: 1-1}}}")
    server.hear("the configuration was loaded again")
    assert bus_ids(server) == ["1-1", "1-3"]
    assert [device["name"] for device in ask(server, "list")] == ["scope", None]
    assert history(server) == [], "what a rule hides was not unplugged"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("[", r":2: broken YAML"),
        ("{colour: red}", r":1: server.colour: unknown key\nhint: known keys: listen"),
        ("{names: {scope: {serial: 2026-13-45}}}", r":1: broken YAML: '2026-13-45' is no value"),
    ],
)
def test_a_broken_new_file_is_reported_and_the_old_one_stays_in_force(
    start: Callable[[str], VirtualServer], broken: str, said: str
) -> None:
    server = start("{share: [{deny: {bus: 1-2}}]}")
    server.reload(broken)
    server.hear(f"error: the configuration stays as it was: {server.own_config}{said}")
    assert bus_ids(server) == ["1-1", "1-3"]
    server.reload("{}")
    server.hear("the configuration was loaded again")
    assert bus_ids(server) == ["1-1", "1-2", "1-3"]


def test_many_names_are_loaded_while_others_are_answered(server: VirtualServer) -> None:
    """2000 take as long as 200 answers; how many there may be is for test_sharing."""
    names = "".join(f"n{i}: {{serial: S{i}}}, " for i in range(2000))
    server.reload(f"{{names: {{{names} scope: {{port: 1-1}}}}}}")
    answers = 0
    until = time.monotonic() + patience(60)
    while all(device["name"] is None for device in ask(server, "list")):
        assert time.monotonic() < until
        answers += 1
    assert answers > 5, "and not one before, one after"
    server.hear("the configuration was loaded again")


def test_a_new_file_that_is_gone_leaves_the_old_one_in_force(server: VirtualServer) -> None:
    server.own_config.unlink()
    server.process.send_signal(signal.SIGHUP)
    server.hear("error: the configuration stays as it was: .* does not exist")
    assert len(bus_ids(server)) == 3


def test_a_session_that_a_new_rule_forbids_ends(server: VirtualServer) -> None:
    with session(server) as connection:
        server.reload("{share: [{deny: all}]}")
        assert connection.recv(1) == b""
        server.hear("the configuration was loaded again")
    assert history(server) == [("attached", None), ("ended", "forbidden")]


def test_new_networks_close_what_they_do_not_allow(server: VirtualServer) -> None:
    with session(server) as connection:
        server.reload("{allow_from: [192.0.2.0/24]}")
        assert connection.recv(1) == b""
    server.hear("the configuration was loaded again")
    assert usb_remote("list", config=server.config).returncode == 6
    server.reload("{allow_from: [127.0.0.0/8]}")
    server.hear("the configuration was loaded again")
    assert history(server)[-1] == ("ended", "forbidden")


def test_what_takes_a_restart_is_said(server: VirtualServer) -> None:
    server.reload("{state_dir: /elsewhere, takeover: deny}")
    server.hear(r"warning: server\.state_dir: that takes a restart")


def test_a_device_is_named_found_by_its_name_and_unnamed(server: VirtualServer) -> None:
    named = usb_remote("name", "VIRTUAL0002", "scope", config=server.config)
    assert (named.returncode, named.stdout) == (0, f"named: {server.name}/1-2 is scope\n")
    assert "scope" in usb_remote("list", config=server.config).stdout
    removed = usb_remote("name", "scope", "--remove", config=server.config)
    assert (removed.returncode, removed.stdout.partition(":")[0]) == (0, "no name any more")
    assert [device["name"] for device in ask(server, "list")] == [None] * 3


def test_failures_of_people_who_share(start: Callable[[str], VirtualServer]) -> None:
    server = start("{names: {taken: {port: 1-2}}}")
    for arguments, status, said in (
        (["name", "1-1"], 2, "error: either NAME or --remove"),
        (["name", "1-1", "x", "--remove"], 2, "error: either NAME or --remove"),
        (["name", "1-1", "a\x1b[31m"], 2, "error: 'a [31m' is not a name"),
        (["name", "1-1", "taken"], 4, "error: taken is the name of 1209:0002:VIRTUAL0002\nhint: "),
        (["release", "nothing"], 3, "error: no device matches nothing"),
    ):
        done = usb_remote(*arguments, config=server.config)
        assert (done.returncode, done.stdout) == (status, "")
        assert said in done.stderr
        assert "\x1b" not in done.stderr
        assert "Traceback" not in done.stderr


def test_names_and_history_survive_a_restart(
    start: Callable[[str], VirtualServer], tmp_path: Path
) -> None:
    section = f"{{state_dir: '{tmp_path}/kept'}}"
    server = start(section)
    usb_remote("name", "1-1", "scope", config=server.config)
    with session(server):
        server.stop()
    again = start(section)
    assert history(again) == [("attached", None), ("ended", "server_stopped")]
    assert ask(again, "list")[0]["name"] == "scope"


def test_a_killed_server_knows_afterwards_that_its_sessions_have_ended(
    start: Callable[[str], VirtualServer], tmp_path: Path
) -> None:
    section = f"{{state_dir: '{tmp_path}/kept'}}"
    server = start(section)
    with session(server):
        server.hear("attached by 127.0.0.1")
        server.process.kill()
        server.process.communicate(timeout=patience(20))
    again = start(section)
    assert history(again) == [("attached", None), ("ended", "server_stopped")]


def test_a_broken_state_file_is_a_warning_and_kept(
    start: Callable[[str], VirtualServer], tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/names.jsonl").write_text('{"name": "scope", "port": "1-1"}\n{"na')
    server = start(f"{{state_dir: '{tmp_path}/kept'}}")
    assert (tmp_path / "kept/names.jsonl.broken-1").exists()
    assert ask(server, "list")[0]["name"] == "scope"
    assert server.stop() == 0


def test_history_is_for_people_newest_last(server: VirtualServer) -> None:
    empty = usb_remote("history", config=server.config)
    assert (empty.returncode, empty.stdout) == (0, "")
    assert empty.stderr == "nothing has happened yet\n"
    with session(server):
        server.hear("attached by 127.0.0.1")
    server.hear("is free again")
    lines = usb_remote("history", "VIRTUAL0001", config=server.config).stdout.splitlines()
    date = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  {server.name}/1-1  1209:0001:VIRTUAL0001 "
    assert len(lines) == 2
    assert re.fullmatch(date + "attached by 127.0.0.1", lines[0])
    assert re.fullmatch(date + "ended with 127.0.0.1 after .*: detached", lines[1])
    other = usb_remote("history", "1-2", config=server.config)
    assert (other.stdout, other.stderr) == ("", "nothing is known of 1-2\n")
    named = usb_remote("history", f"{server.name}/1-1", config=server.config)
    assert named.stdout.splitlines() == lines
    wrong = usb_remote("history", "nobody/1-1", config=server.config)
    assert (wrong.returncode, wrong.stdout) == (6, "")


def test_release_asks_the_holder_and_its_list_shows_it(server: VirtualServer) -> None:
    nobody = usb_remote("release", "1-1", config=server.config)
    assert (nobody.returncode, nobody.stdout) == (
        0, f"nobody has it: {server.name}/1-1 usb-remote Echo serial port\n",
    )  # fmt: skip
    with session(server):
        asked = usb_remote("release", "1-1", "--message", "please\x1b[2J", config=server.config)
        assert (
            asked.stdout
            == f"asked 127.0.0.1 to release {server.name}/1-1 usb-remote Echo serial port\n"
        )
        listed = usb_remote("list", config=server.config).stdout
    assert re.search(r"in use by 127\.0\.0\.1 since .*, wanted by .*: please \[2J", listed)
    assert "\x1b" not in listed


def test_a_command_is_run_for_each_event(
    start: Callable[[str], VirtualServer], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    script = f"echo $USB_REMOTE_SERVER $USB_REMOTE_EVENT $USB_REMOTE_BUS_ID >> {told}"
    server = start(f"{{on_event: [sh, -c, '{script}']}}")
    with session(server):
        server.hear("attached by 127.0.0.1")
    server.hear("is free again")
    server.stop()
    assert sorted(told.read_text().splitlines()) == ["bench attached 1-1", "bench ended 1-1"]


def test_a_mistake_about_sharing_keeps_a_server_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text("server:\n  names:\n    a: {port: 1-1}\n    A: {port: 1-2}\n")
    done = usb_remote("server", "--virtual", "--no-advertise", config=path)
    assert done.returncode == 2
    assert f"error: {path}:4: server.names.A: the name is there twice" in done.stderr
