from __future__ import annotations

from pathlib import Path

import pytest

from usb_remote import config, errors

EXAMPLE = """\
# our bench
servers:
  - bench3        # the old one
  - bench4:6000
timeout: 2.5
server:
  name: mine
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "usb-remote.config"
    path.write_text(EXAMPLE)
    return path


def test_a_file_is_read(file: Path) -> None:
    loaded = config.load(file)
    assert loaded.timeout == 2.5
    assert loaded.server.name == "mine"
    assert [(s.name, s.addresses, s.port) for s in loaded.configured_servers] == [
        ("bench3", ("bench3",), 5055),
        ("bench4:6000", ("bench4",), 6000),
    ]


def test_no_file_is_the_defaults() -> None:
    assert config.load(None) == config.Config()


def test_a_file_of_2x_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text(
        "server_port: 5055\nserver_ranges:\n- 192.168.1.30-40\nservers:\n- pi\ntimeout: 2.0\n"
    )
    assert len(config.load(path).range_servers) == 11


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("servers: []\ncolour: red\n", ":2: colour:", "unknown key"),
        ("timeout: fast\n", ":1: timeout:", "valid number"),
        ("timeout: -1\n", ":1: timeout:", "greater than 0"),
        ("servers: bench3\n", ":1: servers:", "a list is needed"),
        ("servers:\n- a\n- 'b c'\n", ":3: servers.1:", "is not a host"),
        ("server_ranges:\n- 10.0.0.9-3\n", ":2: server_ranges.0:", "ends before"),
        ("server:\n  port: 70000\n", ":2: server.port:", "less than or equal to 65535"),
        ("server:\n  ports: 1\n", ":2: server.ports:", "unknown key"),
        ("servers: [a\n", ":2:", "broken YAML"),
        ("- a\n", ":1:", "mapping"),
        ("timeout: 1\ntimeout: 2\n", ":2:", "duplicate"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(errors.ConfigError) as caught:
        config.load(path)
    assert f"{path}{where}" in caught.value.message
    assert what in caught.value.message


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="--config"):
        config.find_path(tmp_path / "none")
    with pytest.raises(errors.ConfigError, match="USB_REMOTE_CONFIG"):
        config.find_path(None, {"USB_REMOTE_CONFIG": str(tmp_path / "none")})


def test_the_order_of_files(tmp_path: Path, file: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "USB_REMOTE_CONFIG": str(file)}
    assert config.find_path(None, environment) == file
    inside = tmp_path / "usb-remote" / "usb-remote.config"
    inside.parent.mkdir()
    inside.write_text("")
    assert config.find_path(None, {"XDG_CONFIG_HOME": str(tmp_path)}) == inside


def test_writing_keeps_the_users_comments(file: Path) -> None:
    assert config.add_server(file, "bench5")
    assert not config.add_server(file, "bench5")
    config.set_timeout(file, 3.5)
    assert config.remove_server(file, "bench4:6000")
    assert not config.remove_server(file, "bench4:6000")
    text = file.read_text()
    assert "# our bench" in text
    assert "# the old one" in text
    assert config.load(file).servers == ["bench3", "bench5"]
    assert config.load(file).timeout == 3.5


def test_writing_makes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    config.add_server(path, "[fd00::1]:5055")
    assert config.load(path).configured_servers[0].addresses == ("fd00::1",)


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text("servers: [a\n")
    with pytest.raises(errors.ConfigError):
        config.add_server(path, "b")
    assert path.read_text() == "servers: [a\n"


@pytest.mark.parametrize("host", ["", "a b", "-r evil:x:y", "host:port", "[::1"])
def test_what_is_no_host(tmp_path: Path, host: str) -> None:
    with pytest.raises(errors.UsageError):
        config.add_server(tmp_path / "file", host)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_what_is_no_timeout(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(errors.UsageError):
        config.set_timeout(tmp_path / "file", timeout)
