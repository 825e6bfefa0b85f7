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
        self.vhci = self.make()

    def make(self, *sudo: str) -> vhci.Vhci:
        return vhci.Vhci(self.root / "sys", self.state, self.status, sudo, delay=0.01)

    def show(self, rows: str) -> None:
        self.status.write_text(HEADER + rows)

    def load(self, state: str) -> None:
        """How far the kernel is with the module: coming, live or going."""
        file = self.root / "sys/module/vhci_hcd/initstate"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(state + "\n")

    def tool(self, script: str, name: str = "usbip") -> None:
        path = self.root / "bin" / name
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


@pytest.mark.parametrize("note", ["", "10.0.0.7 3240", "10.0.0.7 x 2-1", "10.0.0.7 3240 ../x"])
def test_a_state_file_that_says_nothing_is_not_invented(machine: Machine, note: str) -> None:
    machine.show(USED)
    (machine.state / "port1").write_text(note)
    (found,) = machine.vhci.list_attachments()
    assert (found.address, found.usbip_port, found.bus_id) == ("", 3240, None)


def test_a_device_is_described_as_far_as_it_says_what_it_is(machine: Machine) -> None:
    machine.show(USED)
    local = machine.root / "sys/bus/usb/devices/4-1"
    (local / "manufacturer").write_text("FTDI\n")
    (local / "product").write_text("FT\x1b232R\n")
    (local / "idProduct").unlink()
    (local / "serial").write_text("\n")
    (found,) = machine.vhci.list_attachments()
    assert (found.description, found.hardware_id, found.serial) == ("FTDI FT 232R", None, None)


@pytest.mark.parametrize("state", ["coming", "going"])
def test_nothing_is_read_while_the_module_comes_or_goes(machine: Machine, state: str) -> None:
    """Reading a controller's status then crashes Debian's kernel."""
    machine.show(USED)
    machine.load(state)
    machine.status.unlink()
    machine.status.mkdir()  # reading it fails
    assert not machine.vhci.is_loaded
    assert machine.vhci.list_attachments() == []
    assert machine.vhci.count_ports() == {}
    machine.status.rmdir()
    machine.show(USED)
    machine.load("live")
    assert machine.vhci.is_loaded
    assert len(machine.vhci.list_attachments()) == 1


def test_a_module_that_is_loaded_again_is_looked_at_again(machine: Machine) -> None:
    machine.show(USED)
    assert len(machine.vhci.list_attachments()) == 1
    machine.load("going")
    machine.status.rename(machine.status.with_name("gone"))
    assert not machine.vhci.is_loaded
    machine.load("live")
    assert not machine.vhci.is_loaded
    machine.show(USED)
    machine.status.with_name("status.1").write_text(HEADER)
    assert len(machine.vhci.list_attachments()) == 1


def test_all_controllers_are_read_and_their_ports_counted_by_speed(machine: Machine) -> None:
    machine.show(USED)
    second = "hs  0008 006 002 00010003 000007 5-1\nss  0009 005 000 00010004 000008 0-0\n"
    machine.status.with_name("status.2").write_text(HEADER + second)
    ports = [(a.vhci_port, a.local_bus_id) for a in machine.vhci.list_attachments()]
    assert ports == [(1, "4-1"), (8, "5-1"), (9, None)]
    assert machine.vhci.count_ports() == {"hs": (1, 2), "ss": (0, 2)}
    found = machine.vhci.list_attachments()[1]
    machine.status.with_name("status.10").write_text(HEADER + second.replace(" 000", " 008"))
    assert [a.vhci_port for a in machine.make().list_attachments()] == [1, 8, 9, 88, 89]
    machine.status.with_name("status.10").unlink()
    assert machine.vhci.local_bus_id(found) == "5-1"
    machine.status.unlink()  # not read if another controller has the port
    machine.status.symlink_to("/dev/null")
    assert machine.vhci.local_bus_id(found) == "5-1"


def test_a_controller_without_ports_of_a_kind_counts_none(machine: Machine) -> None:
    machine.show(FREE.splitlines()[0] + "\n")
    assert machine.vhci.count_ports() == {"hs": (1, 1)}


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


async def test_what_does_not_go_away_is_not_tried_for_ever(machine: Machine) -> None:
    machine.tool("echo 'usbip: error: open vhci_driver' >&2; exit 1")
    with pytest.raises(errors.SystemFault, match="open vhci_driver"):
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert len(machine.calls) == vhci.ATTACH_TRIES


async def test_a_module_that_is_missing_does_not_come_by_trying_again(machine: Machine) -> None:
    missing = "usbip: error: udev_device_new_from_subsystem_sysname failed"
    machine.tool(f"echo '{missing}' >&2; echo 'usbip: error: open vhci_driver' >&2; exit 1")
    with pytest.raises(errors.SystemFault):
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert len(machine.calls) == 1


