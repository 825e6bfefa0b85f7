"""The Python API as docs/reference/python.md says it, against a real agent of this process."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

import usb_remote
from tests import user_program
from tests.importing import Bell, NoticingImporter
from tests.patience import patience
from tests.residing import Here, residing
from tests.serving import HOST, Running, at, knowing, running_server, state_of
from tests.waiting import eventually
from usb_remote import agent_protocol, aio, errors, wiring
from usb_remote.agent import wishes
from usb_remote.blocking import _Call, _Thread
from usb_remote.client import How
from usb_remote.config import WishConfig
from usb_remote.holding.by_agent import ByAgent
from usb_remote.matching import Query
from usb_remote.model import Cause, State


async def blocking(work: Callable[[], Any]) -> Any:
    """Run what an ordinary program does, while the agent runs here."""
    before = set(threading.enumerate())
    done = await asyncio.to_thread(work)
    left = {t.name for t in set(threading.enumerate()) - before}
    assert not any(name == "usb-remote" for name in left), left
    return done


async def test_a_device_is_there_for_a_block(through_agent: Here, quick: Running) -> None:
    def program() -> str:
        with usb_remote.attach("1-1", name="scope") as device:
            assert state_of(quick, "1-1") is State.IN_USE
            assert device.is_attached
            assert device.directory == through_agent.folder / "dev/scope"
            return device.tty

    assert (await blocking(program)).endswith("/scope/tty0")
    assert state_of(quick, "1-1") is State.AVAILABLE  # when the block ends, not some time later


async def test_several_devices_are_there_all_or_none(through_agent: Here, quick: Running) -> None:
    def program(*handles: str) -> list[str]:
        devices = [usb_remote.wanted(handle, name=f"n{handle}") for handle in handles]
        with usb_remote.attach_all(devices) as attached:
            assert len({id(device) for device in attached}) == len(set(handles))
            return [device.tty for device in attached]

    folder = through_agent.folder / "dev"
    ttys = [str(folder / f"n{place}/tty0") for place in ("1-2", "1-1", "1-2")]
    assert await blocking(lambda: program("1-2", "1-1", "1-2")) == ttys
    with pytest.raises(errors.NotFound):
        await blocking(lambda: program("1-1", "none"))
    assert state_of(quick, "1-1") is State.AVAILABLE
    assert through_agent.agent.statuses() == []


async def test_the_first_of_several_three_times_is_all_of_them(through_agent: Here) -> None:
    any_one = aio.wanted(id="*", first=True)
    async with aio.attach_all([any_one, aio.wanted("1-1"), any_one]) as devices:
        assert [d.device.bus_id for d in devices][1] == "1-1"
        assert {d.device.bus_id for d in devices} == {"1-1", "1-2", "1-3"}
    with pytest.raises(errors.NotFound, match="more devices are wanted than there are"):
        async with aio.attach_all([any_one] * 4):
            pass


async def test_one_block_after_the_other(through_agent: Here) -> None:
    def program() -> None:
        for _ in range(5):
            with usb_remote.attach("1-1"):
                pass

    await blocking(program)
    for _ in range(5):
        async with aio.attach("1-1"):
            pass
    assert through_agent.importer.count == 10


async def test_an_exception_in_the_block_is_the_programs_own(
    through_agent: Here, quick: Running
) -> None:
    def program() -> None:
        with usb_remote.attach("1-1"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await blocking(program)
    with pytest.raises(ZeroDivisionError):
        async with aio.attach("1-1"):
            raise ZeroDivisionError
    assert state_of(quick, "1-1") is State.AVAILABLE


async def test_errors_are_those_of_the_command_line(through_agent: Here) -> None:
    def program(**words: Any) -> None:
        with usb_remote.attach(**words):
            pass

    with pytest.raises(errors.NotFound, match="no device matches none"):
        await blocking(lambda: program(handle="none"))
    with pytest.raises(errors.Ambiguous, match="matches 3 devices"):
        await blocking(lambda: program(id="*"))
    async with aio.attach("1-1"):
        with pytest.raises(errors.Busy, match="another program of this machine"):
            await blocking(lambda: program(handle="1-1", wait=0.2))


async def test_a_loss_is_heard_of(through_agent: Here, quick: Running) -> None:
    entered, loop = threading.Event(), asyncio.get_running_loop()

    def program() -> tuple[Any, ...]:
        with usb_remote.attach("1-1") as device:
            assert device.wait_lost(timeout=0.05) is None
            loop.call_soon_threadsafe(through_agent.pull, quick, "serial")
            loss = device.wait_lost(timeout=10)
            assert not device.is_attached
            assert not device.wait_attached(timeout=0.05)
            loop.call_soon_threadsafe(quick.devices.plug, "serial")
            entered.set()
            return loss, device.wait_attached(timeout=10), device.losses

    loss, is_back, losses = await blocking(program)
    assert (loss.cause, loss.blame, is_back) == (Cause.UNPLUGGED, "device", True)
    assert losses == [loss]


async def test_list_and_watch(quick: Running) -> None:
    config, loop = knowing(at(quick)), asyncio.get_running_loop()
    config = config.model_copy(update={"discovery": False})

    def program() -> list[int]:
        counts = [len(usb_remote.list_devices(config=config))]
        for _, listing, _ in usb_remote.watch(config=config):
            counts.append(len(listing.matches) if listing else 0)
            loop.call_soon_threadsafe(quick.devices.pull, "serial")
            if len(counts) == 3:
                break
        return counts

    assert await blocking(program) == [3, 3, 2]
    with pytest.raises(errors.Unreachable):
        await blocking(lambda: usb_remote.list_devices(config=knowing("127.0.0.1:1").model_copy(
            update={"discovery": False})))  # fmt: skip


def ends(folder: Path, code: str, agent: str, number: int = 0) -> subprocess.CompletedProcess[str]:
    """A program of its own; a signal is sent when it says "ready"."""
    (folder / "config").write_text("discovery: false\nservers: ['127.0.0.1:1']\n")
    here = {"USB_REMOTE_AGENT": agent, "USB_REMOTE_CONFIG": str(folder / "config")}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], text=True, env={**os.environ, **here},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        if number and process.stdout.readline():
            process.send_signal(number)
        try:
            out, err = process.communicate(timeout=patience(20))
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_ctrl_c_ends_what_is_waited_for_and_not_the_block() -> None:
    """At many moments: while it is handed over, as the wait begins, and later."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _Thread() as thread:
            for _ in range(100):
                _interrupted(thread)
            assert thread.run(asyncio.sleep(0, "goes on")) == "goes on"
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(thread: _Thread) -> None:
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    def interrupt() -> None:
        began.wait()
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        thread.run(work())
    interrupting.join()
    assert ended.wait(patience(10))


