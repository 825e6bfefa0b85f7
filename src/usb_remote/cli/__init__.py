"""The command line: the only place that wires objects together, prints and exits.

Rule of this folder: a command imports what it needs inside its function, so that `--version` costs
nothing and `list` only what it uses (a test pins that).
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `usb-remote`; every error ends as `error: …`, `hint: …` and its exit status."""
    from usb_remote.cli.app import app
    from usb_remote.cli.output import report
    from usb_remote.errors import Exit, UsbRemoteError

    try:
        app()
    except UsbRemoteError as error:
        report(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as shells expect it; nothing to say
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `usb-remote list | head -1` is no error
        sys.exit(Exit.OK)
