"""`python -m bench.watchers PORT COUNT`: clients that watch, in a process of their own.

Prints `ready` when all have the first snapshot, then for each change the time at which the last of
them had the complete line (CLOCK_MONOTONIC, nanoseconds: the same clock in every process).
"""

from __future__ import annotations

import select
import socket
import sys
import time

WATCH = b'{"v":1,"command":"watch"}\n'
SNAPSHOT = b'{"event":"snapshot"'


class Watchers:
    def __init__(self, port: int, count: int) -> None:
        self._epoll = select.epoll()
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        self._buffers = {connection.fileno(): b"" for connection in self._sockets}
        self._by_fd = {connection.fileno(): connection for connection in self._sockets}
        for connection in self._sockets:
            connection.setblocking(False)
            self._epoll.register(connection, select.EPOLLIN)
            connection.sendall(WATCH)

    def wait_for_change(self) -> int:
        """Wait until each watcher has one more snapshot; when the last one had it."""
        missing = len(self._sockets)
        while missing:
            for fd, _ in self._epoll.poll(maxevents=len(self._sockets)):
                missing -= self._read(fd)
        return time.monotonic_ns()

    def _read(self, fd: int) -> int:
        """How many snapshots became complete by what has arrived."""
        data = self._buffers[fd] + self._by_fd[fd].recv(1 << 20)
        if not data:
            raise SystemExit("the server closed the connection")
        *lines, self._buffers[fd] = data.split(b"\n")
        return sum(line.startswith(SNAPSHOT) for line in lines)


def main() -> None:
    port, count = map(int, sys.argv[1:])
    watchers = Watchers(port, count)
    watchers.wait_for_change()
    print("ready", flush=True)
    while True:
        print(watchers.wait_for_change(), flush=True)


if __name__ == "__main__":
    main()
