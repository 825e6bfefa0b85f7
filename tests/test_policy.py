"""What a server's configuration says of sharing: who takes it, at the start and at a reload."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.patience import patience
from tests.serving import HOST, Running, running_server, state_of
from tests.talking import talk
from tests.waiting import eventually
from usb_remote import errors
from usb_remote.cli.reloading import Policy
from usb_remote.config import ServerConfig
from usb_remote.exporter import HandshakeLimits
from usb_remote.hooks import Hook
from usb_remote.model import Cause, State
from usb_remote.notify import Service
from usb_remote.rules import Criteria, Rule
from usb_remote.values import BusId

ELSEWHERE = "10.0.0.0/8"
PLACE = BusId("1-1")
IMPORT = bytes.fromhex("0111800300000000") + PLACE.encode().ljust(32, b"\0")


@dataclass
class File:
    """The configuration as it is by now."""

    config: ServerConfig = field(default_factory=ServerConfig)
    fault: errors.ConfigError | None = None

    def load(self) -> ServerConfig:
        if self.fault:
            raise self.fault
        return self.config


@pytest.fixture
def file() -> File:
    return File()


@pytest.fixture
async def bench() -> AsyncIterator[Running]:
    """No handshake ends because it takes long."""
    async with running_server("serial", handshakes=HandshakeLimits(timeout=3600)) as running:
        yield running


@pytest.fixture
def policy(bench: Running, file: File, caplog: pytest.LogCaptureFixture) -> Policy:
    """With the default configuration in force."""
    caplog.set_level(logging.INFO)
    one = Policy(
        file.load, bench.shared, bench.leases, bench.exporter, bench.control,
        Hook([], "bench"), Service({}), asyncio.Event(),
    )  # fmt: skip
    one.apply(ServerConfig())
    return one


def test_everybody_takes_what_concerns_him(bench: Running, policy: Policy) -> None:
    rule = Rule(deny=Criteria(bus=PLACE))
    more = ServerConfig(takeover="deny", allow_from=[ELSEWHERE], share=[rule], on_event=["log"])
    assert bench.leases.takeover
    policy.apply(more)
    assert not bench.leases.takeover
    for part in (bench.leases, bench.exporter, bench.control):
        assert HOST not in part.allowed
        assert "10.0.0.7" in part.allowed
    assert PLACE not in {device.bus_id for device in bench.shared.list_devices()}
    assert policy.hook.command == ["log"]
    policy.apply(ServerConfig())
    assert bench.leases.takeover


async def test_whom_a_reload_forbids_is_closed_at_both_ports(
    bench: Running, policy: Policy, file: File
) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as session, socket.socket() as begun:
        for client, said in (session, IMPORT), (begun, b"\1"):
            client.setblocking(False)
            await loop.sock_connect(client, (HOST, bench.exporter.port))
            await loop.sock_sendall(client, said)
        await eventually(
            lambda: state_of(bench, PLACE) is State.IN_USE and bench.exporter.handshakes
        )
        async with talk(bench) as line:
            await line.ask(b'{"command":"info","v":1}\n')
            file.config = ServerConfig(allow_from=[ELSEWHERE])
            await policy.reload()
            assert await line.at_end()
        async with asyncio.timeout(patience(10)):
            assert await loop.sock_recv(begun, 1) == b""
    assert [event.cause for event in bench.history.events if event.cause] == [Cause.FORBIDDEN]


async def test_a_new_rule_is_seen_at_once(bench: Running, policy: Policy, file: File) -> None:
    file.config = ServerConfig(share=[Rule(deny=Criteria(bus=PLACE))])
    await policy.reload()
    assert PLACE not in {device.bus_id for device in bench.control.snapshot.devices}


async def test_what_is_wrong_or_too_late_changes_nothing(
    bench: Running, policy: Policy, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    file.config = ServerConfig(takeover="deny")
    file.fault = errors.ConfigError("line 7 is wrong", hint="mend it")
    await policy.reload()
    assert "stays as it was: line 7 is wrong" in caplog.text
    assert "hint: mend it" in caplog.text
    file.fault = None
    policy.stopped.set()
    await policy.reload()
    assert bench.leases.takeover
    policy.stopped.clear()
    await policy.reload()
    assert not bench.leases.takeover


async def test_what_takes_a_restart_is_named(
    policy: Policy, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    file.config = ServerConfig(port=5056, name="other", takeover="deny")
    await policy.reload()
    assert "server.port, server.name: that takes a restart" in caplog.text
    caplog.clear()
    await policy.reload()
    assert "that takes a restart" not in caplog.text
