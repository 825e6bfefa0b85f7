"""What the way to one server means: its ports, its version, its clock, whether it is heard.

Rule of this file: whatever is wrong over there, the mend says on which machine to type it.
"""

from __future__ import annotations

import asyncio
import re

from usb_remote import errors, protocol, replies
from usb_remote.doctor.machine import Machine, upgrade
from usb_remote.doctor.path import Answer, Reach, Way, answers_ping, ask_devices, ask_info, reach
from usb_remote.doctor.report import Check, Finding, about, failed, ok, skipped, warning
from usb_remote.model import Server

SOON = 0.3
"""Seconds in which a control port that is open mostly answers."""
PIPX = (
    "sudo PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx {} usb-remote && "
    "sudo usb-remote install-service server"
)
"""As docs/how-to/install.md does it: how it is installed over there nobody knows here."""
CLOCK_TOLERANCE = 5.0
"""Seconds that two clocks may differ before times in `history` mislead."""


async def check_path(machine: Machine, server: Server, heard: bool, version: str) -> list[Finding]:
    """Everything about the way to one server.

    Args:
        machine: this one.
        server: that one.
        heard: whether it was heard by mDNS.
        version: of usb-remote here.

    """
    pinging = asyncio.create_task(answers_ping(machine, next(iter(server.addresses), "")))
    control, early = await _reach_both(server)
    is_open = control.way is Way.OPEN
    answer = await ask_info(server, control.address) if is_open else Answer()
    port = answer.info.usbip_port if answer.info else server.usbip_port
    usbip = early if early and port == server.usbip_port else None
    usbip = usbip or await reach((control.address,), port, ask_devices)
    pings = await pinging
    return about(
        server.name,
        [
            check_control_port(server, control, answer, pings=pings, heard=heard),
            check_usbip_port(server.name, usbip, port, pings=pings, runs=is_open or heard),
            check_version(server.name, answer, version),
            check_clock(answer.seconds_ahead, asked=answer.info is not None),
            check_discovery(server.name, heard=heard, reached=is_open),
        ],
    )


async def _reach_both(server: Server) -> tuple[Reach, Reach | None]:
    """The control port, which says where the other one is; if it is slow, both together."""
    control = asyncio.create_task(reach(server.addresses, server.port))
    await asyncio.wait({control}, timeout=SOON)
    if control.done() and control.result().way is Way.OPEN:
        return control.result(), None
    usbip = await reach(server.addresses, server.usbip_port, ask_devices)
    return await control, usbip


def check_control_port(
    server: Server, control: Reach, answer: Answer, *, pings: bool, heard: bool
) -> Finding:
    check, error = Check.CONTROL_PORT, answer.error
    if control.way is not Way.OPEN:
        return _closed(check, server.name, control, server.port, pings=pings, runs=heard)
    where = f"TCP port {server.port} of {control.address}"
    if isinstance(error, errors.InvalidReply):
        mend = f"on {server.name}: sudo ss -tlnp 'sport = :{server.port}'"
        return failed(check, f"{where} is another program's: {error.message}", mend)
    if isinstance(error, errors.Unreachable) and "did not answer" in error.message:
        mend = f"on {server.name}: sudo systemctl restart usb-remote-server"
        return failed(check, f"{where} is open, but nobody answers", mend)
    if isinstance(error, errors.Unreachable):
        text = f"{where} closes the connection: this machine is not in its server.allow_from"
        mend = f"on {server.name}: usb-remote config show  # add this network to server.allow_from"
        return failed(check, text, mend)
    return ok(check, f"{where} is reachable")


def check_usbip_port(name: str, usbip: Reach, port: int, *, pings: bool, runs: bool) -> Finding:
    check = Check.USBIP_PORT
    if usbip.way is not Way.OPEN:
        return _closed(check, name, usbip, port, pings=pings, runs=runs)
    where = f"TCP port {port} of {usbip.address}"
    if usbip.reason:
        mend = f"on {name}: sudo usb-remote doctor server"
        return failed(check, f"{where} is open, {usbip.reason}", mend)
    return ok(check, f"{where} is reachable")


