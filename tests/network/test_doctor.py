"""`usb-remote doctor` names the faults of a network, each injected for real."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.network.conftest import MakeNetwork
from tests.network.lab import Host
from tests.network.namespaces import Process
from tests.network.product import (
    READY,
    USB_REMOTE,
    configured,
    name,
    start_server,
    start_servers,
    take_5353,
    usb_remote,
)
from tests.patience import patience

PYTHON = Path(sys.executable).name
LONGEST = 15.0
"""Seconds that it may take on a busy machine; about 4 where packets are dropped."""
NEEDS_A_KERNEL = {"client-module", "server-module", "vhci-ports"}
"""Namespaces have no kernel of their own; these are proved in tests/kernel."""
PROGRAM = """
import socket, threading
listener = socket.create_server(("", {port}), family=socket.AF_INET6, dualstack_ipv6=True)
print("taken", flush=True)
def serve():
    while True:
        peer, _ = listener.accept()
        peer.recv(100)
        peer.sendall({answer!r})
        {after}
kept = []
serve()
"""
OTHER_VERSION = (
    b'{"status":"error","code":"invalid_request",'
    b'"message":"v: this server speaks protocol version 2"}\n'
)
LEGACY = b'{"status":"error","message":"Invalid request format: extra_forbidden"}\n'


def doctor(host: Host, *words: str, before: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """What it finds, by the name of the check, within the time that it may take."""
    start = time.monotonic()
    done = usb_remote(host, *before, "doctor", *words, "--json")
    assert time.monotonic() - start < patience(LONGEST)
    report = json.loads(done.stdout)
    failures = [f["check"] for f in report["findings"] if f["status"] == "failed"]
    assert done.returncode == (5 if failures else 0), done
    assert len(failures) == report["failed"]
    return {finding["check"]: finding for finding in report["findings"]}


def bad(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is not well, but for what a namespace cannot have."""
    return {
        check: finding["status"]
        for check, finding in found.items()
        if finding["status"] in ("warning", "failed") and check not in NEEDS_A_KERNEL
    }


def start_program(
    host: Host, port: int, answer: bytes = b"", after: str = "peer.close()"
) -> Process:
    code = PROGRAM.format(port=port, answer=answer, after=after)
    program = host.start([sys.executable, "-c", code])
    program.wait_for("taken")
    return program


# -- all is well


def test_all_is_well_on_a_healthy_pair(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)

    assert not bad(found := doctor(client))
    assert found["control-port"]["server"] == name(host)
    assert not bad(found := doctor(host, "server"))
    assert name(host) in found["server"]["text"]


@pytest.mark.parametrize("ipv6", [False, True])
def test_all_is_well_with_one_family_only(network: MakeNetwork, ipv6: bool) -> None:
    host, client = network(2, ipv4=not ipv6, ipv6=ipv6)
    start_servers(host)

    assert not bad(doctor(client))
    assert not bad(doctor(host))


def test_it_is_a_line_for_each_check_and_the_command_that_mends(network: MakeNetwork) -> None:
    [client] = network(1)

    done = usb_remote(client, "doctor", "client")

    assert done.returncode == 5
    assert "failed   servers            no server is heard by mDNS" in done.stdout
    assert "\n         mend: usb-remote config add-server HOST" in done.stdout
    assert done.stderr.startswith("examined as client (you said so)\n")
    assert "error: " in done.stderr


# -- between the two


@pytest.mark.parametrize(("port", "check"), [(3240, "usbip-port"), (5055, "control-port")])
def test_a_port_that_a_firewall_drops(network: MakeNetwork, port: int, check: str) -> None:
    host, client = network(2)
    start_servers(host)
    host.block("tcp", port)

    found = doctor(client)

    assert bad(found) == {check: "failed"}
    assert "dropped: the machine answers ping" in found[check]["text"]
    assert f"ufw allow {port}/tcp" in found[check]["mend"]


@pytest.mark.parametrize(("port", "check"), [(3240, "usbip-port"), (5055, "control-port")])
def test_a_port_that_a_firewall_rejects(network: MakeNetwork, port: int, check: str) -> None:
    host, client = network(2)
    start_servers(host)
    host.block("tcp", port, "reject")

    found = doctor(client)

    assert bad(found) == {check: "failed"}
    assert "firewall rejects it" in found[check]["text"]
    assert f"ufw allow {port}/tcp" in found[check]["mend"]


