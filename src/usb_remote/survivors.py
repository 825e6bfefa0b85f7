"""Sessions that outlive their server, over a restart or a crash: a new version drops nobody.

systemd keeps the sockets (sd_notify(3), FDSTORE), the history knows whose they are, and the kernels
go on meanwhile. Rule of this file: in doubt a session ends; nobody has a device that is not surely
his.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from usb_remote import notify
from usb_remote.events import Event
from usb_remote.model import Device, Holder
from usb_remote.values import BusId

log = logging.getLogger(__name__)

CGROUP = Path("/proc/self/cgroup")
PATIENCE = 5.0
"""Seconds for systemd to say what it is about to do; then it is the end."""


class Survivor(NamedTuple):
    """A session of the server before this one."""

    connection: socket.socket
    device: Device
    holder: Holder


class Keeper:
    """Has systemd keep the sockets of sessions while they last."""

    def __init__(self, service: notify.Service) -> None:
        self._service = service

    def keep(self, device: Device, connection: socket.socket) -> None:
        self._service.store(_name(device), connection.fileno())

    def forget(self, device: Device) -> None:
        self._service.forget(_name(device))

    def survivors(
        self, sessions: Iterable[Event], devices: Iterable[Device], bound: Iterable[BusId]
    ) -> list[Survivor]:
        """What can go on: the same device, still bound, its connection up, its holder known.

        Args:
            sessions: the events of those that had no end when the history ended.
            devices: what there is now.
            bound: what usbip-host has now.

        """
        stored = self._service.stored()
        found = list(_matched(stored, list(sessions), list(devices), set(bound)))
        for name, connection in stored.items():
            if not any(connection is survivor.connection for survivor in found):
                self._service.forget(name)
                connection.close()
        return found


def _name(device: Device) -> str:
    """Unique for each plug: a bus id is a place."""
    return f"{device.bus_id}@{device.devnum}"


def _matched(
    stored: Mapping[str, socket.socket],
    sessions: list[Event],
    devices: list[Device],
    bound: set[BusId],
) -> Iterable[Survivor]:
    for device in devices:
        connection = stored.get(_name(device))
        event = next((e for e in sessions if _is_of(e, device)), None)
        if connection is None or event is None or event.holder is None:
            continue
        if device.bus_id in bound and _is_up(connection):
            known = device.model_copy(update={"id": event.device})  # so that it ends as it began
            yield Survivor(connection, known, event.holder)


def _is_of(event: Event, device: Device) -> bool:
    """Not by the device id, which is another one if a twin was plugged in or out meanwhile."""
    where = (event.bus_id, event.serial) == (device.bus_id, device.serial)
    return where and event.device.startswith(device.hardware_id)


def _is_up(connection: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return bool(connection.getpeername())
    return False


async def is_restart() -> bool:
    """Whether systemd ends this service only to start it again; False if it does not say."""
    with contextlib.suppress(OSError, TimeoutError):
        unit = own_unit(CGROUP.read_text())
        async with asyncio.timeout(PATIENCE):
            return unit is not None and says_restart(await _list_jobs(unit), unit)
    return False


def own_unit(cgroups: str) -> str | None:
    """The service that this process is, by /proc/self/cgroup."""
    names = (line.rpartition("/")[2] for line in cgroups.splitlines())
    return next((name for name in names if name.endswith(".service")), None)


async def _list_jobs(unit: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager", unit),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace")


def says_restart(jobs: str, unit: str) -> bool:
    """Lines ``JOB UNIT TYPE STATE`` of systemctl list-jobs."""
    return any(words[1:3] == [unit, "restart"] for words in map(str.split, jobs.splitlines()))
