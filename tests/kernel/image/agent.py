#!/usr/bin/python3
"""Runs in the guest: does what arrives on a virtio-serial port, one JSON object a line.

{"op": "run", "id", "cmd", "env", "user", "timeout", "stdin"} -> {"id", "rc", "out", "err", "time"}
{"op": "start", "id", "cmd", "env", "user"} -> {"id", "stream": "out", "line"} ... {"id", "rc"}
{"op": "signal", "id", "target", "number"} -> {"id", "rc": 0}
{"op": "put", "id", "path", "b64", "mode"}, {"op": "untar", "id", "path", "b64"} -> {"id", "rc": 0}
{"op": "ask", "id", "port" or "path", "line"} -> {"id", "rc": 0, "answer": its first line back}
{"op": "read", "id", "glob"} -> {"id", "rc": 0, "text": of all files that match}
{"op": "become", "id", "name", "ip", "mac", and what is fresh: see there} -> {"id", "rc": 0}
{"op": "warm", "id"} -> {"id", "rc": 0}: from now on `usb-remote` starts by forkserver.py
A failure in here answers {"id", "rc": "agent-error", "err"}. At the start: {"id": 0, "rc": 0}.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import io
import json
import os
import pwd
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

RNDRESEEDCRNG = 0x5207
MS_BIND = 0x1000
LIBC = ctypes.CDLL(None, use_errno=True)
FORK_SERVER = "/sbin/labforkserver"
PROGRAM = Path("/opt/usb-remote/usb_remote")
PLAIN = re.compile(r"(?:exec )?usb-remote(?: [^|&;<>()$`\\*?\[\]{}~#!\n]*)?")
"""A command of ours that a shell would do nothing to but split it into words."""


def main() -> None:
    for number in (signal.SIGINT, signal.SIGQUIT):  # a shell's background jobs ignore them
        signal.signal(number, signal.SIG_DFL)
    Agent(os.open(find_port(), os.O_RDWR)).serve()


def find_port() -> Path:
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == "lab.agent":
            return Path("/dev", name.parent.name)
    raise SystemExit("no lab.agent port")


class Agent:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sending = threading.Lock()
        self.started: dict[int, Process] = {}
        self.starting = threading.Condition()
        self.fork_server: ForkServer | None = None

    def serve(self) -> None:
        self.send(id=0, rc=0)
        rest = b""
        while True:
            data = os.read(self.fd, 1 << 20)
            if not data:  # nobody on the host's side
                time.sleep(0.05)
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                threading.Thread(target=self.handle, args=(line,), daemon=True).start()

    def send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self.sending:
            while data:
                data = data[os.write(self.fd, data) :]

    def handle(self, line: bytes) -> None:
        request = json.loads(line)
        ident, op = request.pop("id"), request.pop("op")
        try:
            self.send(id=ident, **(getattr(self, "do_" + op)(ident, **request) or {"rc": 0}))
        except Exception as error:
            self.send(id=ident, rc="agent-error", err=repr(error))

    def do_run(
        self, ident: int, cmd: str, timeout: float, stdin: str, **who: Any
    ) -> dict[str, Any]:
        """Run it with files, not pipes: a background child that keeps one open delays nothing."""
        start = time.monotonic()
        temporary = tempfile.TemporaryFile
        with temporary() as given, temporary() as out, temporary() as err:
            given.write(stdin.encode())
            given.seek(0)
            process = self.spawn(cmd, given.fileno(), out.fileno(), err.fileno(), **who)
            rc = wait(process, timeout)
            taken = time.monotonic() - start
            return {"rc": rc, "out": content(out), "err": content(err), "time": taken}

    def do_start(self, ident: int, cmd: str, **who: Any) -> dict[str, Any]:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        with Path(os.devnull).open() as nothing:
            process = self.spawn(cmd, nothing.fileno(), out_end, err_end, **who)
        with self.starting:
            self.started[ident] = process
            self.starting.notify_all()
        for end in (out_end, err_end):
            os.close(end)
        streams = {"out": os.fdopen(out, "rb"), "err": os.fdopen(err, "rb")}
        threads = [threading.Thread(target=self.stream, args=(ident, *s)) for s in streams.items()]
        for thread in threads:
            thread.start()
        rc = process.wait()
        for thread in threads:
            thread.join(1)  # a child of its own may keep a pipe open
        return {"rc": rc}

    def spawn(
        self, cmd: str, stdin: int, stdout: int, stderr: int, env: dict[str, str], user: str
    ) -> Process:
        """Run a shell command as somebody, at home, in a process group of its own."""
        who = pwd.getpwnam(user)
        env = {**os.environ, "HOME": who.pw_dir, "USER": who.pw_name, **env}
        if self.fork_server and PLAIN.fullmatch(cmd) and PROGRAM.exists():
            argv = shlex.split(cmd.removeprefix("exec "))[1:]
            order = {"argv": argv, "uid": who.pw_uid, "gid": who.pw_gid}
            return self.fork_server.start([stdin, stdout, stderr], env=env, cwd=who.pw_dir, **order)
        return subprocess.Popen(
            ["/bin/sh", "-c", cmd],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            user=who.pw_uid,
            group=who.pw_gid,
            extra_groups=[],
            env=env,
            cwd=who.pw_dir,
        )

    def stream(self, ident: int, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self.send(id=ident, stream=name, line=line.decode("utf8", "replace").rstrip("\n"))

    def do_signal(self, ident: int, target: int, number: int) -> None:
        with self.starting:  # the order to start it may have come just now
            self.starting.wait_for(lambda: target in self.started, 30)
            process = self.started[target]
        if process.returncode is None:
            os.killpg(process.pid, number)

    def do_warm(self, ident: int) -> None:
        self.fork_server = ForkServer()

    def do_put(self, ident: int, path: str, b64: str, mode: int) -> None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(b64))
        file.chmod(mode)

    def do_untar(self, ident: int, path: str, b64: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(b64))) as archive:
            archive.extractall(path)

    def do_ask(
        self, ident: int, line: str, port: int | None = None, path: str | None = None
    ) -> dict[str, Any]:
        """Ask a socket of this machine: to start a Python for that would cost 0.2 s."""
        family, place = (socket.AF_UNIX, path) if path else (socket.AF_INET, ("127.0.0.1", port))
        with socket.socket(family) as connection, connection.makefile("rwb") as stream:
            connection.connect(place)
            stream.write(line.encode() + b"\n")
            stream.flush()
            return {"rc": 0, "answer": stream.readline().decode()}

    def do_read(self, ident: int, glob: str) -> dict[str, Any]:
        files = sorted(Path("/").glob(glob.lstrip("/")))
        return {"rc": 0, "text": "".join(file.read_text() for file in files)}

    def do_become(self, ident: int, name: str, ip: str, mac: str, **fresh: Any) -> None:
        """After a restore: one snapshot serves every machine, so tell this one who it is."""
        time.clock_settime(time.CLOCK_REALTIME, fresh["time"])
        reseed(base64.b64decode(fresh["seed"]))
        socket.sethostname(name)
        Path("/etc/hostname").write_text(f"{name}\n")
        Path("/etc/hosts").write_text(f"127.0.0.1 localhost {name}\n::1 localhost\n")
        Path("/etc/machine-id").write_text(f"{fresh['machine_id']}\n")
        replace_boot_id(fresh["boot_id"])
        set_address(ip, mac)


class ForkServer:
    """Our end of forkserver.py."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asking = threading.Lock()
        self.begun: queue.Queue[Forked] = queue.Queue()
        room = " " * 500  # for the command lines of those to come
        command = [sys.executable, FORK_SERVER, str(theirs.fileno()), room]
        with theirs:
            subprocess.Popen(command, pass_fds=[theirs.fileno()])
        threading.Thread(target=self.listen, daemon=True).start()
        self.begun.get(timeout=60)

    def listen(self) -> None:
        running: dict[int, Forked] = {}
        while data := self.channel.recv(1 << 16):
            message = json.loads(data)
            if "rc" in message:
                running.pop(message["pid"]).end(message["rc"])
            else:
                process = running[message["pid"]] = Forked(message["pid"])
                self.begun.put(process)

    def start(self, files: list[int], **order: Any) -> Forked:
        with self.asking:
            socket.send_fds(self.channel, [json.dumps(order).encode()], files)
            return self.begun.get(timeout=60)


