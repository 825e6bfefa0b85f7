"""Which nodes a device has, and when all are there, from a made-up sysfs; tests/kernel has real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.fakes.clock import Clock
from usb_remote.udev.nodes import Arrival, list_nodes, list_parts

T = TypeVar("T")
HOUR = 3600.0
NOTHING: Callable[[], object] = lambda: None  # noqa: E731


class Machine:
    """A sysfs in which drivers make nodes of the device 1-1, and what udev says meanwhile."""

    def __init__(self, root: Path) -> None:
        self.sysfs = root
        self.device = root / "devices/pci0/usb1/1-1"
        self.uninitialized: set[str] = set()
        self.events: list[tuple[float, bool, Callable[[], object]]] = []
        (root / "bus/usb/devices").mkdir(parents=True)

    def plug(self) -> None:
        (self.sysfs / "bus/usb/devices/1-1").symlink_to(self.device)
        self.part("", "usb", "bus/usb/001/005")

    def interface(self, number: int, kind: str, *, driver: bool = True) -> str:
        name = f"1-1:1.{number}"
        self.part(name, "usb")
        (self.device / name / "bInterfaceClass").write_text(kind + "\n")
        if driver:
            (self.device / name / "driver").symlink_to(self.sysfs)
        return name

    def part(self, place: str, subsystem: str, node: str | None = None) -> Path:
        path = self.device / place
        path.mkdir(parents=True, exist_ok=True)
        name = f"MAJOR=1\nDEVNAME={node}\nDEVTYPE=x\n" if node else "DRIVER=x\n"
        (path / "uevent").write_text(name)
        (path / "subsystem").symlink_to(self.sysfs / "class" / subsystem)
        return path

    # as udev.Monitor

    def later(self, seconds: float, made: bool, do: Callable[[], object] = NOTHING) -> None:
        """After so many seconds something happens, and udev tells of it."""
        self.events.append((seconds, made, do))

    async def wait(self, timeout: float) -> bool | None:
        now = asyncio.get_running_loop().time()
        if not self.events or self.events[0][0] - now > timeout:
            await asyncio.sleep(timeout)
            return None
        at, made, do = self.events.pop(0)
        await asyncio.sleep(at - now)
        do()
        return made

    def arrival(self) -> Arrival:
        return Arrival(self, self.sysfs, lambda path: Path(path).name not in self.uninitialized)

    def until_usable(self, timeout: float = HOUR) -> tuple[tuple[str, ...], float]:
        """The nodes, and after how many seconds."""

        async def wait() -> tuple[tuple[str, ...], float]:
            nodes = await self.arrival().until_usable("1-1", timeout)
            return nodes, asyncio.get_running_loop().time()

        return run(wait())


def run(work: Coroutine[Any, Any, T]) -> T:
    """In no time, by a clock that does not wait."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(work)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# -- which


def test_nodes_are_listed_best_first_and_the_devices_own_one_last(machine: Machine) -> None:
    machine.plug()
    for number, (subsystem, node) in enumerate(
        [
            ("sound", "snd/pcmC1D0p"),
            ("scsi_generic", "sg0"),
            ("bsg", "bsg/0:0:0:0"),
            ("hidraw", "hidraw0"),
            ("input", "input/event7"),
            ("usbmisc", "usblp0"),
            ("video4linux", "video0"),
            ("block", "sda"),
            ("tty", "ttyUSB0"),
        ]
    ):
        machine.part(f"1-1:1.0/{number}", subsystem, node)
    machine.part("1-1:1.0/leds", "leds")
    names = "ttyUSB0 sda video0 usblp0 hidraw0 input/event7 snd/pcmC1D0p sg0 bus/usb/001/005"
    assert list_nodes("1-1", machine.sysfs) == tuple(f"/dev/{name}" for name in names.split())


def test_a_node_is_listed_once(machine: Machine) -> None:
    machine.plug()
    for place in ("1-1:1.0/a", "1-1:1.0/b"):
        machine.part(place, "tty", "ttyUSB0")
    assert list_nodes("1-1", machine.sysfs) == ("/dev/ttyUSB0", "/dev/bus/usb/001/005")


def test_links_and_power_are_not_looked_into(machine: Machine) -> None:
    machine.plug()
    machine.part("power/x", "tty", "ttyUSB8")
    other = machine.sysfs / "other"
    other.mkdir()
    (machine.device / "link").symlink_to(other)
    (other / "uevent").write_text("DEVNAME=ttyUSB9\n")
    (other / "subsystem").symlink_to(machine.sysfs / "class/tty")
    assert list_nodes("1-1", machine.sysfs) == ("/dev/bus/usb/001/005",)


def test_what_is_no_part_of_its_own_has_no_node(machine: Machine) -> None:
    """A folder of attributes may have a uevent, but no subsystem."""
    machine.plug()
    (machine.part("1-1:1.0/x", "tty", "ttyUSB0") / "subsystem").unlink()
    assert list_nodes("1-1", machine.sysfs) == ("/dev/bus/usb/001/005",)


def test_a_device_that_is_not_there_has_no_nodes(machine: Machine) -> None:
    assert list_nodes("1-1", machine.sysfs) == ()
    assert list_parts("1-1", machine.sysfs) == []


def test_parts_are_in_the_order_of_the_interfaces(machine: Machine) -> None:
    machine.plug()
    for number in (10, 9, 2):
        machine.part(f"1-1:1.{number}/tty", "tty", f"ttyUSB{20 - number}")
    machine.part("1-1:1.2/bsg", "bsg", "bsg/1")
    assert list_parts("1-1", machine.sysfs) == [
        ("usb", "/dev/bus/usb/001/005"),
        ("tty", "/dev/ttyUSB18"),
        ("tty", "/dev/ttyUSB11"),
        ("tty", "/dev/ttyUSB10"),
    ]


