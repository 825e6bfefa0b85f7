"""`demo`: the main job on this machine, with devices that are programs.

A real server in a process of its own, the real client, real mDNS, TCP and USB/IP, all on the
loopback interface. With root, vhci_hcd and the usbip command the kernel imports the devices;
without, a client in user space does, so that neither root nor a module is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

from usb_remote import errors, vhci, virtual, wiring
from usb_remote.cli import installing, output
from usb_remote.config import Config
from usb_remote.finder import Failure, Finder
from usb_remote.matching import Query
from usb_remote.mdns.browse import browse
from usb_remote.mdns.ways import LOOPBACK
from usb_remote.model import Server
from usb_remote.watcher import Change, Watcher

TIME_LIMIT = 60.0
"""Seconds for everything; it takes 2. An emulated or busy machine is slow, not broken."""
DISCOVERY_LIMIT = 8.0
"""Seconds for mDNS once the server runs: more than a busy Raspberry Pi needs."""
READY = b" serves "
"""What a server says when it runs."""
NAME = "demo"
LINE = b"hello from this side\n"


def run(discovery_limit: float = DISCOVERY_LIMIT) -> None:
    """Show everything, clean up; raises UsbRemoteError if anything is not as it should be."""
    wiring.run(_run(discovery_limit))


async def _run(discovery_limit: float) -> None:
    try:
        async with asyncio.timeout(TIME_LIMIT):
            async with _server() as server:
                await _Demonstration(server, discovery_limit).show()
    except TimeoutError:
        raise errors.SystemFault(
            f"the demo did not end within {TIME_LIMIT:g} s",
            hint="see what is wrong with this machine: usb-remote doctor",
        ) from None
    _say("That was it. Everything is cleaned up.")
    _say(f"Next, on a machine with USB devices: sudo {installing.word_for_sudo()} server")


def _say(text: str) -> None:
    print(text, flush=True)


class _Server:
    """A server in a process of its own, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.runs = asyncio.Event()
        self._said = deque[bytes](maxlen=10)

    async def hear(self) -> None:
        """Keep what it says, until it ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self._said.append(line)
            if READY in line:
                self.runs.set()

    def repeat(self) -> None:
        """Print its last words: they may be the reason."""
        for line in self._said:
            output.note(f"the server: {line.decode(errors='replace').rstrip()}")


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[_Server]:
    """`usb-remote server --virtual` on free ports of the loopback interface."""
    options = ["--listen", LOOPBACK, "--port", "0", "--usbip-port", "0", "--name", NAME]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "usb_remote", "server", "--virtual", *options),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    server = _Server(process)
    hearing = asyncio.create_task(server.hear())
    has_failed = True
    try:
        yield server
        has_failed = False
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await hearing
        if has_failed:
            server.repeat()


class _Demonstration:
    def __init__(self, server: _Server, discovery_limit: float) -> None:
        self._process = server.process
        self._server_runs = server.runs
        self._discovery_limit = discovery_limit

    async def show(self) -> None:
        _say("A server starts. Its devices are programs: a serial port, a disk and a keyboard.")
        server = await self._discover()
        await self._list(server)
        watching = Watcher(_config(server), _nobody()).watch()
        async with contextlib.aclosing(watching) as changes:
            await self._plug_and_pull(changes)
            await self._use(server)
            await self._pull(changes, "disk")

    async def _discover(self) -> Server:
        _say("A client looks for servers by mDNS; nobody told it an address.")
        start = time.perf_counter()
        try:
            async with asyncio.timeout(None) as limit:
                limiting = asyncio.create_task(self._limit(limit))
                try:
                    server = await self._first_that_is_ours()
                finally:
                    limiting.cancel()
        except TimeoutError:
            raise errors.SystemFault(
                "mDNS does not work on this machine: "
                f"nothing heard for {self._discovery_limit:g} s",
                hint="who has its port? type: sudo ss -ulnp 'sport = :5353'",
            ) from None
        except OSError as error:
            raise errors.SystemFault(
                f"mDNS does not work on this machine: {error}",
                hint="is the loopback interface up? type: ip link show lo",
            ) from None
        spent = time.perf_counter() - start
        _say(f"  found {server.name} at {server.addresses[0]}:{server.port}"
             f" ({spent:.1f} s after the server's start)")  # fmt: skip
        return server

    async def _limit(self, limit: asyncio.Timeout) -> None:
        """A start may take long on a slow machine; what mDNS may take begins when it is over."""
        await self._server_runs.wait()
        limit.reschedule(asyncio.get_running_loop().time() + self._discovery_limit)

    async def _first_that_is_ours(self) -> Server:
        while True:
            async for server in browse(loopback=True):
                if server.name == NAME and await self._is_ours(server):
                    return server
            self._check_alive()

    async def _is_ours(self, server: Server) -> bool:
        """Another demo may run on this machine: ours is called by its process number too."""
        from usb_remote.identity import server_id

        return server.id == server_id(f"virtualprocess{self._process.pid}")

    def _check_alive(self) -> None:
        if self._process.returncode is not None:
            raise errors.SystemFault(
                "the demo's server ended before it could be found",
                hint="see why: usb-remote server --virtual --listen 127.0.0.1",
            )

    async def _list(self, server: Server) -> None:
        _say("$ usb-remote list")
        async for answer in Finder(_config(server), browse).listings():
            if isinstance(answer, Failure):
                raise answer.error
            named = answer.server.model_copy(update={"name": NAME})
            output.print_listing(answer.model_copy(update={"server": named}))

    async def _plug_and_pull(self, changes: AsyncIterator[Change]) -> None:
        await self._until(changes, "keyboard", present=True)
        _say("The client watches. Somebody pulls the keyboard out of the server …")
        await self._command("pull keyboard")
        await self._until(changes, "keyboard", present=False)
        _say("  it is gone from the client's list")
        _say("… and plugs it in again.")
        start = time.perf_counter()
        await self._command("plug keyboard")
        await self._until(changes, "keyboard", present=True)
        _say(f"  pushed to the client {(time.perf_counter() - start) * 1000:.1f} ms after the plug")

    async def _pull(self, changes: AsyncIterator[Change], kind: str) -> None:
        _say(f"Somebody pulls the {kind} out of the server.")
        await self._command(f"pull {kind}")
        await self._until(changes, kind, present=False)
        _say("  the client has seen it")

    async def _command(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def _until(self, changes: AsyncIterator[Change], word: str, *, present: bool) -> None:
        async for change in changes:
            if change.listing is None:
                raise change.error or errors.Unreachable("the server is lost")
            devices = change.listing.snapshot.devices
            if present == any(word in d.description.lower() for d in devices):
                return

    # -- using the devices

    async def _use(self, server: Server) -> None:
        if os.geteuid() == 0 and shutil.which("usbip") and vhci.Vhci().is_loaded:
            _say(
                "The kernel imports the serial port and the disk (you are root, vhci_hcd is there)."
            )
            await self._use_kernel(server)
        else:
            _say("A client in user space imports the serial port and the disk over USB/IP")
            _say(
                "(as root with vhci_hcd loaded, the kernel would do it and make real device nodes)."
            )
            await asyncio.to_thread(self._use_directly, server)

    def _use_directly(self, server: Server) -> None:
        address, port = server.addresses[0], server.usbip_port
        with virtual.import_device(address, port, virtual.bus_id_of("serial")) as handle:
            _check_echo(virtual.echo(handle, LINE))
        with virtual.import_device(address, port, virtual.bus_id_of("disk")) as handle:
            _check_sector(virtual.first_sector(handle))

    async def _use_kernel(self, server: Server) -> None:
        client = wiring.client(_config(server))
        for kind, check in (("serial", _talk), ("disk", _read_sector)):
            query = Query(bus=virtual.bus_id_of(kind))
            done = await client.attach(query)
            _say(f"  $ usb-remote attach {NAME}/{query.bus}: {' '.join(done.attachment.nodes)}")
            try:
                await asyncio.to_thread(check, done.attachment.nodes)
            finally:
                await client.detach(query)


def _config(server: Server) -> Config:
    """A client that knows this server and asks nobody else."""
    return Config(servers=[f"{server.addresses[0]}:{server.port}"], discovery=False)


def _check_echo(answer: bytes) -> None:
    if answer != LINE:
        raise errors.SystemFault(f"the serial port answered {answer!r} instead of {LINE!r}")
    _say(f"  serial port: sent {LINE.decode().strip()!r}, it came back")


def _check_sector(sector: bytes) -> None:
    if not sector.startswith(virtual.DISK_TEXT):
        raise errors.SystemFault("the disk's first sector is not what was written there")
    _say(f"  disk: its first sector says {virtual.DISK_TEXT.decode().strip()!r}")


def _talk(nodes: tuple[str, ...]) -> None:
    node = next(n for n in nodes if "tty" in n)
    fd = os.open(node, os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(fd)
        termios.tcflush(fd, termios.TCIOFLUSH)
        os.write(fd, LINE)
        answer = b""
        while len(answer) < len(LINE):
            answer += os.read(fd, 64)
    finally:
        os.close(fd)
    _check_echo(answer)


def _read_sector(nodes: tuple[str, ...]) -> None:
    node = next(n for n in nodes if n.startswith("/dev/sd"))
    with Path(node).open("rb") as disk:
        _check_sector(disk.read(virtual.BLOCK))


async def _nobody() -> AsyncIterator[Server]:
    return
    yield
