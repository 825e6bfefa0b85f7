"""The steps of an installation, on real files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from usb_remote import errors, steps


def nobody(_arguments: object) -> None:
    raise AssertionError("it runs nothing")


def test_a_file_is_written_for_all_to_read(tmp_path: Path) -> None:
    step = steps.Write(tmp_path / "a/b/file", "text\n")
    assert not step.is_done
    before = os.umask(0o077)
    try:
        step.do(nobody)
    finally:
        os.umask(before)
    assert step.is_done
    assert step.path.read_text() == "text\n"
    assert step.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in step.path.parent.iterdir()] == ["file"]
    assert not steps.Write(step.path, "other\n").is_done


def test_what_is_removed_is_gone_whatever_it_was(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "inside").touch()
    folder, file, link, broken = (tmp_path / name for name in ("folder", "file", "link", "broken"))
    folder.mkdir()
    (folder / "inside").touch()
    file.touch()
    link.symlink_to(kept)
    broken.symlink_to("nowhere")
    for path in (folder, file, link, broken):
        step = steps.Remove(path)
        assert not step.is_done
        step.do(nobody)
        assert step.is_done
        step.do(nobody)  # it may have gone meanwhile
    assert (kept / "inside").exists()


def test_a_command_is_never_done_and_shown_as_one_types_it() -> None:
    ran: list[Sequence[str]] = []
    step = steps.Command(("echo", "a b"))
    step.do(ran.append)
    assert ran == [("echo", "a b")]
    assert not step.is_done
    assert str(step) == "echo 'a b'"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo out; echo err >&2; exit 1", "err"),
        ("echo out; echo more; exit 1", "out"),
        ("exit 3", "exit status 3"),
    ],
)
def test_what_fails_says_why(script: str, said: str) -> None:
    with pytest.raises(errors.SystemFault) as caught:
        steps.run(["sh", "-c", script])
    assert caught.value.message.endswith(f": {said}")
    assert caught.value.hint is None


def test_what_ends_well_says_nothing() -> None:
    steps.run(["true"])
