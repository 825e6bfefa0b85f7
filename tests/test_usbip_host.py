"""The rule of usbip_host.py, no device is ever left without a driver, whatever the kernel says.

The kernel is fakes.host_kernel, held to the real one by test_contracts.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.host_kernel import HostKernel
from tests.patience import patience
from tests.waiting import eventually
from usb_remote import errors
from usb_remote.usbip_host import Host, write_attribute
from usb_remote.values import BusId

BUS_ID = BusId("2-1")
BIND = ["usbip-host/match_busid add 2-1", "usb/unbind 2-1", "usbip-host/bind 2-1"]
GIVE_BACK = ["usbip-host/unbind 2-1", "usbip-host/rebind 2-1"]
PROBE = ["usb/drivers_probe 2-1"]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[HostKernel]:
    kernel = HostKernel(tmp_path, reset=0)
    kernel.plug(BUS_ID)
    yield kernel
    kernel.close()
    assert kernel.crashes == []


@pytest.fixture
def host(kernel: HostKernel) -> Host:
    return Host(kernel.root, write=kernel.write)


# -- bind and unbind


async def test_a_device_is_bound_and_given_back_with_its_place(
    kernel: HostKernel, host: Host
) -> None:
    await host.bind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usbip-host"
    await host.bind(BUS_ID)
    assert kernel.written == BIND
    await host.unbind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usb"
    assert kernel.written == BIND + GIVE_BACK
    assert kernel.places == set()


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENODEV, errno.ENOMEM])
async def test_a_driver_that_refuses_a_device_leaves_it_to_its_own(
    kernel: HostKernel, host: Host, code: int
) -> None:
    kernel.refusals["usbip-host/bind"] = code
    with pytest.raises(errors.SystemFault, match=r"cannot bind 2-1: ") as caught:
        await host.bind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usb"
    assert kernel.written == BIND + PROBE
    if code != errno.ENOMEM:
        assert os.strerror(code) in caught.value.message
        assert "usbip-host/bind" in caught.value.message


async def test_a_driver_that_does_not_let_go_keeps_its_device(
    kernel: HostKernel, host: Host
) -> None:
    kernel.refusals["usb/unbind"] = errno.EIO
    with pytest.raises(errors.SystemFault, match=r"Input/output error \(.*driver/unbind\)"):
        await host.bind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usb"
    assert kernel.written == BIND[:2]


async def test_the_seventeenth_device_is_told_in_plain_words_that_there_is_no_room(
    kernel: HostKernel, host: Host
) -> None:
    for number in range(1, 17):
        kernel.plug(f"3-{number}")
        await host.bind(BusId(f"3-{number}"))
    kernel.written.clear()
    with pytest.raises(errors.SystemFault, match="room for 16 devices, and all are taken") as said:
        await host.bind(BUS_ID)
    assert said.value.hint is not None
    assert "detach one" in said.value.hint
    assert kernel.driver(BUS_ID) == "usb"
    assert kernel.written == BIND[:1]
    await host.unbind(BusId("3-7"))
    await host.bind(BUS_ID)


async def test_a_device_that_somebody_left_without_a_driver_gets_one(
    kernel: HostKernel, host: Host
) -> None:
    kernel.write(kernel.root / "bus/usb/drivers/usb/unbind", BUS_ID)
    await host.unbind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usb"
    kernel.write(kernel.root / "bus/usb/drivers/usb/unbind", BUS_ID)
    await host.bind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usbip-host"


async def test_what_was_never_bound_is_never_rebound(kernel: HostKernel, host: Host) -> None:
    """In that state `rebind` crashes the kernel, and `del` poisons its table (decision 0002)."""
    await host.unbind(BUS_ID)
    assert kernel.written == []


async def test_what_could_not_be_unbound_is_not_rebound(kernel: HostKernel, host: Host) -> None:
    await host.bind(BUS_ID)
    kernel.refusals["usbip-host/unbind"] = errno.ENODEV
    await host.unbind(BUS_ID)
    assert kernel.written == BIND + GIVE_BACK[:1]


async def test_a_rebind_that_fails_leaves_the_device_to_its_own_driver(
    kernel: HostKernel, host: Host
) -> None:
    await host.bind(BUS_ID)
    kernel.refusals["usbip-host/rebind"] = errno.EIO
    await host.unbind(BUS_ID)
    assert kernel.driver(BUS_ID) == "usb"
    assert kernel.written == BIND + GIVE_BACK + PROBE


async def test_what_is_pulled_while_it_is_given_back_is_left_alone(kernel: HostKernel) -> None:
    def write(path: Path, text: str) -> None:
        kernel.write(path, text)
        if path == kernel.root / "bus/usb/drivers/usbip-host/unbind":
            kernel.pull(BUS_ID)

    host = Host(kernel.root, write=write)
    await host.bind(BUS_ID)
    await host.unbind(BUS_ID)
    assert kernel.written == BIND + GIVE_BACK[:1]


async def test_only_what_usbip_host_has_is_bound(kernel: HostKernel, host: Host) -> None:
    driver = kernel.root / "bus/usb/drivers/usbip-host"
    (driver / "module").symlink_to(kernel.root)
    (driver / "no-link").mkdir()
    kernel.plug("2-2")
    await host.bind(BUS_ID)
    assert host.list_bound() == [BUS_ID]
    assert (host.is_bound(BUS_ID), host.is_bound(BusId("2-2"))) == (True, False)
    assert not host.is_bound(BusId("7-7"))


# -- before anything is touched


async def test_without_the_module_a_bind_touches_nothing(tmp_path: Path) -> None:
    kernel = HostKernel(tmp_path, module=False)
    kernel.plug(BUS_ID)
    with pytest.raises(errors.SystemFault, match="usbip_host is not loaded") as caught:
        await Host(tmp_path, write=kernel.write).bind(BUS_ID)
    assert caught.value.hint == "type: sudo modprobe usbip_host"
    assert kernel.written == []


async def test_without_permission_a_bind_touches_nothing(kernel: HostKernel, host: Host) -> None:
    host.check()
    (kernel.root / "bus/usb/drivers/usbip-host/bind").unlink()  # as root sees one it cannot write
    with pytest.raises(errors.SystemFault, match="no permission to bind") as caught:
        await host.bind(BUS_ID)
    assert caught.value.hint == "run the server as root (sudo)"
    assert kernel.written == []


async def test_a_guarded_device_is_not_touched(kernel: HostKernel) -> None:
    @contextlib.contextmanager
    def guard(bus_id: BusId) -> Iterator[None]:
        raise errors.Refused(f"{bus_id} is protected")
        yield

    with pytest.raises(errors.Refused, match="2-1 is protected"):
        await Host(kernel.root, guard, kernel.write).bind(BUS_ID)
    assert kernel.written == []


async def test_the_guard_watches_until_the_device_is_bound(kernel: HostKernel) -> None:
    drivers: list[str | None] = []

    @contextlib.contextmanager
    def guard(bus_id: BusId) -> Iterator[None]:
        drivers.append(kernel.driver(bus_id))
        yield
        drivers.append(kernel.driver(bus_id))

    host = Host(kernel.root, guard, kernel.write)
    await host.bind(BUS_ID)
    await host.bind(BUS_ID)
    assert drivers == ["usb", "usbip-host"]


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_root_loads_the_module_if_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_loaded: bool
) -> None:
    modprobe = tmp_path / "bin/modprobe"
    modprobe.parent.mkdir()
    modprobe.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/loaded\n')
    modprobe.chmod(0o755)
    monkeypatch.setenv("PATH", str(modprobe.parent), prepend=":")
    kernel = HostKernel(tmp_path / "sys", module=is_loaded)
    await Host(kernel.root).load()
    is_called = (tmp_path / "loaded").exists()
    assert is_called is (os.geteuid() == 0 and not is_loaded)
    if is_called:
        assert (tmp_path / "loaded").read_text() == "usbip_host\n"


# -- sessions


@pytest.fixture
async def session(host: Host) -> AsyncIterator[socket.socket]:
    """The client's end of a session of BUS_ID."""
    near, far = socket.socketpair()
    with near, far:
        await host.bind(BUS_ID)
        await host.export(BUS_ID, near.fileno())
        yield far


