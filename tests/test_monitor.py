"""What is heard of a real kernel's changes, in a namespace where anybody may make them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.hearing import COMMAND, NAMESPACES, Heard
from tests.patience import patience
from usb_remote.udev.monitor import Monitor


@pytest.fixture(scope="module")
def heard() -> dict[str, Heard]:
    """By what was done; None for what was not heard."""
    if subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces: sysctl kernel.unprivileged_userns…")
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=patience(60), check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Heard] = json.loads(done.stdout)
    return found


def test_a_plug_is_told_from_all_else(heard: dict[str, Heard]) -> None:
    assert heard["plugs"] == [True, False, False, False, False]


def test_a_plug_among_others_is_one(heard: dict[str, Heard]) -> None:
    assert heard["several"] == [True, False]


def test_if_messages_were_lost_one_may_have_been_of_a_plug(heard: dict[str, Heard]) -> None:
    assert heard["flood"] == [True, False]


def test_mounts_and_routes_are_heard_but_are_no_plugs(heard: dict[str, Heard]) -> None:
    assert heard["changes"] == [False] * 4


def test_who_does_not_ask_for_mounts_and_routes_hears_of_none(heard: dict[str, Heard]) -> None:
    assert heard["deaf"] == [None, None]


def test_who_names_no_subsystem_hears_of_all(heard: dict[str, Heard]) -> None:
    assert heard["anything"] == [True, False, False]


def test_only_a_node_or_network_interface_that_a_driver_made_is_news(
    heard: dict[str, Heard],
) -> None:
    assert heard["arrivals"] == [False, False, True, True, True]


def test_all_that_has_come_is_read_at_once(heard: dict[str, Heard]) -> None:
    assert heard["mixed"] == [True, False, None]


@pytest.mark.parametrize(("name", "group"), [("control", 2), ("none", 1)], ids=["udev", "kernel"])
def test_udev_is_heard_where_it_runs_and_else_the_kernel(
    tmp_path: Path, name: str, group: int
) -> None:
    """The groups of NETLINK_KOBJECT_UEVENT: libudev-monitor.c, enum monitor_netlink_group."""
    (tmp_path / "control").touch()
    heard = Monitor(udev=tmp_path / name)
    with socket.socket(fileno=os.dup(heard._monitor.fileno())) as netlink:
        assert netlink.getsockname()[1] == group
