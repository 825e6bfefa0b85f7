"""What the probe of multicast means to people: the text and what mends it."""

from __future__ import annotations

import errno
import os

import pytest

from tests.trees import Tree
from usb_remote.doctor.multicast import LET_IN, LET_OUT, check_in, check_out, linked
from usb_remote.doctor.report import Check, Role
from usb_remote.mdns.probe import Probed

V4, V6 = "10.0.0.7", "fe80::7"


def heard(interface: str, address: str = V4) -> Probed:
    return Probed(interface, address, None, True)


def deaf(interface: str, address: str = V4) -> Probed:
    return Probed(interface, address, None, False)


def mute(interface: str, error: int, address: str = V4) -> Probed:
    return Probed(interface, address, OSError(error, os.strerror(error)), False)


NOT_A_FILTER = f": {os.strerror(errno.ENETUNREACH).lower()}"
A_FILTER = ": a firewall of this machine drops it"


@pytest.mark.parametrize(
    ("probed", "status", "text", "mend"),
    [
        ([], "warning", "no network interface has a link", "ip -brief address"),
        ([heard("eth0"), deaf("eth1")], "ok", "multicast leaves by eth0 (IPv4), eth1 (IPv4)", None),
        ([heard("eth0", V6), heard("eth0")], "ok", "leaves by eth0 (IPv4 and IPv6)", None),
        ([mute("eth0", errno.EPERM)], "failed", f"not leave by eth0 (IPv4){A_FILTER}", LET_OUT),
        (
            [mute("eth0", errno.EPERM), heard("eth1", V6)],
            "warning",
            f"does not leave by eth0 (IPv4){A_FILTER}; it does by eth1 (IPv6)",
            LET_OUT,
        ),
        (
            [mute("eth0", errno.ENETUNREACH)],
            "failed",
            f"does not leave by eth0 (IPv4){NOT_A_FILTER}",
            "sudo ip route add 224.0.0.0/4 dev eth0",
        ),
        (
            [heard("eth0"), mute("eth1", errno.ENETUNREACH, V6)],
            "warning",
            "; it does by eth0 (IPv4)",
            "sudo ip route add ff00::/8 dev eth1",
        ),
        (
            [mute("eth0", errno.EPERM), mute("eth1", errno.ENETUNREACH)],
            "failed",
            f"by eth0 (IPv4), eth1 (IPv4){A_FILTER}",
            LET_OUT,
        ),
    ],
)
def test_which_interfaces_let_multicast_out(
    probed: list[Probed], status: str, text: str, mend: str | None
) -> None:
    found = check_out(probed)
    assert (found.check, found.status, found.mend) == (Check.MULTICAST_OUT, status, mend)
    assert text in found.text


BLOCKED = "a firewall of this machine drops UDP port 5353, or a program has it for itself"


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    ("probed", "client", "server", "text"),
    [
        ([heard("eth0")], "ok", "ok", "multicast comes in by eth0 (IPv4)"),
        ([deaf("eth0")], "warning", "failed", f"does not come in by eth0 (IPv4): {BLOCKED}"),
        ([deaf("eth0"), heard("eth1")], "warning", "warning", f"in by eth0 (IPv4): {BLOCKED}"),
        ([mute("eth0", errno.EPERM), heard("eth1")], "ok", "ok", "comes in by eth1 (IPv4)"),
        ([mute("eth0", errno.EPERM)], "skipped", "skipped", "nothing could be sent, so not tried"),
        ([], "skipped", "skipped", "nothing could be sent"),
    ],
)
def test_which_interfaces_let_multicast_in(
    role: Role, probed: list[Probed], client: str, server: str, text: str
) -> None:
    found = check_in(probed, role)
    expected = client if role is Role.CLIENT else server
    assert (found.check, found.status) == (Check.MULTICAST_IN, expected)
    assert text in found.text
    assert found.mend == (LET_IN if expected in ("warning", "failed") else None)
    assert ("so no client finds this server" in found.text) == (expected == "failed")


def test_interfaces_that_nothing_is_connected_to_do_not_count(tree: Tree) -> None:
    tree.write("sys/class/net/eth0/carrier", "1\n")
    tree.write("sys/class/net/docker0/carrier", "0\n")
    probed = [heard("eth0"), heard("eth0:1"), heard("docker0"), heard("gone")]
    assert linked(tree.machine(), probed) == probed[:2]
