"""What the probe of mdns/ means: which interface lets multicast out, and which lets it in.

Rule of this file: one interface that works is enough to be found; the others are a warning.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from usb_remote.doctor.machine import Machine
from usb_remote.doctor.report import Check, Finding, Role, failed, ok, skipped, warning
from usb_remote.mdns.probe import Probed

LET_OUT = "sudo ufw allow out 5353/udp # or: sudo nft list ruleset shows what drops it"
LET_IN = (
    "sudo ufw allow 5353/udp # or: sudo firewall-cmd --permanent --add-service=mdns; "
    "sudo firewall-cmd --reload"
)


def linked(machine: Machine, probed: Iterable[Probed]) -> list[Probed]:
    """Without the interfaces that nothing is connected to: a bridge of containers, a free plug."""
    return [
        p
        for p in probed
        if machine.read(f"sys/class/net/{p.interface.partition(':')[0]}/carrier").strip() == "1"
    ]


def check_out(probed: Sequence[Probed]) -> Finding:
    """Whether a question to the group leaves this machine."""
    check = Check.MULTICAST_OUT
    if not probed:
        text = "no network interface has a link and an address, so nobody can be found by mDNS"
        return warning(check, text, "ip -brief address")
    good = _names(p for p in probed if p.error is None)
    bad = [p for p in probed if p.error is not None]
    if not bad:
        return ok(check, f"multicast leaves by {good}")
    text = f"multicast does not leave by {_names(bad)}: {_reason(bad[0].error)}"
    if good:
        return warning(check, f"{text}; it does by {good}", _let_out(bad[0]))
    return failed(check, text, _let_out(bad[0]))


def check_in(probed: Sequence[Probed], role: Role) -> Finding:
    """Whether what is sent to the group comes in; a server that is deaf is never found."""
    check = Check.MULTICAST_IN
    asked = [p for p in probed if p.error is None]
    if not asked:
        return skipped(check, "nothing could be sent, so not tried")
    good = _names(p for p in asked if p.heard)
    bad = _names(p for p in asked if not p.heard)
    if not bad:
        return ok(check, f"multicast comes in by {good}")
    text = f"multicast does not come in by {bad}: a firewall of this machine drops UDP port 5353"
    text = f"{text}, or a program has it for itself"
    if good or role is Role.CLIENT:
        return warning(check, text, LET_IN)
    return failed(check, f"{text}; so no client finds this server", LET_IN)


def _names(probed: Iterable[Probed]) -> str:
    families: dict[str, set[str]] = {}
    for p in probed:
        families.setdefault(p.interface, set()).add("IPv6" if ":" in p.address else "IPv4")
    return ", ".join(f"{name} ({' and '.join(sorted(f))})" for name, f in families.items())


def _reason(error: OSError | None) -> str:
    if error is not None and error.errno == errno.EPERM:
        return "a firewall of this machine drops it"
    return (error.strerror or str(error)).lower() if error else ""


def _let_out(probed: Probed) -> str:
    if probed.error is not None and probed.error.errno == errno.ENETUNREACH:
        group = "ff00::/8" if ":" in probed.address else "224.0.0.0/4"
        return f"sudo ip route add {group} dev {probed.interface}"
    return LET_OUT
