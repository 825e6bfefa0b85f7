"""What an agent knows of servers and of this machine, and when it looks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.importing import Bell
from tests.waiting import eventually
from usb_remote import errors
from usb_remote.agent.times import Times
from usb_remote.agent.world import World
from usb_remote.agent_protocol import View
from usb_remote.model import Attachment, Device, Listing, Server, Snapshot
from usb_remote.watcher import Change

NEVER = replace(
    Times(), look_again=600.0, storm=600.0, look_around=600.0, slow_look=600.0, unheard=600.0
)
PORT = Attachment(vhci_port=0, devid=65538, local_bus_id="9-1")


def server(name: str, **more: Any) -> Server:
    return Server(
        name=name, **{"id": name * 32, "version": "3", "addresses": ("127.0.0.1",), **more}
    )


def listed(name: str, *bus_ids: str, revision: int = 1, **more: Any) -> Change:
    devices = tuple(
        Device.model_validate({"bus_id": bus_id, "vendor_id": "0403", "product_id": "6001"})
        for bus_id in bus_ids
    )
    snapshot = Snapshot(revision=revision, devices=devices)
    one = server(name, **more)
    return Change(one, Listing(server=one, snapshot=snapshot))


class Machine:
    """This machine: what is imported, how often somebody has looked, and a bell."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.attachments: list[Attachment] = []
        self.looks = 0
        self.is_unloading = False
        self.changes: asyncio.Queue[Change] = asyncio.Queue()

    def list_attachments(self) -> list[Attachment]:
        self.looks += 1
        if self.is_unloading:
            raise FileNotFoundError("status")
        return list(self.attachments)

    async def watch(self) -> AsyncIterator[Change]:
        while True:
            yield await self.changes.get()


@contextlib.asynccontextmanager
async def seen_by(times: Times = NEVER) -> AsyncIterator[tuple[World, Machine]]:
    machine = Machine()
    world = World(machine.watch, machine.list_attachments, machine.bell, times=times)
    running = asyncio.create_task(world.run())
    await eventually(lambda: machine.looks)
    yield world, machine
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    machine.bell.close()


# -- this machine


async def test_it_looks_once_at_the_start_and_then_sleeps() -> None:
    async with seen_by() as (_, machine):
        await asyncio.sleep(0.03)  # in which it would look again
        assert machine.looks == 1


async def test_events_soon_after_a_look_wait_for_each_other() -> None:
    async with seen_by() as (_, machine):
        machine.bell.ring()
        await eventually(machine.bell.is_silent)
        assert machine.looks == 1


async def test_events_close_together_are_fewer_looks_and_one_more_later() -> None:
    times = replace(NEVER, storm=0.05, look_again=0.05)
    async with seen_by(times) as (world, machine):
        machine.attachments = [PORT]
        for _ in range(20):
            machine.bell.ring()
            await eventually(machine.bell.is_silent)
        await eventually(lambda: world.attachments == (PORT,))
        await eventually(lambda: machine.looks >= 3)
        await asyncio.sleep(0.1)  # in which more looks would come
        assert machine.looks < 20


async def test_an_event_after_a_quiet_time_is_looked_at_at_once_and_again() -> None:
    times = replace(NEVER, storm=0.0, look_again=0.05)
    async with seen_by(times) as (world, machine):
        machine.bell.ring()
        await eventually(lambda: machine.looks == 2)
        machine.attachments = [PORT]  # vhci-hcd is later than udev
        await eventually(lambda: world.attachments == (PORT,))
        assert machine.looks == 3


async def test_it_looks_now_and_then_also_without_any_event() -> None:
    async with seen_by(replace(NEVER, slow_look=0.01)) as (_, machine):
        await eventually(lambda: machine.looks > 3)


async def test_a_module_that_is_just_unloaded_changes_nothing() -> None:
    async with seen_by() as (world, machine):
        machine.attachments = [PORT]
        world.look()
        machine.is_unloading = True
        world.look()
        assert world.attachments == (PORT,)
        assert world.attachment_at(0) == PORT
        assert world.attachment_at(1) is None


