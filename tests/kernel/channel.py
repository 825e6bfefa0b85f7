"""A unix socket that carries JSON objects, one a line, both ways."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.patience import patience

Message = dict[str, Any]


class Channel:
    """Hands every message to `receive` from a thread of its own; `ended` is called at the end."""

    def __init__(
        self,
        path: Path,
        receive: Callable[[Message], None],
        ended: Callable[[], None],
    ) -> None:
        self._socket = connect(path, patience(10))
        self._receive, self._ended = receive, ended
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"read {path}", daemon=True)
        self._reader.start()

    def send(self, message: Message) -> None:
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as file:
            for line in filter(None, map(bytes.strip, file)):
                self._receive(json.loads(line))
        self._ended()


def connect(path: Path, timeout: float) -> socket.socket:
    """Connect to a unix socket that may not be there yet."""
    deadline = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return sock
