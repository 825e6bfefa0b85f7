"""Why a machine needs a device, from made-up /proc and /sys; tests/kernel mounts real disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from usb_remote import errors
from usb_remote.protection import Guard, Protection
from usb_remote.values import BusId

BUS_ID = BusId("1-1")


class Machine:
    def __init__(self, root: Path) -> None:
        self.proc, self.sysfs = root / "proc", root / "sys"
        self.stick = self.sysfs / "devices/pci0/usb1/1-1"
        self.write("proc/self/mountinfo", "22 1 254:0 / / rw - ext4 /dev/vda rw\n")
        self.write("proc/swaps", "Filename Type Size Used Priority\n")
        self.write("proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\n")
        for name, number in (("sda", "8:0"), ("sda/sda1", "8:1")):
            self.write(f"sys/devices/pci0/usb1/1-1/1-1:1.0/host0/block/{name}/dev", number + "\n")
            link = self.sysfs / "class/block" / name.rpartition("/")[2]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.stick / "1-1:1.0/host0/block" / name)
        self.root = root

    def write(self, name: str, text: str) -> None:
        path = self.proc.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def reason(self) -> str | None:
        return Protection(self.proc, self.sysfs)([self.stick]).get(self.stick)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path.resolve())


def test_an_idle_stick_is_free(machine: Machine) -> None:
    assert machine.reason() is None


def test_a_mounted_partition(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", r"30 1 8:1 / /mnt/my\040disk rw - ext4 /dev/sda1 rw")
    assert machine.reason() == "sda1 is mounted at /mnt/my disk"


def test_a_mount_point_keeps_its_letters(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", r"30 1 8:1 / /müller\134x rw - ext4 /dev/sda1 rw")
    assert machine.reason() == r"sda1 is mounted at /müller\x"


def test_a_mount_point_may_have_any_white_space(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "30 1 8:1 / /a\u3000b\x85c\u2028d rw - ext4 /dev/sda1 rw")
    assert machine.reason() == "sda1 is mounted at /a\u3000b\x85c\u2028d"


def test_a_file_system_with_a_device_number_of_its_own(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "30 1 0:44 / /data rw - btrfs /dev/sda1 rw")
    assert machine.reason() == "sda1 is mounted at /data"


def test_another_member_of_a_btrfs(machine: Machine) -> None:
    machine.write("sys/fs/btrfs/1234/devices/sda1", "")
    assert machine.reason() == "sda1 belongs to a mounted btrfs file system"


def test_swap(machine: Machine) -> None:
    machine.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n")
    assert machine.reason() == "sda1 is used for swap"


def test_a_member_of_a_device_mapper_or_raid_target(machine: Machine) -> None:
    machine.write("sys/devices/pci0/usb1/1-1/1-1:1.0/host0/block/sda/holders/dm-0", "")
    assert machine.reason() == "sda is part of dm-0"


def test_below_a_loop_device(machine: Machine) -> None:
    machine.write("sys/devices/virtual/block/loop1/loop/backing_file", "/dev/sda1\n")
    (machine.sysfs / "block").mkdir()
    (machine.sysfs / "block/loop0").mkdir()
    (machine.sysfs / "block/loop1").symlink_to(machine.sysfs / "devices/virtual/block/loop1")
    assert machine.reason() == "sda1 is part of loop1"


def add_adapter(machine: Machine) -> None:
    """A network adapter, eth7, which the stick is besides."""
    (machine.stick / "1-1:1.0/net/eth7").mkdir(parents=True)
    machine.write("sys/class/net/bonding_masters", "")
    (machine.sysfs / "class/net/eth7").symlink_to(machine.stick / "1-1:1.0/net/eth7")


IPV4_ROUTE = "h\n{} 00000000 0100A8C0 0003 0 0 0 00000000"
IPV6_ROUTE = f"{'0' * 32} 00 {'0' * 32} 00 {'f' * 32} 0 0 0 0 {{}}"


@pytest.mark.parametrize(
    ("table", "line"), [("proc/net/route", IPV4_ROUTE), ("proc/net/ipv6_route", IPV6_ROUTE)]
)
def test_the_interface_with_the_default_route(machine: Machine, table: str, line: str) -> None:
    add_adapter(machine)
    assert machine.reason() is None
    machine.write(table, line.format("eth7"))
    assert machine.reason() == "eth7 carries the default route of this server"


def test_an_interface_below_the_one_with_the_default_route(machine: Machine) -> None:
    add_adapter(machine)
    machine.write("proc/net/route", IPV4_ROUTE.format("br0.5"))
    for lower, upper in (("eth7", "br0"), ("br0", "br0.5")):
        machine.write(f"sys/devices/virtual/net/{upper}/mtu", "1500")
        if lower != "eth7":
            link = machine.sysfs / "class/net" / lower
            link.symlink_to(machine.sysfs / "devices/virtual/net" / lower)
        link = machine.sysfs / "class/net" / lower / f"upper_{upper}"
        link.symlink_to(machine.sysfs / "devices/virtual/net" / upper)
    assert machine.reason() == (
        "eth7 is part of br0.5, which carries the default route of this server"
    )


def test_a_mount_is_known_by_its_number_whatever_its_source_is_called(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "30 1 8:1 / /data rw - ext4 /dev/root rw")
    assert machine.reason() == "sda1 is mounted at /data"


def test_the_first_mount_of_several_and_the_first_reason_are_told(machine: Machine) -> None:
    lines = ("30 1 8:0 / /a rw - ext4 /dev/sda rw", "31 1 8:0 / /b rw - ext4 /dev/sda rw",
             "32 1 8:1 / /c rw - ext4 /dev/sda1 rw")  # fmt: skip
    machine.write("proc/self/mountinfo", "\n".join(lines))
    assert machine.reason() == "sda is mounted at /a"


def test_the_neighbour_whose_name_begins_alike_is_free(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "30 1 8:1 / /data rw - ext4 /dev/sda1 rw")
    shorter = machine.stick.with_name("1-")
    assert Protection(machine.proc, machine.sysfs)([shorter]) == {}


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("proc/net/route", "h\neth7 00000000 0100A8C0 0003 0 0 0 00000080"),
        ("proc/net/ipv6_route", f"{'0' * 32} 01 {'0' * 32} 00 {'f' * 32} 0 0 0 0 eth7"),
    ],
)
def test_a_route_to_a_part_of_the_network_is_no_default_route(
    machine: Machine, table: str, line: str
) -> None:
    add_adapter(machine)
    machine.write(table, line)
    assert machine.reason() is None


# -- what only the kernel knows, when a disk is taken from its driver ---------------------------


class Opened:
    """Instead of os.open: says of a whole disk that it is busy, or gives a file."""

    def __init__(self, failure: int | None = None) -> None:
        self.failure = failure
        self.fds: dict[str, int] = {}

    def __call__(self, path: Path, flags: int) -> int:
        assert flags == os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC
        if self.failure is not None:
            raise OSError(self.failure, os.strerror(self.failure))
        self.fds[path.name] = os.open("/dev/null", flags & ~os.O_EXCL)
        return self.fds[path.name]

    def are_open(self) -> list[bool]:
        return [Path(f"/proc/self/fd/{fd}").exists() for fd in self.fds.values()]


@pytest.fixture
def guarded(machine: Machine) -> Machine:
    (machine.sysfs / "bus/usb/devices").mkdir(parents=True)
    (machine.sysfs / "bus/usb/devices/1-1").symlink_to(machine.stick)
    machine.write("sys/devices/pci0/usb1/1-1/1-1:1.0/host0/block/sda/sda1/partition", "1\n")
    return machine


def test_a_disk_that_is_used_where_it_is_not_seen_is_not_taken(guarded: Machine) -> None:
    guarding = Guard(guarded.sysfs, guarded.root, Opened(errno.EBUSY))(BUS_ID)
    with pytest.raises(errors.Refused, match="1-1 is protected: sda is in use by"), guarding:
        raise AssertionError("not to be taken")


def test_nobody_else_gets_a_disk_while_it_is_taken(guarded: Machine) -> None:
    opened = Opened()
    with Guard(guarded.sysfs, guarded.root, opened)(BUS_ID):
        assert list(opened.fds) == ["sda"]
        assert opened.are_open() == [True]
    assert opened.are_open() == [False]


def test_a_reader_without_a_card_may_be_taken(guarded: Machine) -> None:
    with Guard(guarded.sysfs, guarded.root, Opened(errno.ENOMEDIUM))(BUS_ID):
        pass


def test_what_a_rule_gives_away_is_taken_even_so(guarded: Machine) -> None:
    guard = Guard(guarded.sysfs, guarded.root, Opened(errno.EBUSY))
    guard.gives_away = lambda bus_id: bus_id == BUS_ID
    with guard(BUS_ID):
        pass


def test_a_machine_without_any_of_these_files(tmp_path: Path) -> None:
    assert Protection(tmp_path, tmp_path)([tmp_path / "1-1"]) == {}
