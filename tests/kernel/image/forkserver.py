#!/usr/bin/python3
"""Runs in the guest: starts `usb-remote` as a fork of a Python that has the libraries loaded.

Loading them takes seconds under emulation, for each command. What runs is the same program, as a
process of its own with the user, the environment, the files and the name that it would have had.

It talks with agent.py by a socket, one JSON object a packet: {"argv", "env", "cwd", "uid", "gid"}
with the three standard files -> {"pid"}; later {"pid", "rc"}. At the start: {"pid": 0}.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    "asyncio concurrent.futures sqlite3 typer typer.testing rich.table pydantic zeroconf.asyncio "
    "pyudev ruamel.yaml usbip"
)
PROGRAM = (
    "usb_remote.cli.app usb_remote.cli.attaching usb_remote.cli.finding usb_remote.cli.serving "
    "usb_remote.cli.watching usb_remote.client usb_remote.finder usb_remote.mdns.browse "
    "usb_remote.server usb_remote.udev.nodes usb_remote.vhci"
)
ARG_START, ARG_END = 45, 46
"""Where proc(5) has the addresses of the command line in `stat`, after the name."""


def main() -> None:
    load(LIBRARIES)
    channel = socket.socket(fileno=int(sys.argv[1]))
    tell(channel, pid=0)
    if wait_for_orders(channel):
        from usb_remote.cli import main as program

        program()


def load(modules: str) -> None:
    importlib.invalidate_caches()  # they may have been installed since we looked
    for name in modules.split():
        importlib.import_module(name)
    gc.freeze()  # or each child would copy what its collector only looks at


def tell(channel: socket.socket, **message: int) -> None:
    channel.send(json.dumps(message).encode())


def wait_for_orders(channel: socket.socket) -> bool:
    """Fork for each order; True in the child."""
    ended, wakeup = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([channel.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            report(channel)
        if channel.fileno() in ready:
            data, files, _, _ = socket.recv_fds(channel, 1 << 16, 3)
            if not data:
                return False
            load(PROGRAM)
            leads, has_led = os.pipe()
            if not (pid := os.fork()):
                os.setsid()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for file in (channel.detach(), ended, wakeup, leads, has_led):
                    os.close(file)
                become(json.loads(data), files)
                return True
            for file in (*files, has_led):
                os.close(file)
            os.read(leads, 1)  # its end: from here on it can be sent signals, as a group
            os.close(leads)
            tell(channel, pid=pid)


def report(channel: socket.socket) -> None:
    """Say who has ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            tell(channel, pid=ended[0], rc=os.waitstatus_to_exitcode(ended[1]))
    except ChildProcessError:
        return


def become(order: dict[str, Any], files: list[int]) -> None:
    """Be the process that was asked for."""
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.setgroups([])
    os.setgid(order["gid"])
    os.setuid(order["uid"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["usb-remote", *order["argv"]]
    show(["python3", "-m", "usb_remote", *order["argv"]])


def show(words: list[str]) -> None:
    """For ps, pgrep and whoever else reads /proc: the command line is memory of the process."""
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    start, end = int(fields[ARG_START]), int(fields[ARG_END])
    line = "\0".join(words).encode()[: end - start - 1]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
