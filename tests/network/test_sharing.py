"""Who may talk to a server at all: `server.allow_from` between machines."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.network.conftest import MakeNetwork
from tests.network.product import READY, name, start_server, usb_remote

ASK = "exec 3<>/dev/tcp/{address}/{port} && cat <&3 | wc -c"
"""Connect, send nothing, count what comes until the other side closes."""


def rules(path: Path, *networks: str) -> None:
    path.write_text(json.dumps({"server": {"allow_from": networks}}))


def test_who_is_not_allowed_is_closed_before_a_byte_is_read(
    network: MakeNetwork, tmp_path: Path
) -> None:
    server, friend, stranger = network(3)
    config = tmp_path / "server.config"
    rules(config, f"{friend.address}/32")
    running = start_server(server, "--name", name(server), config=config)
    running.wait_for(READY, 20)
    listing = ("--host", server.address)

    assert usb_remote(friend, "list", *listing).returncode == 0
    refused = usb_remote(stranger, "list", *listing)
    assert refused.returncode == 6, refused
    assert server.address in refused.stderr
    for port in (5055, 3240):
        asked = ["bash", "-c", ASK.format(address=server.address, port=port)]
        assert stranger.run(asked).stdout.strip() == "0"  # at once: nothing was awaited
    stock = stranger.run(["usbip", "list", "-r", server.address], check=False)
    assert "usb-remote" not in stock.stdout
    assert "1209:0001" in friend.run(["usbip", "list", "-r", server.address]).stdout

    rules(config, "10.0.0.0/33")
    os.kill(running.pid, signal.SIGHUP)
    running.wait_for(rf"stays as it was: {config}:1: server\.allow_from\.0: '10\.0\.0\.0/33'", 10)
    assert usb_remote(stranger, "list", *listing).returncode == 6

    rules(config)
    os.kill(running.pid, signal.SIGHUP)
    running.wait_for("loaded again", 10)
    assert usb_remote(stranger, "list", *listing).returncode == 0


def test_a_watch_from_a_network_that_is_not_allowed_any_more_ends(
    network: MakeNetwork, tmp_path: Path
) -> None:
    server, client = network(2)
    config = tmp_path / "server.config"
    rules(config)
    running = start_server(server, "--name", name(server), config=config)
    running.wait_for(READY, 20)
    watching = ["bash", "-c", WATCH.format(address=server.address)]
    watch = client.start(watching)
    watch.wait_for('"snapshot"', 10)

    rules(config, "127.0.0.0/8", "::1/128")
    os.kill(running.pid, signal.SIGHUP)
    assert watch.wait(10) == 0
    assert usb_remote(server, "list", "--host", "127.0.0.1").returncode == 0


WATCH = """exec 3<>/dev/tcp/{address}/5055
echo '{{"v":1,"command":"watch"}}' >&3; cat <&3"""
