"""The command line as processes of their own, with configurations that know no other servers.

What belongs here: what starts `usb-remote`, a command or a server, and reads what it says.

Most of them are forks of a process that has the libraries loaded (forkserver.py), which is four
times cheaper. About ten tests start Python itself, as users do: those with :data:`COMMAND`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from tests import forkserver
from tests.patience import patience

COMMAND = [sys.executable, "-m", "usb_remote"]
"""A real start of Python, for what a fork cannot show."""


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test; its pipes are text.

    If the test fails, `with Popen` would wait for it for ever.
    """
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Forked:
    """A `usb-remote` of its own process, with the methods of subprocess.Popen that tests need.

    Args:
        arguments: after the name of the program.
        stdin, stdout, stderr: file descriptors, or subprocess.PIPE; None for those of the tests.
        env, cwd: those of the tests if not given.

    """

    def __init__(
        self,
        *arguments: str,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        order = {"argv": arguments, "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
        with contextlib.ExitStack() as theirs:
            files = [self._file(n, of, theirs) for n, of in enumerate((stdin, stdout, stderr))]
            self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.connect(_fork_server())
            socket.send_fds(self._channel, [json.dumps(order).encode()], files)
        self.pid = self._number()

    def _file(self, number: int, of: int | None, theirs: contextlib.ExitStack) -> int:
        """The child's end; ours, if it is a pipe, becomes an attribute."""
        if of is None:
            return number
        if of == subprocess.DEVNULL:
            null = os.open(os.devnull, os.O_RDWR)
            theirs.callback(os.close, null)
            return null
        if of != subprocess.PIPE:
            return of
        reading, writing = os.pipe()
        theirs.callback(os.close, writing if number else reading)
        if number == 0:
            self.stdin = os.fdopen(writing, "w", encoding="utf-8")
            return reading
        ours = os.fdopen(reading, encoding="utf-8")
        self.stdout, self.stderr = (ours, self.stderr) if number == 1 else (self.stdout, ours)
        return writing

    def _number(self) -> int:
        data = self._channel.recv(forkserver.NUMBER.size)
        assert data, "the fork server has failed"
        return int(forkserver.NUMBER.unpack(data)[0])

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("usb-remote", timeout or 0)
            self.returncode = self._number()
            self._channel.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all that is still said, to the end."""
        if self.stdin and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        said = {1: "", 2: ""}

        def read(number: int, file: IO[str]) -> None:
            with file:
                said[number] = file.read()

        files = [(n, file) for n, file in ((1, self.stdout), (2, self.stderr)) if file]
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in files]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("usb-remote", timeout or 0)
        self.wait(timeout)
        return said[1], said[2]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Unlike subprocess.Popen: it is killed, rather than waited for until it pleases to end."""
        self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            if file:
                with contextlib.suppress(BrokenPipeError):
                    file.close()


@cache
def _fork_server() -> str:
    """Where it listens; it ends with us, for then its standard input does."""
    name = f"\0usb-remote-tests/{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(name)
        listening.listen(64)
        number = listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", str(number), forkserver.ROOM],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[number],
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip
    atexit.register(process.communicate)
    return name


def usb_remote(
    *arguments: str, config: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    options = ["--config", str(config)] if config else []
    return run(*options, *arguments, env={**os.environ, **variables})


def run(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    with Forked(*arguments, stdout=pipe, stderr=pipe, env=env) as process:
        out, err = process.communicate(patience(60))
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


class VirtualServer:
    """`usb-remote server --virtual` on loopback, and a configuration that knows only it.

    Args:
        folder: for its files.
        section: what its own file says of the server.
        prefix: a program that starts Python as this server, in its own way.
        name: what it is called.
        advertise: whether it may announce itself, which is on loopback only.

    """

    def __init__(
        self,
        folder: Path,
        section: str = "{}",
        prefix: Sequence[str] = (),
        *,
        name: str = "bench",
        advertise: bool = False,
    ) -> None:
        options = ["--listen", "127.0.0.1", "--port", "0", "--usbip-port", "0"]
        options += [] if advertise else ["--no-advertise"]
        self.own_config = folder / "of-the-server"
        self.configure(section)
        arguments = ["--config", str(self.own_config), "server", "--virtual", "--name", name]
        pipe = subprocess.PIPE
        self.process = (
            subprocess.Popen(
                [*prefix, *COMMAND, *arguments, *options], stdin=pipe, stderr=pipe, text=True
            )
            if prefix
            else Forked(*arguments, *options, stdin=pipe, stderr=pipe)
        )
        self.said = ""
        ports = self.hear(r"on ports (\d+) \(control\) and (\d+) \(USB/IP\)")
        self.port, self.usbip_port = int(ports[1]), int(ports[2])
        self.name = f"127.0.0.1:{self.port}"
        self.config = folder / "config"
        self.config.write_text(f"discovery: false\nservers: ['127.0.0.1:{self.port}']\n")

    def configure(self, section: str) -> None:
        """Write what its own file says of the server; in force at its start, and after SIGHUP."""
        self.own_config.write_text(f"server: {section}\n")

    def hear(self, pattern: str) -> re.Match[str]:
        """Read what it says until this is there, and forget all up to it."""
        assert self.process.stderr
        while not (found := re.search(pattern, self.said)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.said}"
            self.said += line
        self.said = self.said[found.end() :]
        return found

    def reload(self, section: str) -> None:
        self.configure(section)
        self.process.send_signal(signal.SIGHUP)

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.said += self.process.communicate(timeout=patience(20))[1]
        assert self.process.returncode is not None
        return self.process.returncode


class Shell:
    """Runs commands that know one server, and an agent."""

    def __init__(self, folder: Path, agent: str, *servers: str) -> None:
        self.folder = folder
        file = folder / "config"
        file.write_text(f"discovery: false\ntimeout: 20\nservers: {json.dumps(servers)}\n")
        self.environment = {**os.environ, "USB_REMOTE_CONFIG": str(file), "USB_REMOTE_AGENT": agent}

    async def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """A `usb-remote` with these arguments."""
        env = {**self.environment, **environment}
        done = await asyncio.to_thread(run, *arguments, env=env)
        return done.returncode, done.stdout, done.stderr

    async def python(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """A Python of its own, really started."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env={**self.environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
            status = await process.wait()
        return status, out.decode(), err.decode()

    async def list(self, *options: str, **environment: str) -> tuple[int, str, str]:
        return await self.run("list", *options, **environment)
