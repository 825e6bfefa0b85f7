"""Where the kernel, udev and systemd have their files: every test but these is given others."""

from __future__ import annotations

from pathlib import Path

import pytest

from usb_remote import (
    config_file,
    identity,
    protection,
    sessions,
    survivors,
    usbip_host,
    vhci,
)
from usb_remote.agent import links
from usb_remote.cli import installing, serving
from usb_remote.udev import devices, monitor

PLACES = {
    "protection.PROC": (protection.PROC, "/proc"),
    "protection.SYSFS": (protection.SYSFS, "/sys"),
    "protection.DEV": (protection.DEV, "/dev"),
    "devices.SYSFS": (devices.SYSFS, "/sys"),
    "usbip_host.SYSFS": (usbip_host.SYSFS, "/sys"),
    "vhci.SYSFS": (vhci.SYSFS, "/sys"),
    "vhci.STATE_DIR": (vhci.STATE_DIR, "/var/run/vhci_hcd"),
    "vhci.LOCK": (vhci.LOCK, "/sys/devices/platform/vhci_hcd.0/status"),
    "monitor.UDEV": (monitor.UDEV, "/run/udev/control"),
    "monitor.USED": (monitor.USED, "/proc/self/mountinfo /proc/swaps"),
    "monitor.DEVICES": (monitor.DEVICES, "usb block"),
    "sessions.TABLES": (sessions.TABLES, "/proc/self/net/tcp /proc/self/net/tcp6"),
    "survivors.CGROUP": (survivors.CGROUP, "/proc/self/cgroup"),
    "identity.MACHINE_ID": (identity.MACHINE_ID, "/etc/machine-id"),
    "identity.BOARD_SERIAL": (identity.BOARD_SERIAL, "/proc/device-tree/serial-number"),
    "serving.INET6": (serving.INET6, "/proc/net/if_inet6"),
    "links.ROOT": (links.ROOT, "/dev/usb-remote"),
    "links.UDEV": (links.UDEV, "/run/udev/data"),
    "installing.SECURE": (installing.SECURE, "/usr/local/bin /usr/bin"),
    "config_file.SYSTEM": (config_file.SYSTEM, "/etc/usb-remote/usb-remote.config"),
}
"""Each as somebody else (or a page of ours) has named it."""


@pytest.mark.parametrize(("place", "known"), PLACES.values(), ids=PLACES)
def test_it_is_where_others_have_it(place: Path | tuple[Path | str, ...], known: str) -> None:
    places = place if isinstance(place, tuple) else (place,)
    assert " ".join(map(str, places)) == known


EVERYWHERE = (protection.PROC, protection.DEV, *monitor.USED, sessions.TABLES[0], survivors.CGROUP)


@pytest.mark.parametrize("place", EVERYWHERE, ids=str)
def test_every_linux_has_it(place: Path) -> None:
    assert place.exists()


def test_only_a_machine_with_ipv6_listens_there(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    usual = ["0.0.0.0", "::", "10.0.0.7", "fd00::7"]
    assert serving.listenable(usual, tmp_path / "there") == usual
    assert serving.listenable(usual, tmp_path / "not") == ["0.0.0.0", "10.0.0.7"]
