"""`doctor --fix`: what it runs and says, with programs that are not real."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.trees import Tree
from usb_remote import errors
from usb_remote.cli import doctoring
from usb_remote.doctor.machine import Machine
from usb_remote.doctor.report import Check, Finding, Fix, Report, Role, Status

LOAD = Fix(what="load a module", commands=(("modprobe", "x"), ("depmod",)))
FINDING = Finding(check=Check.SERVER_MODULE, status=Status.WARNING, text="not loaded", fix=LOAD)
REPORT = Report(roles=(Role.SERVER,), why="you said so", findings=(FINDING,))


def test_a_mend_runs_all_its_commands(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.answers = {"modprobe": (0, ""), "depmod": (0, "")}
    assert doctoring._mend(tree.machine(), [LOAD], yes=True)
    assert tree.asked == [("modprobe", "x"), ("depmod",)]
    assert capsys.readouterr().err == "mending: load a module\n"


def test_a_mend_that_fails_says_so_and_stops(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.answers = {"modprobe": (1, "no such module\n"), "depmod": (3, "")}
    assert doctoring._mend(tree.machine(), [LOAD], yes=True)
    assert tree.asked == [("modprobe", "x")]
    other = Fix(what="look", commands=(("depmod",),))
    assert doctoring._mend(tree.machine(), [other], yes=True)
    assert capsys.readouterr().err.splitlines() == [
        "mending: load a module",
        "warning: that failed: modprobe x: no such module",
        "mending: look",
        "warning: that failed: depmod: exit status 3",
    ]


def test_a_mend_needs_root(tree: Tree) -> None:
    with pytest.raises(errors.SystemFault, match="mending needs root"):
        doctoring._mend(tree.machine(uid=1000), [LOAD], yes=True)
    assert not doctoring._mend(tree.machine(uid=1000), [], yes=True)
    assert tree.asked == []


def test_a_command_of_a_mend_may_take_half_a_minute(tree: Tree) -> None:
    given = []

    async def ask(_command: Sequence[str], timeout: float) -> tuple[int, str]:
        given.append(timeout)
        return 0, ""

    doctoring._mend(Machine(tree.root, 0, ask), [LOAD], yes=True)
    assert given == [30.0, 30.0]


def test_a_report_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctoring._print_json(REPORT)
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["roles"], said["why"]) == (1, ["server"], "you said so")
    (finding,) = said["findings"]
    assert (finding["check"], finding["status"]) == ("server-module", "warning")
    assert finding["fix"] == {"what": LOAD.what, "commands": [["modprobe", "x"], ["depmod"]]}
    assert [said[word] for word in ("ok", "warning", "failed", "skipped")] == [0, 1, 0, 0]
