"""The packages: the same bytes from the same commit, and everything in its place."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from tools import dist

ROOT = Path(__file__).parent.parent
INSTALLED = {
    "share/man/man1/usb-remote.1",
    "share/bash-completion/completions/usb-remote",
    "share/zsh/site-functions/_usb-remote",
    "share/fish/vendor_completions.d/usb-remote.fish",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds of the last commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    folder = tmp_path_factory.mktemp("dist")
    first, second = (dist.build(dist.checkout(folder / name)) for name in ("first", "second"))
    return first, second


def test_two_builds_are_the_same(built: tuple[Path, Path]) -> None:
    first, second = ({p.name: dist.sha256(p) for p in folder.iterdir()} for folder in built)
    assert len(first) == 2
    assert first == second


def test_the_wheel_brings_what_belongs_to_the_system(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(next(built[0].glob("*.whl"))) as wheel:
        data = {name.partition(".data/data/")[2] for name in wheel.namelist()}
        units = {name for name in wheel.namelist() if name.startswith("usb_remote/systemd/")}
    assert data >= INSTALLED
    folder = ROOT / "systemd"
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert units == {f"usb_remote/systemd/{path}" for path in files}


def test_the_description_on_pypi_leads_somewhere(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(next(built[0].glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        text = wheel.read(name).decode()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)


def test_the_sdist_can_build_check_and_test(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0].parent.with_suffix(".tar")) as archive:
        tracked = {member.name for member in archive if member.isfile()}
    with tarfile.open(next(built[0].glob("*.tar.gz"))) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {path for path in tracked if not path.startswith(".ci/")} <= inside
