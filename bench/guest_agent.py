"""In a virtual machine, the client: says when paths come and go, and when a server is heard.

`python -m bench.guest_agent PATH …` prints a line `PATH there|gone SECONDS` for each change, and
`packet SECONDS` for each mDNS packet of another machine; SECONDS are of one clock.
"""

from __future__ import annotations

import glob
import select
import socket
import sys
import time

POLL = 0.005
GROUP, PORT = "224.0.0.251", 5353
OWN = "10.55.0.2"


def main() -> None:
    patterns = sys.argv[1:]
    hearing = hear()
    known = dict.fromkeys(patterns, False)
    print("ready", flush=True)
    while True:
        for pattern in patterns:
            there = bool(glob.glob(pattern))  # noqa: PTH207 - this is faster
            if there is not known[pattern]:
                known[pattern] = there
                print(pattern, "there" if there else "gone", time.monotonic(), flush=True)
        if select.select([hearing], [], [], POLL)[0]:
            sender = hearing.recvfrom(9000)[1][0]
            if sender != OWN:
                print("packet", time.monotonic(), flush=True)


def hear() -> socket.socket:
    hearing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    hearing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    hearing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    hearing.bind((GROUP, PORT))
    member = socket.inet_aton(GROUP) + socket.inet_aton(OWN)
    hearing.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    return hearing


if __name__ == "__main__":
    main()
