"""`run`: a command, and the devices that it has for as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from usb_remote import aio, errors, notify, wiring
from usb_remote.cli import output, signals
from usb_remote.client import How
from usb_remote.config import Config
from usb_remote.matching import Query


def run(
    config: Config,
    option: Path | None,
    devices: Sequence[str],
    command: Sequence[str],
    wait: float | None,
    *,
    fail_on_loss: bool,
) -> int:
    """Run the command; returns its exit status, 128 + the signal that ended it, or Exit.LOST.

    Without a command it is a service that is the devices: it ends when one of them is lost.
    """
    how = How(wait=wait, tell=output.print_place)
    wanted = [aio.Wanted(Query(handle=device), how) for device in devices]
    return asyncio.run(_until_signal(config, option, wanted, command, fail_on_loss))


def checked(command: Sequence[str], *, notify: bool) -> Sequence[str]:
    """Raises UsageError unless there is either a command or --notify."""
    if notify == bool(command):
        raise errors.UsageError(
            "either a command or --notify",
            hint="usb-remote run --with scope -- COMMAND, or in a unit: "
            "usb-remote run --notify --with scope",
        )
    return command


async def _until_signal(
    config: Config,
    option: Path | None,
    wanted: list[aio.Wanted],
    command: Sequence[str],
    fail_on_loss: bool,
) -> int:
    with _Signals() as taken:
        try:
            return await _run(config, option, wanted, command, fail_on_loss, taken)
        except asyncio.CancelledError:
            if taken.ended_by is None:
                raise
            return 128 + taken.ended_by


async def _run(
    config: Config,
    option: Path | None,
    wanted: list[aio.Wanted],
    command: Sequence[str],
    fail_on_loss: bool,
    taken: _Signals,
) -> int:
    async with aio.holding(config, await wiring.agent(option)) as holder:
        held = await holder.attach_all(wanted)
        telling = [asyncio.create_task(_tell_losses(device)) for device in held]
        try:
            if command:
                variables = environment([str(one.query) for one in wanted], held)
                status = await _obey(command, {**os.environ, **variables}, taken)
            else:
                status = await stay(held, notify.Service())
            if status or fail_on_loss:  # because of a loss that we have not heard of yet?
                await asyncio.gather(*(device.hear_why() for device in held))
            await asyncio.sleep(0)  # so that the last loss is told
        finally:
            for task in telling:
                task.cancel()
            await asyncio.gather(*telling, return_exceptions=True)
    lost = [device for device in held if device.losses]
    return errors.Exit.LOST if lost and fail_on_loss else status


async def _tell_losses(device: aio.AttachedDevice) -> None:
    count = 0
    while True:
        count += 1
        loss = await device.wait_lost(count)
        output.warn(f"lost {device.name} ({device.server.name}): {loss}")


def environment(words: Sequence[str], held: Sequence[aio.AttachedDevice]) -> dict[str, str]:
    """``USB_REMOTE_SCOPE_TTY0`` and the like: where the nodes of each device are.

    They follow from the words of the command line alone, whatever else is attached here.
    """
    found = {}
    for called, device in zip(words, held, strict=True):
        prefix = f"USB_REMOTE_{_variable(called)}"
        if device.directory:
            found[prefix] = str(device.directory)
        for name, path in device.paths.items():
            found[f"{prefix}_{_variable(name)}"] = path
    return found


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name).upper()


async def stay(held: Sequence[aio.AttachedDevice], service: notify.Service) -> int:
    """Tell systemd that they are there; go on until SIGTERM (0), or until one is lost (LOST)."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    ending = signals.heeded(signals.END)
    for number in ending:
        loop.add_signal_handler(number, stopped.set)
    stopping = asyncio.create_task(stopped.wait())
    ends = [stopping, *(asyncio.create_task(device.wait_lost()) for device in held)]
    try:
        service.ready(", ".join(f"{device.name} ({device.server.name})" for device in held))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        service.stopping()
        for end in ends:
            end.cancel()
        for number in ending:
            loop.remove_signal_handler(number)
    return errors.Exit.OK if stopped.is_set() else errors.Exit.LOST


async def _obey(command: Sequence[str], variables: dict[str, str], taken: _Signals) -> int:
    taken.wait_for_command()
    try:
        process = await asyncio.create_subprocess_exec(*command, env=variables)
    except OSError as error:
        raise errors.UsageError(f"{command[0]}: {error.strerror}") from None
    taken.pass_to(process)
    status = await process.wait()
    return status if status >= 0 else 128 - status


class _Signals:
    """What signals mean: while devices are attached, that they are given back; then the command's.

    Those that come just before the command is there are passed on to it, too. When it has ended,
    giving back is under way, and takes no longer than that takes.

    Attributes:
        ended_by: the signal that has ended the attaching.

    """

    PASSED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

    def __init__(self) -> None:
        self.ended_by: signal.Signals | None = None
        self._task = asyncio.current_task()
        self._process: asyncio.subprocess.Process | None = None
        self._early: list[signal.Signals] | None = None
        self._heeded = signals.heeded(self.PASSED)

    def __enter__(self) -> _Signals:
        for number in self._heeded:
            asyncio.get_running_loop().add_signal_handler(number, self._take, number)
        return self

    def __exit__(self, *_error: object) -> None:
        for number in self._heeded:
            asyncio.get_running_loop().remove_signal_handler(number)

    def wait_for_command(self) -> None:
        self._early = []

    def pass_to(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        for number in self._early or ():
            self._take(number)

    def _take(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._pass_on(self._process, number)
        elif self._early is not None:
            self._early.append(number)
        elif self._task is not None and self.ended_by is None:
            self.ended_by = number
            self._task.cancel()

    def _pass_on(self, process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        is_told = number is signal.SIGINT and _has_terminal()
        if not is_told and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def _has_terminal() -> bool:
    """Whether Ctrl-C on a terminal reaches the command by itself: it is in our process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # it has been hung up
        return False
    finally:
        os.close(terminal)
