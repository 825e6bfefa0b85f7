"""The host's end of image/agent.py: commands, background programs and files in a guest."""

import base64
import itertools
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.kernel.channel import Channel, Message
from tests.patience import patience

T = TypeVar("T")
COMMAND_SECONDS = 120
"""What a command may take where everything is emulated: 1 to 8 s, on a busy machine 30."""


class GuestError(Exception):
    """A command failed in a guest, or the guest is gone."""


@dataclass(frozen=True)
class Result:
    """What a command left behind; `rc` is "timeout" if it took too long."""

    cmd: str
    rc: int | str
    out: str
    err: str
    time: float

    def ok(self) -> Self:
        """Insist on exit status 0."""
        if self.rc != 0:
            raise GuestError(f"{self.cmd}: exit status {self.rc}\n{self.out}{self.err}")
        return self


class Running:
    """A program that runs in a guest; its lines arrive as it prints them."""

    def __init__(self, guest: "Guest", ident: int, cmd: str) -> None:
        self._guest, self._ident, self._cmd = guest, ident, cmd
        self._news = threading.Condition()
        self._lines: list[tuple[str, str]] = []
        self._looked_at = 0
        self.rc: int | str | None = None

    @property
    def output(self) -> str:
        """Standard output up to now."""
        return self._text("out")

    @property
    def errors(self) -> str:
        """Standard error up to now."""
        return self._text("err")

    def lines(self, timeout: float | None = None) -> Iterator[str]:
        """Yield the lines of standard output, from the first on, until the program ends."""
        for number in itertools.count():
            self._wait(partial(self._reaches, number), timeout)
            if number >= len(self._lines):
                return
            stream, line = self._lines[number]
            if stream == "out":
                yield line

    def wait_for(self, pattern: str, timeout: float | None = None) -> re.Match[str]:
        """Find the next matching line of either stream; what it passes is not looked at again."""
        found = self._wait(lambda: self._find(pattern) or self.rc is not None, timeout, pattern)
        if isinstance(found, re.Match):
            return found
        raise GuestError(self._tell(f"ended ({self.rc}) without {pattern!r}"))

    def wait(self, timeout: float | None = None) -> int | str:
        """Return the exit status once it has ended."""
        self._wait(lambda: self.rc is not None, timeout)
        assert self.rc is not None
        return self.rc

    def send_signal(self, number: int) -> None:
        """Send a signal to its process group."""
        self._guest.call("signal", target=self._ident, number=number)

    def stop(self, number: int = signal.SIGTERM, timeout: float | None = None) -> int | str:
        """Send a signal and return the exit status; kill what does not end in time, and raise."""
        self.send_signal(number)
        try:
            return self.wait(timeout)
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            raise

    def receive(self, message: Message) -> None:
        """Take a message of the agent's about it."""
        with self._news:
            if "line" in message:
                self._lines.append((message["stream"], message["line"]))
            else:
                self.rc = message["rc"]
                self._lines += [("err", line) for line in message.get("err", "").splitlines()]
            self._news.notify_all()

    def _wait(self, condition: Callable[[], T], timeout: float | None, what: str = "news") -> T:
        timeout = timeout or patience(COMMAND_SECONDS)
        with self._news:
            if result := self._news.wait_for(condition, timeout):
                return result
        raise TimeoutError(self._tell(f"no {what!r} after {timeout:.0f} s"))

    def _reaches(self, number: int) -> bool:
        return len(self._lines) > number or self.rc is not None

    def _find(self, pattern: str) -> re.Match[str] | None:
        while self._looked_at < len(self._lines):
            self._looked_at += 1
            if match := re.search(pattern, self._lines[self._looked_at - 1][1]):
                return match
        return None

    def last_lines(self, count: int) -> str:
        """What it said last, on either stream."""
        said = "".join(f"  {line}\n" for _, line in list(self._lines)[-count:])
        return f"{self._cmd} (exit status {self.rc}):\n{said}"

    def _tell(self, what: str) -> str:
        return f"{self._cmd}: {what}\n{self.output}{self.errors}"

    def _text(self, stream: str) -> str:
        return "".join(f"{line}\n" for name, line in list(self._lines) if name == stream)


