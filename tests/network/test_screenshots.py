"""The pictures in the README show what `list` and `watch` print today."""

from __future__ import annotations

import re
from pathlib import Path

from tests.network.conftest import MakeNetwork
from tools import screenshots


def plain(text: str) -> list[str]:
    """Without what is another one each time: addresses, times, the width of columns."""
    text = re.sub(r"\([0-9a-f.:]+, ", "(ADDRESS, ", text)
    text = re.sub(r"[ -]*\b\d{4}-\d\d-\d\d\b|\b\d\d:\d\d(:\d\d)?\b", "TIME", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_the_pictures_show_what_is_printed(network: MakeNetwork, tmp_path: Path) -> None:
    printed = screenshots.record(network(4), str(tmp_path))
    for command, output in printed.items():
        picture = plain(screenshots.shown(command))
        assert picture == [f"$ usb-remote {command}", *plain(output)], "type: make screenshots"
