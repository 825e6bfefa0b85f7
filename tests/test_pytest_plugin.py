"""The pytest plugin in test runs of its own, against a real agent of this process."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

import usb_remote
from tests.patience import patience
from tests.residing import Here
from tests.serving import HOST, Running, state_of
from tests.waiting import eventually
from usb_remote import protocol
from usb_remote.agent_protocol import AttachRequest
from usb_remote.model import State


async def run(here: Here, code: str, *options: str) -> str:
    """What pytest says of these tests."""
    folder = here.folder / "suite"
    folder.mkdir()
    (folder / "test_it.py").write_text("import pytest, sys\n" + code)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "config").write_text("discovery: false\n")
    names = {"USB_REMOTE_AGENT": here.socket, "USB_REMOTE_CONFIG": str(folder / "config")}
    paths = (str(Path(usb_remote.__file__).parent.parent), os.environ.get("PYTHONPATH"))
    names["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:hypothesispytest", "-W", "error", *options,  # noqa: E501
        cwd=folder, env={**os.environ, **names},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), patience(60))
    return out.decode()


async def test_a_test_has_the_devices_of_its_markers(here: Here, quick: Running) -> None:
    code = """
@pytest.mark.usb("1-2")
@pytest.mark.usb("bench/1-1", name="board")
def test_one(usb_device, usb_devices):
    assert usb_device.tty.endswith("/board/tty0")
    assert [d.device.bus_id for d in usb_devices] == ["1-1", "1-2"]

@pytest.mark.usb("1-1")
def test_other(usb_device):
    assert usb_device.is_attached
"""
    out = await run(here, code, "--strict-markers", "--junitxml=out.xml")
    assert "2 passed" in out, out
    assert state_of(quick, "1-1") is State.AVAILABLE


async def test_what_is_wrong_is_said_clearly(here: Here) -> None:
    code = """
def test_unmarked(usb_device): pass

@pytest.mark.usb("1-1")
@pytest.mark.usb(bus="1-1", wait=0.3)
def test_twice(usb_device, usb_devices):
    assert usb_devices == [usb_device, usb_device]
    import usb_remote
    with pytest.raises(usb_remote.UsbRemoteError, match="another program of this machine has 1-1"):
        usb_remote.attach("1-1").__enter__()

@pytest.mark.usb("1-1", seriall="1")
def test_misspelt(usb_device): pass

@pytest.mark.usb("1-2", wait=0.3)
def test_taken(usb_device): pass

@pytest.mark.usb("none")
def test_none(usb_device): pass
"""
    async with await here.talk() as other:
        await other.request(protocol.build(AttachRequest, {"handle": "1-2", "hold": True}))
        out = await run(here, code, "--usb-wait=0.3")
    assert "1 passed" in out, out
    assert "4 errors" in out, out
    assert "unexpected keyword argument 'seriall'" in out
    assert "which device? mark it with @pytest.mark.usb('SERVER/NAME')" in out
    assert "usb-remote: another program of this machine has 1-2\nhint: " in out
    assert "usb-remote: no device matches none" in out
    assert "Traceback" not in out


async def test_devices_are_taken_in_one_order_however_they_are_named(here: Here) -> None:
    code = """
@pytest.mark.usb("1-2")
@pytest.mark.usb("bench/1-1")
def test_one(usb_devices): pass
"""
    async with await here.talk() as other:
        await other.request(protocol.build(AttachRequest, {"handle": "1-1", "hold": True}))
        out = await run(here, code, "--usb-wait=1")
    assert "1 error" in out, out
    assert here.importer.count == 1  # who waits for 1-1 does not have 1-2 meanwhile


async def test_a_server_that_cannot_be_reached_is_a_reason_to_repeat(
    here: Here, quick: Running
) -> None:
    port, tries = quick.control.port, here.folder / "suite/tries"
    await quick.control.stop()
    code = """
@pytest.fixture
def tried():
    with open("tries", "a") as tries:
        tries.write("x")

