"""What this machine's own firewall would let in: firewalld, ufw, or the rules of nftables.

Rule of this file: it tells what a firewall says, not what passes; a doubt is no failure.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from usb_remote.doctor.machine import NO_PROGRAM, Machine
from usb_remote.doctor.nftables import Rule, Ruleset, Scope, Way, way_in
from usb_remote.doctor.report import Check, Finding, failed, ok, skipped, warning

PATIENCE = 2.0
"""Seconds that a program may take to answer."""
UFW_VERDICTS = {"ACCEPT": True, "ufw-user-limit-accept": True, "DROP": False, "REJECT": False}
UFW_CONDITIONS = {"-s", "-d", "-i", "--sport", "--sports"}


async def check_firewall(machine: Machine, ports: Sequence[int]) -> Finding:
    """What this machine's own firewall would let in."""
    status, said = await machine.ask(["firewall-cmd", "--state"], PATIENCE)
    if status == 0 and "running" in said:
        return await _check_firewalld(machine, ports)
    if "ENABLED=yes" in machine.read("etc/ufw/ufw.conf"):
        return _check_ufw(machine, ports)
    return await _check_nftables(machine, ports)


def _found(name: str, ways: dict[int, Way], mend: str) -> Finding:
    check, worst = Check.FIREWALL, max(ways.values())
    numbers = " and ".join(str(port) for port, way in ways.items() if way is worst)
    if worst is Way.CLOSED:
        return failed(check, f"{name} does not let TCP port {numbers} in", mend)
    if worst is Way.DOUBTFUL:
        text = f"{name} may not let TCP port {numbers} in: a rule decides that doctor cannot read"
        return warning(check, text, "on a client: usb-remote doctor  # it tries")
    if worst is Way.FOR_SOME:
        return ok(check, f"{name} lets TCP port {numbers} in, for some networks or interfaces")
    return ok(check, f"{name} lets the server's ports in")


# -- firewalld, ufw


async def _check_firewalld(machine: Machine, ports: Sequence[int]) -> Finding:
    ways = {}
    for port in ports:
        query = ["firewall-cmd", f"--query-port={port}/tcp"]
        status, _ = await machine.ask(query, PATIENCE)
        ways[port] = Way.CLOSED if status else Way.OPEN
    words = " ".join(f"--add-port={port}/tcp" for port, way in ways.items() if way)
    mend = f"sudo firewall-cmd --permanent {words} --add-service=mdns; sudo firewall-cmd --reload"
    return _found("firewalld", ways, mend)


def _check_ufw(machine: Machine, ports: Sequence[int]) -> Finding:
    text = machine.read("etc/ufw/user.rules")
    if not text:
        return skipped(Check.FIREWALL, "ufw is active; its rules are only shown to root")
    rules = list(_ufw_rules(text, ports))
    policy = machine.read("etc/default/ufw")
    otherwise = 'DEFAULT_INPUT_POLICY="ACCEPT"' in policy
    ways = {port: way_in(rules, port, otherwise=otherwise)[0] for port in ports}
    closed = [port for port in ports if ways[port] is Way.CLOSED]
    return _found("ufw", ways, "; ".join(f"sudo ufw allow {port}/tcp" for port in closed))


def _ufw_rules(text: str, ports: Sequence[int]) -> Iterator[Rule]:
    """The lines that `ufw allow`, `ufw deny` and so on have written, as iptables takes them."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        options = dict(pairwise(words))
        verdict = UFW_VERDICTS.get(options.get("-j", ""))
        if words[:2] != ["-A", "ufw-user-input"] or verdict is None:
            continue
        if options.get("-p", "all") not in ("tcp", "all"):
            continue
        wanted = options.get("--dports") or options.get("--dport")
        way = Way.FOR_SOME if UFW_CONDITIONS & set(words) else Way.OPEN
        yield Rule(Scope(_named(wanted, ports), way, bool(wanted)), verdict)


def _named(words: str | None, ports: Sequence[int]) -> frozenset[int]:
    """Those of the ports that are in ``5055,3000:3300``."""
    if words is None:
        return frozenset(ports)
    spans = [word.partition(":") for word in words.split(",")]
    return frozenset(
        p for p in ports for low, _, high in spans if int(low) <= p <= int(high or low)
    )


# -- nftables


async def _check_nftables(machine: Machine, ports: Sequence[int]) -> Finding:
    check = Check.FIREWALL
    status, said = await machine.ask(["nft", "--json", "list", "ruleset"], PATIENCE)
    if status == NO_PROGRAM:
        return ok(check, "no firewall of this machine is known to be active")
    try:
        items = json.loads(said)["nftables"]
    except (ValueError, KeyError, TypeError):
        only = "cannot be read" if machine.is_root else "are only shown to root"
        return skipped(check, f"the rules of nftables {only}")
    return _judged(Ruleset(items, frozenset(ports)), ports)


def _judged(ruleset: Ruleset, ports: Sequence[int]) -> Finding:
    """A connection has to pass every chain that the kernel shows it."""
    ways, mends = dict.fromkeys(ports, Way.OPEN), []
    for chain in ruleset.input_chains():
        rules = list(ruleset.rules(chain))
        otherwise = chain.get("policy") != "drop"
        for port in ports:
            way, rule = way_in(rules, port, otherwise=otherwise)
            ways[port] = max(ways[port], way)
            if way is Way.CLOSED:
                mends.append(_nft_mend(chain, rule, ports))
    if not ruleset.has_input:
        return ok(Check.FIREWALL, "no firewall of this machine is active")
    return _found("nftables", ways, "; ".join(dict.fromkeys(mends)))


def _nft_mend(chain: dict[str, Any], rule: Rule | None, ports: Sequence[int]) -> str:
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    if rule is not None and rule.scope.by_port and rule.handle is not None:
        return f"sudo nft delete rule {where} handle {rule.handle}"
    numbers = ", ".join(map(str, ports))
    return f"sudo nft insert rule {where} tcp dport '{{ {numbers} }}' accept"
