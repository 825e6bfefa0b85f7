"""`make screenshots`: docs/images/list.svg and watch.svg, from real output.

Two real servers with virtual devices and a client, each in a network namespace of its own; a real
session is held over USB/IP. Needs root. The pictures load nothing: they name fonts, and bring none.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from tests.network.lab import Host, Network
from tests.network.namespaces import Process
from tests.network.product import READY, USB_REMOTE

from usb_remote import protocol, virtual
from usb_remote.values import BusId

IMAGES = Path(__file__).parent.parent / "docs/images"
WIDTH = 88
THEME = TerminalTheme((30, 34, 42), (220, 223, 228), [(30, 34, 42)] * 8, [(220, 223, 228)] * 8)
HOLD = [sys.executable, "-m", "tools.screenshots", "hold"]
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as home, Network(4) as network:
        for command, output in record(network, home).items():
            draw(command, output)


def record(hosts: Iterable[Host], home: str) -> dict[str, str]:
    """What `watch` and `list` print, on the last of four hosts."""
    environment = {"HOME": home, "COLUMNS": str(WIDTH), "LINES": "40"}
    bench, rack, ann, bob = hosts
    server = start(bench, "bench3", environment)
    bob.run([*USB_REMOTE, "name", "bench3/1-1", "scope"], env=environment)
    watch = bob.start(
        ["script", "-qfc", f"stty cols {WIDTH}; {' '.join(USB_REMOTE)} watch", "/dev/null"],
        env=environment,
        stdin=True,
    )
    watch.wait_for("scope")
    start(rack, "rack7", environment)  # the table has them in the order in which they came
    watch.wait_for("rack7")
    play(server, watch, ann, bench.address)
    listed = bob.run([*USB_REMOTE, "list"], env=environment).stdout
    return {"watch": last_frame("\n".join(watch.lines())), "list": listed}


def start(host: Host, name: str, environment: dict[str, str]) -> Process:
    own = {**environment, "STATE_DIRECTORY": f"{environment['HOME']}/{name}"}
    command = [*USB_REMOTE, "server", "--virtual", "--name", name]
    server = host.start(command, stdin=True, env=own)
    server.wait_for(READY, 20)
    return server


def play(server: Process, watch: Process, ann: Host, address: str) -> None:
    """What happens while the watch runs; each step when the watch shows the one before."""
    server.write("pull keyboard")
    wait_for_keyboard(watch, there=False)
    server.write("plug keyboard")
    wait_for_keyboard(watch, there=True)
    ann.start([*HOLD, address], stdin=True).wait_for("held")
    watch.wait_for("in use by ann@pc9 since")
    watch.write("\x03")  # Ctrl-C: the last line is complete then
    watch.wait()


def wait_for_keyboard(watch: Process, *, there: bool) -> None:
    """Until the table has, or has not, the keyboard of the server that comes first."""
    while True:
        watch.wait_for(r"rack7 \(", 20)
        first, found, _ = last_frame("\n".join(watch.lines())).partition("rack7 (")
        if found and ("Keyboard" in first) is there:
            return


def hold(address: str) -> None:
    """Have the serial port as ann@pc9 until stdin ends: what `attach` does, without its kernel."""
    request = protocol.AttachRequest(bus="1-1", user="ann", host="pc9", client="c9")
    with socket.create_connection((address, protocol.PORT)) as control:
        control.sendall(protocol.request_line(request))
        control.makefile("rb").readline()
    with virtual.import_device(address, 3240, BusId("1-1")):
        print("held", flush=True)
        sys.stdin.read()


def last_frame(written: str) -> str:
    """What stands on the terminal, after the last time that the table was erased."""
    return re.sub(r"\x1b\[[\d;?]*\w|\r", "", re.split(r"\x1b\[2K", written)[-1])


def shown(command: str) -> str:
    """The text in a picture."""
    root = ElementTree.parse(IMAGES / f"{command}.svg").getroot()
    rows: dict[float, str] = {}
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        y = float(text.get("y", "0"))
        rows[y] = rows.get(y, "") + (text.text or "")
    return "\n".join(rows[y].replace("\xa0", " ").rstrip() for y in sorted(rows))


def draw(command: str, output: str) -> None:
    console = Console(record=True, width=WIDTH, file=sys.stderr)
    console.print(Text(f"$ usb-remote {command}", style="bold"))
    console.print(Text(output.rstrip()), soft_wrap=False)
    picture = console.export_svg(
        title="", theme=THEME, code_format=SVG, unique_id=f"usb-remote-{command}"
    )
    (IMAGES / f"{command}.svg").write_text(picture)


if __name__ == "__main__":
    hold(sys.argv[2]) if sys.argv[1:2] == ["hold"] else main()
