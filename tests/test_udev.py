"""Devices from a made-up sysfs; the real one is seen by tests/kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from usb_remote.model import State
from usb_remote.udev.devices import Devices, words_of
from usb_remote.udev.monitor import is_of_a_plug, read_all
from usb_remote.values import BusId

CONFIGURATION = bytes([9, 2, 18, 0, 1, 1, 0, 0x80, 50, 9, 4, 0, 0, 2, 8, 6, 0x50, 0])


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    (tmp_path / "bus/usb/devices").mkdir(parents=True)
    return tmp_path


def plug(sysfs: Path, name: str, controller: str = "pci0000:00/usb1", **more: str) -> Path:
    bus = name.partition("-")[0]
    values = {
        "idVendor": "0403", "idProduct": "6001", "busnum": bus, "devnum": "5", "speed": "480",
        "bcdDevice": "0600", "bDeviceClass": "00", "bDeviceSubClass": "00",
        "bDeviceProtocol": "00", "bConfigurationValue": "1", "bNumConfigurations": "1", **more,
    }  # fmt: skip
    path = sysfs / "devices" / controller / name
    path.mkdir(parents=True)
    for key, value in values.items():
        (path / key).write_text(value + "\n")
    (path / "descriptors").write_bytes(bytes(18).replace(b"\0", b"\x12", 1) + CONFIGURATION)
    (sysfs / "bus/usb/devices" / name).symlink_to(path)
    return path


def devices(sysfs: Path, **more: object) -> Devices:
    return Devices(sysfs=sysfs, describe=lambda path: "", **more)  # type: ignore[arg-type]


def test_a_device_is_read_from_sysfs(sysfs: Path) -> None:
    plug(sysfs, "1-1.4", serial="FT1", manufacturer="FTDI", product="FT232R")
    (device,) = devices(sysfs).list_devices()
    assert device.id == "0403:6001:FT1"
    assert device.description == "FTDI FT232R"
    assert device.device_name == "/dev/bus/usb/001/005"
    assert (device.bus, device.port_numbers, device.speed) == (1, (1, 4), 480.0)
    assert device.classes == ("08/06/50",)
    assert device.state is State.AVAILABLE


HOSTILE = "\x1b]0;owned\x07\x1b[2J\nerror: fake\r\u202e\x9b31m" + "A" * 65536


def test_what_a_device_says_of_itself_is_one_short_line_of_text(sysfs: Path) -> None:
    plug(sysfs, "1-1", serial=HOSTILE, manufacturer=HOSTILE, product=HOSTILE)
    (sysfs / "bus/usb/devices/1-1/product").write_bytes(b"\xff\xfe\x00" + HOSTILE.encode())
    (device,) = devices(sysfs).list_devices()
    words = (device.id, device.serial, device.manufacturer, device.product, device.description)
    assert all(word and word.isprintable() and len(word) < 600 for word in words), words
    assert len(device.model_dump_json()) < 4096


def test_interfaces_hubs_and_imported_devices_are_left_out(sysfs: Path) -> None:
    plug(sysfs, "1-1")
    plug(sysfs, "1-2", bDeviceClass="09")
    plug(sysfs, "4-1", controller="platform/vhci_hcd.0/usb4")
    for name in ("usb1", "1-0:1.0", "1-1:1.0"):
        (sysfs / "bus/usb/devices" / name).mkdir()
    assert [d.bus_id for d in devices(sysfs).list_devices()] == ["1-1"]


def test_a_device_that_goes_away_while_it_is_read_is_left_out(sysfs: Path) -> None:
    plug(sysfs, "1-1")
    (plug(sysfs, "1-2") / "devnum").unlink()
    (sysfs / "bus/usb/devices/1-3").symlink_to(sysfs / "gone")
    (sysfs / "bus/usb/devices/1-4").mkdir()  # readlink fails, as for what was just pulled
    plug(sysfs, "1-5")
    assert [d.bus_id for d in devices(sysfs).list_devices()] == ["1-1", "1-5"]


def test_no_usb_at_all_is_no_device(tmp_path: Path) -> None:
    assert devices(tmp_path).list_devices() == ()


def test_the_hardware_database_goes_before_the_devices_own_words(sysfs: Path) -> None:
    plug(sysfs, "1-1", manufacturer="x", product="\x1b[2Jy")
    asked = []

    def describe(path: str) -> str:
        asked.append(path)
        return "Future Technology FT232"

    source = Devices(sysfs=sysfs, describe=describe)
    for _ in range(3):
        (device,) = source.list_devices()
    assert (device.description, device.product) == ("Future Technology FT232", "[2Jy")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("vendor", "model", "words"),
    [
        ("FTDI", "FT232 Serial", "FTDI FT232 Serial"),
        (None, "FT232 Serial", "FT232 Serial"),
        ("FTDI", None, ""),
        (None, None, ""),
    ],
)
def test_udevs_database_tells_vendor_and_model(
    vendor: str | None, model: str | None, words: str
) -> None:
    facts = {"ID_VENDOR_FROM_DATABASE": vendor, "ID_MODEL_FROM_DATABASE": model}
    known = {key: value for key, value in facts.items() if value}
    assert words_of({"ID_VENDOR": "0403", "ID_MODEL": "own_words", **known}) == words


def test_a_device_is_looked_up_again_until_udev_knows_it(sysfs: Path) -> None:
    plug(sysfs, "1-1", product="y")
    answers = iter([None, None, "Known"])
    source = Devices(sysfs=sysfs, describe=lambda path: next(answers))
    assert [source.list_devices()[0].description for _ in range(4)] == ["y", "y", "Known", "Known"]


def test_another_device_in_the_same_position_is_another_one(sysfs: Path) -> None:
    old = plug(sysfs, "1-1", serial="A")
    source = devices(sysfs)
    assert source.list_devices()[0].serial == "A"
    old.rename(old.with_name("gone"))
    (sysfs / "bus/usb/devices/1-1").unlink()
    plug(sysfs, "1-1", serial="B")
    assert source.list_devices()[0].serial == "B"


def test_what_the_machine_needs_is_protected(sysfs: Path) -> None:
    stick = plug(sysfs, "1-1")
    plug(sysfs, "1-2")

    def protected_by(paths: Iterable[Path]) -> dict[Path, str]:
        assert stick in set(paths)
        return {stick: "sda1 is mounted at /data"}

    first, second = devices(sysfs, protected_by=protected_by).list_devices()
    assert (first.state, first.reason) == (State.PROTECTED, "sda1 is mounted at /data")
    assert second.state is State.AVAILABLE


def test_a_device_that_has_not_changed_is_found_without_a_listing(sysfs: Path) -> None:
    plug(sysfs, "1-1")
    plug(sysfs, "1-2")
    asked: list[set[str]] = []

    def protected_by(paths: Iterable[Path]) -> dict[Path, str]:
        asked.append({path.name for path in paths})
        return {}

    source = devices(sysfs, protected_by=protected_by)
    listed = source.list_devices()
    assert source.find(BusId("1-2")) is listed[1]
    assert asked == [{"1-1", "1-2"}, {"1-2"}]


def test_a_device_that_has_changed_is_found_as_it_is_now(sysfs: Path) -> None:
    path = plug(sysfs, "1-1", serial="A")
    reasons: dict[Path, str] = {}
    source = devices(sysfs, protected_by=lambda paths: dict(reasons))
    assert source.find(BusId("1-1")) == source.list_devices()[0]
    reasons[path] = "sda1 is mounted at /data"
    found = source.find(BusId("1-1"))
    assert found is not None
    assert found.reason == "sda1 is mounted at /data"
    reasons.clear()
    path.rename(path.with_name("gone"))
    (sysfs / "bus/usb/devices/1-1").unlink()
    assert source.find(BusId("1-1")) is None
    plug(sysfs, "1-1", serial="B")
    found = source.find(BusId("1-1"))
    assert found is not None
    assert (found.serial, found.state) == ("B", State.AVAILABLE)


def test_the_record_is_what_the_handshake_needs(sysfs: Path) -> None:
    path = plug(sysfs, "2-1", speed="5000", bConfigurationValue="")
    record = devices(sysfs).record(BusId("2-1"))
    assert record is not None
    assert (record.path, record.speed, record.bcd_device) == (str(path), 5, 0x600)
    assert record.interfaces == ((8, 6, 0x50),)
    assert devices(sysfs).record(BusId("9-9")) is None


@pytest.mark.parametrize(
    ("speed", "exported"),
    [("1.5", 1), ("12", 2), ("480", 3), ("5000", 5), ("10000", 5), ("20000", 5), ("fast", 0)],
)
def test_no_speed_is_exported_that_the_kernel_of_a_client_refuses(
    sysfs: Path, speed: str, exported: int
) -> None:
    plug(sysfs, "2-1", speed=speed)
    record = devices(sysfs).record(BusId("2-1"))
    assert record is not None
    assert record.speed == exported


@pytest.mark.parametrize(
    ("action", "kind", "is_one"),
    [
        ("add", "usb_device", True),
        ("remove", "usb_device", True),
        ("bind", "usb_device", False),
        ("unbind", "usb_device", False),
        ("change", "usb_device", False),
        ("add", "usb_interface", False),
        ("remove", "usb_interface", False),
    ],
)
def test_a_plug_is_told_from_a_binding(action: str, kind: str, is_one: bool) -> None:
    facts = [f"ACTION={action}", "DEVPATH=/devices/usb1/1-1", "SUBSYSTEM=usb", f"DEVTYPE={kind}"]
    body = "".join(f"{fact}\0" for fact in facts).encode()
    assert is_of_a_plug(b"libudev\0" + b"\xff" * 32 + body) is is_one
    assert is_of_a_plug(f"{action}@/devices/usb1/1-1\0".encode() + body) is is_one


def test_messages_that_were_lost_may_have_been_of_a_plug() -> None:
    assert is_of_a_plug(b"")


def test_all_that_has_come_is_read_and_nothing_twice() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel, ours:
        ours.setblocking(False)
        for message in (b"one", b"two"):
            kernel.send(message)
        assert read_all(ours.fileno()) == [b"one", b"two"]
        assert read_all(ours.fileno()) == []
