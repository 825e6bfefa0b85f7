"""`run --notify`: a unit that is a device."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.patience import patience
from usb_remote import aio, errors, notify
from usb_remote.agent_protocol import Attached, Loss
from usb_remote.cli import running
from usb_remote.model import Attachment, Device, Server
from usb_remote.values import BusId

SCOPE = Attached(
    server=Server(name="bench3", addresses=("127.0.0.1",)),
    device=Device(bus_id=BusId("1-1"), vendor_id="1209", product_id="0001"),
    attachment=Attachment(vhci_port=0),
    name="scope",
)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


@pytest.fixture
def service(tmp_path: Path, systemd: socket.socket) -> notify.Service:
    return notify.Service({notify.SOCKET: str(tmp_path / "notify")})


async def heard(systemd: socket.socket) -> str:
    async with asyncio.timeout(patience(5)):
        return (await asyncio.get_running_loop().sock_recv(systemd, 4096)).decode()


async def test_it_is_ready_at_once_and_ends_when_a_device_is_lost(
    systemd: socket.socket, service: notify.Service
) -> None:
    held = [aio.AttachedDevice(SCOPE), aio.AttachedDevice(SCOPE)]
    staying = asyncio.create_task(running.stay(held, service))
    assert await heard(systemd) == "READY=1\nSTATUS=scope (bench3), scope (bench3)"
    held[1].note_loss(Loss(at=datetime.now(UTC)))
    assert await heard(systemd) == "STOPPING=1"
    assert await staying == errors.Exit.LOST


async def test_it_ends_by_sigterm(systemd: socket.socket, service: notify.Service) -> None:
    staying = asyncio.create_task(running.stay([aio.AttachedDevice(SCOPE)], service))
    await heard(systemd)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await staying == errors.Exit.OK
    assert await heard(systemd) == "STOPPING=1"


@pytest.mark.parametrize(("command", "notify"), [([], False), (["true"], True)])
def test_a_command_or_a_unit_but_not_both(command: list[str], notify: bool) -> None:
    with pytest.raises(errors.UsageError, match="either a command or --notify"):
        running.checked(command, notify=notify)
