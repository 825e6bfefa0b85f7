"""The command line as processes of their own, with configurations that know no other servers.

What belongs here: what starts `usb-remote`, a command or a server, and reads what it says.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND = [sys.executable, "-m", "usb_remote"]


def usb_remote(
    *arguments: str, config: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    options = ["--config", str(config)] if config else []
    return subprocess.run(
        [*COMMAND, *options, *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **variables},
    )  # fmt: skip


class VirtualServer:
    """`usb-remote server --virtual` on loopback, and a configuration that knows only it."""

    def __init__(self, folder: Path, section: str = "{}", prefix: Sequence[str] = ()) -> None:
        options = ["--listen", "127.0.0.1", "--port", "0", "--usbip-port", "0", "--no-advertise"]
        self.own_config = folder / "of-the-server"
        self.configure(section)
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, "--config", str(self.own_config),
             "server", "--virtual", "--name", "bench", *options],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = ""
        ports = self.hear(r"on ports (\d+) \(control\) and (\d+) \(USB/IP\)")
        self.port, self.usbip_port = int(ports[1]), int(ports[2])
        self.name = f"127.0.0.1:{self.port}"
        self.config = folder / "config"
        self.config.write_text(f"discovery: false\nservers: ['127.0.0.1:{self.port}']\n")

    def configure(self, section: str) -> None:
        """Write what its own file says of the server; in force at its start, and after SIGHUP."""
        self.own_config.write_text(f"server: {section}\n")

    def hear(self, pattern: str) -> re.Match[str]:
        """Read what it says until this is there, and forget all up to it."""
        assert self.process.stderr
        while not (found := re.search(pattern, self.said)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.said}"
            self.said += line
        self.said = self.said[found.end() :]
        return found

    def reload(self, section: str) -> None:
        self.configure(section)
        self.process.send_signal(signal.SIGHUP)

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.said += self.process.communicate(timeout=20)[1]
        return self.process.returncode


class Shell:
    """Runs commands that know one server, and an agent."""

    def __init__(self, folder: Path, agent: str, *servers: str) -> None:
        self.folder = folder
        file = folder / "config"
        file.write_text(f"discovery: false\ntimeout: 20\nservers: {json.dumps(servers)}\n")
        self.environment = {**os.environ, "USB_REMOTE_CONFIG": str(file), "USB_REMOTE_AGENT": agent}

    async def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        command = [sys.executable, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**self.environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def list(self, *options: str, **environment: str) -> tuple[int, str, str]:
        return await self.run("-m", "usb_remote", "list", *options, **environment)
