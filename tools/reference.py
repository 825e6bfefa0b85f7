"""docs/reference/cli.md: for each command a generated part, then what people wrote about it.

Generated is what stands between `<!-- generated: … -->` and `<!-- end -->`. A command without such
a part gets one, and a section if it has none. The rest of the page is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tools.commands import HELP, Command, Option, Program

PART = re.compile(r"<!-- generated: (.*?) -->\n.*?<!-- end -->\n", re.DOTALL)
SELECTION = ("--id", "--serial", "--desc", "--bus", "--host", "--first")
"""Options that choose a device: explained once, in a section of their own."""
LAST = "## Exit status\n"


def page(old: str, program: Program) -> str:
    """The page with its generated parts as they should be."""
    parts = {"usb-remote": _part("usb-remote", _table((*program.options, HELP)))}
    for command in program.commands:
        title = f"usb-remote {command.name}"
        parts[title] = _part(title, _described(command))
        old = _with_section(old, title)
    return PART.sub(lambda found: parts.get(found[1], ""), old)


def _with_section(old: str, title: str) -> str:
    if f"<!-- generated: {title} -->" in old:
        return old
    empty = f"\n{_part(title, '')}"
    if (heading := f"## {title}\n") in old:
        return old.replace(heading, heading + empty)
    return old.replace(LAST, f"{heading}{empty}\n{LAST}")


def _part(title: str, text: str) -> str:
    return f"<!-- generated: {title} -->\n\n{text}\n<!-- end -->\n"


def _described(command: Command) -> str:
    about = [f"* `{a.word}`: {_marked(a.help)}" for a in command.arguments if a.help]
    parts = [command.help, f"```text\n{command.usage}\n```", "\n".join(about)]
    return "\n\n".join([*filter(None, parts), _table(command.options)])


def _table(options: Sequence[Option]) -> str:
    rows = list(map(_row, options))
    if {option.names[0] for option in options} >= set(SELECTION):
        rest = [option for option in options if option.names[0] not in SELECTION]
        names = ", ".join(f"`{name}`" for name in SELECTION)
        rows = [f"| {names} | [which device](#which-device) |", *map(_row, rest)]
    return "\n".join(["| option | meaning |", "|---|---|", *rows, ""]) if rows else ""


def _row(option: Option) -> str:
    names = ", ".join(f"`{name}`" for name in (option.first, *option.names[1:]))
    return f"| {names} | {_marked(option.help)} |"


def _marked(text: str) -> str:
    """A help text as Markdown: words with a page of their own are links."""
    return text.replace("|", "\\|").replace("JSON", "[JSON](json.md)")
