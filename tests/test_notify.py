"""What systemd hears, on a real datagram socket in its place."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Forked
from tests.patience import patience
from usb_remote import notify

Listener = tuple[socket.socket, str]


@pytest.fixture(params=["a file", "an abstract name"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    """Its end of the socket, and the address as NOTIFY_SOCKET says it."""
    place = str(tmp_path / "notify")
    address = place if request.param == "a file" else f"@usb-remote-{os.getpid()}-{place}"[:100]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address if address == place else f"\0{address[1:]}")
        listener.settimeout(patience(5))
        yield listener, address


def heard(systemd: Listener) -> list[str]:
    return systemd[0].recv(4096).decode().split("\n")


def test_ready_says_what_it_does(systemd: Listener) -> None:
    notify.Service({notify.SOCKET: systemd[1]}).ready("serves 3 devices")
    assert heard(systemd) == ["READY=1", "STATUS=serves 3 devices"]


def test_a_reload_begins_at_a_time_and_ends_with_ready(systemd: Listener) -> None:
    service = notify.Service({notify.SOCKET: systemd[1]})
    before = time.monotonic_ns() // 1000
    service.reloading()
    word, when = heard(systemd)
    assert word == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    service.ready()
    assert heard(systemd) == ["READY=1"]


async def test_the_watchdog_hears_from_the_event_loop_until_it_stops(systemd: Listener) -> None:
    service = notify.Service({notify.SOCKET: systemd[1], notify.WATCHDOG: "40000"})
    start = time.monotonic()
    service.ready()
    assert heard(systemd) == ["READY=1"]
    for _ in range(3):
        assert await asyncio.to_thread(heard, systemd) == ["WATCHDOG=1"]
    assert time.monotonic() - start >= 0.04  # at once, then each half of 40 ms
    service.stopping()
    while (word := heard(systemd)) == ["WATCHDOG=1"]:
        pass
    assert word == ["STOPPING=1"]
    systemd[0].settimeout(0.1)
    with pytest.raises(TimeoutError):
        heard(systemd)


async def test_a_watchdog_of_another_process_is_none_of_ours(systemd: Listener) -> None:
    environment = {notify.SOCKET: systemd[1], notify.WATCHDOG: "1000", notify.WATCHDOG_PID: "1"}
    notify.Service(environment).ready()
    assert heard(systemd) == ["READY=1"]
    await asyncio.sleep(0.02)  # in which a ping would come
    systemd[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        heard(systemd)


def test_what_was_stored_is_passed_once_to_whom_it_is_meant_for_and_to_no_child() -> None:
    left, right = socket.socketpair()
    with left, right:
        os.set_inheritable(left.fileno(), True)
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "scope"}
        environment = dict(passed)
        service = notify.Service(environment, left.fileno())
        assert environment == {}
        assert not os.get_inheritable(left.fileno())
        (stored,) = service.stored().items()
        assert (stored[0], stored[1].fileno()) == ("scope", left.fileno())
        stored[1].detach()
        assert service.stored() == {}
        others = notify.Service({**passed, "LISTEN_PID": "1"}, left.fileno())
        assert others.stored() == {}


def test_of_several_that_were_stored_each_has_its_name() -> None:
    left, right = socket.socketpair()
    with left, right:
        first, second = sorted((left.fileno(), right.fileno()))
        assert second == first + 1
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
        stored = notify.Service(passed, first).stored()
        assert {name: one.fileno() for name, one in stored.items()} == {"a": first, "b": second}
        for one in stored.values():
            one.detach()


def test_what_is_stored_is_sent_with_its_name(systemd: Listener) -> None:
    service = notify.Service({notify.SOCKET: systemd[1]})
    with socket.socket() as kept:
        service.store("scope", kept.fileno())
        data, fds, _, _ = socket.recv_fds(systemd[0], 4096, 4)
    (copy,) = fds
    os.close(copy)
    assert data.split(b"\n") == [b"FDSTORE=1", b"FDPOLL=0", b"FDNAME=scope"]
    service.forget("scope")
    assert heard(systemd) == ["FDSTOREREMOVE=1", "FDNAME=scope"]


async def test_the_watchdog_hears_twice_in_the_time_that_it_gives(systemd: Listener) -> None:
    """And not just in time: half of it is left for a busy machine."""
    service = notify.Service(
        {
            notify.SOCKET: systemd[1],
            notify.WATCHDOG: "60000000",
            notify.WATCHDOG_PID: f"{os.getpid()}",
        }
    )
    service.ready()
    timer = service._timer
    assert timer is not None
    assert 29 < timer.when() - asyncio.get_running_loop().time() <= 30
    service.ready()  # as after each reload
    assert service._timer is timer
    service.stopping()
    assert timer.cancelled()


def test_programs_that_we_start_do_not_speak_for_us() -> None:
    environment = {notify.SOCKET: "/nowhere", notify.WATCHDOG: "1", notify.WATCHDOG_PID: "1"}
    notify.Service(environment)
    assert environment == {}


def test_where_nobody_listens_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    notify.Service({}).ready("x")
    assert not caplog.messages
    notify.Service({notify.SOCKET: "/nowhere/notify"}).ready("x")
    assert "systemd does not hear READY=1" in caplog.text


def test_a_server_is_ready_when_its_ports_are_open_and_tells_of_its_end(
    systemd: Listener, tmp_path: Path
) -> None:
    state = {"STATE_DIRECTORY": str(tmp_path), "NOTIFY_SOCKET": systemd[1]}
    with Forked(
        "server", "--virtual", "--no-advertise",
        "--listen", "127.0.0.1", "--port", "0", "--usbip-port", "0", "--name", "bench",
        stderr=subprocess.DEVNULL, env={**os.environ, **state},
    ) as server:  # fmt: skip
        systemd[0].settimeout(patience(30))
        ready, status = heard(systemd)
        assert (ready, status[:24]) == ("READY=1", "STATUS=serves as bench o")
        port = int(status.split()[5])
        socket.create_connection(("127.0.0.1", port), 5).close()
        server.send_signal(1)
        assert heard(systemd)[0] == "RELOADING=1"
        assert heard(systemd) == ["READY=1"]
        server.terminate()
        assert heard(systemd) == ["STOPPING=1"]
        assert server.wait(patience(20)) == 0
