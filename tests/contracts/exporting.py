"""What holds for whatever exports devices: lease.ExportHost.

Who has to pass it: usbip_host.Host on the real kernel (tests/kernel/test_contracts.py) and on
fakes.host_kernel, and virtual.VirtualDevices.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from usb_remote import errors
from usb_remote.lease import ExportHost
from usb_remote.values import BusId

NOWHERE = BusId("7-7")
"""Where nothing is ever plugged in."""


class Bench(Protocol):
    """A host, and one device that is plugged in, free and in its own driver's hands.

    Attributes:
        patience: seconds that anything may take at most, on this machine.

    """

    host: ExportHost
    bus_id: BusId
    patience: float

    def plug(self) -> None: ...
    def pull(self) -> None: ...
    def has_own_driver(self) -> bool: ...


class KernelBench(Bench, Protocol):
    """The host is usbip_host.Host, on the real kernel or on fakes.host_kernel."""

    def write(self, attribute: str, text: str) -> None:
        """Write to a file below bus/usb, as others may."""


Check = Callable[[Bench], Awaitable[None]]
KernelCheck = Callable[[KernelBench], Awaitable[None]]


async def a_device_is_listed_as_long_as_it_is_bound(bench: Bench) -> None:
    assert bench.bus_id not in bench.host.list_bound()
    await bench.host.bind(bench.bus_id)
    assert bench.bus_id in bench.host.list_bound()
    assert not bench.has_own_driver()
    await bench.host.unbind(bench.bus_id)
    assert bench.bus_id not in bench.host.list_bound()
    assert bench.has_own_driver()


async def what_is_done_twice_is_done(bench: Bench) -> None:
    await bench.host.unbind(bench.bus_id)
    assert bench.has_own_driver()
    for _ in range(2):
        await bench.host.bind(bench.bus_id)
        assert bench.host.list_bound().count(bench.bus_id) == 1
    for _ in range(2):
        await bench.host.unbind(bench.bus_id)
        assert bench.has_own_driver()


async def it_can_be_bound_more_often_than_the_kernel_has_places(bench: Bench) -> None:
    for _ in range(17):
        await bench.host.bind(bench.bus_id)
        await bench.host.unbind(bench.bus_id)
    assert bench.has_own_driver()


async def what_is_not_there_cannot_be_bound(bench: Bench) -> None:
    await fails(errors.SystemFault, bench.host.bind(NOWHERE))
    assert NOWHERE not in bench.host.list_bound()
    await bench.host.unbind(NOWHERE)
    await bench.host.release(NOWHERE)
    await bench.host.wait_free(NOWHERE, bench.patience)


async def what_is_not_bound_cannot_be_exported(bench: Bench) -> None:
    near, far = socket.socketpair()
    with near, far:
        await fails(errors.SystemFault, bench.host.export(bench.bus_id, near.fileno()))


async def one_socket_at_a_time_has_the_device(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    first, client = await exported(bench)
    second, other = socket.socketpair()
    with first, client, second, other:
        await fails(errors.Busy, bench.host.export(bench.bus_id, second.fileno()))
        assert not has_ended(client)


async def who_hangs_up_gives_the_device_to_the_next(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    for _ in range(2):
        connection, client = await exported(bench)
        with connection:
            client.close()
            await bench.host.wait_free(bench.bus_id, bench.patience)


async def the_session_goes_on_when_we_close_our_own_socket(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    connection, client = await exported(bench)
    with client:
        connection.close()
        second, other = socket.socketpair()
        with second, other:
            await fails(errors.Busy, bench.host.export(bench.bus_id, second.fileno()))
        assert not has_ended(client)


async def a_release_ends_the_session(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    await bench.host.release(bench.bus_id)  # there is none: nothing happens
    connection, client = await exported(bench)
    with connection, client:
        await bench.host.release(bench.bus_id)
        await until(lambda: has_ended(client), bench.patience)
        await bench.host.wait_free(bench.bus_id, bench.patience)
        assert bench.bus_id in bench.host.list_bound()
        again, next_client = await exported(bench)
        again.close()
        next_client.close()


async def an_unbind_ends_the_session(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    connection, client = await exported(bench)
    with connection, client:
        await bench.host.unbind(bench.bus_id)
        await until(lambda: has_ended(client), bench.patience)
        assert bench.has_own_driver()


async def waiting_for_a_session_to_end_takes_no_longer_than_allowed(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    connection, client = await exported(bench)
    with connection, client:
        async with asyncio.timeout(bench.patience):
            await bench.host.wait_free(bench.bus_id, 0.05)
        assert not has_ended(client)


async def nobody_else_has_to_wait_meanwhile(bench: Bench) -> None:
    """The event loop goes on: what we do next ends the wait."""
    await bench.host.bind(bench.bus_id)
    connection, client = await exported(bench)
    with connection, client:
        waiting = asyncio.create_task(bench.host.wait_free(bench.bus_id, 2 * bench.patience))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        client.close()
        async with asyncio.timeout(bench.patience):
            await waiting


async def what_is_pulled_is_bound_no_more(bench: Bench) -> None:
    await bench.host.bind(bench.bus_id)
    connection, client = await exported(bench)
    with connection, client:
        bench.pull()
        await until(lambda: has_ended(client), bench.patience)
        await bench.host.wait_free(bench.bus_id, bench.patience)
        assert bench.bus_id not in bench.host.list_bound()
    await bench.host.unbind(bench.bus_id)
    await fails(errors.SystemFault, bench.host.bind(bench.bus_id))
    bench.plug()
    assert bench.has_own_driver()
    await bench.host.bind(bench.bus_id)
    again, next_client = await exported(bench)
    again.close()
    next_client.close()


# -- of the kernel's driver only


async def a_bind_that_fails_at_last_leaves_the_device_to_its_own_driver(bench: KernelBench) -> None:
    """The driver refuses what was deleted while it was bound."""
    await bench.host.bind(bench.bus_id)
    bench.write("drivers/usbip-host/match_busid", f"del {bench.bus_id}")
    bench.write("drivers/usbip-host/unbind", bench.bus_id)
    bench.write("drivers_probe", bench.bus_id)
    assert bench.has_own_driver()
    said = await fails(errors.SystemFault, bench.host.bind(bench.bus_id))
    assert said.message.startswith(f"cannot bind {bench.bus_id}: No such device")
    assert bench.has_own_driver()
    assert bench.bus_id not in bench.host.list_bound()
    bench.write("drivers/usbip-host/rebind", bench.bus_id)  # makes it as new
    await bench.host.bind(bench.bus_id)


async def a_bind_without_a_place_takes_nothing_from_anybody(bench: KernelBench) -> None:
    """The last check: such places are taken until the module is loaded again."""
    with contextlib.suppress(OSError):
        for number in range(1, 18):
            bench.write("drivers/usbip-host/match_busid", f"add 9-{number}")
    said = await fails(errors.SystemFault, bench.host.bind(bench.bus_id))
    assert "room for 16 devices, and all are taken" in said.message
    assert bench.has_own_driver()


CHECKS: tuple[Check, ...] = (
    a_device_is_listed_as_long_as_it_is_bound,
    what_is_done_twice_is_done,
    it_can_be_bound_more_often_than_the_kernel_has_places,
    what_is_not_there_cannot_be_bound,
    what_is_not_bound_cannot_be_exported,
    one_socket_at_a_time_has_the_device,
    who_hangs_up_gives_the_device_to_the_next,
    the_session_goes_on_when_we_close_our_own_socket,
    a_release_ends_the_session,
    an_unbind_ends_the_session,
    waiting_for_a_session_to_end_takes_no_longer_than_allowed,
    nobody_else_has_to_wait_meanwhile,
)
PULLS: tuple[Check, ...] = (what_is_pulled_is_bound_no_more,)
"""Not for dummy_hcd: a pull during a session crashed Linux 6.1 there (see in_machine.py).
Pulled out of a USB controller that does not happen: tests/kernel/test_main_path.py."""
KERNEL_CHECKS: tuple[KernelCheck, ...] = (
    a_bind_that_fails_at_last_leaves_the_device_to_its_own_driver,
    a_bind_without_a_place_takes_nothing_from_anybody,
)


async def exported(bench: Bench) -> tuple[socket.socket, socket.socket]:
    """A session: the server's end and the client's, over TCP as the kernel knows it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    await bench.host.export(bench.bus_id, connection.fileno())
    return connection, client


def has_ended(client: socket.socket) -> bool:
    """Whether the other side has hung up on this one."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


async def until(condition: Callable[[], bool], timeout: float) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.005)


async def fails(
    error: type[errors.UsbRemoteError], doing: Awaitable[object]
) -> errors.UsbRemoteError:
    """As pytest.raises, which the machines do not have."""
    try:
        await doing
    except error as said:
        return said
    raise AssertionError(f"no {error.__name__}")
