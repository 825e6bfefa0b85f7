"""`list` in a hurry: when the agent is there, what it knows is printed without loading the rest.

Rule of this file: nothing is imported that is not needed for that (a test and `make bench` look).
Whatever is not plain is left to the ordinary way, which says the same, slower.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from usb_remote.cli import table

SOCKET = "/run/usb-remote/agent.sock"
MAX_REPLY = 16 * 1024 * 1024
"""As in protocol.py, which is too slow to load; a test holds them together."""
PATIENCE = 5.0
"""Seconds that the agent may take."""


def list_devices(arguments: list[str]) -> bool:
    """Print the devices of all servers; False if it is not that simple."""
    if arguments not in ([], ["--json"]):
        return False
    path = os.environ.get("USB_REMOTE_AGENT", "" if _has_own_configuration() else SOCKET)
    views = _ask(path) if path else None
    if not views:
        return False
    try:
        if all(view["error"] for view in views):
            return False  # what to say then is for the ordinary way
        text = _as_json(views) if arguments else "\n".join(_lines(views))
        warnings = [f"warning: {v['error']['message']}\n" for v in views if v["error"]]
    except (AttributeError, LookupError, TypeError, ValueError):
        return False  # whoever that is, it does not speak as we do
    print(text, flush=True)
    sys.stderr.writelines(warnings)
    return True


def _has_own_configuration() -> bool:
    """Whether somebody has another configuration than the agent (config_file.find_path)."""
    if os.environ.get("USB_REMOTE_CONFIG") or os.environ.get("USB_REMOTE_CONFIG_PATH"):
        return True
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    own = (".usb-remote.config", f"{home}/usb-remote/usb-remote.config")
    return any(map(os.path.exists, own))


def _ask(path: str) -> Any:
    """The agent's views; None if it is not there, not ours to use, or says something else."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(path)
            connection.sendall(b'{"v":1,"command":"list"}\n')
            with connection.makefile("rb") as lines:
                reply = json.loads(lines.readline(MAX_REPLY))
        except (OSError, ValueError):
            return None
    is_answer = isinstance(reply, dict) and reply.get("status") == "success"
    return reply.get("data") if is_answer else None


def _lines(views: list[dict[str, Any]]) -> list[str]:
    there = [view for view in views if not view["error"]]
    return [line for v in there for line in table.listing_lines(v["server"], v["devices"])]


def _as_json(views: list[dict[str, Any]]) -> str:
    """The same line as output.print_json makes of a search (docs/reference/json.md)."""
    keys = ("server", "revision", "devices")
    shown = {
        "schema": 1,
        "servers": [{key: view[key] for key in keys} for view in views if not view["error"]],
        "failures": [
            {"server": view["server"], "error": view["error"]} for view in views if view["error"]
        ],
    }
    return json.dumps(shown, ensure_ascii=False)
