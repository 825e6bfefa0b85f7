"""Who imports what: each outside library has one owner, and a command only loads what it uses."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src/usb_remote"
OWNERS = {
    "zeroconf": "mdns/",
    "ifaddr": "mdns/",
    "pyudev": "udev/",
    "usbip": "virtual.py",
    "ruamel": "config.py",
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


def loaded_by(*arguments: str) -> set[str]:
    """Modules in memory after a command of its own process."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['usb-remote', *{arguments!r}]\n"
        "from usb_remote.cli import main; main()"
    )
    alone = ["unshare", "--map-root-user", "--net"]  # whoever answers outside is not our test
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces (unshare)")
    done = subprocess.run(
        [*alone, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    return set(done.stderr.splitlines()[-1].split())


def test_version_loads_next_to_nothing() -> None:
    heavy = {"asyncio", "zeroconf", "pyudev", "ruamel", "ruamel.yaml", "usbip", "rich", "ifaddr"}
    assert not loaded_by("--version") & heavy


def test_list_loads_only_what_it_uses() -> None:
    heavy = {
        "pyudev",
        "ruamel.yaml",
        "usbip",
        "rich",
        "usb_remote.server",
        "usb_remote.leases",
        "usb_remote.udev",
    }
    loaded = loaded_by("list", "--host", "127.0.0.1:1")
    assert not loaded & heavy
    assert "usb_remote.finder" in loaded
