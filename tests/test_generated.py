"""What `make generate` writes is current, and right in each shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import typer
from tools import generated, keys
from tools.commands import program

from tests.patience import patience
from usb_remote.errors import Exit

pytestmark = pytest.mark.docs

FILES = dict(generated.files())
BASH = generated.SHARE / "bash-completion/completions/usb-remote"
ZSH = generated.SHARE / "zsh/site-functions/_usb-remote"
FISH = generated.SHARE / "fish/vendor_completions.d/usb-remote.fish"
MAN = generated.SHARE / "man/man1/usb-remote.1"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_current(path: Path) -> None:
    assert path.exists(), "type: make generate"
    assert path.read_text() == FILES[path], "type: make generate"


def needs(command: str) -> None:
    """Skip without that program."""
    if not shutil.which(command):
        pytest.skip(f"needs {command}")


def run(*command: str) -> list[str]:
    """The words that it prints; it has nothing to complain of."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=patience(30), check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.split()


def tab(*words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in ("usb-remote", *words))
    state = f"COMP_WORDS=({line}) COMP_CWORD={len(words)}"
    return run("bash", "-c", f'. {BASH}; {state}; _usb_remote; echo "${{COMPREPLY[@]}}"')


def test_bash_completes_commands() -> None:
    assert tab("li") == ["list"]
    assert tab("--debug", "de") == ["detach", "demo"]
    assert tab("config", "s") == ["show", "set-timeout"]


def test_bash_completes_options_of_the_command() -> None:
    assert tab("attach", "--f") == ["--first", "--for", "--force"]
    assert tab("--config", "list", "attach", "scope", "--wa") == ["--wait"]
    assert tab("config", "show", "--j") == ["--json"]


def test_bash_completes_files_where_files_are_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.config").touch()
    assert tab("--config", "la") == ["lab.config"]


def test_bash_offers_nothing_for_other_values() -> None:
    assert tab("attach", "--for", "") == []


def test_fish_completes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("fish")
    monkeypatch.setenv("HOME", str(tmp_path))

    def tab(line: str) -> list[str]:
        return run("fish", "-c", f"source {FISH}; complete -C 'usb-remote {line}'")

    assert tab("li")[0] == "list"
    assert tab("config sho")[0] == "show"
    assert tab("attach --forc")[0] == "--force"


def test_zsh_can_read_its_completion() -> None:
    needs("zsh")
    assert run("zsh", "-n", str(ZSH)) == []


def test_the_man_page_is_well_formed() -> None:
    needs("groff")
    assert run("groff", "-man", "-ww", "-z", str(MAN)) == []


@pytest.mark.parametrize("status", Exit)
def test_the_man_page_has_every_exit_status(status: Exit) -> None:
    assert f"\n.B {int(status)}\n" in MAN.read_text()


# -- a new command -------------------------------------------------------------------------------


@pytest.fixture
def one_more() -> typer.Typer:
    app = typer.Typer(help="A program.", callback=lambda: None)

    @app.command()
    def doctor(
        side: Literal["server", "client"] = typer.Argument(help="Which side."),
        fix: bool = typer.Option(False, "--fix", help="Mend what is safe to mend."),
    ) -> None:
        """Look for faults.

        A second paragraph.
        """

    group = typer.Typer(help="A group.")
    group.command("inner", help="Inside.")(lambda: None)
    app.add_typer(group, name="group")
    return app


def test_a_new_command_is_everywhere(one_more: typer.Typer) -> None:
    for path, text in list(generated.files(program(one_more)))[2:]:
        assert "doctor" in text, path
        assert "fix" in text, path
        assert "inner" in text, path


def test_a_new_command_gets_a_section_before_anybody_writes_one(one_more: typer.Typer) -> None:
    page = dict(generated.files(program(one_more)))[generated.REFERENCE]
    section = page.partition("## usb-remote doctor\n")[2].partition("\n## ")[0]
    assert "A second paragraph." in section
    assert "usb-remote doctor [OPTIONS] server|client" in section
    assert "| `--fix` | Mend what is safe to mend. |" in section


def test_a_key_of_the_configuration_that_has_changed_is_so_on_the_page() -> None:
    page = generated.CONFIGURATION.read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `timeout` |"))
    assert row.startswith("| `timeout` | number, > 0, ≤ 3600 | `5.0` | seconds that ")
    assert keys.page(page.replace(row, row.replace("number", "text").replace("5.0", "2"))) == page
    assert "| `timeout` | number, > 0, ≤ 3600 | `5.0` | |" in keys.page(
        page.replace(row + "\n", "")
    )


def test_what_people_wrote_is_kept(one_more: typer.Typer) -> None:
    page = FILES[generated.REFERENCE]
    assert "On a terminal each server is printed as it answers" in page
    assert "## Which device" in dict(generated.files(program(one_more)))[generated.REFERENCE]
