"""Explore by hand: `python3 -m tests.kernel server client` starts machines and a Python prompt."""

import code
import sys
from pathlib import Path

from tests.kernel.lab import build, machines, until


def main() -> None:
    names = sys.argv[1:] or ["server", "client"]
    with machines(build(), *names) as made:
        variables = dict(zip(names, made, strict=True))
        banner = f"{', '.join(names)}: try {names[0]}.sh('lsusb').out; Ctrl-D ends the machines"
        code.interact(banner, local={**variables, "until": until, "Path": Path}, exitmsg="")


if __name__ == "__main__":
    main()
