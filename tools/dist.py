"""`make dist`: the wheel and the sdist of the last commit, built twice, installed and tried.

Rule of this file: nothing of the working tree gets in, and nothing of this machine. Both builds are
made from `git archive`, with the time of the commit; if they differ in one byte, that is an error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (build(checkout(Path(folder) / name)) for name in ("first", "second"))
        check_same(first, second)
        try_out(next(first.glob("*.whl")), Path(folder))
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(first, ROOT / "dist")
    for path in sorted((ROOT / "dist").iterdir()):
        print(f"{sha256(path)}  dist/{path.name}")


def checkout(folder: Path) -> Path:
    """The last commit, and nothing else."""
    folder.mkdir()
    if changed := _git("status", "--porcelain"):
        print(f"not in the packages, as it is not committed:\n{changed}", file=sys.stderr)
    archive = folder.with_suffix(".tar")
    _git("archive", f"--output={archive}", "HEAD")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


def build(source: Path) -> Path:
    """Build both packages without network; returns the folder that they are in."""
    command = [sys.executable, "-m", "hatchling", "build"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time()}
    _run(command, cwd=source, env=environment)
    return source / "dist"


def commit_time() -> str:
    return _git("log", "-1", "--format=%ct")


def check_same(first: Path, second: Path) -> None:
    for path in sorted(first.iterdir()):
        if sha256(path) != sha256(second / path.name):
            sys.exit(f"error: {path.name} differs from one build to the next")


def try_out(wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty environment, and run the demo from there."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv/bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*map(str, pip), "--constraint", str(ROOT / "constraints.txt"), str(wheel)], env=clean)
    print(_run([str(programs / "usb-remote"), "demo"], cwd=folder, env=clean), end="")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(*words: str) -> str:
    """Whoever owns the checkout: CI may not."""
    return _run(["git", "-c", "safe.directory=*", *words], cwd=ROOT).strip()


def _run(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


if __name__ == "__main__":
    main()
