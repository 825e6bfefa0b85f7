from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.disks import full_disk
from usb_remote import config, config_edit, config_file, errors, rules
from usb_remote.values import DeviceName

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
    loaded = config_file.load(file)
    assert loaded.timeout == 2.5
    assert loaded.server.name == "mine"
    assert [(s.name, s.addresses, s.port) for s in loaded.configured_servers] == [
        ("bench3", ("bench3",), 5055),
        ("bench4:6000", ("bench4",), 6000),
    ]


def test_no_file_is_the_defaults() -> None:
    assert config_file.load(None) == config.Config()


def test_a_file_of_2x_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text(
        "server_port: 5055\nserver_ranges:\n- 192.168.1.30-40\nservers:\n- pi\ntimeout: 2.0\n"
    )
    assert len(config_file.load(path).range_servers) == 11


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
        ("on_event: 'unclosed\n", ":", "broken YAML"),
        ('on_event: "a \'b"\n', ":1: on_event:", "No closing quotation"),
        ("on_event: 7\n", ":1: on_event:", "a list is needed"),
        ("timeout: 1\non_event: 2026-13-45\n", ":2:", "'2026-13-45' is no value of its kind"),
        ("timeout: !!int fast\n", ":1:", "'fast' is no value of its kind"),
        ("discovery: !!bool perhaps\n", ":1:", "'perhaps' is no value of its kind"),
        ("servers: []\n? - - a\n", ":", "broken YAML: is a list used as a key?"),
        ("# c\n> # c\nallow_from: 5---\n2026-13-45", ":", "broken YAML"),
        ("servers: " + "[" * 600, ":", "broken YAML: it is nested too deeply"),
        ("timeout: fast\nserver_port: 0\n", ":1: timeout:", "valid number"),
        ("timeout: \x01\n", ": broken YAML:", "special characters are not allowed"),
        ("servers: [a\n", ":2: broken YAML: expected ',' or ']'", "<stream end>"),
        ("on_event: [a, 7]\n", ":1: on_event.1:", "put it in quotes"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(errors.ConfigError) as caught:
        config_file.load(path)
    assert f"{path}{where}" in caught.value.message
    assert what in caught.value.message


SERVER_MISTAKES = [
    ("name: bench/3", ":2: server.name:", "'bench/3' cannot be the name of a server"),
    ('port: 5055\nname: "\\e"', ":3: server.name:", "'' cannot be the name of a server"),
    ("share: all", ":2: server.share:", "a list is needed"),
    ("share:\n  - permit: all", ":3: server.share.0.permit:", "unknown key"),
    ("share:\n  - allow: everything", ":3: server.share.0.allow:", "a mapping of keys"),
    ("share:\n  - {}", ":3: server.share.0:", "one of allow, deny and allow_protected"),
    ("share:\n  - allow:", ":3: server.share.0:", "one of allow, deny and allow_protected"),
    ("share:\n  - allow: {}\n    deny: {}", ":3: server.share.0:", "one of allow"),
    ("share:\n  - allow_protected: all", ":3: server.share.0:", "has to say which"),
    ("share:\n  - deny: {id: '403:6001'}", ":3: server.share.0.deny:", "can never match"),
    ("share:\n  - deny:\n      colour: red", ":4: server.share.0.deny.colour:", "unknown key"),
    ("share:\n  - deny:\n      class: 8", ":4: server.share.0.deny.class:", "put it in quotes"),
    ("share:\n  - deny: {bus: 1-}", ":3: server.share.0.deny:", "can never match"),
    ("share:\n  - deny: {bus: 1-0}", ":3: server.share.0.deny:", "can never match"),
    ("share:\n  - deny: {bus: '1-1.'}", ":3: server.share.0.deny:", "can never match"),
    ("share:\n  - deny: {serial: !!binary QQ==}", ":3: server.share.0.deny.serial:", "a text is"),
    ("share:\n  - deny:\n      class: '8'", ":3: server.share.0.deny:", "can never match"),
    ("share:\n  - deny: all\n  - allow: {id: '0403:*'}", ":4: server.share.1:", "never match"),
    (
        "share:\n  - deny: {id: '0403:*'}\n  - allow: {bus: 1-1}\n  - allow: {id: '0403:6001'}",
        ":5: server.share.2:",
        "share.0 takes all that it means",
    ),
    ("names:\n  a b: {port: 1-1}", ":3: server.names.a b", "is not a name"),
    ("names:\n  1-1.4: {port: 1-1}", ":3: server.names.1-1.4", "is a bus id, and so no name"),
    ("names:\n  'a/b': {port: 1-1}", ":3: server.names.a/b", "is not a name"),
    ('names:\n  "a\\eb": {port: 1-1}', ":3: server.names.", "is not a name"),
    ("names:\n  scope: {}", ":3: server.names.scope:", "needs serial, id or port"),
    ("names:\n  scope: A5XK", ":3: server.names.scope:", "a mapping of keys"),
    ("names:\n  scope:\n    colour: red", ":4: server.names.scope.colour:", "unknown key"),
    ("names:\n  scope:\n    port: usb1", ":4: server.names.scope.port:", "is not a bus id"),
    ("names:\n  scope:\n    serial: 12345", ":4: server.names.scope.serial:", "put it in quotes"),
    ("names:\n  scope: {port: 1-1}\n  scope: {port: 1-2}", ":4:", "duplicate"),
    ("names:\n  scope: {port: 1-1}\n  Scope: {port: 1-2}", ":4: server.names.Scope:", "twice"),
    ("allow_from: 10.0.0.0/8", ":2: server.allow_from:", "a list is needed"),
    ("allow_from:\n  - 10.0.0.0/8\n  - bench3", ":4: server.allow_from.1:", "not a network"),
    ("allow_from:\n  - 192.168.1.5/24", ":3: server.allow_from.0:", "has host bits set"),
    (
        "names:\n  a: {serial: A}\n  b: {port: 1-1}\n  c: {serial: A}",
        ":5: server.names.c:",
        "the device has another name already, some lines above",
    ),
    ("takeover: maybe", ":2: server.takeover:", "'allow' or 'deny'"),
    ('on_event: "a \'b"', ":2: server.on_event:", "No closing quotation"),
    ("on_event: {a: b}", ":2: server.on_event:", "a list is needed"),
]


@pytest.mark.parametrize(("text", "where", "what"), SERVER_MISTAKES)
def test_a_mistake_about_sharing_is_named_with_file_line_and_key(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    path = tmp_path / "bad"
    path.write_text("server:\n  " + text.replace("\n", "\n  ") + "\n")
    with pytest.raises(errors.ConfigError) as caught:
        config_file.load(path)
    assert f"{path}{where}" in caught.value.message
    assert what in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("share: [{permit: all}]", "known keys: allow, deny, allow_protected"),
        ("share: [{deny: {colour: red}}]", "class"),
        ("names: {scope: {colour: red}}", "known keys: serial, id, port"),
        ("shares: []", "takeover"),
        ("name: a\nattach: [{colour: red}]", "known keys: device, id, serial, port, server"),
    ],
)
def test_an_unknown_key_comes_with_the_known_ones(tmp_path: Path, text: str, known: str) -> None:
    path = tmp_path / "bad"
    path.write_text(f"server:\n  {text}\n")
    with pytest.raises(errors.ConfigError) as caught:
        config_file.load(path)
    assert known in (caught.value.hint or "")


