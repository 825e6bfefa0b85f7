"""Every number that docs/reference promises is the one in the code, and none is missing there.

These are no tests of pages only: they are what notices that somebody has changed a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from usb_remote import (
    addresses,
    client,
    config,
    control,
    exporter,
    finder,
    framing,
    history,
    hooks,
    lease,
    model,
    protocol,
    rules,
    server,
    sessions,
    values,
    waiting,
    watcher,
)
from usb_remote.agent import records
from usb_remote.agent import times as agent_times
from usb_remote.mdns import advertise, browse, heard

PAGES = Path(__file__).parent.parent / "docs/reference"
KIB, MIB, MINUTE, DAY = 1024, 1024**2, 60, 86400

LIMITS, HANDSHAKE, TIMES = control.Limits(), exporter.HandshakeLimits(), lease.Times()
AGENT = agent_times.Times()


def page(name: str) -> str:
    """With numbers as a program writes them."""
    return re.sub(r"(?<=\d) (?=000\b)", "", (PAGES / f"{name}.md").read_text())


def tables(of: str) -> Iterator[list[str]]:
    """The cells of each row of a table."""
    for line in page(of).splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.split("|")[1:-1]]


NAME = re.compile(r"`([A-Z][\w.]*)`")

ROWS = {
    "protocol": [
        ("MAX_REQUEST", framing.MAX_REQUEST / KIB, "KiB"),
        ("MAX_DEPTH", framing.MAX_DEPTH, "levels"),
        ("MAX_REPLY", protocol.MAX_REPLY / MIB, "MiB"),
        ("PING_INTERVAL", protocol.PING_INTERVAL, "s"),
        ("WATCH_TIMEOUT", protocol.WATCH_TIMEOUT, "s"),
        ("RESET_TIME", protocol.RESET_TIME, "s more"),
        ("Limits.connections", LIMITS.connections, "; fewer"),
        ("RESERVED_FILES", control.RESERVED_FILES, "open files"),
        ("Limits.connections_per_address", LIMITS.connections_per_address, ""),
        ("Limits.request_timeout", LIMITS.request_timeout, "s after"),
        ("Limits.idle_timeout", LIMITS.idle_timeout, "s between"),
        ("Limits.unread_bytes", LIMITS.unread_bytes / MIB, "MiB"),
        ("Limits.linger_bytes", LIMITS.linger_bytes / MIB, "MiB,"),
        ("Limits.linger_seconds", LIMITS.linger_seconds, "s"),
        ("MAX_SECONDS", protocol.MAX_SECONDS / DAY, "days"),
        ("MAX_WAITING", waiting.MAX_WAITING, "clients"),
        ("Limits.at_once", LIMITS.at_once, "requests"),
        ("Limits.ahead_bytes", LIMITS.ahead_bytes / KIB, "KiB"),
        ("MAX_NAMES", rules.MAX_NAMES, "names"),
        ("MAX_EVENTS", history.MAX_EVENTS, "events"),
        ("MAX_PER_DEVICE", history.MAX_PER_DEVICE, "of a device"),
        ("Limits.unread_seconds", LIMITS.unread_seconds / MINUTE, "min"),
        ("Limits.silent_seconds", LIMITS.silent_seconds, "s in which"),
        ("LOOKS", control.LOOKS, "times"),
        ("Limits.probe_seconds", LIMITS.probe_seconds, "s"),
        ("OWN_ECHO", server.OWN_ECHO, "s after"),
        ("HEAD_START", addresses.HEAD_START, "s"),
        ("HandshakeLimits.timeout", HANDSHAKE.timeout, "s for"),
        ("HandshakeLimits.at_once", HANDSHAKE.at_once, "at a time"),
        ("HandshakeLimits.rest", HANDSHAKE.rest, "s until"),
        ("Times.reservation", TIMES.reservation, "s between"),
        ("Times.grace", TIMES.grace, "s that"),
        ("Times.reset", TIMES.reset, "s that"),
        ("Times.notice", TIMES.notice, "s before"),
        ("KEEPALIVE_IDLE", sessions.KEEPALIVE_IDLE, "s,"),
        ("KEEPALIVE_INTERVAL", sessions.KEEPALIVE_INTERVAL, "s,"),
        ("KEEPALIVE_COUNT", sessions.KEEPALIVE_COUNT, ":"),
        ("USER_TIMEOUT_MS", sessions.USER_TIMEOUT_MS / 1000, "s,"),
        ("SILENT_MS", sessions.SILENT_MS / 1000, "s without"),
        ("PROOF", sessions.PROOF, "s in which"),
        ("JUST_NOW_MS", sessions.JUST_NOW_MS / 1000, "s or less"),
    ],
    "configuration": [
        ("TIME_LIMIT", hooks.TIME_LIMIT, "s"),
        ("KILL_TIME", hooks.KILL_TIME, "s"),
        ("AT_A_TIME", hooks.AT_A_TIME, ""),
        ("MAX_WAITING", hooks.MAX_WAITING, ""),
        ("MAX_OUTPUT", hooks.MAX_OUTPUT / KIB, "KiB"),
        ("server_ranges", config.MAX_RANGE, "addresses"),
        ("timeout", finder.RANGE_TIMEOUT, "s"),
        ("attach", config.MAX_ATTACH, ""),
        ("allow_from", rules.MAX_NETWORKS, ""),
        ("share", rules.MAX_RULES, ""),
        ("names", rules.MAX_NAMES, "names"),
    ],
}
"""Rows of tables: what the page calls it, its value, and what follows the number there."""

LOOK = LIMITS.silent_seconds / control.LOOKS

SENTENCES = {
    "protocol": [
        f"a `ping` every {protocol.PING_INTERVAL:g} s",
        f"A `ping` comes every {protocol.PING_INTERVAL:g} s",
        f"hears nothing for {protocol.WATCH_TIMEOUT:g} s",
        f"stays connected for {LIMITS.unread_seconds / MINUTE:g} minutes",
        f"is forgotten within {protocol.PING_INTERVAL + LIMITS.silent_seconds + LOOK:g} s;",
        f"the device is kept {TIMES.reservation:g} s for an import",
        f"are texts of at most {model.MAX_MESSAGE} characters",
        "a vanished client is noticed after "
        f"{sessions.KEEPALIVE_IDLE + sessions.KEEPALIVE_INTERVAL * sessions.KEEPALIVE_COUNT} s",
        f"asks it for its list every {watcher.LEGACY_INTERVAL:g} s",
    ],
    "cli": [
        f"asked again every {watcher.RECONNECT:g} s, and one of 2.x every "
        f"{watcher.LEGACY_INTERVAL:g} s",
        f"of at most {waiting.MAX_WAITING} clients",
        f"at most {protocol.MAX_SECONDS / DAY:g} days",
        f"waits up to {client.USABLE_TIMEOUT:g} s for the drivers",
        f"{history.MAX_EVENTS} events, {history.MAX_PER_DEVICE} of each device",
    ],
    "configuration": [
        f"{hooks.MAX_OUTPUT / KIB:g} KiB, {hooks.MAX_LINES} lines",
    ],
    "causes": [
        f"no sign of life from the client for {sessions.SILENT_MS / 1000:g} s before; at the "
        f"latest after {sessions.USER_TIMEOUT_MS / 1000:g} s",
        f"{history.FLAPPING} times or more in "
        f"{history.FLAPPING_WITHIN.total_seconds() / MINUTE:g} minutes",
    ],
    "glossary": [
        f"| reservation | the {TIMES.reservation:g} s ",
        f"| grace | the {TIMES.grace:g} s ",
        f"| control port | TCP {protocol.PORT}",
        f"| USB/IP port | TCP {config.ServerConfig().usbip_port}",
    ],
    "json": [f"at most {values.MAX_TEXT} characters long"],
    "mdns": [
        "{:g}, {:g} and {:g} ms (`SHOTS`)".format(*(shot * 1000 for shot in browse.SHOTS)),
        f"{browse.LEAST * 1000:g} ms have passed (`LEAST`",
        f"for {browse.QUIET * 1000:g} ms (`QUIET`)",
        f"{browse.ANSWER * 1000:g} ms after the last question at the earliest (`ANSWER`)",
        f"{heard.MAX_KNOWN} known answers (`MAX_KNOWN`)",
        f"cut at {values.MAX_TEXT} characters",
        f"{heard.MAX_SERVERS} servers are believed (`MAX_SERVERS`)",
        f"{heard.MAX_ADDRESSES} addresses each (`MAX_ADDRESSES`)",
        f"at most {heard.MAX_HOSTS} are kept (`MAX_HOSTS`)",
        ", ".join(f"{seconds:g}" for seconds in browse.BROWSE_INTERVALS[:-1])
        + f" s, then {browse.BROWSE_INTERVALS[-1]:g} s each time",
        f"{advertise.ADDRESS_SETTLE:g} s after",
    ],
    "agent": [
        f"at most {AGENT.longest_delay:g} s away",
        f"lost {AGENT.flapping} times within a minute",
        f"nothing is heard for {protocol.WATCH_TIMEOUT:g} s",
        f"nothing is heard of the server for {AGENT.unheard:g} s",
        f"does not come back within {AGENT.claim_again:g} s",
        f"at most {records.MAX_WISHES} wishes",
    ],
}
"""Numbers in the middle of a text."""


@pytest.mark.parametrize(
    ("of", "name", "value", "unit"),
    [
        pytest.param(of, name, value, unit, id=f"{of}-{name}")
        for of, rows in ROWS.items()
        for name, value, unit in rows
    ],
)
def test_the_number_in_a_table(of: str, name: str, value: float, unit: str) -> None:
    words = re.escape(f"{value:g}" + (unit if unit[:1] in (";", ":", "") else f" {unit}"))
    rows = [" ".join(cells) for names, *cells in tables(of) if f"`{name}`" in names]
    assert rows, f"no row of {name}"
    assert any(re.search(rf"(?<![\w.]){words}(?!\w)", row) for row in rows), rows


@pytest.mark.parametrize(
    ("of", "words"),
    [
        pytest.param(of, words, id=f"{of}-{number}")
        for of, texts in SENTENCES.items()
        for number, words in enumerate(texts)
    ],
)
def test_the_number_in_a_sentence(of: str, words: str) -> None:
    assert words in " ".join(page(of).split())


def test_every_limit_of_the_protocol_has_its_row_and_every_row_is_looked_at() -> None:
    shown = {name for names, *_ in tables("protocol") for name in NAME.findall(names)}
    compared = {name for name, *_ in ROWS["protocol"]}
    assert {name for name in shown if not name.startswith("OP_")} == compared
    for limits in (LIMITS, HANDSHAKE, TIMES):
        kind = type(limits)
        assert {f"{kind.__name__}.{field.name}" for field in fields(kind)} <= compared
