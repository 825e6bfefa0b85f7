"""Files that outlive a restart: nothing is half written, and nothing is lost in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.disks import full_disk
from usb_remote import errors, state
from usb_remote.state import StateFile

GOOD, BROKEN, LATER = b'{"n": 1}\n', b'{"n": \n', b'{"n": 3}\n'


@pytest.mark.parametrize("room", [0, 1, 8])
def test_a_line_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path, room: int) -> None:
    file = StateFile(tmp_path / "state")
    file.append({"n": 1})
    before = file.path and file.path.read_bytes()
    assert before == GOOD
    with full_disk(len(before) + room), pytest.raises(errors.SystemFault) as caught:
        file.append({"n": 2})
    assert (tmp_path / "state").read_bytes() == before
    assert caught.value.message.startswith(f"{tmp_path}/state cannot be written: ")
    assert caught.value.hint == f"see: df -h {tmp_path}; ls -ld {tmp_path}"
    file.append({"n": 3})
    assert StateFile(tmp_path / "state").read_lines() == [{"n": 1}, {"n": 3}]


def test_a_line_that_just_fits_is_written(tmp_path: Path) -> None:
    with full_disk(len(GOOD)):
        StateFile(tmp_path / "state").append({"n": 1})
    assert (tmp_path / "state").read_bytes() == GOOD


def test_what_does_not_fit_replaces_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    file.replace([{"n": 1}])
    with full_disk(len(GOOD) + 3), pytest.raises(errors.SystemFault, match="cannot be written"):
        file.replace([{"n": 2}, {"n": 3}])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state", GOOD)]


def test_state_that_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    """As a directory cannot, or a file on a disk that fails."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/inside").touch()
    file = StateFile(tmp_path / "state")
    assert file.read_lines() == []
    assert file.was_broken
    assert (tmp_path / "state.broken-1/inside").exists()


def test_after_a_broken_line_nothing_more_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever broke it may have broken what follows in a way that shows less."""
    (tmp_path / "state").write_bytes(GOOD + BROKEN + LATER + BROKEN)
    file = StateFile(tmp_path / "state")
    assert file.read_lines() == [{"n": 1}]
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}/state is broken (line 2: ")
    assert said.endswith("it is kept as state.broken-1")
    assert (tmp_path / "state.broken-1").read_bytes() == GOOD + BROKEN + LATER + BROKEN


def test_what_is_written_after_a_file_was_set_aside_is_not_set_aside_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_bytes(BROKEN)
    file = StateFile(tmp_path / "state")
    assert file.read_lines() == []
    file.replace([{"n": 1}])
    file.set_aside("a line makes no sense")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "state.broken-1"]
    assert (tmp_path / "state").read_bytes() == GOOD
    assert len(caplog.messages) == 1


def test_a_file_that_cannot_be_set_aside_is_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(tmp_path / "state")
    file.set_aside("it is nonsense")
    assert caplog.messages == [
        f"{tmp_path}/state cannot be read (it is nonsense), nor kept aside: "
        f"[Errno 2] No such file or directory: '{tmp_path}/state' -> '{tmp_path}/state.broken-1'"
    ]


def test_a_file_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    assert (file.read_lines(), file.was_broken) == ([], False)


def test_no_path_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = StateFile(None)
    file.append({"n": 1})
    file.replace([{"n": 1}])
    file.set_aside("no reason")
    assert (file.read_lines(), file.was_broken) == ([], False)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_text_is_kept_readable(tmp_path: Path) -> None:
    StateFile(tmp_path / "a/b/one").append({"name": "müller"})
    StateFile(tmp_path / "c/d/two").replace([{"name": "müller"}])
    for path in (tmp_path / "a/b/one", tmp_path / "c/d/two"):
        assert path.read_text(encoding="utf-8") == '{"name": "müller"}\n'


def test_where_state_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    monkeypatch.setenv("STATE_DIRECTORY", "/first:/second")
    assert state.directory() == Path("/first")
    monkeypatch.delenv("STATE_DIRECTORY")
    is_root = os.geteuid() == 0
    assert state.directory() == Path("/var/lib/usb-remote" if is_root else "/xdg/usb-remote")
