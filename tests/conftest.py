"""What all tests share without asking: leak guards, and the fixtures of more than one file.

What is imported by name is in the modules beside this one: serving, residing, importing, commands,
talking, trees, waiting, patience, kinds, ledger. They never import this one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import interrupts, kinds
from tests.ledger import Ledger
from tests.patience import factor, patience
from tests.residing import Here, residing
from tests.serving import QUICK, Running, at, running_server
from tests.trees import Tree
from tests.waiting import eventually
from usb_remote import agent_protocol
from usb_remote.virtual import KINDS

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")
SEED = int(os.environ.get("USB_REMOTE_SEED") or 11)
"""What all random choices of a run begin with; `make soak` takes another one each time."""


def pytest_configure(config: pytest.Config) -> None:
    interrupts.give_to_programs()
    config.option.hypothesis_seed = config.option.hypothesis_seed or SEED
    for kind in kinds.ALL:
        config.addinivalue_line("markers", f"{kind.name}: its folder's, see tests/kinds.py")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(SEED), "usb-remote-ledger")


def pytest_report_header() -> str:
    return f"usb-remote: USB_REMOTE_SEED={SEED}, {factor():.1f} times slower than usual"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kinds.mark(items)
    kinds.longest_first(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With USB_REMOTE_NO_SKIP=1 (CI) what would be skipped has failed."""
    report = yield
    strict = os.environ.get("USB_REMOTE_NO_SKIP") == "1"
    if strict and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped here: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No thread and no file descriptor outlives a test (event loops are pytest-asyncio's)."""
    threads = set(threading.enumerate())
    before = _descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=patience(5))
    left = [t for t in set(threading.enumerate()) - threads if not t.name.startswith("asyncio")]
    assert not left, f"threads left behind: {left}"
    opened = {fd: what for fd, what in _descriptors().items() if before.get(fd) != what}
    sockets = {fd: what for fd, what in opened.items() if what.startswith("socket")}
    loop_pair = 2  # pytest-asyncio's own wake-up sockets
    assert len(sockets) <= loop_pair, f"sockets left behind: {sockets}"


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[fd.name] = str(fd.readlink())
    return found


@pytest.fixture
async def bench() -> AsyncIterator[Running]:
    """A server with three devices."""
    async with running_server(*KINDS) as running:
        yield running


@pytest.fixture
async def quick() -> AsyncIterator[Running]:
    """The same, with QUICK times."""
    async with running_server(*KINDS, times=QUICK) as running:
        yield running


@pytest.fixture
async def here(quick: Running, tmp_path: Path) -> AsyncIterator[Here]:
    """An agent that knows the server `quick`."""
    async with residing(tmp_path, at(quick)) as agent:
        await eventually(lambda: agent.world.views)
        yield agent


@pytest.fixture
async def through_agent(here: Here, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The same agent, whom programs of this process ask."""
    monkeypatch.setenv(agent_protocol.VARIABLE, here.socket)
    return here


@pytest.fixture
async def informed(bench: Running, tmp_path: Path) -> AsyncIterator[Here]:
    """An agent that has heard of the server `bench`, and waits for no other."""
    async with residing(tmp_path, at(bench)) as agent:
        await eventually(lambda: agent.world.is_settled and agent.world.views)
        yield agent


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A machine of files, with no programs yet."""
    return Tree(tmp_path)
