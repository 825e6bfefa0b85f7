"""requests: lists per second, each on a new connection, from one client process, 20 devices.

Ours is a real ControlServer on a made-up tree; the other is asyncio.start_server with json.loads of
the request and the very same bytes as reply (minimal.py).
"""

from __future__ import annotations

import json
import select
import socket
import sys
import tempfile
import time
from functools import partial

from bench import isolated, report
from bench.processes import module, started

REQUEST = b'{"command":"list"}'
REQUESTS = 2000
"""In one measurement: about half a second."""
AT_ONCE = 16
TARGET = report.Target(0.8, at_least=True)

obstacle = isolated.obstacle


def run(pairs: int) -> list[report.Row]:
    ours, theirs = isolated.run_module("bench.requests", pairs)
    return [report.compare("requests: list, of 20 devices", ours, theirs, "/s", TARGET)]


# -- in the namespace ---------------------------------------------------------------------------


def measure(tree: str, pairs: int) -> tuple[list[float], list[float]]:
    with (
        started(module("bench.serving", tree)) as (_, ours),
        tempfile.NamedTemporaryFile() as reply,
    ):
        reply.write(Client(int(ours)).ask_once())
        reply.flush()
        with started(module("bench.minimal", reply.name)) as (_, theirs):
            rates = (partial(Client(int(port)).rate, REQUESTS) for port in (ours, theirs))
            return report.in_turns(pairs, *rates)


class Client:
    """Keeps some connections under way at a time; a reply is complete at its newline."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._epoll = select.epoll()
        self._open: dict[int, socket.socket] = {}

    def ask_once(self) -> bytes:
        with socket.create_connection(self._address) as connection:
            connection.sendall(REQUEST)
            with connection.makefile("rb") as stream:
                return stream.readline()

    def rate(self, requests: int) -> float:
        """Requests per second."""
        start = time.perf_counter()
        for _ in range(AT_ONCE):
            self._ask()
        left = requests - AT_ONCE
        while self._open:
            for fd, _ in self._epoll.poll():
                if self._has_reply(fd) and left:
                    left -= 1
                    self._ask()
        return requests / (time.perf_counter() - start)

    def _ask(self) -> None:
        connection = socket.create_connection(self._address)
        connection.sendall(REQUEST)
        self._open[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)

    def _has_reply(self, fd: int) -> bool:
        data = self._open[fd].recv(1 << 20)
        if not data:
            raise SystemExit("the server closed before its reply was complete")
        if not data.endswith(b"\n"):
            return False
        self._open.pop(fd).close()
        return True


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