def _closed(
    check: Check, name: str, found: Reach, port: int, *, pings: bool, runs: bool
) -> Finding:
    """A port that is not open: why, and whose turn it is; whether a server is known to run."""
    where = f"TCP port {port} of {found.address or name}"
    let_in = (
        f"on {name}: sudo ufw allow {port}/tcp  # or: sudo firewall-cmd --permanent "
        f"--add-port={port}/tcp; sudo firewall-cmd --reload"
    )
    if found.way is Way.NAMELESS:
        text = f"no address is known of {found.address}, neither by DNS nor by /etc/hosts"
        return failed(check, text, f"getent hosts {found.address}  # or use its address")
    if found.way is Way.UNROUTED:
        return failed(check, f"there is no route to {found.address}: {found.reason}", "ip route")
    if found.way is Way.REFUSED:
        text = f"{where} is refused: nobody listens there, or a firewall rejects it"
        start = f"on {name}: sudo systemctl start usb-remote-server"
        return failed(check, text, let_in if runs else start)
    if found.way is Way.REJECTED and pings:
        return failed(check, f"{where} is rejected by a firewall: {found.reason}", let_in)
    if pings:
        text = f"{where} is dropped: the machine answers ping, but a firewall swallows this port"
        return failed(check, text, let_in)
    text = f"{where} does not answer, nor does the machine answer ping: it is off, "
    return failed(check, f"{text}the address is wrong, or a firewall drops everything",
                  f"ping {found.address}")  # fmt: skip


def check_version(name: str, answer: Answer, here: str) -> Finding:
    """The same protocol, and about the same release; 2.x does what it can."""
    check, error = Check.VERSION, answer.error
    if answer.info is not None:
        return _compared(name, answer.info, here)
    if isinstance(error, errors.Refused):
        text = "it is usb-remote 2.x: no holders, names, queue or history"
        return warning(check, text, f"on {name}: {PIPX.format('install')}")
    if error is not None and not isinstance(error, errors.Unreachable | errors.InvalidReply):
        text = f"it speaks another version of the protocol: {error.message}"
        return failed(check, text, f"{upgrade()}  # or on {name}: what is older")
    return skipped(check, "not known without the control port")


def _compared(name: str, info: replies.InfoNow, here: str) -> Finding:
    check, there = Check.VERSION, info.version
    if info.protocol != protocol.VERSION:
        text = f"it speaks protocol version {info.protocol}, this machine {protocol.VERSION}"
        return failed(check, text, _upgrade(name, info.protocol < protocol.VERSION))
    if _release(there) != _release(here):
        text = f"it runs usb-remote {there}, this machine {here}"
        return warning(check, text, _upgrade(name, _release(there) < _release(here)))
    return ok(check, f"usb-remote {there} there, {here} here")


def _release(version: str) -> list[int]:
    """The first two numbers."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def _upgrade(name: str, it_is_older: bool) -> str:
    return f"on {name}: {PIPX.format('upgrade')}" if it_is_older else upgrade()


def check_clock(ahead: float | None, *, asked: bool) -> Finding:
    """Nothing breaks by a wrong clock, but "since" and `history` are by the server's."""
    if ahead is None:
        why = "it is older and does not say its time" if asked else "it did not say its time"
        return skipped(Check.CLOCK, why)
    if abs(ahead) > CLOCK_TOLERANCE:
        direction = "ahead of" if ahead > 0 else "behind"
        text = f"its clock is {_span(abs(ahead))} {direction} this machine's"
        return warning(Check.CLOCK, text, "sudo timedatectl set-ntp true  # where it is wrong")
    return ok(Check.CLOCK, "both clocks agree")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds > 1.95 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def check_discovery(name: str, *, heard: bool, reached: bool) -> Finding:
    """Reached, but not heard: what is between does not pass multicast."""
    if heard:
        return ok(Check.DISCOVERY, "it is heard by mDNS")
    if not reached:
        return skipped(Check.DISCOVERY, "it is neither heard by mDNS nor reached")
    text = "it is reached, but not heard by mDNS: it does not announce itself, or a firewall "
    return warning(
        Check.DISCOVERY,
        f"{text}or switch between stops multicast (UDP 5353)",
        f"usb-remote config add-server {name}",
    )
