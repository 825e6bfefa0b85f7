"""The documentation builds as a site: no warning, each link leads somewhere, nothing is remote."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
STRICT = ("--fail-on-warning", "--keep-going", "--quiet", "--fresh-env")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", *STRICT, str(source), str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site() -> Path:
    """Built once for the same sources, by whichever run of this checkout comes first.

    Another folder takes its place only when it is whole and without a warning.
    """
    finished = ROOT / f".pytest_cache/site-{digest()}"
    if not finished.exists():
        finished.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=finished.parent) as folder:
            done = build(ROOT / "docs", Path(folder, "site"))
            assert done.returncode == 0, done.stderr
            for old in finished.parent.glob("site-*"):
                shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):  # somebody else was faster
                Path(folder, "site").rename(finished)
    return finished


def digest() -> str:
    """Of all that the site is made of."""
    found = hashlib.sha256(f"{sys.version} {STRICT}".encode())
    for package in ("sphinx", "myst-parser", "furo"):
        found.update(version(package).encode())
    for path in sorted(path for path in (ROOT / "docs").rglob("*") if path.is_file()):
        found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text()), style


def test_links_to_nowhere_and_a_page_that_nobody_can_reach_are_errors(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text((ROOT / "docs/conf.py").read_text())
    links = "[other](other.md) [x](no-page.md) [x](other.md#no-heading)"
    (tmp_path / "index.md").write_text(f"# Start\n\n## Room\n\n{links}\n")
    (tmp_path / "other.md").write_text("# Other\n")
    (tmp_path / "lonely.md").write_text("# Lonely\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for said in (
        "cross-reference target not found: 'no-page.md'",
        "local id not found in doc 'other': 'no-heading'",
        "lonely.md: WARNING: document isn't included in any toctree",
    ):
        assert said in done.stderr