# -- servers


async def test_the_newest_of_each_server_is_known_and_told() -> None:
    async with seen_by() as (world, machine):
        told: list[View] = []
        world.on_view = told.append
        for change in (listed("b", "1-1"), listed("a"), listed("b", "1-1", "1-2", revision=2)):
            machine.changes.put_nowait(change)
        await eventually(lambda: len(told) == 3)
        assert [view.server.name for view in told] == ["b", "a", "b"]
        assert [v.server.name for v in world.search().listings] == ["a", "b"]  # in their order
        view = world.view_of(server("b"))
        assert view is not None
        assert (view.revision, len(view.devices)) == (2, 2)
        device = world.device_at(server("b"), "1-2")
        assert device is not None
        assert device.bus_id == "1-2"
        assert world.device_at(server("b"), "1-3") is None
        assert world.device_at(server("c"), "1-1") is None


async def test_a_server_that_is_lost_stays_with_its_error_and_no_devices() -> None:
    async with seen_by() as (world, machine):
        machine.changes.put_nowait(listed("b", "1-1"))
        machine.changes.put_nowait(Change(server("b"), None, errors.Unreachable("it is off")))
        await eventually(lambda: world.search().failures)
        (failure,) = world.search().failures
        assert failure.error.message == "it is off"
        assert world.search().listings == []
        assert not world.is_silent(server("b"))
        machine.changes.put_nowait(Change(server("b"), None, errors.Silent("says nothing")))
        await eventually(lambda: world.is_silent(server("b")))
        machine.changes.put_nowait(listed("b"))
        await eventually(lambda: not world.is_silent(server("b")))
        machine.changes.put_nowait(Change(server("b"), None))
        await eventually(lambda: world.search().failures)
        assert world.search().failures[0].error.message == "b was lost"


async def test_a_server_that_had_said_no_id_before_is_listed_once() -> None:
    async with seen_by() as (world, machine):
        error = errors.Unreachable("not yet")
        machine.changes.put_nowait(Change(server("b", id=None, version=None), None, error))
        await eventually(lambda: len(world.views) == 1)
        machine.changes.put_nowait(listed("b", "1-1"))
        machine.changes.put_nowait(listed("c", "1-1", port=5056))
        await eventually(lambda: len(world.search().listings) == 2)
        assert world.search().failures == []
        assert len(world.views) == 2


async def test_what_was_never_heard_of_is_as_good_as_dead_after_a_while() -> None:
    async with seen_by() as (world, _):
        assert not world.is_silent(server("b"))
    async with seen_by(replace(NEVER, unheard=0.0)) as (world, machine):
        await eventually(lambda: world.is_silent(server("b")))
        machine.changes.put_nowait(listed("b"))
        await eventually(lambda: not world.is_silent(server("b")))


# -- who waits


async def test_who_waits_is_woken_by_each_change_and_looks_again() -> None:
    async with seen_by() as (world, machine):
        looks: list[int] = []

        def look() -> str | None:
            looks.append(machine.looks)
            return "seen" if len(looks) == 3 else None

        waiting = asyncio.create_task(world.until(look))
        for number in (1, 2, 3):
            await eventually(lambda n=number: len(looks) == n)
            world.tell()
        assert await waiting == "seen"


@pytest.mark.parametrize("timeout", [0, 0.02])
async def test_who_waits_in_vain_waits_no_longer_than_he_said(timeout: float) -> None:
    async with seen_by() as (world, _):
        looked: Callable[[], bool | None] = lambda: None  # noqa: E731
        assert await world.until(looked, timeout) is None
        await world.changed(timeout)


async def test_it_is_settled_when_it_has_looked_around_and_not_before() -> None:
    async with seen_by() as (world, _):
        assert not world.is_settled
    async with seen_by(replace(NEVER, look_around=0.02)) as (world, _):
        await world.settled()
        assert world.is_settled
