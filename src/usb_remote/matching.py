"""Which device is meant, and which servers are one: queries, handles, merging.

Rule of this file: pure functions of the nouns in model.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from usb_remote.model import Device, Match, Model, Server


class Query(Model):
    """Which device is meant. All given parts must match; globs as in 2.x.

    Attributes:
        handle: ``server/name``, ``server/bus-id``, or a name, device id, bus id, serial, id prefix.
        id: hardware id or device id.
        desc: glob or substring of the description, case-insensitive.
        host: name or address of the server.
        first: take the first match instead of refusing to choose.

    """

    handle: str | None = None
    id: str | None = None
    bus: str | None = None
    serial: str | None = None
    desc: str | None = None
    host: str | None = None
    first: bool = False

    def __str__(self) -> str:
        parts = self.model_dump(exclude_none=True, exclude={"first"})
        handle = parts.pop("handle", None)
        options = [f"--{key} {value}" for key, value in parts.items()]
        return " ".join([handle, *options] if handle else options) or "any device"

    def matches(self, device: Device) -> bool:
        """Whether the options (not the handle) fit this device."""
        return (
            _fits(self.id, device.hardware_id, device.id)
            and _fits(self.bus, device.bus_id)
            and _fits(self.serial, device.serial or "")
            and self._describes(device)
        )

    def _describes(self, device: Device) -> bool:
        own = f"{device.manufacturer or ''} {device.product or ''}"
        texts = (device.description, own, device.name or "")
        return _fits(self.desc, *texts) or any(
            (self.desc or "").lower() in text.lower() for text in texts
        )


def _fits(pattern: str | None, *values: str) -> bool:
    return pattern is None or any(fnmatchcase(v.lower(), pattern.lower()) for v in values)


def is_called(server: Server, host: str) -> bool:
    """Whether a person who says ``host`` means this server."""
    names = {
        server.name,
        server.host_name or "",
        *server.addresses,
        *(a.partition("%")[0] for a in server.addresses),
    }
    return bool(host) and (host.lower() in {name.lower() for name in names} or host == server.id)


def called(servers: Iterable[Server], host: str) -> list[Server]:
    """Those that a person means: by a name of its own, else by anything else that is its own.

    The name goes first, for with ports ``localhost`` and ``localhost:5056`` are two servers.
    """
    known = list(servers)
    named = [server for server in known if server.name.lower() == host.lower()]
    return named or [server for server in known if is_called(server, host)]


def select(candidates: Iterable[Match], query: Query) -> list[Match]:
    """All candidates that the query means, in the given order.

    A handle is tried from exact to loose (name; id, bus id or serial; prefix of an id), and the
    first step that matches anything decides, so that a name can never be shadowed by a prefix.
    """
    there = list(candidates)
    if query.host:
        there = _on(there, query.host)
    if query.handle is None:
        return _fitting(there, query)
    host, slash, rest = query.handle.partition("/")
    if found := _by_word(_fitting(there, query), query.handle):
        return found
    return _by_word(_fitting(_on(there, host), query), rest) if slash else []


def _on(candidates: Sequence[Match], host: str) -> list[Match]:
    """Those on the server that is meant."""
    servers = called((match.server for match in candidates), host)
    return [match for match in candidates if match.server in servers]


def _fitting(candidates: Sequence[Match], query: Query) -> list[Match]:
    return [match for match in candidates if query.matches(match.device)]


def _by_word(candidates: Sequence[Match], word: str) -> list[Match]:
    word = word.lower()
    steps = (
        lambda d: word == (d.name or "").lower(),
        lambda d: word in {d.id.lower(), d.bus_id, (d.serial or "").lower()},
        lambda d: d.id.lower().startswith(word),
    )
    for step in steps if word else ():
        if found := [match for match in candidates if step(match.device)]:
            return found
    return []


def merge(servers: Iterable[Server]) -> list[Server]:
    """One entry for each machine: same id, or same address and port, is the same server.

    The first entry gives name and order (configuration comes before mDNS), later ones add what it
    does not know.
    """
    merged: list[Server] = []
    for server in servers:
        for index, known in enumerate(merged):
            if is_same_server(known, server):
                merged[index] = _joined(known, server)
                break
        else:
            merged.append(server)
    return merged


def is_same_server(one: Server, other: Server) -> bool:
    if one.id and other.id:
        return one.id == other.id
    return one.port == other.port and not set(one.addresses).isdisjoint(other.addresses)


def _joined(first: Server, later: Server) -> Server:
    addresses = dict.fromkeys((*first.addresses, *later.addresses))
    return first.model_copy(
        update={
            "id": first.id or later.id,
            "version": first.version or later.version,
            "addresses": tuple(addresses),
        }
    )