SHARING = """\
on_event: notify-send 'USB changed'
server:
  allow_from: [192.168.1.0/24, "fd00::/8", 10.0.0.1]
  share:
    - allow: {id: 0403:6001, class: "08/06"}
    - allow_protected: {serial: A5*}
    - deny: {bus: 1-1.*, manufacturer: "ftdi*", product: "*"}
    - deny: all
  names:
    scope: {serial: A5XK, id: 0403:6001}
    müller.left-2: {port: 1-1.4}
  takeover: deny
  on_event: [logger, -t, usb]
"""


def test_all_of_sharing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good"
    path.write_text(SHARING)
    loaded = config_file.load(path)
    assert loaded.on_event == ["notify-send", "USB changed"]
    assert loaded.server.on_event == ["logger", "-t", "usb"]
    assert loaded.server.allow_from == ["192.168.1.0/24", "fd00::/8", "10.0.0.1/32"]
    assert [rule.verb for rule in loaded.server.share] == [
        "allow",
        "allow_protected",
        "deny",
        "deny",
    ]
    assert loaded.server.share[0].criteria.cls == "08/06"
    assert loaded.server.names[DeviceName("scope")].serial == "A5XK"
    assert loaded.server.names[DeviceName("müller.left-2")].port == "1-1.4"
    assert loaded.server.takeover == "deny"