async def test_an_import_that_is_gone_when_the_tool_ends_is_told(machine: Machine) -> None:
    machine.tool("exit 0")
    with pytest.raises(errors.Unreachable, match="import of 2-1 ended before"):
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)


async def test_an_import_is_found_before_the_kernel_has_enumerated_it(machine: Machine) -> None:
    rows = "hs  0001 006 002 00020001 000003 3-1\nhs  0002 {} 000 00020002 000004 {}\n"
    machine.show(rows.format("004", "0-0"))
    machine.tool(f"printf '{HEADER}{rows.format('005', '0-0')}' > {machine.status}")
    found = await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert (found.vhci_port, found.local_bus_id, found.devid) == (2, None, 0x20002)
    assert (found.bus_id, found.usbip_port) == ("2-1", 3240)
    assert machine.vhci.local_bus_id(found) is None
    machine.show(rows.format("006", "0-0"))
    assert machine.vhci.local_bus_id(found) is None
    machine.show(rows.format("006", "3-2"))
    assert machine.vhci.local_bus_id(found) == "3-2"


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


@pytest.mark.parametrize("port", [0, 7, 11])
async def test_detach_of_a_free_port_is_a_success(machine: Machine, port: int) -> None:
    """Even if the tool says that it has failed: it was just detached, or there is no such port."""
    machine.show(USED)
    machine.tool("echo 'usbip: error: Invalid port' >&2; exit 1")
    await machine.vhci.detach(port)
    assert machine.calls == [f"detach --port {port}"]


async def test_detach_of_a_port_that_stays_in_use_is_a_failure(machine: Machine) -> None:
    machine.show(USED)
    machine.tool("echo 'usbip: error: Port 1 request failed' >&2; exit 1")
    with pytest.raises(errors.SystemFault, match="usbip failed: usbip: error: Port 1 request"):
        await machine.vhci.detach(1)


async def test_a_detach_that_does_not_end_is_told(machine: Machine) -> None:
    machine.tool("exec sleep 1000")
    with pytest.raises(errors.Unreachable, match=r"did not answer within 0\.1 s"):
        await machine.vhci.detach(1, timeout=0.1)


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


async def test_what_is_loaded_already_is_not_loaded_again(machine: Machine) -> None:
    machine.tool("exit 0")
    machine.tool("exit 0", "modprobe")
    await machine.vhci.prepare()
    assert not (machine.root / "calls").exists()


async def test_a_module_is_loaded_when_it_is_needed(machine: Machine) -> None:
    machine.status.unlink()
    machine.tool("exit 0")
    machine.tool(f"echo > {machine.status}", "modprobe")
    await machine.vhci.prepare()
    assert machine.calls == ["vhci_hcd"]


async def test_without_root_all_is_done_by_sudo(machine: Machine) -> None:
    machine.tool('echo "$*"; shift; exec "$@"', "sudo")
    machine.tool("exit 0")
    machine.tool(f"echo > {machine.status}", "modprobe")
    machine.status.unlink()
    here = machine.make("sudo", "--quietly")
    await here.prepare()
    binaries = machine.root / "bin"
    by_sudo = [call for call in machine.calls if call.startswith("--quietly ")]
    assert by_sudo == [
        f"--quietly {binaries}/modprobe vhci_hcd",
        f"--quietly {binaries}/usbip version",
    ]
    machine.show(USED)
    await here.detach(1)
    assert machine.calls[-2:] == [f"--quietly {binaries}/usbip detach --port 1", "detach --port 1"]


@pytest.mark.skipif(Path("/usr/sbin/sudo").exists(), reason="this machine has it among its tools")
async def test_without_root_and_without_sudo_nothing_is_tried(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{machine.root}/bin")
    machine.status.unlink()
    machine.tool("exit 0")
    machine.tool("exit 0", "modprobe")
    with pytest.raises(errors.SystemFault, match="attaching needs root"):
        await machine.make("sudo", "-n").prepare()
    assert not (machine.root / "calls").exists()


async def test_a_sudo_that_wants_a_password_is_told_before_a_server_is_asked(
    machine: Machine,
) -> None:
    machine.tool("echo 'sudo: a password is required' >&2; exit 1", "sudo")
    machine.tool("exit 0")
    with pytest.raises(errors.SystemFault, match="sudo wants a password"):
        await machine.make("sudo", "--quietly").prepare()


async def test_without_the_module_there_is_nothing_to_attach_to(machine: Machine) -> None:
    machine.tool("exit 0")
    machine.status.unlink()
    with pytest.raises(errors.SystemFault, match="vhci_hcd is not loaded"):
        await machine.vhci.attach("10.0.0.7", BUS_ID, timeout=5)
    assert not (machine.root / "calls").exists()
