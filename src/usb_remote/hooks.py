"""`on_event`: a command of the user's, run for each event.

Rule of this file: whatever the command does, it costs no more than a few processes, some seconds
each, and some lines of log; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, BinaryIO

from usb_remote.events import Event
from usb_remote.values import clean

log = logging.getLogger(__name__)

TIME_LIMIT = 10.0
"""Seconds; then it is killed, with all that it has started."""
KILL_TIME = 0.5
"""Seconds more at the end, for what runs to be killed and said so."""
AT_A_TIME = 4
MAX_WAITING = 256
"""Events that wait for their command; more are dropped, with a warning."""
MAX_OUTPUT = 16 * 1024
"""Bytes of its output that go to the log; the rest is read away."""
MAX_LINES = 100
"""Lines of it, at most."""


class Hook:
    """Runs a command with the event as JSON on stdin, and its main facts in the environment.

    Args:
        command: program and arguments, run without a shell; empty does nothing.
        server: the name of the server, for the environment.
        time_limit: in seconds.
        kill_time: seconds that :meth:`stop` gives beyond that, so that who is killed is told of.

    """

    def __init__(
        self,
        command: list[str],
        server: str = "",
        time_limit: float = TIME_LIMIT,
        kill_time: float = KILL_TIME,
    ) -> None:
        self.command = command
        self._server = server
        self._time_limit = time_limit
        self._patience = time_limit + kill_time
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_A_TIME)

    def __call__(self, event: Event, server: str | None = None) -> None:
        """Start the command for an event, soon."""
        if not self.command:
            return
        if len(self._tasks) >= MAX_WAITING:
            log.warning("on_event is too slow: dropped %s", event)
            return
        self._spawn(self._run(self.command, event, server or self._server))

    async def stop(self) -> None:
        """Give all that is left one time limit together, then end it."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=self._patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late:
            log.warning("on_event is too slow: dropped the last %d events", len(late))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, command: list[str], event: Event, server: str) -> None:
        async with self._slots:
            try:
                with _pipe() as (ours, theirs):
                    process = await asyncio.create_subprocess_exec(
                        *command,
                        stdin=asyncio.subprocess.PIPE,
                        stdout=theirs,
                        stderr=asyncio.subprocess.STDOUT,
                        env={**os.environ, **environment(event, server)},
                        start_new_session=True,
                    )
                    theirs.close()
                    await self._attend(process, ours, event)
            except OSError as error:
                log.warning("on_event: %s: %s", command[0], error.strerror)

    async def _attend(
        self, process: asyncio.subprocess.Process, output_pipe: BinaryIO, event: Event
    ) -> None:
        output = bytearray()
        try:
            async with asyncio.timeout(self._time_limit):
                await asyncio.gather(_tell(process, event), _listen(output_pipe, output))
                await process.wait()
            said = f"ended with {process.returncode}" if process.returncode else ""
        except TimeoutError:
            said = f"took over {self._time_limit:g} s: killed"
        finally:
            _log(output)
            _kill(process.pid)
            await reap(process)
        if said:
            log.warning("on_event for %s %s", event.kind, said)


async def reap(process: asyncio.subprocess.Process) -> None:
    """Wait for a killed process. That is soon, so a cancellation takes effect only after it."""
    reaping, cancelled = asyncio.create_task(process.wait()), None
    while not reaping.done():
        try:
            await asyncio.wait({reaping})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled


def environment(event: Event, server: str) -> dict[str, str]:
    """The main facts of an event; what there is not is an empty text."""
    holder = event.holder
    facts: Mapping[str, object] = {
        "EVENT": event.kind.value,
        "SERVER": server,
        "DEVICE": event.device,
        "BUS_ID": event.bus_id,
        "NAME": event.name,
        "SERIAL": event.serial,
        "USER": holder.user if holder else None,
        "HOST": holder.host if holder else None,
        "CAUSE": event.cause.value if event.cause else None,
        "BY": event.by,
    }
    return {f"USB_REMOTE_{key}": str(value or "") for key, value in facts.items()}


async def _tell(process: asyncio.subprocess.Process, event: Event) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(event.model_dump_json().encode() + b"\n")
        await process.stdin.drain()
        process.stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        return  # it need not read it


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A pipe of our own: asyncio's would keep us waiting for all who have it open."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb", 0) as reading, os.fdopen(theirs, "wb", 0) as writing:
        yield reading, writing


async def _listen(pipe: BinaryIO, kept: bytearray) -> None:
    """Keep the first bytes of its output; all the rest is read, and forgotten."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while part := await reader.read(65536):
            kept += part[: MAX_OUTPUT - len(kept)]
    finally:
        transport.close()


def _log(output: bytearray) -> None:
    for line in output.decode(errors="replace").splitlines()[:MAX_LINES]:
        log.info("on_event: %s", clean(line, 500))


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # nothing is left of it
