"""docs/reference: types, defaults, numbers and words are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from tools import keys

from usb_remote import config, config_file, events, model, replies
from usb_remote.errors import Exit
from usb_remote.mdns import TYPE, advertise

pytestmark = pytest.mark.docs

PAGES = Path(__file__).parent.parent / "docs/reference"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with this word."""
    found = re.search(rf"^\| `{re.escape(first)}`.*$", text, re.MULTILINE)
    assert found, f"no row: | `{first}` | …"
    return [cell.strip() for cell in found[0].split("|")[1:-1]]


# -- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("section", keys.SECTIONS)
def test_every_key_has_a_meaning(section: type[BaseModel]) -> None:
    """The rest of its row is made by tools/keys.py, and current (test_generated.py)."""
    parts = dict(keys.PART.findall(page("configuration")))
    meanings = dict(keys.ROW.findall(parts[section.__name__]))
    assert len(meanings) == len(section.model_fields)
    assert all(meanings.values()), "write the last cell of the row"


def test_the_example_with_everything_has_everything_and_is_right(tmp_path: Path) -> None:
    example = page("configuration").partition("Example with everything:\n\n```yaml\n")[2]
    path = tmp_path / "usb-remote.config"
    path.write_text(example.partition("```")[0])
    loaded = config_file.load(path)
    assert loaded.model_fields_set == set(config.Config.model_fields)
    assert loaded.server.model_fields_set == set(config.ServerConfig.model_fields)


# -- mDNS ----------------------------------------------------------------------------------------


def test_the_record_is_as_the_page_says() -> None:
    info = replies.Info(id="2f11" + "0" * 28, name="Lab Pi.3", version="3.0.0")
    service = advertise.service_of(info, 5055, ["10.0.0.7"])
    text = page("mdns")
    for key in service.decoded_properties:
        assert row(text, key)
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(service.decoded_properties)
    assert f"`{TYPE}`" in text
    assert "`Lab Pi-3-2f11`" in text
    assert service.name == f"Lab Pi-3-2f11.{TYPE}"
    assert f"`{service.server}`" in text


# -- errors, causes, glossary ---------------------------------------------------------------------


@pytest.mark.parametrize("status", Exit)
def test_every_exit_status_has_its_row(status: Exit) -> None:
    table = page("errors").partition("All exit statuses:")[2]
    assert re.search(rf"^\| {int(status)} \|", table, re.MULTILINE)


def test_there_are_as_many_causes_as_is_said() -> None:
    said = ["six", "seven", "eight", "nine", "ten"][len(model.Cause) - 6]
    assert f"one of {said}" in page("glossary")


@pytest.mark.parametrize("word", [*model.State, *events.Kind])
def test_every_state_and_event_is_in_the_glossary(word: str) -> None:
    assert f"`{word}`" in page("glossary")


# -- JSON ------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^```json\n(.*?)^```", page("json"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[:30])
def test_every_example_of_json_is_json(block: str) -> None:
    for part in re.split(r"\n(?=\{)", block.strip()):
        json.loads(part.replace("…", "null"))


@pytest.mark.parametrize("noun", [model.Server, model.Device, events.Event])
def test_the_example_of_each_noun_is_complete(noun: type[BaseModel]) -> None:
    section = page("json").partition(f"\n## {noun.__name__}\n")[2]
    example = json.loads(section.partition("```json\n")[2].partition("```")[0])
    assert set(example) == set(noun.model_fields)
