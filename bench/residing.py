"""agent: `list` through it, what it costs while nothing happens, and how soon a device is back.

Warm is `usb-remote list` on a machine whose agent knows a server with 20 made-up devices; the other
is `python -c pass`. Idle memory is compared as in memory.py. Wake-ups are the voluntary context
switches of all its threads (/proc/PID/task/*/status); a watched server sends a ping every 3 s, and
those are taken off.

In virtual machines: a serial adapter is pulled out of the server and plugged in again, until its
path below /dev/usb-remote works again. The other is the same adapter plugged into the client
itself, until its node is there; and half as much again plus what the client's kernel and drivers
need for it after that, which is how long stock `usbip attach` takes with a device that stock
usbipd has bound already. And the server's machine is switched off and on: from its first mDNS
packet until the path is back.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.kernel.guest import Running
from tests.kernel.lab import until
from tests.kernel.vm import VM
from tests.network.namespaces import Namespaces, Process

from bench import isolated, machines, memory, report
from bench.attaching import (
    NO_TERMINAL,
    Pair,
    Thing,
    attach_theirs,
    bus_id_of,
    start_client,
    start_ours,
    start_servers,
)
from bench.memory import ASLEEP, SETTLED, USB_REMOTE, resident

AGENT_SOCKET = "/run/agent.sock"
WATCHED = 30.0
"""Seconds in which wake-ups are counted."""
QUIET_AFTER = 65.0
"""Seconds after which it asks for servers less often than each minute (mdns/browse.py)."""
PING = 3.0
RETURNS = 5
"""How often the server's machine is switched off and on."""
PATH, LOCAL, NODE = "/dev/usb-remote/BENCH2/tty0", "/dev/ttyUSB*", "/dev/ttyUSB0"
ADAPTER: dict[str, Any] = {"serial": "BENCH2", **NO_TERMINAL}
MORE = 1.5
"""Local plugs that a replug may take, besides the drivers' own time."""


def obstacle() -> str | None:
    return isolated.obstacle() or machines.obstacle()


def run(pairs: int) -> list[report.Row]:
    return [*here(pairs), *in_machines(pairs)]


# -- on this machine ----------------------------------------------------------------------------


def here(pairs: int) -> list[report.Row]:
    with isolated.machine() as (inside, _):
        server = begin(inside, "server", " serves .* devices ")
        agent = begin(inside, "agent", "keeps devices attached")
        try:
            time.sleep(SETTLED)
            began = time.monotonic()
            ours = partial(timed, inside, [*USB_REMOTE, "list"])
            theirs = partial(timed, inside, [sys.executable, "-c", "pass"])
            a, b = report.in_turns(pairs, ours, theirs)
            idle = resident(agent.pid) / 1000
            bare = [bare_size(inside) for _ in range(3)]
            time.sleep(max(0.0, began + QUIET_AFTER - time.monotonic()))
            wakes = wakeups(agent.pid)
        finally:
            for process in (agent, server):
                process.stop()
                process.close()
    sizes = [idle] * len(bare)
    return [
        report.compare("agent: usb-remote list, warm", a, b, "ms", report.Target(3)),
        report.compare("agent: idle, memory", sizes, bare, "MB", report.Target(2.2)),
        report.absolute("agent: idle, wake-ups besides pings", [wakes], "/s", report.Target(0.2)),
    ]


def begin(inside: Namespaces, what: str, ready: str) -> Process:
    process = Process(inside.command(with_agent([*USB_REMOTE, what])), None)
    process.wait_for(ready, 60)
    return process


def with_agent(command: list[str]) -> list[str]:
    return ["env", f"USB_REMOTE_AGENT={AGENT_SOCKET}", "HOME=/run", *command]


def timed(inside: Namespaces, command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        inside.command(with_agent(command)), stdout=subprocess.PIPE, check=True, timeout=60
    )
    return (time.perf_counter() - start) * 1000


def bare_size(inside: Namespaces) -> float:
    return memory.measure(inside, [sys.executable, "-c", ASLEEP], "asleep").idle / 1000


def wakeups(pid: int) -> float:
    """A second, besides those for the pings of its one server."""
    before = switches(pid)
    time.sleep(WATCHED)
    return (switches(pid) - before) / WATCHED - 1 / PING


