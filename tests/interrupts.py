"""SIGINT and SIGHUP, for those who run the tests with them ignored: `nohup make test`, cron, CI.

What belongs here: nothing but that.
"""

from __future__ import annotations

import signal
import threading

NUMBERS = (signal.SIGINT, signal.SIGHUP)


def give_to_programs() -> None:
    """Programs that a test starts get these signals as if a person at a terminal had started them.

    A program inherits that a signal is ignored, but it does not inherit a handler. So where one is
    ignored, we install a handler that does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may change handlers
    for number in NUMBERS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
