"""Other programs of this machine: found, run, and ended in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
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
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        async with asyncio.timeout(timeout):
            _, text = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # sudo passes TERM on, KILL would leave its child alone
            await process.wait()
    return process.returncode or 0, text.decode(errors="replace")