def switches(pid: int) -> int:
    texts = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/status")]
    found = [re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M) for text in texts]
    return sum(int(match[1]) for match in found if match)


# -- in virtual machines ------------------------------------------------------------------------


def in_machines(pairs: int) -> list[report.Row]:
    with machines.machines("server", "client") as (server, client):
        start_servers(server)
        pair = Pair(server, client, start_client(client))
        client.put("/etc/usb-remote/usb-remote.config", "attach: [BENCH2]\n")
        eyes = client.start(f"{machines.PYTHON} -m bench.guest_agent '{PATH}' '{LOCAL}'")
        eyes.wait_for("^ready", 60)
        ours = partial(with_fresh_agent, client, partial(replug, server, eyes))
        a, b = report.in_turns(pairs, ours, partial(locally, pair, eyes))
        turn = partial(returned, server, eyes)
        back = [with_fresh_agent(client, turn) for _ in range(RETURNS)]
    local, drivers = zip(*b, strict=True)
    allowed = [MORE * plugged + imported for plugged, imported in b]
    what = "agent: replug until its path works"
    return [
        report.compare(f"{what}, by a local plug", a, local, "ms"),
        report.compare(f"{what}, by 1.5 local plugs + drivers", a, allowed, "ms", report.Target(1)),
        report.absolute("agent: of that, the drivers", drivers, "ms"),
        report.absolute("agent: server back, from its first packet", back, "s", report.Target(2)),
    ]


def with_fresh_agent(client: VM, turn: Callable[[], float]) -> float:
    """One that remembers nothing: devices that come and go often are attached later and later."""
    agent = client.start("exec usb-remote agent")
    try:
        agent.wait_for("keeps devices attached", 60)
        time.sleep(SETTLED)
        return turn()
    finally:
        agent.stop()


def replug(server: VM, eyes: Running) -> float:
    """Milliseconds until a device that was there before is there again."""
    plug(server, eyes, PATH)
    return plug(server, eyes, PATH)


def locally(pair: Pair, eyes: Running) -> tuple[float, float]:
    """The same for the client's own device; and for an import by the stock tool, bound before."""
    plugged = plug(pair.client, eyes, LOCAL)
    pair.server.usb_add("usb-serial", "serial", "2", **ADAPTER)
    thing = Thing("serial adapter", NODE, bus_id_of(pair.server, ADAPTER["serial"]))
    until(lambda: pair.server.sh(f"test -e {NODE} && udevadm settle").rc == 0)
    imported, _ = attach_theirs(pair, thing)
    pair.server.usb_del("serial")
    pass_by(eyes, LOCAL)
    return plugged, imported


def plug(machine: VM, eyes: Running, path: str) -> float:
    """Milliseconds from the plug until the path is there; then it is pulled."""
    start = time.perf_counter()
    machine.usb_add("usb-serial", "serial", "2", **ADAPTER)
    eyes.wait_for(f"^{re.escape(path)} there", 60)
    taken = (time.perf_counter() - start) * 1000
    machine.usb_del("serial")
    eyes.wait_for(f"^{re.escape(path)} gone", 60)
    until(lambda: machine.sh("udevadm settle").rc == 0)
    return taken


def pass_by(eyes: Running, path: str) -> None:
    """What came and went meanwhile is not what is waited for next."""
    for what in ("there", "gone"):
        eyes.wait_for(f"^{re.escape(path)} {what}", 60)


def returned(server: VM, eyes: Running) -> float:
    """Seconds from the first mDNS packet of a server that has been off until the path is back."""
    server.usb_add("usb-serial", "serial", "2", **ADAPTER)
    eyes.wait_for(f"^{re.escape(PATH)} there", 60)
    server.power_off()
    eyes.wait_for(f"^{re.escape(PATH)} gone", 60)
    server.reboot()
    start_ours(server)
    first = float(eyes.wait_for(r"^packet (\S+)", 60)[1])
    back = float(eyes.wait_for(rf"^{re.escape(PATH)} there (\S+)", 60)[1])
    server.usb_del("serial")
    eyes.wait_for(f"^{re.escape(PATH)} gone", 60)
    return back - first
