"""Machines that are files below a temporary folder, for what examines the one that it runs on.

What belongs here: such trees, and the answers of the programs that are asked there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from usb_remote.doctor import machine

RELEASE = "6.1.0-18-amd64"


class Tree:
    """A machine's files below a temporary folder, and its programs as a table of answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, ...]] = []
        self.write("proc/sys/kernel/osrelease", RELEASE + "\n")
        self.write(f"lib/modules/{RELEASE}/modules.builtin", "kernel/drivers/usb/core/usbcore.ko\n")

    def write(self, name: str, text: str = "") -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    async def ask(self, command: Sequence[str], timeout: float) -> tuple[int, str]:
        self.asked.append(tuple(command))
        return self.answers.get(Path(command[0]).name, (127, "not found"))

    def find(self, program: str) -> str | None:
        return f"/usr/sbin/{program}" if program in self.answers else None

    def machine(self, uid: int = 0) -> machine.Machine:
        return machine.Machine(self.root, uid, self.ask, self.find)

    def runs(self, pid: int, name: str, *words: str, inode: str, unit: str = "") -> None:
        """A process that has this socket open."""
        self.write(f"proc/{pid}/comm", name + "\n")
        self.write(f"proc/{pid}/cmdline", "\0".join(words or (name,)) + "\0")
        self.write(f"proc/{pid}/status", "Name:\tx\nUid:\t0\t0\t0\t0\n")
        self.write(f"proc/{pid}/cgroup", f"0::/system.slice/{unit}\n")
        (self.root / f"proc/{pid}/fd").mkdir()
        (self.root / f"proc/{pid}/fd/3").symlink_to(f"socket:[{inode}]")
