"""The machinery below the lab: namespaces held by a process, and processes that run in them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from tests.patience import patience

KINDS = ("--net", "--uts", "--mount")

# How a holder lives after its own script, and how it ends: with everything in its namespaces, also
# children of children. It asks no other program, which would itself be one of them.
HOLD = """
echo ready
cat
left=yes
while test "$left"; do
    left=
    for process in /proc/[0-9]*; do
        if test "$process" != /proc/$$ && test "$process/ns/net" -ef /proc/$$/ns/net; then
            left=yes
            kill -9 "${process#/proc/}" || true
        fi
    done
done
"""

Argv = Sequence[str | os.PathLike[str]]


class Namespaces:
    """A network, a UTS and a mount namespace without names, as old as their holder process.

    The holder runs a script in them and waits for its standard input to close: so they also go when
    the test process is killed.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        enter = ["unshare", *KINDS, "--propagation", "private"]
        self._holder = subprocess.Popen(
            [*enter, "sh", "-ec", script + HOLD, "sh", *arguments],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the test, which then closes this
        )

    def __enter__(self) -> Self:
        assert self._holder.stdout
        if (said := self._holder.stdout.readline()) != "ready\n":
            said += self._holder.stdout.read()
            self.close()
            raise RuntimeError(f"cannot make namespaces: {said.strip()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End whatever runs inside; then the namespaces are gone."""
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.stdin.close()
        self._holder.wait(patience(60))
        self._holder.stdout.close()

    @property
    def pid(self) -> int:
        """The holder, by which `ip link … netns` and nsenter find the namespaces."""
        return self._holder.pid

    def command(self, argv: Argv) -> list[str]:
        """The command that does the same inside, in the current directory, as one process."""
        enter = ["nsenter", f"--target={self.pid}", *KINDS, f"--wdns={Path.cwd()}"]
        return [*enter, *(os.fspath(word) for word in argv)]

    def run(
        self,
        argv: Argv,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; a failure carries what it wrote to stderr."""
        done = subprocess.run(
            self.command(argv),
            env=environment(env),
            input=stdin,
            timeout=timeout or patience(120),
            capture_output=True,
            text=True,
        )
        try:
            if check:
                done.check_returncode()
        except subprocess.CalledProcessError as error:
            error.add_note(done.stderr)
            raise
        return done

    def ip(self, *commands: str) -> None:
        """Change the network inside by commands of ip(8)."""
        self.run(["ip", "-batch", "-"], stdin="\n".join(commands))


class Process:
    """A command that goes on while the test does other things."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None, *, stdin: bool = False
    ) -> None:
        self._popen = subprocess.Popen(
            argv,
            env=environment(env),
            text=True,
            errors="replace",
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._popen.stdout
        assert self._popen.stderr
        self._lines: list[tuple[str, str]] = []
        self._searched = 0
        self._streams = {"stdout": self._popen.stdout, "stderr": self._popen.stderr}
        self._open = len(self._streams)
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=item, daemon=True)
            for item in self._streams.items()
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Its process id, the same for the host and for the test."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status (minus the signal that ended it), None while it runs."""
        return self._popen.poll()

    def lines(self, stream: Literal["stdout", "stderr", "both"] = "both") -> list[str]:
        """What it wrote so far."""
        with self._changed:
            return [line for name, line in self._lines if stream in (name, "both")]

    def wait_for(self, regex: str, timeout: float | None = None) -> re.Match[str]:
        """The next line that matches, after the one that the last call returned."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._find(regex) or not self._open, timeout or patience(60)
            )
            if found := self._find(regex):
                self._searched, match = found
                return match
        raise AssertionError(f"no line matches {regex!r} in\n{self._transcript()}")

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, when it ends by itself; then lines() is complete."""
        try:
            status = self._popen.wait(timeout or patience(60))
        except subprocess.TimeoutExpired as error:
            error.add_note(self._transcript())
            raise
        for reader in self._readers:
            reader.join(patience(1))  # a child of it that lives on may keep the pipe open
        return status

    def write(self, line: str) -> None:
        """Type a line, if it was started with ``stdin``."""
        assert self._popen.stdin
        self._popen.stdin.write(f"{line}\n")
        self._popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def stop(self, timeout: float | None = None) -> int:
        """SIGTERM, then its exit status; SIGKILL only if it does not end."""
        self._popen.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self.wait()

    def close(self) -> None:
        """Let go of its pipes, when nobody writes to them any more."""
        if self._popen.stdin:
            self._popen.stdin.close()
        for reader, stream in zip(self._readers, self._streams.values(), strict=True):
            reader.join()
            stream.close()

    def _find(self, regex: str) -> tuple[int, re.Match[str]] | None:
        for index, (_, line) in enumerate(self._lines[self._searched :], self._searched + 1):
            if match := re.search(regex, line):
                return index, match
        return None

    def _transcript(self) -> str:
        return "\n".join([f"$ {self._popen.args!r}", *self.lines()])

    def _read(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self._lines.append((name, line.rstrip("\n")))
                self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Our own environment and more, with Python's output unbuffered."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **(extra or {})}
