"""systemd runs server and agent: at boot, after a crash, through an upgrade, until uninstalled."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel import wheels
from tests.kernel.lab import machines, until
from tests.kernel.product import (
    Watch,
    ask,
    attach,
    plug_disk,
    ports_in_use,
    serve,
    wait_until_untouched,
    watch,
)
from tests.kernel.vm import VM, Images
from tests.kernel.wheels import PROGRAM
from tests.patience import patience

READ = "dd if=/dev/sda of=/dev/null bs=512 count=1 iflag=direct"
UNIT = "usb-remote-server.service"
AGENT = "usb-remote-agent.service"
PROMISE = 5.0
"""Seconds within which a server that crashed runs again (docs/how-to/run-the-server-at-boot.md)."""
EMULATED = 4
"""Starting Python costs an emulated machine so much more; RestartSec=30 would still be noticed."""
TRACES = """find /etc /run /var /dev -xdev -name '*usb-remote*' -o -name '*usb_remote*'
systemctl list-units --all --plain --no-legend 'usb-remote*'
systemctl list-unit-files --no-legend 'usb-remote*'
grep usb-remote /etc/group /etc/passwd
true"""


CONSUMER = """[Unit]
BindsTo=usb-remote-attach@server-scope.service
After=usb-remote-attach@server-scope.service
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=usb-remote-attach@server-scope.service
"""


@pytest.fixture(scope="session")
def installed(images: Images) -> Path:
    return wheels.build(images)


@pytest.fixture
def booted_pair(images: Images, installed: Path) -> Iterator[tuple[VM, VM]]:
    """A server with systemd and the wheel, a client with the package as ever."""
    names = ("server", "client")
    with machines(images, *names, systemd=["server"], snapshot=installed) as (server, client):
        yield server, client


@pytest.fixture
def booted_client(images: Images, installed: Path) -> Iterator[tuple[VM, VM]]:
    """A server with the package as ever, a client with systemd and the wheel."""
    names = ("server", "client")
    with machines(images, *names, systemd=["client"], snapshot=installed) as (server, client):
        yield server, client


def property_of(machine: VM, name: str, unit: str = UNIT) -> str:
    return machine.sh(f"systemctl show --value -p {name} {unit}").ok().out.strip()


def is_active(machine: VM, unit: str) -> bool:
    return machine.sh(f"systemctl is-active {unit}").out == "active\n"


def uptime(machine: VM) -> float:
    return float(machine.sh("cat /proc/uptime").out.split()[0])


def started_at(machine: VM) -> float:
    return int(property_of(machine, "ExecMainStartTimestampMonotonic")) / 1e6


def start_systemd_of(machine: VM, user: str) -> str:
    """What logind does at a log-in; return what to write before a command of that user."""
    uid = machine.sh(f"id -u {user}").ok().out.strip()
    place = f"XDG_RUNTIME_DIR=/run/user/{uid}"
    machine.sh(f"install -d -m 700 -o {user} /run/user/{uid}").ok()
    options = f"--uid={user} -p Delegate=yes -E {place} -E HOME=/home/{user}"
    machine.sh(f"systemd-run --unit=of-{user} {options} /lib/systemd/systemd --user").ok()
    before = f"runuser -u {user} -- env HOME=/home/{user} {place}"
    until(lambda: machine.sh(f"{before} systemctl --user is-active basic.target").rc == 0)
    return before


def assert_goes_on(client: VM, seen: Watch, holder: dict[str, str]) -> None:
    """The watch is lost and comes back; the session was there all the time."""
    seen.program.wait_for('"event": ?"lost"')
    seen.latest = None
    assert seen.until_state("2-1", "in_use")["holder"] == holder
    client.sh(READ).ok()


def test_a_server_survives_boot_crash_and_upgrade_and_leaves_nothing(
    booted_pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = booted_pair
    plug_disk(server, disk)
    server.sh(f"{PROGRAM} doctor server --fix --yes")
    server.sh("grep usbip_host /etc/modules-load.d/usb-remote.conf").ok()
    said = server.sh(f"{PROGRAM} install-service server").ok()
    assert f"ran: systemctl restart {UNIT}" in said.out
    assert property_of(server, "ActiveState") == "active"
    assert "serves as server on ports 5055" in property_of(server, "StatusText")
    first = property_of(server, "MainPID")
    again = server.sh(f"{PROGRAM} install-service server").ok()
    assert f"unchanged: /etc/systemd/system/{UNIT}" in again.out
    assert property_of(server, "MainPID") == first

    server.shut_down()
    seen = watch(client)
    server.reboot()
    seen.until_state("2-1", "available")
    port, _ = attach(client, "server/2-1")
    seen.until(lambda now: now["2-1"]["holder"] and now["2-1"]["holder"]["since"])
    assert seen.latest is not None
    holder = seen.latest["2-1"]["holder"]

    before = uptime(server)
    server.sh(f"systemctl kill --signal SEGV {UNIT}").ok()
    until(lambda: started_at(server) > before)
    assert started_at(server) - before < patience(EMULATED * PROMISE)
    assert_goes_on(client, seen, holder)
    assert "Segmentation fault" in server.sh(f"journalctl -u {UNIT} -o cat").out

    wheels.install(server, "3.99.0")
    said = server.sh(f"{PROGRAM} install-service server").ok()
    assert f"ran: systemctl restart {UNIT}" in said.out
    assert_goes_on(client, seen, holder)
    assert ask(server, "info")["version"] == "3.99.0"
    assert ports_in_use(client) == [port]
    assert "ended" not in [event["kind"] for event in ask(server, "history")]

    server.put(f"/etc/systemd/system/{UNIT}.d/override.conf", "[Service]\n")
    said = server.sh(f"{PROGRAM} uninstall-service server --purge").ok()
    wait_until_untouched(server, "/dev/sda")
    until(lambda: ports_in_use(client) == [])
    assert server.sh(TRACES).out == ""


def test_the_agent_attaches_for_its_group_and_units_follow_a_device(
    booted_client: tuple[VM, VM], disk: Path
) -> None:
    server, client = booted_client
    plug_disk(server, disk)
    serve(server)
    said = client.sh(f"{PROGRAM} install-service agent").ok()
    assert "ran: systemd-sysusers" in said.out
    assert "listens on /run/usb-remote/agent.sock" in property_of(client, "StatusText", AGENT)
    refused = client.sh(f"{PROGRAM} attach server/2-1", user="alice")
    assert refused.rc != 0
    client.sh("usermod -aG usb-remote alice").ok()
    client.sh(f"runuser -u alice -- {PROGRAM} attach server/2-1").ok()
    until(lambda: client.sh("stat -Lc %U /dev/usb-remote/*/disk").out == "alice\n")
    first = property_of(client, "MainPID", AGENT)
    client.sh(f"systemctl kill --signal SEGV {AGENT}").ok()
    until(lambda: property_of(client, "MainPID", AGENT) not in ("0", first))
    until(lambda: property_of(client, "SubState", AGENT) == "running")
    client.sh(READ).ok()
    client.sh(f"runuser -u alice -- {PROGRAM} detach server/2-1").ok()
    assert ports_in_use(client) == []

    client.put("/etc/systemd/system/consumer.service", CONSUMER)
    client.sh("systemctl enable consumer").ok()
    client.sh(f"{PROGRAM} name server/2-1 scope").ok()
    client.sh("systemctl start usb-remote-attach@server-scope").ok()
    assert is_active(client, "consumer")
    client.sh("test -b /dev/usb-remote/server-scope/disk").ok()
    server.usb_del("stick")
    until(lambda: not is_active(client, "consumer"))
    plug_disk(server, disk)
    until(lambda: is_active(client, "consumer"))
    client.sh("systemctl stop usb-remote-attach@server-scope").ok()
    assert not is_active(client, "consumer")
    until(lambda: ports_in_use(client) == [])

    alice = start_systemd_of(client, "alice")
    refused = client.sh(f"runuser -u alice -- {PROGRAM} install-service agent --user")
    assert "hint: log in as this user" in refused.err
    client.sh(f"{alice} {PROGRAM} install-service agent --user").ok()
    client.sh(f"{alice} systemctl --user start usb-remote-attach@server-scope").ok()
    client.sh("test -b /dev/usb-remote/server-scope/disk").ok()
    client.sh(f"{alice} {PROGRAM} uninstall-service agent --user").ok()
    until(lambda: ports_in_use(client) == [])
    assert client.sh("find /home/alice/.config -name '*usb-remote*'").out == ""

    client.sh("systemctl disable consumer; rm /etc/systemd/system/consumer.service").ok()
    edit = "/etc/systemd/system/usb-remote-attach@server-scope.service.d/override.conf"
    client.put(edit, "[Service]\n")
    client.sh(f"{PROGRAM} uninstall-service agent --purge").ok()
    assert client.sh(TRACES).out == ""
