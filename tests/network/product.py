"""usb-remote itself on the lab's hosts, by its real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

from tests.network.lab import Host
from tests.network.namespaces import Process

USB_REMOTE = (sys.executable, "-m", "usb_remote")
READY = r"^usb-remote .* serves 3 devices as "
TAKE_5353 = """
import socket, threading
taken = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
taken[0].bind(("", 5353))
if socket.has_dualstack_ipv6():
    taken.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    taken[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    taken[1].bind(("::", 5353))
print("taken")
threading.Event().wait()
"""

Completed = subprocess.CompletedProcess[str]


def start_servers(*hosts: Host, named: bool = True) -> list[Process]:
    """Servers with three devices each, called host1, host2 … by --name or by their host name."""
    servers = [start_server(host, *(("--name", name(host)) if named else ())) for host in hosts]
    for server in servers:
        server.wait_for(READY)
    return servers


def start_server(
    host: Host, *options: str, stdin: bool = False, config: Path | None = None
) -> Process:
    """A server that need not be ready yet."""
    before = ["--config", str(config)] if config else []
    return host.start([*USB_REMOTE, *before, "server", "--virtual", *options], stdin=stdin)


def name(host: Host) -> str:
    return f"server-{host.address.rpartition('.')[2]}"


def usb_remote(host: Host, *words: str) -> Completed:
    """Run a command to its end, whatever that is."""
    return host.run([*USB_REMOTE, *words], check=False)


def listed(done: Completed) -> list[dict[str, Any]]:
    """The servers that `list --json` printed, each with ``server`` and ``devices``."""
    assert done.returncode == 0, done
    servers: list[dict[str, Any]] = json.loads(done.stdout)["servers"]
    return servers


def names(done: Completed) -> list[str]:
    """The names of the servers that `list --json` printed, in its order."""
    return [entry["server"]["name"] for entry in listed(done)]


def warnings(done: Completed) -> list[str]:
    """The lines on stderr, which must all be warnings."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in lines), done.stderr
    return lines


def configured(folder: Path, *servers: str, timeout: float = 5.0) -> tuple[str, str]:
    """The words that make a command use a configuration with these servers."""
    path = folder / "chosen.config"
    path.write_text(json.dumps({"servers": servers, "timeout": timeout}))
    return ("--config", str(path))


def start_watch(host: Host, *before: str) -> Process:
    return host.start([*USB_REMOTE, *before, "watch", "--json"])


def unprintable(text: str) -> set[str]:
    """Characters that could play tricks on a terminal."""
    return {c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"}


def filter_ipv4(host: Host, rule: str) -> None:
    """One more rule for what arrives over IPv4."""
    chain = f"type filter hook input priority 0\n{rule}"
    host.run(["nft", "-f", "-"], stdin=f"table ip more {{\nchain input {{\n{chain}\n}}\n}}\n")


def take_5353(host: Host) -> None:
    """The port of mDNS belongs to another program."""
    host.start([sys.executable, "-c", TAKE_5353]).wait_for("taken")
