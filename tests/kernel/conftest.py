"""Fixtures of real machines: see README.md."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.lab import build, machines, obstacle
from tests.kernel.vm import VM, Images


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
