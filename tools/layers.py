"""docs/images/layers.svg: the layers that `[tool.importlinter]` declares, as a picture."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

SIDES = {
    "server": "answers control exporter handover history lease leases protection server sessions"
    " sharing udev usbip_host virtual waiting",
    "client": "addresses agent agent_protocol aio asking blocking claims client connection"
    " detaching finder holding ownership pytest_plugin vhci watcher wiring",
}
"""Modules of one side; what is in neither is for both."""
NOTES = {
    "cli": "wires, prints, exits",
    "aio": "the Python API",
    "holding": "devices of one program",
    "server": "the programs that stay",
    "answers": "one request each; attach, detach",
    "finder": "who has what; all servers at once",
    "sharing": "the past; what others get to see",
    "udev": "one outside world each",
    "replies": "answers and events <-> bytes",
    "protocol": "requests <-> bytes; files, programs",
    "rules": "pure functions of the nouns",
    "model": "the nouns",
}
"""What a layer is, by one of its modules."""

LEFT, TOP, ROW, GAP, CHAR, NOTE, WIDTH = 16, 52, 30, 8, 7.9, 590, 860
HEAD = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>The layers of usb-remote: imports point down only</title>
<style>
text {{ font: 13px monospace; fill: #1d2433 }}
.note {{ font: italic 13px sans-serif; fill: #4a5568 }}
.server {{ fill: #ffe1c7; stroke: #c05621 }}
.client {{ fill: #d3e8fb; stroke: #2b6cb0 }}
.both {{ fill: #edf0f4; stroke: #718096 }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>
<rect class="server" x="16" y="14" width="18" height="18"/><text x="42" y="28">server</text>
<rect class="client" x="116" y="14" width="18" height="18"/><text x="142" y="28">client</text>
<rect class="both" x="216" y="14" width="18" height="18"/><text x="242" y="28">both</text>
<text class="note" x="{note}" y="28">imports point down only</text>
"""


def picture(pyproject: Path) -> str:
    contract = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"][0]
    drawn: list[str] = []
    bottom = float(TOP)
    for layer in contract["layers"]:
        lines, bottom = _layer([name.strip() for name in layer.split("|")], bottom)
        drawn += lines
    head = HEAD.format(width=WIDTH, height=bottom + GAP, note=NOTE)
    return "\n".join([head.rstrip(), *drawn, "</svg>", ""])


def _layer(modules: list[str], top: float) -> tuple[list[str], float]:
    """The boxes of one layer, in as many rows as they need, and where the next layer begins."""
    boxes, bottom = _boxes(sorted(modules, key=_side), top)
    notes = [NOTES[module] for module in modules if module in NOTES]
    if notes:
        middle = (top + bottom - GAP) / 2 + 5
        boxes.append(f'<text class="note" x="{NOTE}" y="{middle:g}">{_escaped(notes[0])}</text>')
    line = f'<path d="M{LEFT} {bottom:g}H{WIDTH - LEFT}" stroke="#e2e8f0"/>'
    return [*boxes, line], bottom + GAP


def _boxes(modules: list[str], top: float) -> tuple[list[str], float]:
    drawn: list[str] = []
    x, y = float(LEFT), top
    for module in modules:
        width = len(module) * CHAR + 16
        if x + width > NOTE - GAP:
            x, y = float(LEFT), y + ROW + GAP
        drawn += _box(module, x, y, width)
        x += width + GAP
    return drawn, y + ROW + GAP


def _box(module: str, x: float, y: float, width: float) -> Iterator[str]:
    shape = f'x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{ROW}" rx="4"'
    yield f'<rect class="{_side(module)}" {shape}/>'
    yield f'<text x="{x + width / 2:.1f}" y="{y + 20:g}" text-anchor="middle">{module}</text>'


def _side(module: str) -> str:
    """In alphabetical order: first what is for both, then the client's, then the server's."""
    return next((side for side, names in SIDES.items() if module in names.split()), "both")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
