"""The command line: the only place that wires objects together, prints and exits.

Rule of this folder: a command imports what it needs inside its function, so that `--version` costs
nothing and `list` only what it uses (a test pins that).
"""

from __future__ import annotations

import errno
import os
import sys


def main() -> None:
    """Run `usb-remote`; every error ends as `error: …`, `hint: …` and its exit status."""
    try:
        try:
            if not _is_done_quickly():
                _run()
        finally:
            sys.stdout.flush()  # while what is wrong with it can be said
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as shells expect it; nothing to say
    except BrokenPipeError:
        _drop_output()  # `usb-remote list | head -1` is no error
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename:
            raise
        _drop_output()
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        print("hint: is the disk full? type: df -h", file=sys.stderr)
        sys.exit(5)


def _drop_output() -> None:
    """What is left in Python's buffer has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _is_done_quickly() -> bool:
    if sys.argv[1:2] != ["list"]:
        return False

    from usb_remote.cli import quick

    return quick.list_devices(sys.argv[2:])


def _run() -> None:
    from usb_remote.cli.output import report
    from usb_remote.errors import UsbRemoteError

    try:
        if sys.argv[1:] == ["agent"]:
            _reside()
        elif sys.argv[1:] == ["server"]:
            _serve()
        else:
            from usb_remote.cli import app

            app.obey()
    except UsbRemoteError as error:
        report(error)
        sys.exit(error.exit_status)


# What stays for ever does without the 2 MB that typer keeps.


def _reside() -> None:
    from usb_remote.cli import output, residing
    from usb_remote.config_file import find_path, load_in_force

    output.log_to_stderr()
    residing.serve(lambda: load_in_force(None), find_path(None))


def _serve() -> None:
    from usb_remote.cli import serving
    from usb_remote.config_file import load_in_force

    serving.serve(lambda: load_in_force(None).server, virtual=False)