def test_what_the_command_line_says_leaves_sharing_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "good"
    path.write_text(SHARING)
    section = config_file.load(path).server
    changed = config.overridden(section, {"port": 6000})
    assert changed == section.model_copy(update={"port": 6000})


def test_a_servers_name_is_refused_with_the_same_words_wherever_it_is_given(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad"
    path.write_text("server:\n  name: a/b\n")
    with pytest.raises(errors.ConfigError) as in_file:
        config_file.load(path)
    with pytest.raises(errors.UsageError) as as_option:
        config.overridden(config.ServerConfig(), {"name": "a/b"})
    words = "'a/b' cannot be the name of a server: SERVER/DEVICE names a device"
    assert in_file.value.message == f"{path}:2: server.name: {words}"
    assert as_option.value.message == f"--name: {words}"
    assert in_file.value.hint == as_option.value.hint
    assert "without a slash" in (in_file.value.hint or "")


@pytest.mark.parametrize("key", ["on_event", "server.on_event"])
def test_a_file_of_the_current_directory_must_not_name_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    path = tmp_path / ".usb-remote.config"
    path.write_text("server: {on_event: evil}\n" if "." in key else "on_event: evil\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ConfigError) as caught:
        config_file.load_in_force(None, {})
    assert caught.value.message.startswith(f"{path}: {key}: a file of the current directory")
    assert f"usb-remote --config {path}" in (caught.value.hint or "")


def test_a_file_of_the_current_directory_that_is_named_may_do_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".usb-remote.config"
    path.write_text("on_event: mine\n")
    monkeypatch.chdir(tmp_path)
    assert config_file.load_in_force(path, {}).on_event == ["mine"]
    assert config_file.load_in_force(None, {"USB_REMOTE_CONFIG": str(path)}).on_event == ["mine"]


def test_a_file_of_the_current_directory_may_say_all_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".usb-remote.config").write_text("timeout: 1.5\nserver: {takeover: deny}\n")
    monkeypatch.chdir(tmp_path)
    assert config_file.load_in_force(None, {}).timeout == 1.5


def test_of_many_rules_each_pattern_is_compiled_once() -> None:
    """Each two of them are compared, and to compile one takes 100 times as long as that. fnmatch
    itself remembers too few.
    """
    share = [{"deny": {"serial": f"S{n:04}*", "bus": "1-1.*"}} for n in range(600)]
    rules._pattern.cache_clear()
    assert len(config.ServerConfig.model_validate({"share": share}).share) == 600
    assert rules._pattern.cache_info().misses <= 610


def test_more_rules_than_that_are_refused() -> None:
    share = [{"deny": {"serial": f"S{n:04}"}} for n in range(rules.MAX_RULES + 1)]
    with pytest.raises(ValidationError, match="at most 1000"):
        config.ServerConfig.model_validate({"share": share})


def test_more_networks_than_that_are_refused() -> None:
    networks = [f"10.0.{n // 256}.{n % 256}" for n in range(rules.MAX_NETWORKS + 1)]
    with pytest.raises(ValidationError, match="at most 1000"):
        config.ServerConfig.model_validate({"allow_from": networks})


@pytest.mark.parametrize("key", list(config.Config.model_fields))
def test_a_key_without_a_value_is_the_default(tmp_path: Path, key: str) -> None:
    (tmp_path / "empty").write_text(f"{key}:\n")
    assert config_file.load(tmp_path / "empty") == config.Config()


def test_a_place_that_cannot_be_looked_at_has_no_file() -> None:
    """A directory of somebody else's says so with EACCES, but not to root; this is ENAMETOOLONG."""
    environment = {"XDG_CONFIG_HOME": "/" + "x" * 300}
    assert config_file.find_path(None, environment) in (None, config_file.SYSTEM)


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"\(from --config\) does"):
        config_file.find_path(tmp_path / "none")
    with pytest.raises(errors.ConfigError, match="USB_REMOTE_CONFIG"):
        config_file.find_path(None, {"USB_REMOTE_CONFIG": str(tmp_path / "none")})


