"""Fixtures of real machines: see README.md."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.kernel.guest import GuestError
from tests.kernel.lab import build, machines, obstacle
from tests.kernel.vm import VM, Images
from tests.patience import patience


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell what the kernels and the programs had to say of a failure: it may not come again."""
    if call.when == "call" and call.excinfo is not None:
        for value in getattr(item, "funcargs", {}).values():
            for machine in value if isinstance(value, tuple) else (value,):
                if isinstance(machine, VM):
                    call.excinfo.value.add_note(last_words(machine))
    return (yield)


def last_words(machine: VM) -> str:
    try:
        said = machine.sh("dmesg | tail -n 40", patience(20)).out
    except (GuestError, OSError, TimeoutError) as error:  # it has no power, or hangs
        said = str(error)
    programs = "".join(program.last_lines(40) for program in machine.guest.programs)
    return f"the kernel of {machine.name}:\n{said}\nits programs:\n{programs}"


@pytest.fixture(scope="session")
def images() -> Images:
    """Skip where there can be no machines."""
    if reason := obstacle():
        pytest.skip(reason)
    return build()


@pytest.fixture
def vm(images: Images) -> Iterator[VM]:
    """One machine, without a network."""
    with machines(images, "vm") as (one,):
        yield one


@pytest.fixture
def pair(images: Images) -> Iterator[tuple[VM, VM]]:
    """Two machines, "server" 10.55.0.1 and "client" 10.55.0.2."""
    with machines(images, "server", "client") as (server, client):
        yield server, client


@pytest.fixture
def trio(images: Images) -> Iterator[tuple[VM, VM, VM]]:
    """Three machines, "server" 10.55.0.1, "client" 10.55.0.2 and "other" 10.55.0.3."""
    with machines(images, "server", "client", "other") as (one, two, three):
        yield one, two, three


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return the image of a disk of 1 MiB that is like no other."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path
