"""All files that are made of the code; the test of them is tests/test_generated.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools import completions, keys, layers, manpage, reference
from tools.commands import Program, program

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs/reference/cli.md"
CONFIGURATION = ROOT / "docs/reference/configuration.md"
ERRORS = ROOT / "docs/reference/errors.md"
SHARE = ROOT / "share"
"""Laid out as it is installed: the wheel has it as share/."""


def files(of: Program | None = None) -> Iterator[tuple[Path, str]]:
    """Each generated file with the text that it should have."""
    this = of or program()
    yield ROOT / "docs/images/layers.svg", layers.picture(ROOT / "pyproject.toml")
    yield CONFIGURATION, keys.page(CONFIGURATION.read_text())
    yield REFERENCE, reference.page(REFERENCE.read_text(), this)
    yield SHARE / "man/man1/usb-remote.1", manpage.page(this, ERRORS.read_text())
    yield SHARE / "bash-completion/completions/usb-remote", completions.bash(this)
    yield SHARE / "zsh/site-functions/_usb-remote", completions.zsh(this)
    yield SHARE / "fish/vendor_completions.d/usb-remote.fish", completions.fish(this)
