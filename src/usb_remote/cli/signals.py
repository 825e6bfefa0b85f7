"""Which signals a command takes.

Rule of this file: what we are told to ignore, we ignore. nohup(1) says so of SIGHUP, and a shell
without job control says it of SIGINT to whatever it starts with ``&``: a Ctrl-C is for others then.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

END = (signal.SIGTERM, signal.SIGINT)
"""What ends a service, or a server on a terminal."""


def heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those of them that are not ignored; SIGTERM always ends what we do."""
    return [
        number
        for number in numbers
        if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    ]