class Interrupted(asyncio.SelectorEventLoop):
    """Ctrl-C comes at the moment at which work has just been handed over."""

    interrupts = 1

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(callback, *arguments, context=context)
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        return handle


def test_ctrl_c_before_anything_waits_ends_it_too() -> None:
    cancelled = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()

    with _Thread(Interrupted) as thread:
        began = work()
        with pytest.raises(KeyboardInterrupt):
            thread.run(began)
        assert thread.run(asyncio.sleep(0, "goes on")) == "goes on"
        assert cancelled.is_set() or inspect.getcoroutinestate(began) == inspect.CORO_CLOSED


def test_what_is_handed_over_as_the_block_ends_is_cancelled_and_hangs_nobody() -> None:
    """As a second thread of the program may do."""
    for _ in range(20):
        call = _Call(asyncio.sleep(600))
        with _Thread() as thread:
            thread._loop.call_soon_threadsafe(call.start)
        with pytest.raises(asyncio.CancelledError):
            call.result()


WAITING = """
import signal, sys, threading, time, usb_remote
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
def ready():
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_code.co_name != "result":  # it waits: no import is cut off
        time.sleep(0.01)
    print("ready", flush=True)
try:
    threading.Thread(target=ready, daemon=True).start()
    with usb_remote.attach("1-1", wait=0):
        print("attached")
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name == "usb-remote"])
"""


