"""The README as PyPI shows it: its links and pictures lead to the repository.

Rule of this file: hatchling runs it for every package that it builds; it imports nothing of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

REPOSITORY = "https://github.com/epics-containers/usb-remote"
PAGES = f"{REPOSITORY}/blob/main/"
PICTURES = f"{REPOSITORY}/raw/main/"
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!\w+:|#)([^)\s]+\))")


class Readme(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = absolute(Path(self.root, "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {"Repository": REPOSITORY, "Documentation": f"{PAGES}docs/index.md"}


def absolute(text: str) -> str:
    return LINK.sub(lambda f: f"{f[1]}{f[2]}{PICTURES if f[1] else PAGES}{f[3]}", text)