class Forked:
    """A process of the fork server's, as subprocess.Popen has them."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def end(self, rc: int) -> None:
        self.returncode = rc
        self.ended.set()

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired("usb-remote", timeout or 0)
        return self.returncode


Process = subprocess.Popen[bytes] | Forked


def wait(process: Process, timeout: float) -> int | str:
    """Return the exit status; kill what takes too long, and give up on what cannot be killed."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        threading.Thread(target=process.wait, daemon=True).start()
        return "timeout"


def content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf8", "replace")


def reseed(seed: bytes) -> None:
    """Without this, machines restored from the same snapshot draw the same random numbers."""
    with Path("/dev/random").open("wb", buffering=0) as file:
        file.write(seed)
        fcntl.ioctl(file, RNDRESEEDCRNG)


def replace_boot_id(boot_id: str) -> None:
    """Have a new one after each restore; it was drawn before the snapshot."""
    file = Path("/run/boot_id")
    file.write_text(f"{boot_id}\n")
    place = b"/proc/sys/kernel/random/boot_id"
    if LIBC.mount(bytes(file), place, None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "cannot replace boot_id")


def set_address(ip: str, mac: str) -> None:
    """Send multicast out of eth0, as there is no default route. It may have had another address."""
    batch = f"""link set eth0 address {mac}
addr flush dev eth0
addr add {ip}/24 dev eth0
link set eth0 up
route replace 224.0.0.0/4 dev eth0
"""
    subprocess.run(["ip", "-batch", "-"], input=batch.encode(), check=True, capture_output=True)


if __name__ == "__main__":
    main()
