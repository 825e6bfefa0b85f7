"""usb-remote in machines: start it, and see from outside what it has done to the kernels."""

import json
import re
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.kernel.guest import GuestError, Result, Running
from tests.kernel.lab import until
from tests.kernel.vm import VM

CONTROL_PORT = 5055
FOLLOW = """exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/5055; echo "$LINE" >&3; exec cat <&3'"""
CONFIG = "/etc/usb-remote/usb-remote.config"
TROUBLED = """cd /sys/bus/usb/devices
for device in [0-9]*-*; do test -e $device/driver || echo $device has no driver; done
ls -l [0-9]*-*/driver | grep usbip-host
cat /sys/bus/usb/drivers/usbip-host/match_busid 2>/dev/null | xargs -r echo in match_busid:
true"""
BAN = "mkdir -p /etc/modprobe.d && echo install {} /bin/false >/etc/modprobe.d/ban.conf"
"""Forbids a module."""
PORTS = "/sys/devices/platform/vhci_hcd.*/status*"

Devices = dict[str, dict[str, Any]]
"""Bus id -> device, as in JSON."""


class Watch:
    """Snapshots as they are pushed: by `usb-remote watch`, or straight from the control port."""

    def __init__(self, program: Running) -> None:
        self.program = program
        self.latest: Devices | None = None

    def until(
        self, condition: Callable[[Devices], object], timeout: float | None = None
    ) -> Devices:
        """Read on until a snapshot, as bus id -> device, is like that."""
        while self.latest is None or not condition(self.latest):
            event = json.loads(self.program.wait_for(r'"event": ?"snapshot"', timeout).string)
            found = event["devices"] if "devices" in event else event["data"]
            self.latest = {device["bus_id"]: device for device in found}
        return self.latest

    def until_state(
        self, bus_id: str, state: str | None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Read on until that device is in that state, None meaning that it is not there."""
        now = self.until(lambda now: now.get(bus_id, {}).get("state") == state, timeout)
        return now.get(bus_id, {})


def serve(server: VM, options: str = "", *, user: str = "root") -> Running:
    """Start a server and wait until it says that it is ready."""
    program = server.start(f"exec usb-remote server {options}", user=user)
    program.wait_for(r"serves \d+ device")
    return program


def watch(machine: VM) -> Watch:
    """Watch on a client as people do."""
    return Watch(machine.start("exec usb-remote watch"))


def watch_port(server: VM) -> Watch:
    """Watch on the server itself, without Python: nothing but the server's own delay."""
    return Watch(follow(server, "watch"))


def follow(server: VM, command: str, **keys: Any) -> Running:
    """Send the server's control port a request, from the server itself; read on and on."""
    return server.start(FOLLOW, env={"LINE": line(command, **keys)})


def ask(server: VM, command: str, **keys: Any) -> Any:
    """Send the server's control port a request, from the server itself; return the reply's data."""
    reply = json.loads(server.guest.ask(line(command, **keys), port=CONTROL_PORT))
    assert reply["status"] == "success", reply
    return reply["data"]


def clock(machine: VM) -> float:
    """Ask for the machine's own time, in seconds since 1970: promises are measured with it."""
    return float(machine.sh("date +%s.%N").ok().out)


def ended_at(server: VM, number: int = 0) -> float:
    """Say when a session ended by the server's own clock, as its history has it: 0 is the last."""
    ends = [event for event in ask(server, "history") if event["kind"] == "ended"]
    return datetime.fromisoformat(ends[-1 - number]["at"]).timestamp()


def line(command: str, **keys: Any) -> str:
    return json.dumps({"v": 1, "command": command, **keys})


def devices(server: VM) -> Devices:
    """Ask the server's control port: bus id -> device."""
    return {device["bus_id"]: device for device in ask(server, "list")}


def sessions(server: VM) -> dict[str, str]:
    """Since when each device that is in use is: the same moment is the same session."""
    found = {bus_id: device["holder"] for bus_id, device in devices(server).items()}
    return {bus_id: holder["since"] for bus_id, holder in found.items() if holder}


def configure(server: VM, program: Running, text: str, says: str = "was loaded again") -> None:
    """Write a configuration, and have the server load it."""
    server.put(CONFIG, text)
    program.send_signal(signal.SIGHUP)
    program.wait_for(says)


def run(machine: VM, command: str, *, user: str = "root") -> Result:
    """Run `usb-remote COMMAND`."""
    return machine.sh(f"usb-remote {command}", user=user)


def attach(machine: VM, what: str) -> tuple[int, list[str]]:
    """Attach a device; return its vhci port and device nodes, as printed."""
    out = run(machine, f"attach {what}").ok().out
    found = re.search(r"^  vhci port (\d+)$", out, re.M)
    assert found, out
    return int(found[1]), re.findall(r"^  (/dev/\S+)$", out, re.M)


def disk_of(nodes: list[str]) -> str:
    """The node of an attached disk, whichever letter it has."""
    return next(node for node in nodes if node.startswith("/dev/sd"))


def attach_stock(machine: VM, bus_id: str = "2-1") -> int:
    """Attach a device with Debian's tool, in a tenth of the time; return its vhci port."""
    machine.sh(f"modprobe vhci_hcd; usbip attach -r 10.55.0.1 -b {bus_id}").ok()
    (port,) = ports_in_use(machine)
    return port


def detach_stock(machine: VM, port: int) -> None:
    """Detach with Debian's tool, which fails while a device is being enumerated."""
    until(lambda: machine.sh(f"usbip detach -p {port}").rc == 0)


def refused(machine: VM, command: str, status: int, *, user: str = "root") -> str:
    """Run what must fail with that exit status; return `error: …` and `hint: …`."""
    result = run(machine, command, user=user)
    assert result.rc == status, result
    assert re.search(r"^error: .+", result.err, re.M), result
    assert "Traceback" not in result.err, result
    return result.err


def ports_in_use(machine: VM) -> list[int]:
    """Say which vhci ports the kernel has in use."""
    rows = [line.split() for line in machine.guest.read(PORTS).splitlines()]
    return sorted(
        int(row[1]) for row in rows if len(row) == 7 and row[1].isdigit() and row[2] != "004"
    )


def wait_until_untouched(server: VM, *nodes: str) -> None:
    """Wait until every device has its own driver again, and nothing is left in match_busid."""
    command = TROUBLED + "".join(f"; test -e {node} || echo no {node}" for node in nodes)
    try:
        until(lambda: server.sh(command).out == "")
    except TimeoutError:
        raise GuestError(server.sh(command).out) from None


def plug_disk(server: VM, image: Path, name: str = "stick", **properties: Any) -> None:
    properties = {"port": "1", "serial": "SER-0001", **properties}
    server.usb_add("usb-storage", name, image=image, **properties)


def plug_serial(server: VM, path: Path) -> None:
    """Plug in a serial adapter, 1-2, whose other end is a socket on this machine."""
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    always: dict[str, Any] = {"always-plugged": True}
    server.usb_add("usb-serial", "adapter", "2", chardev=backend, **always)


# -- the agent

AGENT_SOCKET = "/run/usb-remote/agent.sock"


def reside(client: VM, config: str = "") -> Running:
    """Start the agent on a client and wait until it listens."""
    if config:
        client.put(CONFIG, config)
    client.sh("getent group usb-remote || groupadd --system usb-remote").ok()
    program = client.start("exec usb-remote agent")
    program.wait_for("keeps devices attached")
    return program


def ask_agent(client: VM, command: str, **keys: Any) -> Any:
    """Send the agent a request; return the reply's data."""
    reply = json.loads(client.guest.ask(line(command, **keys), path=AGENT_SOCKET))
    assert reply["status"] == "success", reply
    return reply["data"]


def is_resident(client: VM) -> bool:
    """Whether the agent answers: it was started, and listens by now."""
    try:
        ask_agent(client, "status")
    except GuestError:
        return False
    return True


def wish(client: VM, name: str) -> dict[str, Any]:
    """How a wish of the agent's goes; empty if there is none of that name."""
    found = [status for status in ask_agent(client, "status") if status["name"] == name]
    return found[0] if found else {}


def until_wish(client: VM, name: str, stage: str, timeout: float | None = None) -> dict[str, Any]:
    """Wait until a wish is at that stage."""
    until(lambda: wish(client, name).get("stage") == stage, timeout)
    return wish(client, name)


def links(client: VM) -> dict[str, str]:
    """Everything below /dev/usb-remote: link -> node."""
    found = client.sh("cd /dev/usb-remote 2>/dev/null && find . -type l -printf '%P %l\\n'").out
    return dict(row.split() for row in found.splitlines())


# -- a board whose firmware decides what it is

GADGET = """set -e
modprobe -a dummy_hcd libcomposite
g=/sys/kernel/config/usb_gadget/board
test -d /sys/kernel/config/usb_gadget || mount -t configfs none /sys/kernel/config
if ! test -d $g; then
  mkdir -p $g/strings/0x409 $g/configs/c.1 $g/functions/acm.0
  ln -s $g/functions/acm.0 $g/configs/c.1/
fi
echo "" >$g/UDC 2>/dev/null || true
echo {vendor} >$g/idVendor; echo {product} >$g/idProduct
echo {serial} >$g/strings/0x409/serialnumber
echo board >$g/strings/0x409/product
ls /sys/class/udc | head -n 1 >$g/UDC"""


def flash(server: VM, hardware_id: str, serial: str = "F1") -> None:
    """Plug a board in that has a serial port, or give it a firmware with another identity."""
    vendor, product = (f"0x{number}" for number in hardware_id.split(":"))
    server.sh(GADGET.format(vendor=vendor, product=product, serial=serial)).ok()
