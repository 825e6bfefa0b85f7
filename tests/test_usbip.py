"""The kernel's files and the stock tool, recorded; the real ones are in tests/kernel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from usb_remote import errors, vhci
from usb_remote.values import BusId

BUS_ID = BusId("2-1")
HEADER = "hub port sta spd dev      sockfd local_busid\n"
FREE = "hs  0000 004 000 00000000 000000 0-0\nss  0001 004 000 00000000 000000 0-0\n"
USED = "hs  0000 004 000 00000000 000000 0-0\nss  0001 006 005 00020002 000003 4-1\n"


class Machine:
    """A sysfs with one controller, and a program called usbip that does as it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.status = root / "sys/devices/platform/vhci_hcd.0/status"
        self.status.parent.mkdir(parents=True)
        self.state = root / "state"
        self.state.mkdir()
        self.show(FREE)
        local = root / "sys/bus/usb/devices/4-1"
        local.mkdir(parents=True)
        for key, value in {"idVendor": "46f4", "idProduct": "0001", "serial": "S\x1b1"}.items():
            (local / key).write_text(value)
        self.vhci = vhci.Vhci(root / "sys", self.state, self.status, sudo=())

    def show(self, rows: str) -> None:
        self.status.write_text(HEADER + rows)

    def tool(self, script: str) -> None:
        path = self.root / "bin/usbip"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.root}/calls\n{script}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    return Machine(tmp_path)


def test_attachments_are_read_from_the_status(machine: Machine) -> None:
    assert machine.vhci.list_attachments() == []
    machine.show(USED)
    (machine.state / "port1").write_text("10.0.0.7 3240 2-1\n")
    (found,) = machine.vhci.list_attachments()
    assert (found.vhci_port, found.address, found.bus_id) == (1, "10.0.0.7", "2-1")
    assert (found.local_bus_id, found.devid, found.hardware_id) == ("4-1", 0x20002, "46f4:0001")
    assert found.serial == "S 1"


def test_a_state_file_that_cannot_be_read_is_not_invented(machine: Machine) -> None:
    machine.show(USED)
    (found,) = machine.vhci.list_attachments()
    assert (found.address, found.bus_id) == ("", None)


async def test_attach_finds_the_new_port(machine: Machine) -> None:
    machine.tool(f"printf '{HEADER}{USED}' > {machine.status}")
    found = await machine.vhci.attach("10.0.0.7", BUS_ID, usbip_port=3241, timeout=5)
    assert found.vhci_port == 1
    assert machine.calls == ["--tcp-port 3241 attach --remote 10.0.0.7 --busid 2-1"]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("usbip: error: tcp connect", errors.Unreachable, "no connection to 10.0.0.7:3240"),
        ("usbip: error: Attach Request for 2-1 failed - Device not found", errors.NotFound, "any"),
        (
            "usbip: error: Attach Request for 2-1 failed - Device busy (exported)",
            errors.Busy,
            "use",
        ),
        (
            "usbip: error: Attach Request for 2-1 failed - Request Failed",
            errors.SystemFault,
            "just now",
        ),
        ("usbip: error: import device", errors.SystemFault, "needs root"),
        ("sudo: a password is required", errors.SystemFault, "sudo wants a password"),
        ("something \x1b[2J new", errors.SystemFault, "usbip failed: something"),
    ],
)
async def test_every_failure_of_the_tool_has_its_error(
    machine: Machine, said: str, error: type[errors.UsbRemoteError], words: str
) -> None:
    machine.tool(f"echo '{said}' >&2; exit 1")
    with pytest.raises(error, match=words) as caught:
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert caught.value.message.isprintable()
    assert len(machine.calls) == 1


async def test_what_is_transient_is_tried_again(machine: Machine) -> None:
    machine.tool(
        f"[ -e {machine.root}/once ] && {{ printf '{HEADER}{USED}' > {machine.status}; exit 0; }}\n"
        f"touch {machine.root}/once; echo 'usbip: error: open vhci_driver' >&2; exit 1"
    )
    await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert len(machine.calls) == 2


def test_the_kernels_place_is_known_once_it_has_enumerated_the_device(machine: Machine) -> None:
    machine.show(USED.replace("006", "005"))
    (found,) = machine.vhci.list_attachments()
    assert machine.vhci.local_bus_id(found) is None
    machine.show(USED)
    assert machine.vhci.local_bus_id(found) == "4-1"
    machine.show("")
    with pytest.raises(errors.Unreachable, match="ended before"):
        machine.vhci.local_bus_id(found)


async def test_a_mute_server_does_not_hang_the_tool_for_ever(machine: Machine) -> None:
    machine.tool("exec sleep 1000")
    with pytest.raises(errors.Unreachable, match=r"did not answer within 0\.2 s"):
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=0.2)


async def test_all_ports_taken_is_said_before_the_tool_runs(machine: Machine) -> None:
    machine.tool("exit 0")
    machine.show(USED.splitlines()[1] + "\n")
    with pytest.raises(errors.SystemFault, match="all 1 vhci ports are in use"):
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert not (machine.root / "calls").exists()


async def test_two_attaches_never_run_at_the_same_time(machine: Machine) -> None:
    machine.tool(
        f"mkdir {machine.root}/busy || exit 9\n"
        f"read x < {machine.root}/gate; rmdir {machine.root}/busy; exit 1"
    )
    gate = machine.root / "gate"
    gate.write_text("")
    attach = machine.vhci.attach
    done = await asyncio.gather(
        *(attach("10.0.0.7", BUS_ID, timeout=5) for _ in range(4)), return_exceptions=True
    )
    assert all(isinstance(d, errors.SystemFault) and "without a word" in d.message for d in done)
    assert len(machine.calls) == 4


async def test_detach_of_a_free_port_is_a_success(machine: Machine) -> None:
    machine.tool("echo 'usbip: info: Port 1 is already detached!' >&2; exit 0")
    await machine.vhci.detach(1)


async def test_a_machine_without_the_tool_or_the_module_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.status.unlink()
    machine.tool("exit 0")
    (machine.root / "bin/modprobe").write_text("#!/bin/sh\nexit 1\n")
    (machine.root / "bin/modprobe").chmod(0o755)
    with pytest.raises(errors.SystemFault, match="vhci_hcd is not loaded") as caught:
        await machine.vhci.prepare()
    assert caught.value.hint == "type: sudo modprobe vhci_hcd"