def test_the_documented_variable_goes_before_that_of_2x(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    environment = {"USB_REMOTE_CONFIG_PATH": str(other)}
    assert config_file.find_path(None, environment) == other
    assert config_file.find_path(None, environment | {"USB_REMOTE_CONFIG": str(file)}) == file
    both = environment | {"USB_REMOTE_CONFIG": str(tmp_path / "option")}
    assert config_file.find_path(file, both) == file


def test_the_file_of_the_current_directory_goes_before_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_user, local = tmp_path / "usb-remote/usb-remote.config", tmp_path / ".usb-remote.config"
    of_user.parent.mkdir()
    for path in (of_user, local):
        path.touch()
        assert config_file.find_path(None, {"XDG_CONFIG_HOME": str(tmp_path)}) == path


def test_where_a_file_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert [str(path) for path in config_file.candidate_paths({})] == [
        f"{tmp_path}/.usb-remote.config",
        "/home/ann/.config/usb-remote/usb-remote.config",
        "/etc/usb-remote/usb-remote.config",
    ]


def test_the_order_of_files(tmp_path: Path, file: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "USB_REMOTE_CONFIG": str(file)}
    assert config_file.find_path(None, environment) == file
    inside = tmp_path / "usb-remote" / "usb-remote.config"
    inside.parent.mkdir()
    inside.write_text("")
    assert config_file.find_path(None, {"XDG_CONFIG_HOME": str(tmp_path)}) == inside


def test_writing_keeps_the_users_comments(file: Path) -> None:
    assert config_edit.add_server(file, "bench5")
    assert not config_edit.add_server(file, "bench5")
    config_edit.set_timeout(file, 3.5)
    assert config_edit.remove_server(file, "bench4:6000")
    assert not config_edit.remove_server(file, "bench4:6000")
    text = file.read_text()
    assert "# our bench" in text
    assert "# the old one" in text
    assert config_file.load(file).servers == ["bench3", "bench5"]
    assert config_file.load(file).timeout == 3.5


def test_writing_makes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    config_edit.add_server(path, "[fd00::1]:5055")
    assert config_file.load(path).configured_servers[0].addresses == ("fd00::1",)


def test_writing_leaves_the_files_permissions_and_follows_a_link(
    tmp_path: Path, file: Path
) -> None:
    file.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(file)
    config_edit.set_timeout(link, 7)
    assert link.is_symlink()
    assert config_file.load(file).timeout == 7
    assert file.stat().st_mode & 0o777 == 0o600
    config_edit.set_timeout(tmp_path / "new", 7)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "new", "usb-remote.config"]


def test_writing_keeps_quotes_and_touches_no_file_with_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("servers: ['pi', \"two\"]\n")
    config_edit.set_timeout(path, 7)
    assert path.read_text() == "servers: ['pi', \"two\"]\ntimeout: 7\n"
    path.write_text("colour: red\n")
    with pytest.raises(errors.ConfigError, match="unknown key"):
        config_edit.set_timeout(path, 7)
    assert path.read_text() == "colour: red\n"


