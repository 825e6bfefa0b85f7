"""`network` makes hosts on a network of their own: see lab.py."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from tests.network.lab import Network, obstacle


class MakeNetwork(Protocol):
    """The type of the fixture `network`."""

    def __call__(self, hosts: int, *, ipv4: bool = True, ipv6: bool = True) -> Network: ...


@pytest.fixture(scope="session")
def able() -> None:
    """Skip where there is no lab."""
    if reason := obstacle():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on the hosts sees no configuration of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    for variable in ("XDG_CONFIG_HOME", "USB_REMOTE_CONFIG", "USB_REMOTE_CONFIG_PATH"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def network(able: None) -> Iterator[MakeNetwork]:
    """Make networks that are removed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(hosts: int, *, ipv4: bool = True, ipv6: bool = True) -> Network:
            return stack.enter_context(Network(hosts, ipv4=ipv4, ipv6=ipv6))

        yield make
