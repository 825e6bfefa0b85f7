"""Other programs of this machine: found, run, and ended in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence


def find(program: str) -> str | None:
    """Where a program is; the PATH of a user who is not root often lacks sbin."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


async def modprobe(module: str, prefix: Sequence[str] = ()) -> None:
    """Load a module, if that is possible."""
    tool = find("modprobe")
    if tool is not None:
        with contextlib.suppress(TimeoutError, OSError):  # the check afterwards says what is wrong
            await run([*prefix, tool, module], 10.0)


async def run(command: list[str], timeout: float) -> tuple[int, str]:
    """Run to the end or kill; killing `usbip` frees the device. Returns status and stderr."""
    return await _run(command, timeout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


async def ask(command: Sequence[str], timeout: float) -> tuple[int, str]:
    """Run what only looks. Returns status and all output; as a shell, 127 without such a program,
    and as timeout(1), 124 if it took too long.
    """
    path = find(command[0])
    if path is None:
        return 127, f"{command[0]}: not found"
    words = [path, *command[1:]]
    try:
        return await _run(words, timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except TimeoutError:
        return 124, f"{command[0]}: no answer within {timeout:g} s"
    except OSError as error:
        return 126, f"{command[0]}: {error.strerror}"


async def _run(command: list[str], timeout: float, *, stdout: int, stderr: int) -> tuple[int, str]:
    """The end is when nobody has its pipe any more. asyncio (3.11) would start a thread to hear of
    it, and takes three times as long to start the program.
    """
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "LC_ALL": "C"},
    )
    said = process.stderr or process.stdout
    assert said is not None
    with contextlib.closing(said) as pipe:
        try:
            async with asyncio.timeout(timeout):
                text = await _read_to_the_end(pipe.fileno())
        except BaseException:
            process.terminate()  # sudo passes TERM on, KILL would leave its child alone
            await _read_to_the_end(pipe.fileno())
            process.wait()
            raise
    return process.wait(), text.decode(errors="replace")


async def _read_to_the_end(fd: int) -> bytes:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    parts: list[bytes] = []

    def read() -> None:
        parts.append(os.read(fd, 65536))
        if not parts[-1]:
            ended.set()

    loop.add_reader(fd, read)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
    return b"".join(parts)
