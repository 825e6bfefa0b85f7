"""Runs beside the tests: each order becomes a fork of this process, which has the libraries loaded.

To start Python and load them takes 0.3 to 0.5 s of CPU time, for each command. What runs here is
the same program, a process of its own, with the arguments, environment, folder and standard files
that it would have had. commands.py gives the orders, and says which tests do without.

An order is a JSON object, {"argv", "env", "cwd"}, with the three standard files, on a connection of
its own. Two numbers are the answer: the process id, and at its end the exit status.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

LOADED = (
    "asyncio concurrent.futures getpass typer rich.live rich.text pydantic zeroconf.asyncio pyudev "
    "ruamel.yaml usbip usb_remote.cli.app usb_remote.cli.arranging usb_remote.cli.attaching "
    "usb_remote.cli.configuring usb_remote.cli.finding usb_remote.cli.running "
    "usb_remote.cli.serving usb_remote.cli.watching usb_remote.cli.wishing usb_remote.client "
    "usb_remote.finder usb_remote.mdns.browse usb_remote.server usb_remote.virtual"
)
NUMBER = struct.Struct("i")
ROOM = "x" * 4000
"""The last argument of this process: memory in which its forks show their own command line."""


def main() -> None:
    if "MUTANTS_REACH" in os.environ:
        importlib.import_module("tools.mutants.probes").install()
    for name in LOADED.split():
        importlib.import_module(name)
    gc.freeze()  # so that the forks share it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on a terminal it is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    if is_child(socket.socket(fileno=int(sys.argv[1]))):
        from usb_remote.cli import main as program

        program()


def is_child(listening: socket.socket) -> bool:
    """Fork for each order: True in the process asked for, False when the tests have ended."""
    with listening:
        while True:
            ready, _, _ = select.select([0, listening.fileno()], [], [])
            if 0 in ready:
                return False
            with listening.accept()[0] as connection:
                if not os.fork():
                    return is_child_of_keeper(connection)


def is_child_of_keeper(connection: socket.socket) -> bool:
    """Between the process and us is one that waits for its end; it never returns from here."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order, files, _, _ = socket.recv_fds(connection, 1 << 18, 3)
    if not (pid := os.fork()):
        become(json.loads(order), files)
        return True
    for file in files:
        os.close(file)
    connection.send(NUMBER.pack(pid))
    connection.send(NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


def become(order: dict[str, Any], files: list[int]) -> None:
    """Be the process that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
    for file in files:
        os.close(file)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    if probes := sys.modules.get("tools.mutants.probes"):
        probes.forget()  # who came first has reached nothing for whoever ordered this
    time.tzset()
    open_standard_files()
    words = order["argv"]
    sys.argv = [
        str(Path(sys.modules["usb_remote"].__file__ or "").with_name("__main__.py")),
        *words,
    ]
    show([sys.executable, "-m", "usb_remote", *words])


def open_standard_files() -> None:
    """As Python opens them at its start: by lines on a terminal, and errors by lines always.

    PYTHONUNBUFFERED, which CI may have and users have not, changes nothing here.
    """
    sys.stdin = os.fdopen(0, encoding=sys.stdin.encoding, closefd=False)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        new = os.fdopen(
            fd, "w", encoding=old.encoding, errors=old.errors, closefd=False,
            buffering=1 if fd == 2 or os.isatty(fd) else -1,
        )  # fmt: skip
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def show(words: list[str]) -> None:
    """For whoever reads /proc: the command line is memory of the process (proc(5), `stat`)."""
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    start, end = int(fields[45]), int(fields[46])
    line = "\0".join(words).encode()[: end - start - 1]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