class Guest:
    """Requests to the agent; any number of them at once, from any thread.

    Attributes:
        programs: all that were started, the oldest first.

    """

    def __init__(self, path: Path) -> None:
        self._idents = itertools.count(1)
        self._receivers: dict[int, Callable[[Message], None]] = {}
        self.programs: list[Running] = []
        self._ready = threading.Event()
        self._gone = False
        self._channel = Channel(path, self._receive, self._end)

    def wait_ready(self, timeout: float) -> None:
        """Wait for the agent's first word after a boot."""
        if not self._ready.wait(timeout):
            raise TimeoutError(f"not up after {timeout} s")

    def run(
        self,
        cmd: str,
        timeout: float | None = None,
        *,
        stdin: str = "",
        env: dict[str, str] | None = None,
        user: str = "root",
    ) -> Result:
        """Run a shell command to its end."""
        timeout = timeout or patience(COMMAND_SECONDS)
        limits = {"timeout": timeout, "bound": timeout + patience(15)}
        answer = self.call("run", cmd=cmd, stdin=stdin, env=env or {}, user=user, **limits)
        return Result(
            cmd, answer["rc"], answer.get("out", ""), answer.get("err", ""), answer.get("time", 0.0)
        )

    def start(self, cmd: str, *, env: dict[str, str] | None = None, user: str = "root") -> Running:
        """Start a shell command that goes on."""
        ident = next(self._idents)
        running = Running(self, ident, cmd)
        self._receivers[ident] = running.receive
        self.programs.append(running)
        self._send("start", ident, cmd=cmd, env=env or {}, user=user)
        return running

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file, and the folders it needs."""
        data = data.encode() if isinstance(data, str) else data
        self.call("put", path=path, mode=mode, b64=base64.b64encode(data).decode())

    def ask(self, line: str, *, port: int | None = None, path: str | None = None) -> str:
        """Send one line to a TCP port or a unix socket of the guest's own; return the answer's."""
        answer: str = self.call("ask", line=line, port=port, path=path)["answer"]
        return answer

    def read(self, glob: str) -> str:
        """Return what is in files, in the order of their names; empty if there are none."""
        text: str = self.call("read", glob=glob)["text"]
        return text

    def untar(self, path: str, archive: bytes) -> None:
        """Unpack a tar archive into a folder."""
        self.call("untar", path=path, b64=base64.b64encode(archive).decode())

    def call(self, op: str, bound: float | None = None, **arguments: Any) -> Message:
        """Send one request, return its one answer."""
        ident, answers = next(self._idents), queue.Queue[Message]()
        self._receivers[ident] = answers.put
        self._send(op, ident, **arguments)
        try:
            answer = answers.get(timeout=bound or patience(COMMAND_SECONDS))
        except queue.Empty:
            raise TimeoutError(f"{op} {arguments.get('cmd', '')}: no answer") from None
        if answer["rc"] == "agent-error":
            raise GuestError(f"{op} {arguments.get('cmd', '')}: {answer['err']}")
        return answer

    def close(self) -> None:
        self._channel.close()

    def _send(self, op: str, ident: int, **arguments: Any) -> None:
        try:
            self._channel.send({"op": op, "id": ident, **arguments})
        except OSError:
            self._gone = True
        if self._gone:
            self._end()

    def _receive(self, message: Message) -> None:
        if message["id"] == 0:
            self._ready.set()
        elif "line" in message:
            if receiver := self._receivers.get(message["id"]):
                receiver(message)
        elif receiver := self._receivers.pop(message["id"], None):
            receiver(message)

    def _end(self) -> None:
        """Tell all who wait that nothing will come any more."""
        self._gone = True
        for ident in list(self._receivers):
            if receiver := self._receivers.pop(ident, None):
                receiver({"rc": "agent-error", "err": "the machine is gone"})
