"""The Python API without asyncio: the same functions as in aio.py, for ordinary programs.

Rule of this file: no logic; each call is its twin of aio.py, run in a thread of its own so that a
device is followed while the program does something else.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from usb_remote import aio
from usb_remote.agent_protocol import Attached, Loss
from usb_remote.config import Config
from usb_remote.model import Match
from usb_remote.watcher import Change

T = TypeVar("T")

HEED = 0.5
"""Seconds after which a waiting program looks for a Ctrl-C that came as it was about to wait: the
system call does not know of that one (signal(7), pselect(2))."""


class _Thread:
    """A thread with an event loop, for as long as a block lasts, or the program."""

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        self._new_loop = new_loop

    def __enter__(self) -> _Thread:
        self.at_end = contextlib.AsyncExitStack()
        self._loop = self._new_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="usb-remote", daemon=True
        )
        self._thread.start()
        atexit.register(self._end)  # a generator that nobody closes must not keep Python running
        return self

    def __exit__(self, *_error: object) -> None:
        atexit.unregister(self._end)
        self._end()

    def _end(self) -> None:
        """Cancel what is under way, and let it clean up."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._finish())

    async def _finish(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            if not task.cancelling():  # it cleans up already: that is not to be interrupted
                task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.at_end.aclose()
        await self._loop.shutdown_asyncgens()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there, and wait here; Ctrl-C ends it, and it cleans up at the end of the block."""
        call = _Call(work)
        try:  # from before it is handed over: Ctrl-C may come at any moment
            self._loop.call_soon_threadsafe(call.start)
            return call.result()
        except BaseException:
            self._loop.call_soon_threadsafe(call.cancel)
            raise


class _Call(Generic[T]):
    """Work for a loop. `start` and `cancel` run in its thread, in the order of their calls.

    The finished task comes by a SimpleQueue: Ctrl-C between two instructions of a Condition may
    leave its lock taken for ever, and then the loop would wait for it.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._done: SimpleQueue[asyncio.Task[T]] = SimpleQueue()

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._work)
        self._task.add_done_callback(self._done.put)

    def cancel(self) -> None:
        """Nobody waits any more, so nobody hears what the work raises."""
        if self._task is None:
            self._work.close()
            return
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._task.cancel()

    def result(self) -> T:
        """Wait for what the work returns, or raise what it raises."""
        while True:
            try:
                done = self._done.get(timeout=HEED)
            except Empty:
                continue
            return done.result()


class AttachedDevice(aio.Attachable):
    """A device that is attached here until its `attach` block ends; as in aio.py."""

    def __init__(self, device: aio.AttachedDevice, thread: _Thread) -> None:
        self._device = device
        self._thread = thread

    @property
    def now(self) -> Attached:
        return self._device.now

    @property
    def losses(self) -> list[Loss]:
        """When and why it was lost, oldest first."""
        return list(self._device.losses)

    @property
    def is_attached(self) -> bool:
        """Whether it is there now."""
        return self._device.is_attached

    def hear_why(self) -> None:
        """As in aio.py."""
        self._thread.run(self._device.hear_why())

    def wait_lost(self, count: int = 1, timeout: float | None = None) -> Loss | None:
        """Wait until it was lost so many times in all; None if not in time (seconds)."""
        return self._thread.run(_in_time(self._device.wait_lost(count), timeout))

    def wait_attached(self, timeout: float | None = None) -> bool:
        """Wait until it is there (again); False if not in time (seconds)."""
        self._thread.run(_in_time(self._device.wait_attached(), timeout))
        return self.is_attached


async def _in_time(work: Coroutine[Any, Any, T], timeout: float | None) -> T | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            return await work
    return None


def list_devices(host: str | None = None, config: Config | None = None) -> list[Match]:
    """As :func:`usb_remote.aio.list_devices`."""
    with _Thread() as thread:
        return thread.run(aio.list_devices(host, config))


def watch(host: str | None = None, config: Config | None = None) -> Iterator[Change]:
    """As :func:`usb_remote.aio.watch`."""
    with _Thread() as thread:
        changes = aio.watch(host, config)
        thread.at_end.push_async_callback(changes.aclose)
        while True:
            yield thread.run(_next(changes))


async def _next(changes: AsyncIterator[Change]) -> Change:
    return await anext(changes)


@contextlib.contextmanager
def attach(
    handle: str | None = None,
    *,
    id: str | None = None,
    serial: str | None = None,
    desc: str | None = None,
    bus: str | None = None,
    host: str | None = None,
    first: bool = False,
    wait: float | None = None,
    duration: float | None = None,
    force: bool = False,
    name: str | None = None,
    config: Config | None = None,
) -> Iterator[AttachedDevice]:
    """As :func:`usb_remote.aio.attach`."""
    attaching = aio.attach(
        handle,
        id=id,
        serial=serial,
        desc=desc,
        bus=bus,
        host=host,
        first=first,
        wait=wait,
        duration=duration,
        force=force,
        name=name,
        config=config,
    )
    with _Thread() as thread, _entered(thread, attaching) as device:
        yield AttachedDevice(device, thread)


@contextlib.contextmanager
def attach_all(
    devices: Sequence[aio.Wanted], config: Config | None = None
) -> Iterator[list[AttachedDevice]]:
    """As :func:`usb_remote.aio.attach_all`."""
    with _Thread() as thread, _entered(thread, aio.attach_all(devices, config)) as attached:
        known = {device: AttachedDevice(device, thread) for device in attached}
        yield [known[device] for device in attached]


@contextlib.contextmanager
def _entered(thread: _Thread, block: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """An async block, entered and left in a thread, in one task as it needs."""
    left = asyncio.Event()

    async def stay(ready: asyncio.Future[T]) -> None:
        async with block as value:
            ready.set_result(value)
            await left.wait()

    async def enter() -> tuple[T, asyncio.Task[None]]:
        ready: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(stay(ready))
        both: set[asyncio.Future[Any]] = {task, ready}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        if not ready.done():
            await task
        return ready.result(), task

    async def leave(task: asyncio.Task[None]) -> None:
        left.set()
        await task

    value, task = thread.run(enter())
    try:
        yield value
    finally:
        thread.run(leave(task))
