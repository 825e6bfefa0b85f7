"""Rules of a firewall, and how a new TCP connection from another machine fares by them.

Rule of this file: no program, no file. A rule that cannot be understood is a doubt: it neither lets
in nor keeps out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

DEEPEST = 8
"""Chains that jump to chains."""
VERDICTS = {"accept": True, "drop": False, "reject": False}
HARMLESS = {"counter", "log", "comment", "notrack"}
"""Statements that decide nothing."""


class Way(IntEnum):
    """Whether connections get in; the greater, the worse."""

    OPEN = 0
    FOR_SOME = 1
    DOUBTFUL = 2
    CLOSED = 3


class Scope(NamedTuple):
    """Which new connections a rule is for.

    Attributes:
        ports: those of the server's that it concerns.
        way: OPEN if it is for all of them, FOR_SOME under a condition, DOUBTFUL if nobody knows.
        by_port: whether it names ports.

    """

    ports: frozenset[int]
    way: Way = Way.OPEN
    by_port: bool = False


NOBODY = Scope(frozenset())


class Rule(NamedTuple):
    """One line of a firewall, as far as it decides.

    Attributes:
        scope: whom it concerns.
        accepts: or drops.
        handle: its number in nftables.

    """

    scope: Scope
    accepts: bool
    handle: int | None = None


def way_in(rules: Iterable[Rule], port: int, *, otherwise: bool) -> tuple[Way, Rule | None]:
    """How a new connection to this port fares, and the rule that drops it.

    Args:
        rules: in their order.
        port: of the server.
        otherwise: whether that which no rule decides is accepted.

    """
    some = []
    for rule in rules:
        if port not in rule.scope.ports:
            continue
        if rule.scope.way is not Way.OPEN:
            some += [rule.scope.way] if rule.accepts else []
        elif rule.accepts:
            return Way.OPEN, None
        else:
            return min(some, default=Way.CLOSED), rule
    if otherwise:
        return Way.OPEN, None
    return min(some, default=Way.CLOSED), None


class Ruleset:
    """What `nft --json list ruleset` says (libnftables-json(5)), as far as it concerns us.

    Args:
        items: tables, chains, rules and sets, one after the other.
        ports: of the server.

    """

    def __init__(self, items: Sequence[dict[str, Any]], ports: frozenset[int]) -> None:
        self._items = items
        self._ports = ports

    @property
    def has_input(self) -> bool:
        return any(self.input_chains())

    def input_chains(self) -> Iterator[dict[str, Any]]:
        """Where packets for this machine begin their way."""
        for chain in self._of("chain"):
            if chain.get("hook") == "input" and chain.get("type") == "filter":
                yield chain

    def rules(self, chain: dict[str, Any]) -> Iterator[Rule]:
        yield from self._followed(chain, chain["name"], Scope(self._ports), 0)

    def _of(self, kind: str, **keys: str) -> Iterator[dict[str, Any]]:
        for item in self._items:
            found = item.get(kind)
            if found and all(found.get(key) == value for key, value in keys.items()):
                yield found

    def _followed(
        self, base: dict[str, Any], name: str, scope: Scope, depth: int
    ) -> Iterator[Rule]:
        place = {"family": base["family"], "table": base["table"]}
        for rule in self._of("rule", chain=name, **place) if depth < DEEPEST else ():
            # a jump ends up in another chain, whose handles `nft delete` would not find here
            handle = rule["handle"] if depth == 0 else None
            for narrowed, verdict, target in self._read(rule["expr"], scope, place):
                if verdict in VERDICTS:
                    yield Rule(narrowed, VERDICTS[verdict], handle)
                elif verdict in ("jump", "goto"):
                    yield from self._followed(base, target, narrowed, depth + 1)

    def _read(
        self, statements: Sequence[dict[str, Any]], scope: Scope, place: dict[str, str]
    ) -> Iterator[tuple[Scope, str, str]]:
        """Each verdict of a rule, for whom it is, and where it leads."""
        for statement in statements:
            ((kind, what),) = statement.items()
            if kind == "match":
                scope = self._narrow(scope, what["left"], what["op"], what["right"], place)
            elif kind == "vmap" and isinstance(what["data"], dict) and "set" in what["data"]:
                for value, verdict in what["data"]["set"]:
                    one = self._narrow(scope, what["key"], "==", value, place)
                    yield from self._read([verdict], one, place)
            elif kind in VERDICTS or kind in ("jump", "goto"):
                yield scope, kind, what["target"] if kind in ("jump", "goto") else ""
            elif kind == "limit":
                scope = scope._replace(way=max(scope.way, Way.FOR_SOME))
            elif kind not in HARMLESS:
                scope = scope._replace(way=Way.DOUBTFUL)

    def _narrow(
        self, scope: Scope, left: Any, operator: str, right: Any, place: dict[str, str]
    ) -> Scope:
        """What is left of a scope after one more condition."""
        values = list(self._values(right, place))
        wanted = operator != "!="
        match left:
            case {"payload": {"protocol": "tcp" | "th", "field": "dport"}}:
                ports = {p for p in scope.ports if any(_is_in(p, v) for v in values) is wanted}
                return scope._replace(ports=frozenset(ports), by_port=True)
            case (
                {"meta": {"key": "l4proto"}}
                | {"payload": {"protocol": "ip", "field": "protocol"}}
                | {"payload": {"protocol": "ip6", "field": "nexthdr"}}
            ):
                return scope if ("tcp" in values) is wanted else NOBODY
            case {"payload": {"protocol": "ip" | "ip6" | "ether" | "tcp"}}:
                return scope._replace(way=max(scope.way, Way.FOR_SOME))
            case {"payload": {"protocol": _}}:
                return NOBODY
            case {"ct": {"key": "state"}}:
                return scope if ("new" in values) is wanted else NOBODY
            case {"meta": {"key": "iifname" | "iif"}}:
                is_ours = wanted and values == ["lo"]
                way = max(scope.way, Way.FOR_SOME)
                return NOBODY if is_ours else scope._replace(way=way if wanted else scope.way)
            case {"meta": {"key": "pkttype"}}:
                return scope if ("host" in values) is wanted else NOBODY
            case {"meta": {"key": "nfproto"}}:
                return scope._replace(way=max(scope.way, Way.FOR_SOME))
        return scope._replace(way=Way.DOUBTFUL)

    def _values(self, right: Any, place: dict[str, str]) -> Iterator[Any]:
        """The single values of a condition: of a list, of a set, or of a set with a name."""
        if isinstance(right, str) and right.startswith("@"):
            for found in self._of("set", name=right[1:], **place):
                yield from self._values(found.get("elem", []), place)
        elif isinstance(right, dict) and "set" in right:
            yield from self._values(right["set"], place)
        elif isinstance(right, dict) and "elem" in right:
            yield from self._values(right["elem"]["val"], place)
        elif isinstance(right, list):
            for one in right:
                yield from self._values(one, place)
        else:
            yield right


def _is_in(port: int, value: Any) -> bool:
    """Whether a port is this value, or in this range."""
    if isinstance(value, dict) and "range" in value:
        low, high = value["range"]
        return bool(low <= port <= high)
    return bool(port == value)
