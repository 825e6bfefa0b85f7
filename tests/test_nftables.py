"""Rules of nftables, as the kernel's own tool says them, and how a new connection fares by them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.trees import Tree
from usb_remote.doctor import firewall

BOTH = (5055, 3240)
NFT = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
TABLE = """table inet f {{
 set ours {{ type inet_service; flags interval; elements = {{ 5055, 3000-3300 }} }}
 chain own {{ tcp dport {{ 3240, 5055 }} accept; }}
 chain output {{ type filter hook output priority 0; tcp dport 3240 drop; }}
 chain input {{ type filter hook input priority 0; policy {policy};
{rules}
 }}
}}"""
DEBIAN = "ct state established,related accept; ct state invalid drop; iifname lo accept"
OTHERS = "udp dport 5353 accept; tcp dport 22 accept; icmp type echo-request accept"
USUAL = f"{DEBIAN}; {OTHERS}"


def listed(rules: str) -> str:
    """What `nft --json list ruleset` says where these are in force: a network of its own."""
    if NFT is None or os.geteuid() != 0:
        message = "needs root, and nft: apt-get install nftables"
        (pytest.fail if os.environ.get("USB_REMOTE_NO_SKIP") == "1" else pytest.skip)(message)
    command = ["unshare", "--net", "sh", "-ec", f"{NFT} -f -; {NFT} --json list ruleset"]
    return subprocess.run(command, input=rules, text=True, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("policy", "rules", "status", "words"),
    [
        ("accept", "", "ok", "lets the server's ports in"),
        ("accept", USUAL, "ok", "lets the server's ports in"),
        ("drop", USUAL, "failed", "insert rule inet f input tcp dport '{ 5055, 3240 }' accept"),
        ("drop", f"{USUAL}; tcp dport {{ 5055, 3240 }} accept", "ok", "the server's ports"),
        ("drop", f"{USUAL}; tcp dport @ours accept", "ok", "the server's ports"),
        ("drop", f"{USUAL}; jump own", "ok", "the server's ports"),
        ("drop", f"{USUAL}; ct state vmap {{ new : jump own, invalid : drop }}", "ok", "ports in"),
        ("drop", f"{USUAL}; meta l4proto tcp ct state new accept", "ok", "the server's ports"),
        ("drop", f"{USUAL}; tcp dport != 3240 accept", "failed", "TCP port 3240"),
        ("drop", f"{USUAL}; tcp dport 5055 accept", "failed", "TCP port 3240"),
        ("drop", "ip saddr 10.0.0.0/8 tcp dport { 5055, 3240 } accept", "ok", "for some net"),
        ("drop", "iifname eth0 accept", "ok", "for some networks or interfaces"),
        ("drop", "meta mark 7 accept", "warning", "that doctor cannot read"),
        ("accept", "tcp dport 3240 drop", "failed", "delete rule inet f input handle"),
        ("accept", f"{USUAL}; reject with icmpx admin-prohibited", "failed", "insert rule"),
        ("accept", "ip saddr 10.9.0.0/16 drop", "ok", "the server's ports"),
        ("accept", "tcp sport 3240 drop; udp dport 3240 drop", "ok", "the server's ports"),
    ],
)
async def test_what_the_rules_mean(
    tree: Tree, policy: str, rules: str, status: str, words: str
) -> None:
    tree.answers["nft"] = 0, listed(TABLE.format(policy=policy, rules=rules.replace("; ", "\n")))
    found = await firewall.check_firewall(tree.machine(), BOTH)
    assert (found.status, words in f"{found.text} {found.mend}") == (status, True), found


async def test_a_connection_has_to_pass_every_chain(tree: Tree) -> None:
    second = "\ntable ip g { chain inward { type filter hook input priority 9; policy drop; }\n}"
    tree.answers["nft"] = 0, listed(TABLE.format(policy="accept", rules="") + second)
    found = await firewall.check_firewall(tree.machine(), BOTH)
    assert "sudo nft insert rule ip g inward" in str(found.mend)


async def test_a_rule_of_iptables_that_nft_cannot_say_is_a_doubt(tree: Tree) -> None:
    chain = {"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input"}
    rule = {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 3}
    expressions = [{"xt": None}, {"counter": None}, {"accept": None}]
    items = [{"chain": {**chain, "policy": "drop"}}, {"rule": {**rule, "expr": expressions}}]
    tree.answers["nft"] = 0, json.dumps({"nftables": items})
    assert (await firewall.check_firewall(tree.machine(), BOTH)).status == "warning"