def test_a_firewall_that_says_so(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    host._filter("prohibited", "tcp dport 3240 reject with icmpx admin-prohibited")

    found = doctor(client)

    assert bad(found) == {"usbip-port": "failed"}
    assert "rejected by a firewall" in found["usbip-port"]["text"]


def test_the_server_names_the_rule_that_drops(network: MakeNetwork) -> None:
    host, _ = network(2)
    start_servers(host)
    host.block("tcp", 3240)

    found = doctor(host, "server")

    assert bad(found) == {"firewall": "failed"}
    assert "nftables does not let TCP port 3240 in" in found["firewall"]["text"]
    host.run(["sh", "-c", found["firewall"]["mend"].replace("sudo ", "")])
    assert not bad(doctor(host, "server"))


def test_the_firewall_of_a_distribution_on_the_server(network: MakeNetwork) -> None:
    host, _ = network(2)
    start_servers(host)
    host.allow_only(("udp", 5353))

    found = doctor(host, "server")

    assert bad(found) == {"firewall": "failed"}
    assert "TCP port 5055 and 3240" in found["firewall"]["text"]
    host.run(["sh", "-c", found["firewall"]["mend"].replace("sudo ", "")])
    assert not bad(doctor(host, "server"))


def test_a_rule_for_what_goes_out_is_no_fault(network: MakeNetwork) -> None:
    host, _ = network(2)
    start_servers(host)
    rule = "type filter hook output priority 0\ntcp dport 3240 drop"
    host.run(["nft", "-f", "-"], stdin=f"table inet out {{\nchain output {{\n{rule}\n}}\n}}\n")

    assert not bad(doctor(host, "server"))


def test_a_server_that_does_not_run(network: MakeNetwork) -> None:
    host, client = network(2)

    found = doctor(client, "client", "--host", host.address)

    assert bad(found) == {"control-port": "failed", "usbip-port": "failed"}
    assert "refused" in found["control-port"]["text"]
    for check in ("control-port", "usbip-port"):
        assert found[check]["mend"].endswith("systemctl start usb-remote-server")
    found = doctor(host, "server")
    assert bad(found) == {"server": "failed"}
    assert found["server"]["mend"] == "sudo usb-remote server"


def test_a_machine_that_is_off(network: MakeNetwork, tmp_path: Path) -> None:
    host, client = network(2)
    host.link_down()

    found = doctor(client, before=configured(tmp_path, host.address))

    assert found["control-port"]["status"] == "failed"
    assert "nor does the machine answer ping" in found["control-port"]["text"]


def test_a_name_that_nobody_knows_also_while_dns_is_dead(
    network: MakeNetwork, tmp_path: Path
) -> None:
    host, client = network(2)
    names = tmp_path / "resolv.conf"
    names.write_text(f"nameserver {host.address}\n")
    client.run(["mount", "--bind", names, Path("/etc/resolv.conf").resolve()])

    for _ in ("refused", "dropped"):
        found = doctor(client, "--host", "bench.example")["control-port"]
        assert "no address is known of bench.example" in found["text"]
        assert found["mend"].startswith("getent hosts bench.example")
        host.block("udp", 53)


def test_an_address_without_a_route(network: MakeNetwork) -> None:
    [client] = network(1)

    found = doctor(client, "--host", "192.0.2.1")

    assert "there is no route to 192.0.2.1" in found["control-port"]["text"]


def test_a_client_that_the_server_does_not_let_in(network: MakeNetwork, tmp_path: Path) -> None:
    host, client = network(2)
    config = tmp_path / "server.config"
    config.write_text(json.dumps({"server": {"allow_from": ["127.0.0.0/8"]}}))
    start_server(host, "--name", name(host), config=config).wait_for(READY)

    found = doctor(client)

    assert found["control-port"]["status"] == "failed"
    assert "server.allow_from" in found["control-port"]["text"]


# -- who answers there


def test_a_server_of_2x(network: MakeNetwork) -> None:
    host, client = network(2)
    start_program(host, 5055, LEGACY)

    found = doctor(client, "--host", host.address)

    assert found["version"]["status"] == "warning"
    assert "2.x" in found["version"]["text"]
    assert found["control-port"]["status"] == "ok"


def test_a_server_of_another_protocol_version(network: MakeNetwork) -> None:
    host, client = network(2)
    start_program(host, 5055, OTHER_VERSION)

    found = doctor(client, "--host", host.address)

    assert found["version"]["status"] == "failed"
    assert "protocol version 2" in found["version"]["text"]


def test_a_server_of_another_release(network: MakeNetwork) -> None:
    host, client = network(2)
    start_program(host, 5055, info("9.9.1"))

    found = doctor(client, "--host", host.address)

    assert found["version"]["status"] == "warning"
    assert "9.9.1" in found["version"]["text"]


def test_a_server_with_a_wrong_clock(network: MakeNetwork) -> None:
    host, client = network(2)
    start_program(host, 5055, info("3.0.0", now="2020-02-02T02:02:02+00:00"))

    found = doctor(client, "--host", host.address)

    assert found["clock"]["status"] == "warning"
    assert "days behind this machine's" in found["clock"]["text"]


def info(version: str, **more: str) -> bytes:
    data = {"id": "f" * 32, "name": "odd", "version": version, "protocol": 1, **more}
    return json.dumps({"status": "success", "data": data}).encode() + b"\n"


def test_another_program_behind_the_control_port(network: MakeNetwork) -> None:
    host, client = network(2)
    start_program(host, 5055, b"HTTP/1.0 400 Bad Request\r\n\r\n")

    found = doctor(client, "--host", host.address)

    assert "is another program's" in found["control-port"]["text"]


def test_a_usbip_port_that_is_mute(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    start_program(host, 9999, after="kept.append(peer)")
    nat = "type nat hook prerouting priority 0\ntcp dport 3240 redirect to :9999"
    host.run(["nft", "-f", "-"], stdin=f"table inet lab {{\nchain nat {{\n{nat}\n}}\n}}\n")

    found = doctor(client)

    assert bad(found) == {"usbip-port": "failed"}
    assert "nobody answers there" in found["usbip-port"]["text"]


# -- ports of this machine


@pytest.mark.parametrize(("port", "check"), [(5055, "server"), (3240, "server-usbip-port")])
def test_a_port_of_the_server_that_another_program_has(
    network: MakeNetwork, port: int, check: str
) -> None:
    [host] = network(1)
    program = start_program(host, port, b"x\n")

    found = doctor(host, "server")

    assert found[check]["status"] == "failed"
    assert f"TCP port {port} is taken by {PYTHON} (pid {program.pid})" in found[check]["text"]
    assert found[check]["mend"] == f"sudo kill {program.pid}"
    assert found[check]["fix"] is None  # who knows what it is


def test_a_usbipd_is_named_and_fix_ends_it(network: MakeNetwork) -> None:
    if shutil.which("usbipd") is None:
        pytest.skip("there is no usbipd")
    [host] = network(1)
    usbipd = host.start(["usbipd"])
    host.run(["bash", "-c", "until ss -Hltn | grep -q :3240; do sleep 0.05; done"])

    found = doctor(host, "server")
    assert (
        f"TCP port 3240 is taken by usbipd (pid {usbipd.pid})" in found["server-usbip-port"]["text"]
    )

    refused = usb_remote(host, "doctor", "server", "--fix")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert usbipd.returncode is None

    typed = [*USB_REMOTE, "doctor", "server", "--fix"]
    asked = host.run(["script", "-qec", shlex.join(typed), "/dev/null"], stdin="n\n", check=False)
    assert f"stop usbipd (pid {usbipd.pid})? [y/N]" in asked.stdout
    assert asked.returncode == 5
    assert usbipd.returncode is None

    found = doctor(host, "server", "--fix", "--yes")
    assert found["server-usbip-port"]["status"] == "ok"
    usbipd.wait()


# -- mDNS


def test_a_program_that_does_not_share_5353(network: MakeNetwork) -> None:
    host, client = network(2)
    take_5353(client)
    take_5353(host)
    start_server(host, "--name", name(host)).wait_for("serves")

    found = doctor(client, "--host", host.address)
    assert bad(found) == {
        "mdns-port": "warning", "multicast-in": "warning", "discovery": "warning",
    }  # fmt: skip
    assert f"UDP port 5353 is taken by {PYTHON} (pid" in found["mdns-port"]["text"]
    found = doctor(host, "server")
    assert bad(found) == {"mdns-port": "failed", "multicast-in": "failed", "announced": "failed"}


def test_a_firewall_that_lets_no_multicast_in(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    host.block("udp", 5353)

    found = doctor(host, "server")
    assert bad(found) == {"multicast-in": "failed", "announced": "failed"}
    assert "eth0 (IPv4 and IPv6)" in found["multicast-in"]["text"]
    found = doctor(client, "--host", host.address)
    assert bad(found) == {"discovery": "warning"}
    assert found["discovery"]["mend"] == f"usb-remote config add-server {host.address}"


def test_a_client_with_the_firewall_of_a_distribution(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    client.allow_only(("tcp", 22))

    found = doctor(client)

    assert found["multicast-in"]["status"] == "warning"
    assert "ufw allow 5353/udp" in found["multicast-in"]["mend"]
    assert found["servers"]["status"] == "failed"
    assert bad(doctor(client, "--host", host.address)) == {
        "multicast-in": "warning", "discovery": "warning",
    }  # fmt: skip


def test_a_firewall_that_lets_no_multicast_out(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    rule = "type filter hook output priority 0\nudp dport 5353 drop"
    client.run(["nft", "-f", "-"], stdin=f"table inet out {{\nchain output {{\n{rule}\n}}\n}}\n")

    found = doctor(client)

    assert found["multicast-out"]["status"] == "failed"
    assert "a firewall of this machine drops it" in found["multicast-out"]["text"]


def test_a_cable_that_is_not_plugged_in_and_no_interface_at_all(network: MakeNetwork) -> None:
    [client] = network(1)
    client.link_down()
    assert bad(doctor(client)) == {"multicast-out": "warning", "servers": "failed"}
    client.ip("link delete eth0")
    assert bad(doctor(client)) == {"multicast-out": "warning", "servers": "failed"}


def test_no_multicast_route_and_an_idle_bridge_are_no_faults(network: MakeNetwork) -> None:
    host, client = network(2)
    start_servers(host)
    for machine in (host, client):
        machine.ip("route delete 224.0.0.0/4")
        machine.ip("link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0")
        machine.ip("link set docker0 up")

    assert not bad(doctor(client))
    assert not bad(doctor(host, "server"))


def test_avahi_beside_it_is_named_and_no_fault(network: MakeNetwork) -> None:
    if shutil.which("avahi-daemon") is None:
        pytest.skip("there is no avahi-daemon")
    host, client = network(2)
    start_servers(host)
    avahi = ["avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits", "--debug"]
    client.run(["sh", "-c", "printf '[server]\\nenable-dbus=no\\n' >/run/avahi.conf"])
    daemon = client.start([*avahi, "--file=/run/avahi.conf"])
    daemon.wait_for("Server startup complete")

    found = doctor(client)

    assert not bad(found)
    assert f"is shared with avahi-daemon (pid {daemon.pid})" in found["mdns-port"]["text"]


def test_avahi_that_wants_the_port_for_itself(network: MakeNetwork) -> None:
    if shutil.which("avahi-daemon") is None:
        pytest.skip("there is no avahi-daemon")
    host, client = network(2)
    start_servers(host)
    options = "enable-dbus=no\\ndisallow-other-stacks=yes"
    client.run(["sh", "-c", f"printf '[server]\\n{options}\\n' >/run/avahi.conf"])
    avahi = ["avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits", "--debug"]
    client.start([*avahi, "--file=/run/avahi.conf"]).wait_for("Server startup complete")

    found = doctor(client)

    assert found["mdns-port"]["status"] == "warning"
    assert "taken by avahi-daemon" in found["mdns-port"]["text"]


# -- the configuration


def test_a_broken_configuration_is_a_finding_and_the_rest_is_examined(
    network: MakeNetwork, tmp_path: Path
) -> None:
    [client] = network(1)
    path = tmp_path / "broken.config"
    path.write_text("timout: 3\n")

    found = doctor(client, before=("--config", str(path)))

    assert found["configuration"]["status"] == "failed"
    assert f"{path}:1: timout: unknown key" in found["configuration"]["text"]
    assert "mdns-port" in found
