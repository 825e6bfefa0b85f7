"""Why a machine needs a device, from made-up /proc and /sys; tests/kernel mounts real disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from usb_remote.protection import Protection


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


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("proc/net/route", "h\neth7 00000000 0100A8C0 0003 0 0 0 00000000"),
        ("proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'f' * 32} 0 0 0 0 eth7"),
    ],
)
def test_the_interface_with_the_default_route(machine: Machine, table: str, line: str) -> None:
    (machine.stick / "1-1:1.0/net/eth7").mkdir(parents=True)
    machine.write("sys/class/net/bonding_masters", "")
    (machine.sysfs / "class/net/eth7").symlink_to(machine.stick / "1-1:1.0/net/eth7")
    assert machine.reason() is None
    machine.write(table, line)
    assert machine.reason() == "eth7 carries the default route of this server"


def test_a_machine_without_any_of_these_files(tmp_path: Path) -> None:
    assert Protection(tmp_path, tmp_path)([tmp_path / "1-1"]) == {}
