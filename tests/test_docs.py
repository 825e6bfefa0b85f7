"""The documentation says what the code does: links resolve, nothing public is without its place."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from usb_remote import config, errors, events, hooks, model, rules
from usb_remote.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


@pytest.mark.parametrize("cls", [errors.UsbRemoteError, *errors.UsbRemoteError.__subclasses__()])
def test_every_error_code_has_its_place(cls: type[errors.UsbRemoteError]) -> None:
    row = rf"\| `{cls.code}` \| {int(cls.exit_status)} \|"
    assert re.search(row, text("reference/errors.md")), row


@pytest.mark.parametrize("model", [config.Config, config.ServerConfig])
def test_every_configuration_key_has_its_place(model: type[config.Config]) -> None:
    for key in model.model_fields:
        assert f"`{key}`" in text("reference/configuration.md")


@pytest.mark.parametrize("cls", [rules.Rule, rules.Criteria, rules.Place])
def test_every_key_of_rules_and_names_has_its_row(cls: type[BaseModel]) -> None:
    for key, field in cls.model_fields.items():
        row = rf"^\|[^|]*`{field.alias or key}`"
        assert re.search(row, text("reference/configuration.md"), re.MULTILINE), row


@pytest.mark.parametrize("cause", model.Cause)
def test_every_cause_has_its_row(cause: model.Cause) -> None:
    assert f"\n| `{cause}` |" in text("reference/causes.md")


@pytest.mark.parametrize("kind", events.Kind)
def test_every_event_has_its_row(kind: events.Kind) -> None:
    assert f"\n| `{kind}` |" in text("reference/configuration.md")


def test_every_variable_of_a_hook_has_its_place() -> None:
    event = events.Event(at=datetime.now(UTC), kind=events.Kind.PLUGGED, device="d", bus_id="1-1")
    for variable in hooks.environment(event, "bench"):
        assert f"`{variable}`" in text("reference/configuration.md")


@pytest.mark.parametrize("noun", [model.Device, model.Holder, model.Ended, events.Event])
def test_every_key_of_json_has_its_place(noun: type[BaseModel]) -> None:
    for key in noun.model_fields:
        assert f"`{key}`" in text("reference/json.md")


def commands() -> list[tuple[str, list[str]]]:
    group = typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for inner, sub in getattr(command, "commands", {"": command}).items():
            options = [opt for p in sub.params for opt in p.opts if opt.startswith("--")]
            found.append((f"{name} {inner}".strip(), options))
    return found


@pytest.mark.parametrize(("command", "options"), commands(), ids=lambda x: str(x)[:20])
def test_every_command_and_option_has_its_place(command: str, options: list[str]) -> None:
    section = (
        text("reference/cli.md").partition(f"## usb-remote {command}\n")[2].partition("\n## ")[0]
    )
    assert section, f"no section for {command}"
    for option in options:
        assert f"`{option}" in section, f"{command} {option}"


def test_every_module_has_a_line_in_the_architecture() -> None:
    modules = [p.stem for p in (ROOT / "src/usb_remote").glob("*.py") if p.stem[0] != "_"]
    page = text("explanations/architecture.md")
    for module in [*modules, "cli/"]:
        assert f"`{module}`" in page, module
