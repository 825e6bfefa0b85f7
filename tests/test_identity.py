"""The id of a machine: the same after every restart, and another one on every other machine."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from usb_remote import identity


def id_of(
    folder: Path, machine: str | None = None, board: str | None = None, salt: str = ""
) -> str:
    """Of a machine with these files."""
    for name, text in (("machine-id", machine), ("serial-number", board)):
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)
    files = {"machine_id": folder / "machine-id", "board_serial": folder / "serial-number"}
    return identity.server_id(salt, **files)


ONE, OTHER = "0123456789abcdef0123456789abcdef\n", "fedcba9876543210fedcba9876543210\n"


def test_an_id_is_that_of_every_version_before(tmp_path: Path) -> None:
    """Clients know servers by it, and the agent's wishes name them."""
    assert id_of(tmp_path, ONE) == "b108023ab8147393c5518ceeeda6c88d"
    assert id_of(tmp_path, ONE, "10000000abcd\0") == "1c17f951ff3622694d017a0e2d3ee68b"
    assert id_of(tmp_path, ONE, salt="client") == "76d2fcf27c7aae4b8c88022c385c8848"


def test_it_is_the_same_each_time_and_32_hexadecimal_digits(tmp_path: Path) -> None:
    first = id_of(tmp_path, ONE)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert id_of(tmp_path, ONE) == first
    assert id_of(tmp_path, ONE.strip()) == first, "the end of the line is no part of it"


def test_it_differs_by_machine_by_board_and_by_salt(tmp_path: Path) -> None:
    ids = {
        id_of(tmp_path, ONE),
        id_of(tmp_path, OTHER),
        id_of(tmp_path, ONE, "10000000abcd\0"),
        id_of(tmp_path, ONE, "10000000abce\0"),
        id_of(tmp_path, ONE, "10000000abce~\0"),
        id_of(tmp_path, ONE, salt="client"),
        id_of(tmp_path, ONE, salt="virtual"),
    }
    assert len(ids) == 7


def test_the_machine_id_itself_is_not_told(tmp_path: Path) -> None:
    assert id_of(tmp_path, ONE) not in ONE
    assert ONE.strip() not in id_of(tmp_path, ONE)


@pytest.mark.parametrize("machine", [None, "", "\n"])
def test_without_a_machine_id_one_is_made_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str | None
) -> None:
    kept = tmp_path / "not" / "there" / "yet"
    monkeypatch.setenv("STATE_DIRECTORY", str(kept))
    first = id_of(tmp_path, machine)
    assert id_of(tmp_path, machine) == first
    assert re.fullmatch("[0-9a-f]{32}\n", (kept / "id").read_text())
    assert id_of(tmp_path, machine, salt="client") != first
    (kept / "id").unlink()
    assert id_of(tmp_path, machine) != first


def test_a_machine_with_an_id_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    id_of(tmp_path, ONE)
    assert not (tmp_path / "state").exists()


def test_the_host_name_is_the_short_one() -> None:
    assert identity.host_name() == identity.host_name(socket.gethostname())
    assert identity.host_name("pi.lab.example") == "pi"
    assert identity.host_name("pi") == "pi"
    assert identity.host_name("") == identity.host_name(".") == "usb-remote"


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    plain = id_of(tmp_path, ONE)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert identity.server_id(machine_id=tmp_path / "machine-id", board_serial=folder) == plain
