"""The documentation builds as a site: no warning, each link leads somewhere, nothing is remote."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STRICT = ("--fail-on-warning", "--keep-going", "--quiet", "--fresh-env")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", *STRICT, str(source), str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text()), style


@pytest.mark.parametrize("mistake", ["[x](nowhere.md)", "[x](other.md#nowhere)"])
def test_a_link_to_nowhere_is_an_error(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text((ROOT / "docs/conf.py").read_text())
    (tmp_path / "index.md").write_text(f"# Start\n\n## Room\n\n[other](other.md) {mistake}\n")
    (tmp_path / "other.md").write_text("# Other\n")
    assert "nowhere" in build(tmp_path, tmp_path / "site").stderr


def test_a_page_that_nobody_can_reach_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text((ROOT / "docs/conf.py").read_text())
    (tmp_path / "index.md").write_text("# Start\n")
    (tmp_path / "other.md").write_text("# Other\n")
    assert build(tmp_path, tmp_path / "site").returncode == 1