async def test_a_device_is_free_when_the_kernel_has_reset_it(
    kernel: HostKernel, host: Host, session: socket.socket
) -> None:
    kernel.may_reset.clear()
    session.close()
    waiting = asyncio.create_task(host.wait_free(BUS_ID, patience(10)))
    await asyncio.sleep(0.05)  # in which it would be done
    assert not waiting.done()
    kernel.may_reset.set()
    await waiting
    assert host.status(BUS_ID) == 1


async def test_an_export_waits_until_the_kernel_has_reset_the_device(
    kernel: HostKernel, host: Host, session: socket.socket
) -> None:
    kernel.may_reset.clear()
    session.close()
    await eventually(lambda: kernel.is_resetting(BUS_ID))
    near, far = socket.socketpair()
    with near, far:
        exporting = asyncio.create_task(host.export(BUS_ID, near.fileno()))
        await asyncio.sleep(0.05)  # in which it would be done
        assert not exporting.done()
        kernel.may_reset.set()
        await exporting
        assert host.status(BUS_ID) == 2
        with pytest.raises(errors.Busy, match="2-1 is in use"):
            await host.export(BUS_ID, near.fileno())


async def test_a_device_that_is_being_unplugged_is_waited_for(
    kernel: HostKernel, host: Host, session: socket.socket
) -> None:
    kernel.begin_pull(BUS_ID)
    assert host.status(BUS_ID) is None
    waiting = asyncio.create_task(host.wait_free(BUS_ID, patience(10)))
    await asyncio.sleep(0.05)  # in which it would be done
    assert not waiting.done()
    kernel.end_pull(BUS_ID)
    await waiting


async def test_a_release_ends_a_session_and_is_no_failure_without_one(
    kernel: HostKernel, host: Host, session: socket.socket
) -> None:
    await host.release(BUS_ID)
    assert session.recv(1) == b""
    await eventually(lambda: host.status(BUS_ID) == 1)
    await host.release(BUS_ID)
    await host.release(BusId("7-7"))
    assert kernel.written[-2:] == ["2-1/usbip_sockfd -1"] * 2


async def test_a_device_in_an_error_state_is_not_said_to_be_in_use(
    kernel: HostKernel, host: Host
) -> None:
    await host.bind(BUS_ID)
    kernel.refusals["2-1/usbip_sockfd"] = errno.EINVAL
    (kernel.root / "bus/usb/devices/2-1/usbip_status").write_text("3\n")
    with pytest.raises(errors.SystemFault, match="cannot export 2-1: Invalid argument"):
        await host.export(BUS_ID, 0)
    assert host.status(BUS_ID) == 3


async def test_a_status_that_is_no_number_is_none(kernel: HostKernel, host: Host) -> None:
    await host.bind(BUS_ID)
    (kernel.root / "bus/usb/devices/2-1/usbip_status").write_text("")
    assert host.status(BUS_ID) is None


def test_an_attribute_that_refuses_is_named() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_attribute(Path("/dev/full"), "x")