def test_a_list_without_entries_and_a_file_of_comments_are_written_into(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("servers:\ntimeout: 3\n", "# only this\n"):
        path.write_text(text)
        assert not config_edit.remove_server(path, "pi")
        assert config_edit.add_server(path, "pi")
        assert config_file.load(path).servers == ["pi"]
    assert path.read_text() == "# only this\nservers:\n  - pi\n"


def test_what_cannot_be_written_is_said_and_leaves_no_file(tmp_path: Path, file: Path) -> None:
    before = file.read_text()
    with full_disk(), pytest.raises(errors.ConfigError, match="cannot be written: File too large"):
        config_edit.set_timeout(file, 7)
    assert file.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["usb-remote.config"]


def test_which_file_is_written(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write = config_file.path_to_write
    environment = {"XDG_CONFIG_HOME": f"{tmp_path}/xdg"}
    assert write(None, environment) == tmp_path / "xdg/usb-remote/usb-remote.config"
    (tmp_path / ".usb-remote.config").touch()
    assert write(None, environment) == tmp_path / ".usb-remote.config"
    legacy = environment | {"USB_REMOTE_CONFIG_PATH": "/legacy"}
    assert write(None, legacy) == Path("/legacy")
    named = legacy | {"USB_REMOTE_CONFIG": "~/named"}
    assert write(None, named) == Path("~/named").expanduser()
    assert write(Path("~/option"), named) == Path("~/option").expanduser()


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("pi", ("pi", None)), ("pi:1", ("pi", 1)), ("pi:65535", ("pi", 65535)),
        ("10.0.0.1:80", ("10.0.0.1", 80)), ("fd00::1", ("fd00::1", None)),
        ("[fd00::1]", ("fd00::1", None)), ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
        ("pi:0", None), ("pi:65536", None), ("pi/1", None), ("[pi", None), ("a::b::c", None),
    ],
)  # fmt: skip
def test_a_host_and_its_port(host: str, parts: tuple[str, int | None] | None) -> None:
    if parts is not None:
        assert config.split_host(host) == parts
    else:
        with pytest.raises(ValueError, match=r"not a host|At most|Expected|Only|not permitted"):
            config.split_host(host)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("10.0.0.1-3", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("10.0.0.7-7", ["10.0.0.7"]), ("10.0.0.254-10.0.0.255", ["10.0.0.254", "10.0.0.255"]),
        (" 10.0.0.1-1 ", ["10.0.0.1"]),
        ("10.0.0.1-10.0.1.1", None), ("10.0.0.3-1", None), ("10.0.0.250-256", None),
        ("10.0.0.1", None), ("300.0.0.1-2", None),
    ],
)  # fmt: skip
def test_a_range_is_all_of_its_addresses(text: str, ends: list[str] | None) -> None:
    if ends is not None:
        assert config.expand_range(text) == ends
    else:
        with pytest.raises(ValueError, match=r"is not a range|ends before|Octet|octet"):
            config.expand_range(text)


def test_ranges_are_bounded_together() -> None:
    quarter = [f"10.0.{n}.0-255" for n in range(4)]
    assert len(config.Config(server_ranges=quarter).range_servers) == config.MAX_RANGE
    with pytest.raises(ValidationError, match="more than 1024 addresses"):
        config.Config(server_ranges=[*quarter, "10.0.9.1-1"])


def test_a_server_is_at_the_port_that_is_said_or_the_usual_one() -> None:
    known = config.Config(server_port=6000)
    assert [known.server_at(text).port for text in ("pi", "pi:7", "[fd00::1]:8")] == [6000, 7, 8]


@pytest.mark.parametrize("key", ["device", "id", "serial", "port"])
def test_one_word_is_enough_for_a_wish(key: str) -> None:
    assert config.WishConfig.model_validate({key: "1-1"})
    with pytest.raises(ValidationError, match="which device"):
        config.WishConfig(server="pi", name=DeviceName("scope"))


def test_a_mere_text_is_the_handle_of_a_wish() -> None:
    (wish,) = config.Config.model_validate({"attach": ["pi/1-1"]}).attach
    assert wish == config.WishConfig(device="pi/1-1")


def test_wishes_are_bounded() -> None:
    wishes = [f"pi/{n}" for n in range(config.MAX_ATTACH)]
    assert len(config.Config.model_validate({"attach": wishes}).attach) == config.MAX_ATTACH
    with pytest.raises(ValidationError, match="at most 128"):
        config.Config.model_validate({"attach": [*wishes, "pi/more"]})


@pytest.mark.parametrize("mode", ["660", "0660"])
def test_a_mode_is_octal(mode: str) -> None:
    assert config.WishConfig(device="x", mode=mode).mode == mode
    for wrong in ("888", "66", "1660", "u+rw"):
        with pytest.raises(ValidationError):
            config.WishConfig(device="x", mode=wrong)


def test_what_the_command_line_says_is_checked_as_in_a_file() -> None:
    with pytest.raises(errors.UsageError, match=r"^--port: Input should be less than or equal"):
        config.overridden(config.ServerConfig(), {"port": 70000})


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text("servers: [a\n")
    with pytest.raises(errors.ConfigError):
        config_edit.add_server(path, "b")
    assert path.read_text() == "servers: [a\n"


@pytest.mark.parametrize("host", ["", "a b", "-r evil:x:y", "host:port", "[::1"])
def test_what_is_no_host(tmp_path: Path, host: str) -> None:
    with pytest.raises(errors.UsageError):
        config_edit.add_server(tmp_path / "file", host)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_what_is_no_timeout(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(errors.UsageError):
        config_edit.set_timeout(tmp_path / "file", timeout)
