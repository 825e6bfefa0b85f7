"""docs/how-to/troubleshooting.md: what it lists as a message is one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
HEADINGS = re.findall(
    r"^### (.*`.*)$", (ROOT / "docs/how-to/troubleshooting.md").read_text(), re.MULTILINE
)
MESSAGES = [message for heading in HEADINGS for message in re.findall(r"`([^`]+)`", heading)]
OF_OTHERS = (
    "connection refused",
    "Address already in use",
    "Cannot assign requested address",
    "No such file or directory",
    "No such device",
    "Permission denied",
    "found duplicate key",
)
"""What the system and libraries say at the end of our messages."""


def texts() -> Iterator[str]:
    """Every text in the code, with `…` for what is filled in."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sdrg]|\{\w*\}", "…", node.value)


SOURCE = {" ".join(text.split()) for text in texts()}


def said(piece: str) -> bool:
    """Whether the code has a text with these words; `…` there may be anything."""
    return any(piece in text for text in SOURCE) or any(
        contains(piece, text) for text in SOURCE if len(text) > len(piece) / 2
    )


def contains(piece: str, text: str) -> bool:
    """A pattern is searched only if all of its literal parts are there, which is rare."""
    parts = text.split("…")
    return all(part in piece for part in parts) and bool(
        re.search(".+?".join(map(re.escape, parts)), piece)
    )


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_in_the_code(message: str) -> None:
    pieces = [piece.strip() for piece in re.split(r"…|: | \(|\b\d+\b", message)]
    ours = [p for p in pieces if len(p) >= 6 and not p.endswith(OF_OTHERS)]
    assert said(message) or not ours or said(max(ours, key=len)), ours
