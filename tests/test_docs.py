"""The documentation says what the code does: links resolve, nothing public is without its place.

Links to other sites are not tried: no test needs the internet.
"""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from usb_remote import agent_protocol, aio, config, errors, events, hooks, model, rules
from usb_remote.cli.app import app
from usb_remote.doctor import report

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_pictures_are_our_own_and_load_nothing() -> None:
    for page in PAGES:
        for source in re.findall(
            r"!\[[^\]]*\]\(([^)]+)\)|<img[^>]+src=\"([^\"]+)", page.read_text()
        ):
            assert "://" not in "".join(source), page
    for picture in ROOT.glob("docs/images/*.svg"):
        rest = picture.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"://|@import|<script|<image", rest), picture


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


@pytest.mark.parametrize("cls", [rules.Rule, rules.Criteria, rules.Place, config.WishConfig])
def test_every_key_of_rules_and_names_has_its_row(cls: type[BaseModel]) -> None:
    for key, field in cls.model_fields.items():
        row = rf"^\|[^|]*`{field.alias or key}`"
        assert re.search(row, text("reference/configuration.md"), re.MULTILINE), row


@pytest.mark.parametrize("cause", model.Cause)
def test_every_cause_has_its_row(cause: model.Cause) -> None:
    assert f"\n| `{cause}` |" in text("reference/causes.md")


@pytest.mark.parametrize("word", [*agent_protocol.Kind, *agent_protocol.Stage])
def test_every_kind_and_stage_of_a_wish_has_its_row(word: str) -> None:
    assert f"\n| `{word}` |" in text("reference/agent.md")


def agent_requests() -> list[type[BaseModel]]:
    return list(agent_protocol.AgentRequest.__args__)


@pytest.mark.parametrize("request_model", agent_requests())
def test_every_key_of_the_agents_protocol_has_its_place(request_model: type[BaseModel]) -> None:
    for key in {*request_model.model_fields} - {"v", "command"}:
        assert f"`{key}`" in text("reference/agent.md")


@pytest.mark.parametrize(
    "noun",
    [agent_protocol.View, agent_protocol.Attached, agent_protocol.Detached, agent_protocol.Status],
)
def test_every_key_of_the_agents_replies_has_its_place(noun: type[BaseModel]) -> None:
    for key in noun.model_fields:
        assert f"`{key}`" in text("reference/agent.md")


def test_the_python_api_has_its_place() -> None:
    page = text("reference/python.md")
    names = [n for n in vars(aio.Attachable) if n[0] != "_" and n != "now"]
    for name in [*inspect.signature(aio.attach).parameters, *names, "losses", "is_attached"]:
        assert re.search(rf"\b{name}\b", page), name


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


@pytest.mark.parametrize("check", report.Check)
def test_every_check_of_doctor_has_its_row(check: report.Check) -> None:
    assert f"\n| `{check}` |" in text("reference/doctor.md")


@pytest.mark.parametrize("noun", [report.Report, report.Finding])
def test_every_key_of_a_diagnosis_has_its_place(noun: type[BaseModel]) -> None:
    for key in noun.model_fields:
        assert f"`{key}`" in text("reference/json.md")


VARIABLES = re.compile(r"\"((?:USB_REMOTE|XDG|NOTIFY|WATCHDOG|LISTEN|STATE)_[A-Z_]*[A-Z])\"")


def variables() -> set[str]:
    files = (ROOT / "src").rglob("*.py")
    return {name for path in files for name in VARIABLES.findall(path.read_text())}


@pytest.mark.parametrize("variable", sorted(variables()))
def test_every_variable_that_is_read_has_its_place(variable: str) -> None:
    assert f"`{variable}`" in text("reference/configuration.md")


STARTED = re.compile(r"(?:\bask\(|\bCommand\(|commands=\(|return )\s*[(\[]\(?\"([a-z-]+)\", ")


def programs() -> set[str]:
    """The first words of the command lines in doctor/ and of services.py."""
    folder = ROOT / "src/usb_remote"
    files = [*folder.glob("doctor/*.py"), folder / "services.py"]
    return {name for path in files for name in STARTED.findall(path.read_text())}


@pytest.mark.parametrize("program", sorted(programs()))
def test_every_program_that_is_run_is_in_the_page_on_security(program: str) -> None:
    assert f"`{program}`" in text("explanations/security.md")


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
