"""How Sphinx makes the site: `make docs` writes it to site/.

Rule of this file: the pages are plain Markdown that reads well without Sphinx, too. So the
navigation is not in them: it is made of the links of index.md, room by room. A page that index.md
does not name is a warning, and warnings are errors.
"""

import re

from sphinx.application import Sphinx

project = "usb-remote"
extensions = ["myst_parser"]
myst_heading_anchors = 4  # the same anchors as on code hosting sites
html_theme = "furo"  # light and dark; nothing is loaded from elsewhere
html_title = "usb-remote"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
nitpicky = True


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Each `## Room` of index.md is a part of the navigation, with the pages that it links."""
    if page == "index":
        _, *rooms = re.split(r"^## ", source[0], flags=re.MULTILINE)
        source[0] += "".join(map(toctree, rooms))


def toctree(room: str) -> str:
    pages = "\n".join(re.findall(r"\]\(([\w/-]+)\.md\)", room))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {room.splitlines()[0]}\n\n{pages}\n```\n"
