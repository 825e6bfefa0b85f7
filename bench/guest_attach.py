"""In a virtual machine, the client: attaches in one way or the other, as it is told by a pipe.

Orders are `ours BUS NODE`, `named NAME NODE`, `waits BUS NODE`, `ours_back BUS`, `theirs BUS NODE`,
`theirs_back`; each is answered with a line `done …` on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from usb_remote import vhci, wiring
from usb_remote.client import How
from usb_remote.config import Config
from usb_remote.matching import Query

SERVER, USBIPD_PORT = "10.55.0.1", "3241"
ATTACH = ["usbip", "--tcp-port", USBIPD_PORT, "attach", "-r", SERVER, "-b"]
POLL = 0.005


class Orders:
    """Each method is an order; what it returns is said after `done`."""

    def __init__(self) -> None:
        config = Config(servers=[SERVER], discovery=False)
        self._client = wiring.client(config)

    async def ours(self, bus_id: str, node: str) -> str:
        return await self._timed(Query(bus=bus_id), node)

    async def _timed(self, query: Query, node: str) -> str:
        start = time.perf_counter()
        there = asyncio.create_task(asyncio.to_thread(appears, Path(node), start))
        attached = await self._client.attach(query)
        settled = milliseconds_since(start)
        nodes = attached.attachment.nodes
        return json.dumps({"ms": await there, "settled": settled, "nodes": nodes})

    async def waits(self, bus_id: str, node: str) -> str:
        """Wait in the server's queue, attach, and say when the node is there."""
        attached = await self._client.attach(Query(bus=bus_id), How(wait=0))
        wait_for(Path(node))
        return json.dumps({"nodes": attached.attachment.nodes})

    async def named(self, name: str, node: str) -> str:
        """As ours, by a name."""
        return await self._timed(Query(handle=name), node)

    async def ours_back(self, bus_id: str) -> str:
        await self._client.detach(Query(bus=bus_id))
        return "-"

    async def theirs(self, bus_id: str, node: str) -> str:
        start = time.perf_counter()
        subprocess.run([*ATTACH, bus_id], check=True)
        there = appears(Path(node), start)
        wait_for(udev_entry(node))
        return json.dumps({"ms": there, "settled": milliseconds_since(start)})

    async def theirs_back(self) -> str:
        (attachment,) = vhci.Vhci().list_attachments()
        subprocess.run(["usbip", "detach", "-p", str(attachment.vhci_port)], check=True)
        return "-"


def milliseconds_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def appears(path: Path, start: float) -> float:
    """Milliseconds from the start until there is such a file."""
    wait_for(path)
    return milliseconds_since(start)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(POLL)


def udev_entry(node: str) -> Path:
    """The file that udev writes when it has finished with a device."""
    status = Path(node).stat()
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    return Path(f"/run/udev/data/{kind}{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")


async def obey(pipe: Path) -> None:
    orders = Orders()
    print("ready", flush=True)
    while True:
        for line in pipe.read_text().splitlines():
            name, *words = line.split()
            print("done", await getattr(orders, name)(*words), flush=True)


if __name__ == "__main__":
    asyncio.run(obey(Path(sys.argv[1])))