async def test_ctrl_c_ends_a_waiting_attach(through_agent: Here, tmp_path: Path) -> None:
    async with aio.attach("1-1"):
        done = await asyncio.to_thread(ends, tmp_path, WAITING, through_agent.socket, signal.SIGINT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


async def test_a_watch_that_nobody_closes_does_not_keep_python_running(tmp_path: Path) -> None:
    code = "import usb_remote; changes = usb_remote.watch(); print(next(changes).server.name)"
    done = await asyncio.to_thread(ends, tmp_path, code, "")
    assert (done.returncode, done.stdout, done.stderr) == (0, "127.0.0.1:1\n", "")


async def test_what_is_held_is_held_again_by_an_agent_that_was_restarted(
    quick: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    monkeypatch.setenv(agent_protocol.VARIABLE, str(tmp_path / "agent.sock"))
    async with residing(tmp_path, at(quick), importer=importer):
        one = aio.attach(id="*", first=True)
        other = aio.attach(id="*", first=True)
        first, second = await one.__aenter__(), await other.__aenter__()
    async with residing(tmp_path, at(quick), importer=importer) as again:
        desk: Any = again.world.on_view.__self__  # type: ignore[attr-defined]
        await eventually(lambda: len(desk._holds) == 2)
        assert importer.count == 2
        assert {first.device.bus_id, second.device.bus_id} == {"1-1", "1-2"}
        assert (first.losses, second.losses) == ([], [])
        await other.__aexit__(None, None, None)
        assert state_of(quick, "1-2") is State.AVAILABLE
        assert state_of(quick, "1-1") is State.IN_USE
        await one.__aexit__(None, None, None)
        assert state_of(quick, "1-1") is State.AVAILABLE
    bell.close()


async def test_what_is_held_is_held_again_when_its_server_is_heard_later_than_the_agent(
    quick: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "usb_remote.agent.desk")
    bell, port, servers = Bell(), quick.control.port, at(quick)
    importer = NoticingImporter(bell, tmp_path)
    monkeypatch.setenv(agent_protocol.VARIABLE, str(tmp_path / "agent.sock"))
    async with residing(tmp_path, servers, importer=importer):
        block = aio.attach("1-1")
        device = await block.__aenter__()
    await quick.control.stop()
    mute = socket.create_server((HOST, port))
    async with residing(tmp_path, servers, importer=importer, hears=False) as again:
        await eventually(lambda: "attach for" in caplog.text)  # and no server is known yet
        mute.close()
        quick.control._servers.clear()
        await quick.control.start([HOST], port)
        desk: Any = again.world.on_view.__self__  # type: ignore[attr-defined]
        await eventually(lambda: len(desk._holds) == 1)
        assert (importer.count, device.losses) == (1, [])
        await block.__aexit__(None, None, None)
        assert state_of(quick, "1-1") is State.AVAILABLE
    bell.close()


async def test_an_agent_that_does_not_come_back_is_a_loss(
    quick: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(agent_protocol.VARIABLE, str(tmp_path / "agent.sock"))
    async with residing(tmp_path, at(quick)) as here:
        holder = ByAgent(await here.talk(), come_back=0.1, try_again=0.02)
        device = await holder.attach(Query(handle="1-1"), How())
    async with holder:
        loss = await asyncio.wait_for(device.wait_lost(), patience(10))
        assert (loss.cause, loss.blame) == (None, "network")
        assert not device.is_attached
    assert "nobody follows our devices now" in caplog.text


async def test_a_program_without_an_agent_leaves_alone_what_others_have_attached(
    quick: Running, tmp_path: Path
) -> None:
    (tmp_path / "dev/theirs").mkdir(parents=True)
    config = knowing(at(quick)).model_copy(update={"discovery": False})
    async with wiring.resident(config, None, tmp_path / "dev") as program:
        await eventually(lambda: program.world.is_settled and program.world.views)
        program.agent._started = asyncio.get_running_loop().time() - 60  # a minute has passed
        program.world.tell()
        quick.devices.pull("disk")
        await eventually(lambda: len(program.world.search().listings[0].snapshot.devices) == 2)
    assert (tmp_path / "dev/theirs").is_dir()


async def test_nothing_of_what_a_program_follows_goes_on_after_its_block(quick: Running) -> None:
    before = asyncio.all_tasks()
    async with wiring.resident(knowing(at(quick)), None, None) as program:
        program.agent.start([wishes.of_config(WishConfig(device="not there"))])
        assert len(asyncio.all_tasks() - before) > 1
    assert asyncio.all_tasks() == before


async def test_a_program_with_types_runs_as_it_was_checked(through_agent: Here) -> None:
    """mypy checks it in `make check`."""
    assert (Path(usb_remote.__file__).parent / "py.typed").exists()
    words = await blocking(user_program.list_all)
    assert words[1::4] == ["1-1", "1-2", "1-3"]
    path, is_lost = await blocking(lambda: user_program.use("1-1", 60))
    assert (path, is_lost) == (str(through_agent.folder / "dev/1-1/tty0"), False)
    assert "no device matches none" in await blocking(lambda: user_program.use("none", None))
    assert await user_program.work("1-1") == str(through_agent.folder / "dev/1-1/usb")


async def test_a_server_that_is_off_is_a_warning_and_hides_nothing(
    quick: Running, caplog: pytest.LogCaptureFixture
) -> None:
    config = knowing(at(quick), "127.0.0.1:1").model_copy(update={"discovery": False})
    matches = await aio.list_devices(config=config)
    assert [match.device.bus_id for match in matches] == ["1-1", "1-2", "1-3"]
    (warning,) = (r for r in caplog.records if r.name == "usb_remote.aio")
    assert (warning.levelname, "127.0.0.1:1" in warning.message) == ("WARNING", True)
    assert len(await aio.list_devices(at(quick), config)) == 3
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:1"):
        await aio.list_devices("127.0.0.1:1", config)


async def test_only_one_server_is_watched_if_only_one_is_meant(quick: Running) -> None:
    async with running_server("disk") as other:
        config = knowing(at(quick), at(other)).model_copy(update={"discovery": False})
        changes = aio.watch(at(other), config)
        first = await anext(changes)
        assert first.listing is not None
        assert [match.device.bus_id for match in first.listing.matches] == ["1-2"]
        quick.devices.pull("serial")
        other.devices.pull("disk")
        second = await anext(changes)
        assert second.listing is not None
        assert second.listing.matches == []
        await changes.aclose()
