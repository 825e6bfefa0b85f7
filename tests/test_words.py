"""Words that programs read: each of an enum is in its page of docs/reference, and no other one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import pytest

from usb_remote import agent_protocol, config, errors, events, model
from usb_remote.doctor import report

PAGES = Path(__file__).parent.parent / "docs/reference"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def first_cells(text: str, header: str) -> set[str]:
    """What the tables with this header list in their first column."""
    tables = re.findall(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return set(re.findall(r"^\| `([^`]+)`", "".join(tables), re.MULTILINE))


def in_row(text: str, key: str) -> set[str]:
    """What the last cell of a row says up to its first semicolon, in backticks."""
    found = re.search(rf"^\| `{key}` \| text \|(.*)$", text, re.MULTILINE)
    assert found
    return set(re.findall(r"`(\w+)`", found[1]))


@pytest.mark.parametrize(
    ("words", "name", "header"),
    [
        (agent_protocol.Kind, "agent", "kind"),
        (agent_protocol.Stage, "agent", "stage"),
        (model.Cause, "causes", "cause"),
        (report.Check, "doctor", "check"),
        ([errors.UsbRemoteError.code, *errors._BY_CODE], "errors", "code"),
    ],
)
def test_they_are_those_of_the_table(words: Iterable[str], name: str, header: str) -> None:
    assert set(words) == first_cells(page(name), header)


@pytest.mark.parametrize(
    ("words", "section", "key"),
    [
        (model.State, "Device", "state"),
        (events.Kind, "Event", "kind"),
        (report.Status, "doctor", "status"),
    ],
)
def test_they_are_those_of_the_row(words: type[StrEnum], section: str, key: str) -> None:
    text = page("json").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert set(words) == in_row(text, key)


def test_what_nobody_configures_is_as_the_page_shows() -> None:
    example = page("json").partition("\n## config show\n")[2].partition("```json\n")[2]
    shown = json.loads(example.partition("```")[0])["config"]
    assert config.Config().model_dump(mode="json", by_alias=True, exclude_none=True) == shown
