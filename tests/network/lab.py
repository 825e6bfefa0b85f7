"""Several machines on one cable, made of namespaces: a switch and hosts, as old as the test.

Nothing has a name outside of them and the cables are made inside them, so the machine's own
network is never touched and parallel runs cannot collide.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import uuid4

from tests.network.namespaces import KINDS, Argv, Namespaces, Process

TOOLS = ("ip", "nft", "nsenter", "ping", "unshare")
MOST_HOSTS = 99  # the N of fd77::N is written in decimal digits

SWITCH = """
ip link add bridge type bridge mcast_snooping 0
ip link set bridge up
"""

# $1 host name, $2 machine id, $3 whether IPv6 is off. /sys is mounted anew because it shows the
# interfaces of the network namespace it was mounted in; without duplicate address detection IPv6
# addresses work at once instead of after a second; promoting keeps the second IPv4 address when the
# first is removed, as systemd has it.
HOST = """
echo "$1" > /proc/sys/kernel/hostname
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
echo "$2" > /run/machine-id
mount --bind /run/machine-id /etc/machine-id
echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries
if test -d /proc/sys/net/ipv6; then
    echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
    for which in all default; do echo "$3" > /proc/sys/net/ipv6/conf/$which/disable_ipv6; done
fi
ip link set lo up
"""

Protocol = Literal["tcp", "udp"]


def obstacle() -> str | None:
    """Why this machine cannot run the lab, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"commands are missing: {', '.join(missing)}"
    if not Path("/etc/machine-id").exists():
        return "there is no /etc/machine-id to mount another one over"
    probe = subprocess.run(["unshare", *KINDS, "true"], capture_output=True, text=True)
    return probe.stderr.strip() or None


class Network:
    """A switch with hosts, numbered from 1: 10.77.0.N/24 and fd77::N/64."""

    def __init__(self, hosts: int = 0, *, ipv4: bool = True, ipv6: bool = True) -> None:
        self.hosts: list[Host] = []
        self._count, self._ipv4, self._ipv6 = hosts, ipv4, ipv6
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self.switch = self._cleanup.enter_context(Namespaces(SWITCH))
            for _ in range(self._count):
                self.add_host()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self.hosts:
            host.terminate()
        self._cleanup.close()

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def add_host(self, hostname: str | None = None, machine_id: str | None = None) -> Host:
        """One more machine on the cable; host names and machine ids may be given twice."""
        number = len(self.hosts) + 1
        if number > MOST_HOSTS:
            raise ValueError(f"a network has at most {MOST_HOSTS} hosts")
        names = (hostname or f"host{number}", machine_id or uuid4().hex)
        inside = self._cleanup.enter_context(Namespaces(HOST, *names, "01"[not self._ipv6]))
        host = Host(number, inside, self.switch)
        self._cleanup.callback(host.close)
        self._connect(host, inside.pid)
        self.hosts.append(host)
        return host

    def _connect(self, host: Host, pid: int) -> None:
        self.switch.ip(
            f"link add {host.port} type veth peer name eth0 address {host.mac} netns {pid}",
            f"link set {host.port} master bridge up",
        )
        host.ip("link set eth0 up")
        if self._ipv4:
            host.add_address(host.address)
            # With no default route IPv4 multicast would have no way out. IPv6 has one by itself.
            host.ip("route add 224.0.0.0/4 dev eth0")
        if self._ipv6:
            host.add_address(host.address6)


class Host:
    """One machine: its commands share network, host name, machine id, /run and /sys."""

    def __init__(self, number: int, inside: Namespaces, switch: Namespaces) -> None:
        self.address = f"10.77.0.{number}"
        self.address6 = f"fd77::{number}"
        self.link_local = f"fe80::ff:fe77:{number:x}"  # made of the MAC; needs %eth0 to be used
        self.mac = f"02:00:00:77:00:{number:02x}"
        self.port = f"port{number}"
        self.inside, self._switch = inside, switch
        self._processes: list[Process] = []

    def run(
        self,
        argv: Argv,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; a failure carries what it wrote to stderr."""
        return self.inside.run(argv, timeout=timeout, env=env, check=check, stdin=stdin)

    def start(
        self, argv: Argv, *, env: Mapping[str, str] | None = None, stdin: bool = False
    ) -> Process:
        """Start a command here; it is stopped with the network at the latest."""
        process = Process(self.inside.command(argv), env, stdin=stdin)
        self._processes.append(process)
        return process

    def terminate(self) -> None:
        """Ask what was started here to stop, all at once."""
        for process in self._processes:
            process.signal(signal.SIGTERM)

    def close(self) -> None:
        """Stop what was started here, and what that started."""
        for process in reversed(self._processes):
            process.stop()
        self.inside.close()
        for process in self._processes:
            process.close()

    def ip(self, *commands: str) -> None:
        """Change the host's network by commands of ip(8)."""
        self.inside.ip(*commands)

    def set_hostname(self, name: str) -> None:
        """Change what gethostname() says."""
        self.run(["tee", "/proc/sys/kernel/hostname"], stdin=name)

    def set_machine_id(self, machine_id: str) -> None:
        """Change what /etc/machine-id holds."""
        self.run(["tee", "/etc/machine-id"], stdin=f"{machine_id}\n")

    def add_address(self, address: str) -> None:
        """Give eth0 one more IPv4 or IPv6 address, with the prefix length of the lab."""
        self.ip(f"address add {_interface(address)} dev eth0 nodad")

    def remove_address(self, address: str) -> None:
        """Take an address away from eth0."""
        self.ip(f"address del {_interface(address)} dev eth0")

    def link_down(self) -> None:
        """Pull the cable: eth0 loses its carrier and keeps its addresses."""
        self._switch.ip(f"link set {self.port} down")

    def link_up(self) -> None:
        """Plug the cable in again."""
        self._switch.ip(f"link set {self.port} up")

    def drop(self, percent: int) -> None:
        """Lose this share of the packets that arrive from other hosts; 0 ends it."""
        self._filter("loss", f"numgen random mod 100 < {percent} drop" if percent else "")

    def block(
        self, protocol: Protocol, port: int, verdict: Literal["drop", "reject"] = "drop"
    ) -> None:
        """Let nothing in from other hosts that is for this port."""
        self._filter(f"{protocol}_{port}", f"{protocol} dport {port} {verdict}")

    def unblock(self, protocol: Protocol, port: int) -> None:
        """Undo block()."""
        self._filter(f"{protocol}_{port}", "")

    def allow_only(self, *ports: tuple[Protocol, int]) -> None:
        """A usual stateful firewall with these ports open."""
        rules = [
            "ct state established,related accept",
            "meta l4proto { icmp, ipv6-icmp } accept",
            *(f"{protocol} dport {port} accept" for protocol, port in ports),
            "drop",
        ]
        self._filter("firewall", "\n".join(rules))

    def allow_all(self) -> None:
        """Undo allow_only()."""
        self._filter("firewall", "")

    def _filter(self, table: str, rules: str) -> None:
        """Replace the rules of a table, for what arrives from other hosts; none removes it."""
        chain = f'type filter hook input priority 0\niifname "lo" accept\n{rules}'
        made = f"table inet {table} {{\nchain input {{\n{chain}\n}}\n}}\n" if rules else ""
        removed = f"table inet {table}\ndelete table inet {table}\n"
        self.run(["nft", "-f", "-"], stdin=removed + made)


def _interface(address: str) -> str:
    return f"{address}/{64 if ipaddress.ip_address(address).version == 6 else 24}"