@pytest.mark.usb("bench/1-1")
def test_it(tried, usb_device): pass
"""
    running = asyncio.create_task(run(here, code, "--usb-rerun-infra=50", "--usb-wait=0.2"))
    await eventually(lambda: tries.exists() and len(tries.read_text()) > 1)
    quick.control._servers.clear()
    await quick.control.start([HOST], port)
    out = await running
    assert "1 passed" in out, out
    assert "rerun" in out, out


async def test_it_costs_nothing_where_no_test_uses_it(here: Here) -> None:
    code = "def test_it(): assert not {'pydantic', 'usb_remote.aio', 'zeroconf'} & set(sys.modules)"
    assert "1 passed" in await run(here, code)


async def test_workers_never_have_the_same_device(here: Here) -> None:
    code = """
import pathlib, time

@pytest.mark.parametrize("number", range(4))
@pytest.mark.usb(id="*", first=True)
def test_it(usb_device, number):
    mine = pathlib.Path(usb_device.device.bus_id)
    mine.mkdir()  # fails if another test has it
    time.sleep(0.1)  # so that the two workers' tests overlap
    mine.rmdir()
"""
    out = await run(here, code, "-n", "2")
    assert "4 passed" in out, out


LOST = """
import pathlib
from datetime import UTC, datetime
from usb_remote.agent_protocol import Loss

def attempt(name):
    with pathlib.Path("attempts").open("a") as attempts:
        attempts.write(f"{name} ")

def lose(device, *causes):
    for cause in causes:
        device._device.note_loss(Loss(at=datetime.now(UTC), cause=cause))

@pytest.mark.usb("1-1")
@pytest.mark.parametrize(
    "causes", [(None,), ("taken_over",), ("unplugged",), (None, "unplugged")], ids="nubm"
)
def test_it(usb_device, causes, request):
    attempt(request.node.callspec.id)
    lose(usb_device, *causes)
    assert False

@pytest.mark.usb("1-1")
def test_then_by_itself(usb_device, tried=[]):
    attempt("i")
    if not tried:
        tried.append(1)
        lose(usb_device, None)
    assert False

@pytest.mark.usb("1-1")
def test_is_content_whatever_was_lost(usb_device):
    lose(usb_device, None)
"""


@pytest.mark.parametrize("options", [(), ("-n", "1")])
async def test_only_what_the_network_did_is_repeated(here: Here, options: tuple[str, ...]) -> None:
    out = await run(here, LOST, "--usb-rerun-infra=2", "--junitxml=out.xml", *options)
    attempts = (here.folder / "suite/attempts").read_text().split()
    assert "".join(attempts) == "nnn" + "u" + "b" + "m" + "ii", out
    reports = re.findall(r"USB devices that were lost during this test.*\n.*the cause: (.*)", out)
    assert reports[:3] == [
        "the network or the server, not the device and not this test",
        "another user",
        "the device itself (or whoever unplugged it)",
    ]
    assert len(reports) == 4
    assert re.search(r"\b5 failed, 1 passed, 3 rerun\b", out), out
    assert 'failures="5"' in (here.folder / "suite/out.xml").read_text()


async def test_a_real_loss_is_in_the_report(here: Here, quick: Running) -> None:
    code = """
import os, pathlib, time

@pytest.mark.usb("1-1")
def test_that_hears_of_it(usb_device):
    pathlib.Path("ready-1").touch()
    usb_device.wait_lost(timeout=20)
    assert False

@pytest.mark.usb("1-2")
def test_that_fails_before_it_hears(usb_device):
    pathlib.Path("ready-2").touch()
    while os.path.exists(usb_device.usb):
        time.sleep(0.01)
    assert False
"""
    running = asyncio.create_task(run(here, code))
    await eventually((here.folder / "suite/ready-1").exists)
    here.pull(quick, "serial")
    await eventually((here.folder / "suite/ready-2").exists)
    here.importer.nodes.vanish("9-1")
    quick.devices.pull("disk")
    asyncio.get_running_loop().call_later(0.15, here.bell.ring)
    out = await running
    assert out.count("unplugged; the cause: the device itself") == 2, out
