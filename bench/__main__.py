"""`python -m bench [--pairs N] [SECTION ...]`: measure, print a table, and again as Markdown."""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import usb_remote
from bench import attaching, enumerating, listing, memory, push, report, requests, residing, sharing


class Section(NamedTuple):
    """Why it cannot run here, and what it measures."""

    obstacle: Callable[[], str | None]
    run: Callable[[int], list[report.Row]]


SECTIONS = {
    "list": Section(listing.obstacle, listing.run),
    "push": Section(push.obstacle, push.run),
    "memory": Section(memory.obstacle, memory.run),
    "requests": Section(requests.obstacle, requests.run),
    "enumerate": Section(enumerating.obstacle, enumerating.run),
    "attach": Section(attaching.obstacle, attaching.run),
    "sharing": Section(sharing.obstacle, sharing.run),
    "agent": Section(residing.obstacle, residing.run),
}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    options = parser().parse_args()
    # as pip does with a wheel: PYTHONDONTWRITEBYTECODE would have a checkout compiled at each start
    compileall.compile_dir(Path(usb_remote.__file__).parent, quiet=1)
    if unknown := set(options.sections) - set(SECTIONS):
        parser().error(f"no such section: {', '.join(sorted(unknown))}")
    rows = [row for name in options.sections or SECTIONS for row in measured(name, options.pairs)]
    print(f"\n{report.plain(rows)}\n\n{report.markdown(rows)}\n\n{circumstances(options.pairs)}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    made.add_argument(
        "--pairs", type=int, default=15, help="how often each is measured (%(default)s)"
    )
    made.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    return made


def measured(name: str, pairs: int) -> list[report.Row]:
    section = SECTIONS[name]
    if reason := section.obstacle():
        print(f"{name}: skipped: {reason}", flush=True)
        return []
    load, start = os.getloadavg()[0], time.monotonic()
    rows = section.run(pairs)
    taken = time.monotonic() - start
    print(
        f"{name}: {taken:.0f} s, load {load:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True
    )
    return rows


def circumstances(pairs: int) -> str:
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}; {pairs} pairs, medians, ratio of the medians, and "
        "the 10th and 90th percentile of the pairs' ratios"
    )


if __name__ == "__main__":
    main()
