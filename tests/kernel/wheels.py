"""usb-remote as people get it: wheels, made from this checkout, and installed in a machine."""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernel import lab
from tests.kernel.vm import VM, Images, Installation
from tests.patience import patience

ROOT = lab.SOURCE.parent
NEEDED = ("src", "systemd", "tools", "pyproject.toml", "README.md", "LICENSE")
ENVIRONMENT = "/opt/venv"
"""build.sh makes it: it has the libraries already."""
PROGRAM = f"{ENVIRONMENT}/bin/usb-remote"


@functools.cache
def wheel(version: str = "") -> tuple[str, bytes]:
    """Build it; return its file name and content. It may call itself another version."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "checkout")
        copy.mkdir()
        for name in NEEDED:
            whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            whole(ROOT / name, copy / name)
        if version:
            init = copy / "src/usb_remote/__init__.py"
            init.write_text(re.sub(r'(__version__ = ").*"', rf'\g<1>{version}"', init.read_text()))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        options = ["--no-build-isolation", "--wheel-dir", place, str(copy)]
        subprocess.run([*command, *options], check=True, capture_output=True)
        (built,) = Path(place).glob("*.whl")
        return built.name, built.read_bytes()


def install(machine: VM, version: str = "") -> None:
    """Install it with pip; another version replaces the one that is there."""
    name, content = wheel(version)
    machine.put(f"/root/{name}", content)
    pip = f"{ENVIRONMENT}/bin/pip install --quiet --no-deps --no-index --force-reinstall"
    machine.sh(f"{pip} /root/{name}", patience(180)).ok()


def build(images: Images) -> Path:
    """Make the snapshot of a machine that has booted with systemd, and has the wheel."""
    digest = lab.fingerprint(images, *(ROOT / name for name in NEEDED))
    base = Installation(images.folder, disk=Path("later"), name="server", ip="10.55.0.1")
    with lab.locked():
        saved = lab.snapshot(base, "installed", digest, install).snapshot
    assert saved is not None
    return saved
