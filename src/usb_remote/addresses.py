"""The addresses of a server: looked up by name, tried in a race, opened.

Rule of this file: nothing is said on a connection here; why there is none is said in words.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import threading
from typing import NamedTuple

from usb_remote import errors, protocol
from usb_remote.model import Server

HEAD_START = 0.1
"""Seconds that the first of several addresses has for itself."""
SILENCE = (
    errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN,
)  # fmt: skip
"""What connect(2) and tcp(7) say when nobody has said anything."""


class Opened(NamedTuple):
    """A connection that stands, and the address that has answered."""

    address: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def open_first(
    server: Server, timeout: float, *, only: str | None = None, head_start: float = HEAD_START
) -> Opened:
    """Open a connection to whichever address of the server answers first.

    Args:
        server: whose addresses, and which port.
        timeout: seconds for the whole; also, for ever after, until it is noticed that nobody
            acknowledges what we send.
        only: this address instead of those of the server.
        head_start: seconds that the first address has for itself.

    Raises:
        Unreachable: none does; the message says why.

    """
    addresses = [only] if only else list(server.addresses)
    name = server.name or ", ".join(addresses)
    try:
        async with asyncio.timeout(timeout):
            opened = await _first(addresses, server.port, head_start)
        _notice_death(opened.writer, timeout)
    except TimeoutError:
        raise errors.Silent(
            f"{name} did not answer within {timeout:g} s (TCP port {server.port})",
            hint="is it switched on, and does a firewall let the port through?",
        ) from None
    except OSError as error:
        raise (errors.Silent if error.errno in SILENCE else errors.Unreachable)(
            f"{name}: {_reason(error)} (TCP port {server.port})",
            hint=_where_to_look(error),
        ) from error
    return opened


async def resolve(host: str) -> list[str]:
    """IP addresses of a host, none if there is no such host; an address is its own.

    The look-up has a daemon thread of its own: a dead DNS server must not hold up our exit, as it
    would in asyncio's pool, which is joined.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()
    threading.Thread(target=_look_up, args=(host, loop, answer), daemon=True).start()
    return await answer


async def _first(hosts: list[str], port: int, head_start: float) -> Opened:
    """The first connection that stands; the others are dropped. Raises the last OSError.

    The first address has a head start: it is where the server was heard, while another of its
    addresses (172.17.0.1 of a container bridge) may be one of our own.
    """
    addresses = [a for answer in [await resolve(host) for host in hosts] for a in answer]
    delays = [0.0, *[head_start] * (len(addresses) - 1)]
    pending = {
        asyncio.create_task(_open(address, port, delay))
        for address, delay in zip(addresses, delays, strict=False)
    }
    failure: BaseException = socket.gaierror("no such host")
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            standing = [task.result() for task in done if not task.exception()]
            for late in standing[1:]:
                late.writer.close()
            if standing:
                return standing[0]
            failure = done.pop().exception() or failure
        raise failure
    finally:
        await _drop(pending)


async def _drop(tasks: set[asyncio.Task[Opened]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, BaseException):
            result.writer.close()


async def _open(address: str, port: int, delay: float) -> Opened:
    await asyncio.sleep(delay)
    reader, writer = await asyncio.open_connection(address, port, limit=protocol.MAX_REPLY)
    return Opened(address, reader, writer)


def _look_up(host: str, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[str]]) -> None:
    found: list[str] = []
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys(str(info[4][0]) for info in infos))
    except (OSError, ValueError):  # also a name that cannot be one
        found = []
    with contextlib.suppress(RuntimeError):  # nobody waits any more, the loop is closed
        loop.call_soon_threadsafe(_settle, answer, found)


def _settle(answer: asyncio.Future[list[str]], found: list[str]) -> None:
    if not answer.done():
        answer.set_result(found)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _where_to_look(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "is the name right? usb-remote list shows all servers"
    return "is `usb-remote server` running there?"


def _notice_death(writer: asyncio.StreamWriter, timeout: float) -> None:
    """Have the kernel give up in time; raises ConnectionResetError if it is over already."""
    if writer.is_closing():  # its socket may be closed by now
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout * 1000))
