"""docs/tutorials: what is marked as runnable is run, and prints what the page shows.

The mark is the word `run` after the language of a block:

* `console run`: each line with a prompt (`$ `, or `pi$ ` on the host pi) is run to its end; below
  it is what it prints.
* `console run once`: only the first line is a command.
* `console run background`: it goes on when the page does.
* `text run typed`: lines that are typed into the last such command.

A number may be any number, and so many spaces any number of spaces; `…` is any text. All of it is
done on a terminal, as somebody who reads the page does it.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.network.conftest import MakeNetwork
from tests.network.lab import Host
from tests.network.namespaces import Process

TUTORIALS = Path(__file__).parent.parent.parent / "docs/tutorials"
FENCE = re.compile(r"^```(\w+ run\b[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HOWS = {
    "console run": "",
    "console run once": "once",
    "console run background": "background",
    "text run typed": "typed",
}
PROGRAM = Path(sysconfig.get_path("scripts"), "usb-remote")
PROMPT = re.compile(r"^(\w*)\$ (usb-remote .*)$", re.MULTILINE)


class Step(NamedTuple):
    """One command with the host it is for, and what it should print."""

    host: str
    command: str
    output: list[str]
    how: str


def steps(page: str) -> Iterator[Step]:
    for mark, text in FENCE.findall(page):
        if (how := HOWS[mark]) == "typed":
            yield Step("", text, [], how)
            continue
        before, *parts = PROMPT.split(text, maxsplit=1 if how == "once" else 0)
        assert parts, f"no command that can be run: {text}"
        assert not before, f"no command that can be run: {before}"
        for host, command, output in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            yield Step(host, command, output.strip("\n").splitlines(), how)


def pattern(line: str) -> str:
    numbers = re.sub(r"\d+", r"\\d+", re.escape(line))
    return re.sub(r"(\\ )+", " +", numbers).replace("…", ".*")


def on_terminal(command: str) -> list[str]:
    return ["script", "-qfec", command, "/dev/null"]


class Reader:
    """Somebody who does what the page says."""

    def __init__(self, hosts: dict[str, Host], environment: dict[str, str]) -> None:
        self._hosts = hosts
        self._environment = environment
        self._running: Process | None = None

    def do(self, step: Step) -> None:
        if step.how == "typed":
            self._type(step.command.splitlines())
        elif step.how == "background":
            host = self._hosts[step.host]
            words = on_terminal(f"exec {step.command}")
            self._running = host.start(words, env=self._environment, stdin=True)
            for line in step.output:
                self._running.wait_for(pattern(line))
        else:
            self._run(step)

    def _type(self, lines: list[str]) -> None:
        assert self._running
        for line in lines:
            self._running.write(line)
        self._running.write("stop here")
        self._running.wait_for("'stop' is neither plug nor pull")  # so the others are done

    def _run(self, step: Step) -> None:
        done = self._hosts[step.host].run(on_terminal(step.command), env=self._environment)
        said = done.stdout.replace("\r\n", "\n").replace(str(PROGRAM), "usb-remote").strip("\n")
        shown = "\n".join(map(pattern, step.output))
        assert re.fullmatch(shown, said), f"$ {step.command}\n{said}"


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page: Path, network: MakeNetwork) -> None:
    todo = list(steps(page.read_text()))
    assert todo, "no block is marked as runnable"
    names = list(dict.fromkeys(step.host for step in todo if step.how != "typed"))
    hosts = dict(zip(names, network(len(names)), strict=True))
    for name, host in hosts.items():
        host.set_hostname(name or "one")
    reader = Reader(hosts, {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"})
    for step in todo:
        reader.do(step)


@pytest.mark.parametrize(
    "block",
    ["```console run\n$ ls /\n```", "```console run\n$ sudo usb-remote list\n```",
     "```sh run\nusb-remote list\n```", "```console run twice\n$ usb-remote list\n```",
     "```console run\n```"],
)  # fmt: skip
def test_a_mark_that_would_run_nothing_is_a_mistake(block: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        list(steps(f"# A page\n\n{block}\n"))
