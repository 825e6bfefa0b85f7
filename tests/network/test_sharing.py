"""Who may talk to a server at all: `server.allow_from` between machines."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.network.conftest import MakeNetwork
from tests.network.product import READY, name, start_server, usb_remote
from tests.patience import patience

ASK = "exec 3<>/dev/tcp/{address}/{port} && cat <&3 | wc -c"
"""Connect, send nothing, count what comes until the other side closes."""


def rules(path: Path, *networks: str) -> None:
    path.write_text(json.dumps({"server": {"allow_from": networks}}))


@pytest.mark.parametrize("kind", ["address", "address6"])
def test_who_is_not_allowed_is_closed_before_a_byte_is_read(
    network: MakeNetwork, tmp_path: Path, kind: str
) -> None:
    server, friend, stranger = network(3)
    address = getattr(server, kind)
    config = tmp_path / "server.config"
    rules(config, getattr(friend, kind))
    running = start_server(server, "--name", name(server), config=config)
    running.wait_for(READY)
    listing = ("--host", address)

    assert usb_remote(friend, "list", *listing).returncode == 0
    refused = usb_remote(stranger, "list", *listing)
    assert refused.returncode == 6, refused
    assert address in refused.stderr
    for port in (5055, 3240):
        asked = ["bash", "-c", ASK.format(address=address, port=port)]
        assert stranger.run(asked).stdout.strip() == "0"  # at once: nothing was awaited
    stock = stranger.run(["usbip", "list", "-r", address], check=False)
    assert "usb-remote" not in stock.stdout
    assert "1209:0001" in friend.run(["usbip", "list", "-r", address]).stdout

    rules(config, "10.0.0.0/33")
    os.kill(running.pid, signal.SIGHUP)
    running.wait_for(rf"stays as it was: {config}:1: server\.allow_from\.0: '10\.0\.0\.0/33'")
    assert usb_remote(stranger, "list", *listing).returncode == 6

    rules(config)
    os.kill(running.pid, signal.SIGHUP)
    running.wait_for("loaded again")
    assert usb_remote(stranger, "list", *listing).returncode == 0


def test_a_watch_from_a_network_that_is_not_allowed_any_more_ends(
    network: MakeNetwork, tmp_path: Path
) -> None:
    server, client = network(2)
    config = tmp_path / "server.config"
    rules(config)
    running = start_server(server, "--name", name(server), config=config)
    running.wait_for(READY)
    watching = ["bash", "-c", WATCH.format(address=server.address)]
    watch = client.start(watching)
    watch.wait_for('"snapshot"')

    rules(config, "127.0.0.0/8", "::1/128")
    os.kill(running.pid, signal.SIGHUP)
    assert watch.wait() == 0
    assert usb_remote(server, "list", "--host", "127.0.0.1").returncode == 0


WATCH = """exec 3<>/dev/tcp/{address}/5055
echo '{{"v":1,"command":"watch"}}' >&3; cat <&3"""


CLIENT = """
import json, socket, struct, sys, time
from usbip import protocol

def attach():
    with socket.create_connection((sys.argv[1], 5055)) as control:
        who = {"user": "ann", "host": "pc", "client": "ann"}
        request = {"v": 1, "command": "attach", "bus": "1-1", **who}
        control.sendall(json.dumps(request).encode() + b"\\n")
        reply = json.loads(control.makefile().readline())
    if reply["status"] != "success":
        return print("refused:", reply["message"])
    session = socket.create_connection((sys.argv[1], 3240))
    protocol.client_import(session, b"1-1")
    print("attached")
    return session

session = attach()
for line in sys.stdin:
    if line == "attach\\n":
        session = attach() or session
    else:  # the socket goes at once; its reset gets lost
        session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        session.close()
        time.sleep(1)  # no machine starts anew sooner
        print("gone")
"""


def test_a_client_that_lost_power_gets_its_device_back_at_once_but_not_from_itself(
    network: MakeNetwork,
) -> None:
    server, client = network(2)
    start_server(server).wait_for(READY)
    program = client.start([sys.executable, "-c", CLIENT, server.address], stdin=True)
    program.wait_for("^attached")
    program.write("attach")
    program.wait_for("^refused: .* is in use by ann@pc")

    server.block("tcp", 3240)
    program.write("lose power")
    program.wait_for("^gone")
    server.unblock("tcp", 3240)
    program.write("attach")
    program.wait_for("^attached")
    told = usb_remote(server, "history", "--host", "127.0.0.1").stdout
    assert told.count("client_lost") == 1, told


FORGOTTEN = 10.0
"""Seconds after which a client whose machine vanished is forgotten (docs/reference/protocol.md)."""


def test_a_waiting_client_whose_machine_vanishes_loses_its_place(
    network: MakeNetwork, tmp_path: Path
) -> None:
    """The cable is cut, so nothing says that it has gone."""
    server, client = network(2)
    start_server(server).wait_for(READY)
    holder = server.start([sys.executable, "-c", CLIENT, "127.0.0.1"], stdin=True)
    holder.wait_for("^attached")
    watch = server.start(["bash", "-c", WATCH.format(address="127.0.0.1")])
    watch.wait_for('"snapshot"')
    client.start(["bash", "-c", WAIT.format(address=server.address)]).wait_for('"queued"')
    watch.wait_for('"waiting":1')

    client.link_down()
    watch.wait_for('"waiting":0', patience(FORGOTTEN))
    assert "ann@pc" in usb_remote(server, "list", "--host", "127.0.0.1").stdout


WAIT = """exec 3<>/dev/tcp/{address}/5055
echo '{{"v":1,"command":"attach","bus":"1-1","wait":0,"client":"bob"}}' >&3; cat <&3"""
