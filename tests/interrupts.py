"""SIGINT, for those who run the tests with it ignored: `nohup make test &`, cron, some CI.

What belongs here: nothing but that.
"""

from __future__ import annotations

import signal
import threading


def give_to_programs() -> None:
    """A program that a test starts has SIGINT as one of a person at a terminal has it.

    Who is started with SIGINT ignored passes that on to all that he starts, but not a handler: so
    we have one, which does nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()  # no other may ask for that
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
