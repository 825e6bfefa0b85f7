"""Who imports what: each outside library has one owner, and a command only loads what it uses."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import VirtualServer

SOURCE = Path(__file__).parent.parent / "src/usb_remote"
OWNERS = {
    "zeroconf": "mdns/",
    "ifaddr": "mdns/",
    "pyudev": "udev/",
    "usbip": "virtual.py",
    "ruamel": "config_file.py",
    "typer": "cli/app.py",
    "rich": "cli/watching.py",
}


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    found |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_each_outside_library_has_one_owner(library: str, owner: str) -> None:
    users = [str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if library in imports_of(p)]
    assert users
    assert all(user.startswith(owner) for user in users), users


def alone() -> list[str]:
    """A network of its own: whoever answers outside is not our test."""
    command = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces (unshare)")
    return command


def loaded_by(*arguments: str, before: Sequence[str] = ()) -> set[str]:
    """Modules in memory after a command of its own process."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['usb-remote', *{arguments!r}]\n"
        "from usb_remote.cli import main; main()"
    )
    done = subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    return set(done.stderr.splitlines()[-1].split())


def test_version_loads_next_to_nothing() -> None:
    heavy = {"asyncio", "zeroconf", "pyudev", "ruamel", "ruamel.yaml", "usbip", "rich", "ifaddr"}
    assert not loaded_by("--version") & heavy


UNUSED_BY_LIST = {
    "pyudev",
    "ruamel.yaml",
    "usbip",
    "rich",
    "usb_remote.server",
    "usb_remote.leases",
    "usb_remote.udev",
}


def test_list_loads_only_what_it_uses() -> None:
    loaded = loaded_by("list", "--host", "127.0.0.1:1", before=alone())
    assert not loaded & UNUSED_BY_LIST
    assert "usb_remote.finder" in loaded


def test_list_loads_no_more_to_print_what_it_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    server = VirtualServer(tmp_path)
    loaded = loaded_by("list", "--host", server.name)
    assert server.stop() == 0
    assert not loaded & UNUSED_BY_LIST
    assert "usb_remote.cli.table" in loaded