# -- when


def test_a_device_whose_drivers_have_made_their_nodes_is_ready(machine: Machine) -> None:
    machine.plug()
    machine.part(f"{machine.interface(0, '02')}/tty/ttyACM0", "tty", "ttyACM0")
    machine.interface(1, "0a")  # of CDC: the other one has the node
    assert machine.until_usable() == (("/dev/ttyACM0", "/dev/bus/usb/001/005"), 0)


def test_a_network_interface_counts_without_a_node(machine: Machine) -> None:
    machine.plug()
    machine.part(f"{machine.interface(0, 'ff')}/net/eth7", "net")
    assert machine.until_usable() == (("/dev/bus/usb/001/005",), 0)


@pytest.mark.parametrize(
    ("kinds", "seconds"),
    [
        ([("ff", False)], 1),  # no driver will come
        ([("e0", True)], 3),  # Bluetooth: a driver without a node
        ([("0a", True), ("ff", False)], 1),
        ([("e0", True), ("ff", False)], 3),
        ([("08", False)], 1),
    ],
)
def test_silence_ends_the_wait_for_what_may_never_come(
    machine: Machine, kinds: list[tuple[str, bool]], seconds: float
) -> None:
    machine.plug()
    for number, (kind, driver) in enumerate(kinds):
        machine.interface(number, kind, driver=driver)
    assert machine.until_usable() == (("/dev/bus/usb/001/005",), seconds)


def test_a_disk_is_waited_for_until_it_has_spun_up(machine: Machine) -> None:
    machine.plug()
    place = machine.interface(0, "08")
    machine.part(f"{place}/host0", "scsi_generic", "sg0")
    machine.later(9, True, lambda: machine.part(f"{place}/host0/block/sda", "block", "sda"))
    nodes, seconds = machine.until_usable()
    assert (nodes[0], seconds) == ("/dev/sda", 9)


def test_a_disk_that_never_spins_up_is_given_up_at_the_deadline(machine: Machine) -> None:
    machine.plug()
    machine.interface(0, "08")
    assert machine.until_usable(15) == (("/dev/bus/usb/001/005",), 15)


def test_a_node_that_udev_is_not_done_with_is_not_ready(machine: Machine) -> None:
    machine.plug()
    machine.part(f"{machine.interface(0, 'ff')}/ttyUSB0", "tty", "ttyUSB0")
    machine.uninitialized.add("ttyUSB0")
    machine.later(2, True, lambda: machine.uninitialized.clear())
    assert machine.until_usable()[1] == 2


def test_a_machine_without_udev_is_looked_at_once_a_second(machine: Machine) -> None:
    machine.plug()
    place = machine.interface(0, "08")

    async def wait() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(3.5, machine.part, f"{place}/sda", "block", "sda")
        await machine.arrival().until_usable("1-1", HOUR)
        return loop.time()

    assert run(wait()) == 4


def test_any_event_puts_the_end_of_the_wait_off(machine: Machine) -> None:
    machine.plug()
    machine.interface(0, "ff", driver=False)
    for seconds in (0.9, 1.7):
        machine.later(seconds, False)
    assert machine.until_usable()[1] == 2.7


def test_a_device_may_appear_while_it_is_waited_for(machine: Machine) -> None:
    def appear() -> None:
        machine.plug()
        machine.part(f"{machine.interface(0, 'ff')}/ttyUSB0", "tty", "ttyUSB0")

    machine.later(5, True, appear)
    assert machine.until_usable() == (("/dev/ttyUSB0", "/dev/bus/usb/001/005"), 5)


def test_a_device_without_interfaces_is_not_ready(machine: Machine) -> None:
    machine.plug()
    assert machine.until_usable(7.5)[1] == 7.5


# -- as it is enumerated


def until(
    machine: Machine, look: Callable[[], str | None], timeout: float
) -> tuple[str | None, float]:
    async def wait() -> tuple[str | None, float]:
        seen = await machine.arrival().until(look, timeout)
        return seen, asyncio.get_running_loop().time()

    return run(wait())


def test_what_is_there_already_is_not_waited_for(machine: Machine) -> None:
    assert until(machine, lambda: "4-1", 5) == ("4-1", 0)


def test_an_event_makes_us_look(machine: Machine) -> None:
    there: list[str] = []
    machine.later(0.1, False, lambda: there.append("4-1"))
    assert until(machine, lambda: next(iter(there), None), 5) == ("4-1", 0.1)


def test_we_look_again_even_without_an_event(machine: Machine) -> None:
    looks = iter([None, None, "4-1"])
    assert until(machine, lambda: next(looks), 5) == ("4-1", 0.5)


def test_what_does_not_come_is_given_up(machine: Machine) -> None:
    assert until(machine, lambda: None, 5) == (None, 5)


@pytest.mark.parametrize(("made_before", "seconds"), [(False, 0.3), (True, 0.1)])
def test_who_has_heard_of_no_node_yet_does_not_look_before_there_is_one(
    machine: Machine, made_before: bool, seconds: float
) -> None:
    """Each look costs more than an event without a node is worth."""
    machine.plug()
    machine.part(f"{machine.interface(0, 'ff')}/ttyUSB0", "tty", "ttyUSB0")
    there: list[str] = []
    machine.later(0.05, made_before)
    machine.later(0.1, False, lambda: there.append("1-1"))
    machine.later(0.2, False)
    machine.later(0.3, True)

    async def arrive() -> float:
        arrival = machine.arrival()
        await arrival.until(lambda: next(iter(there), None), 5)
        await arrival.until_usable("1-1", 5)
        return asyncio.get_running_loop().time()

    assert run(arrive()) == pytest.approx(seconds)
