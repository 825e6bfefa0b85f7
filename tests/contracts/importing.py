"""What holds for whatever imports devices: client.Importer.

Who has to pass it: vhci.Vhci on the real kernel (tests/kernel/test_contracts.py) and on
fakes.client_kernel, and importing.NoticingImporter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from tests.contracts.exporting import fails, until
from usb_remote import errors
from usb_remote.client import Importer
from usb_remote.model import Attachment
from usb_remote.values import BusId
from usb_remote.virtual import VirtualDevices

ADDRESS = "127.0.0.1"
SERIAL, KEYBOARD = BusId("1-1"), BusId("1-3")


class Bench(Protocol):
    """An importer, and a server whose devices are programs.

    Attributes:
        usbip_port: where its exporter listens.
        patience: seconds that anything may take at most, on this machine.

    """

    importer: Importer
    devices: VirtualDevices
    usbip_port: int
    patience: float


Check = Callable[[Bench], Awaitable[None]]


async def an_import_is_listed_and_known_by_its_place_soon(bench: Bench) -> None:
    attachment = await attach(bench, SERIAL)
    assert (attachment.address, attachment.usbip_port) == (ADDRESS, bench.usbip_port)
    local = await enumerated(bench, attachment)
    (found,) = bench.importer.list_attachments()
    assert (found.vhci_port, found.local_bus_id) == (attachment.vhci_port, local)
    assert (found.bus_id, found.devid) == (SERIAL, 0x10002)  # vhci says 0 until it is enumerated

    def has_serial() -> bool:
        return [a.serial for a in bench.importer.list_attachments()] == ["VIRTUAL0001"]

    await until(has_serial, bench.patience)  # the kernel names the place before it reads the device


async def each_import_has_the_lowest_port_that_is_free(bench: Bench) -> None:
    first = await attach(bench, SERIAL)
    await enumerated(bench, first)
    second = await attach(bench, KEYBOARD)
    await enumerated(bench, second)
    assert sorted(ports(bench)) == [first.vhci_port, second.vhci_port]
    assert first.vhci_port < second.vhci_port
    await detach(bench, first.vhci_port)
    assert ports(bench) == [second.vhci_port]
    again = await attach(bench, SERIAL)
    assert again.vhci_port == first.vhci_port


async def a_port_that_is_free_can_be_detached(bench: Bench) -> None:
    await bench.importer.detach(0)
    attachment = await attach(bench, SERIAL)
    await enumerated(bench, attachment)
    await bench.importer.detach(attachment.vhci_port)
    await bench.importer.detach(attachment.vhci_port)
    await until(lambda: ports(bench) == [], bench.patience)


async def nobody_listens(bench: Bench) -> None:
    with socket.create_server((ADDRESS, 0)) as nobody:
        port = nobody.getsockname()[1]
    await fails(errors.Unreachable, attach(bench, SERIAL, port))
    assert ports(bench) == []


async def a_server_that_is_mute_is_given_up(bench: Bench) -> None:
    with socket.create_server((ADDRESS, 0)) as mute:
        port = mute.getsockname()[1]
        await fails(errors.Unreachable, attach(bench, SERIAL, port, timeout=bench.patience / 50))
    assert ports(bench) == []


async def a_server_that_hangs_up_half_way_leaves_nothing(bench: Bench) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(40)
        writer.close()

    server = await asyncio.start_server(hang_up, ADDRESS, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await fails(errors.UsbRemoteError, attach(bench, SERIAL, port))
    assert ports(bench) == []


async def there_is_no_such_device(bench: Bench) -> None:
    await fails(errors.NotFound, attach(bench, BusId("7-7")))
    assert ports(bench) == []


async def somebody_has_the_device(bench: Bench) -> None:
    attachment = await attach(bench, SERIAL)
    await enumerated(bench, attachment)
    await fails(errors.Busy, attach(bench, SERIAL))
    assert ports(bench) == [attachment.vhci_port]


async def what_is_pulled_there_is_gone_here(bench: Bench) -> None:
    attachment = await attach(bench, SERIAL)
    await enumerated(bench, attachment)
    bench.devices.pull("serial")
    await until(lambda: ports(bench) == [], bench.patience)
    with contextlib.suppress(errors.Unreachable):
        bench.importer.local_bus_id(attachment)
        raise AssertionError("it is said to be here still")


CHECKS: tuple[Check, ...] = (
    an_import_is_listed_and_known_by_its_place_soon,
    each_import_has_the_lowest_port_that_is_free,
    a_port_that_is_free_can_be_detached,
    nobody_listens,
    a_server_that_is_mute_is_given_up,
    a_server_that_hangs_up_half_way_leaves_nothing,
    there_is_no_such_device,
    somebody_has_the_device,
    what_is_pulled_there_is_gone_here,
)


async def attach(
    bench: Bench, bus_id: BusId, port: int | None = None, timeout: float | None = None
) -> Attachment:
    usbip_port, limit = port or bench.usbip_port, timeout or bench.patience
    return await bench.importer.attach(ADDRESS, bus_id, usbip_port=usbip_port, timeout=limit)


async def enumerated(bench: Bench, attachment: Attachment) -> str:
    """Connected at once, and known by a local bus id a moment later."""
    assert attachment.vhci_port in ports(bench)
    await until(lambda: bench.importer.local_bus_id(attachment) is not None, bench.patience)
    local = bench.importer.local_bus_id(attachment)
    assert local is not None
    return local


async def detach(bench: Bench, port: int) -> None:
    await bench.importer.detach(port)
    await until(lambda: port not in ports(bench), bench.patience)


def ports(bench: Bench) -> list[int]:
    return [attachment.vhci_port for attachment in bench.importer.list_attachments()]
