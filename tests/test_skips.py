"""CI skips nothing: whatever a test asks for in order to be skipped, it fails there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SKIPPED = """
import pytest
@pytest.mark.skipif(True, reason="by a mark")
def test_mark(): pass
def test_call(): pytest.skip("by a call")
@pytest.fixture
def lab(): pytest.skip("by a fixture")
def test_fixture(lab): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""


@pytest.mark.parametrize(
    ("strict", "said"), [("1", "1 failed, 1 xfailed, 2 errors"), ("", "3 skipped, 1 xfailed")]
)
def test_what_would_be_skipped_fails_where_nothing_may_be(
    tmp_path: Path, strict: str, said: str
) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(SKIPPED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "--rootdir", str(tmp_path), "-c", os.devnull, str(path)],
        cwd=ROOT, env={**os.environ, "USB_REMOTE_NO_SKIP": strict},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said in done.stdout
