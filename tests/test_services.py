"""`install-service`: the files, the plan, twice, back again, and when it refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import usb_remote
from tests.patience import patience
from usb_remote import errors, hooks, services, steps
from usb_remote.cli import installing
from usb_remote.lease import Times
from usb_remote.services import Kind, Machine, UserMachine

PROGRAM = ["/opt/usb-remote/bin/usb-remote"]
LIMIT = 4.0
"""What `systemd-analyze security` may say at most; below 5 it calls a unit OK."""
ANALYZE = shutil.which("systemd-analyze")
UNITS = sorted(path for path in services.folder().rglob("*.service"))


class Recorded(list[str]):
    """Runs nothing, and remembers what it was asked to."""

    def __call__(self, arguments: Sequence[str]) -> None:
        self.append(" ".join(arguments))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A folder in place of a machine that systemd runs."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("root:x:0:\nusb-remote:x:998:\n")
    return Machine("3.1", tmp_path)


def follow(plan: list[steps.Step], *, dry_run: bool = False) -> Recorded:
    ran = Recorded()
    installing.follow(plan, dry_run=dry_run, run=ran)
    return ran


def files(machine: Machine) -> list[str]:
    found = (path for path in machine.root.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(machine.root)) for path in found)


def install(machine: Machine, kind: Kind) -> Recorded:
    return follow(machine.installation(kind, PROGRAM, start=True))


def test_a_server_gets_its_files_is_enabled_and_started(machine: Machine) -> None:
    assert install(machine, Kind.SERVER) == [
        "systemctl daemon-reload",
        "systemctl enable usb-remote-server.service",
        "systemctl restart usb-remote-server.service",
    ]
    assert files(machine) == [
        "etc/group",
        "etc/modules-load.d/usb-remote-server.conf",
        "etc/systemd/system/usb-remote-server.service",
    ]
    unit = machine.target("usb-remote-server.service").read_text()
    assert "\nExecStart=/opt/usb-remote/bin/usb-remote server\n" in unit
    assert services.PROGRAM not in unit


def test_systemd_waits_for_the_longest_end_of_a_server() -> None:
    """A request's reset, one of a session that has ended, one of the end itself, then on_event."""
    unit = Path(__file__).parent.parent / "systemd/usb-remote-server.service"
    found = re.search(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.MULTILINE)
    assert found
    assert int(found[1]) > 3 * Times().reset + hooks.TIME_LIMIT + hooks.KILL_TIME


def test_an_agent_gets_its_group_and_folders_before_it_is_started(machine: Machine) -> None:
    ran = install(machine, Kind.AGENT)
    assert [line.split()[0] for line in ran[:2]] == ["systemd-sysusers", "systemd-tmpfiles"]
    assert ran[-1] == "systemctl restart usb-remote-agent.service"
    assert "etc/systemd/system/usb-remote-attach@.service" in files(machine)


@pytest.mark.parametrize("kind", Kind)
def test_a_second_time_changes_nothing_and_disturbs_nobody(
    machine: Machine, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    install(machine, kind)
    before = {path: machine.target(path).stat().st_ino for path in kind.files}
    capsys.readouterr()
    ran = install(machine, kind)
    assert f"systemctl start {kind.unit}" in ran
    assert not [line for line in ran if "restart" in line]
    assert capsys.readouterr().out.count("unchanged: ") == len(kind.files)
    assert before == {path: machine.target(path).stat().st_ino for path in kind.files}


def test_a_new_version_is_a_change_and_restarts(machine: Machine) -> None:
    install(machine, Kind.SERVER)
    newer = Machine("3.2", machine.root)
    assert install(newer, Kind.SERVER)[-1] == "systemctl restart usb-remote-server.service"


@pytest.mark.parametrize("kind", Kind)
def test_what_broke_off_before_the_restart_restarts_next_time(machine: Machine, kind: Kind) -> None:
    install(machine, kind)
    newer = Machine("3.2", machine.root)

    def break_off(arguments: Sequence[str]) -> None:
        if "restart" in arguments:
            raise errors.SystemFault("power cut")

    plan = newer.installation(kind, PROGRAM, start=True)
    with pytest.raises(errors.SystemFault, match="power cut"):
        installing.follow(plan, dry_run=False, run=break_off)
    assert f"systemctl restart {kind.unit}" in install(newer, kind)
    assert f"systemctl start {kind.unit}" in install(newer, kind)


def test_no_start_enables_only(machine: Machine) -> None:
    ran = follow(machine.installation(Kind.SERVER, PROGRAM, start=False))
    assert ran[-1] == "systemctl enable usb-remote-server.service"


@pytest.mark.parametrize("kind", Kind)
def test_a_dry_run_only_says_what_it_would_do(
    machine: Machine, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(machine)
    plan = machine.installation(kind, PROGRAM, start=True)
    assert follow(plan, dry_run=True) == []
    assert files(machine) == before
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(plan)
    assert all(line.startswith(("would write /", "would run: ")) for line in said)


def test_the_server_of_2x_is_ended_first(machine: Machine) -> None:
    old = machine.target("usb-remote.service")
    old.parent.mkdir(parents=True)
    old.write_text("[Service]\n")
    ran = install(machine, Kind.SERVER)
    assert ran.index("systemctl disable --now usb-remote.service") < len(ran) - 1


@pytest.mark.parametrize("kind", Kind)
def test_uninstall_leaves_what_it_remembers_and_purge_leaves_nothing(
    machine: Machine, kind: Kind
) -> None:
    nothing = files(machine)
    install(machine, kind)
    (machine.root / "var/lib/usb-remote").mkdir(parents=True)
    (machine.root / "var/lib/usb-remote/names.jsonl").write_text("")
    (machine.root / services.LOADED_AT_BOOT).write_text("vhci_hcd\n")
    for unit in (kind.unit, "usb-remote-attach@scope.service") if kind is Kind.AGENT else ():
        edit = machine.root / f"etc/systemd/system/{unit}.d/override.conf"
        edit.parent.mkdir(parents=True)
        edit.write_text("[Service]\n")
    (machine.root / "etc/usb-remote").mkdir()  # by systemd, as the unit says
    ran = follow(machine.removal(kind, purge=False))
    assert ran[0].startswith(f"systemctl stop {kind.unit}")
    assert "var/lib/usb-remote/names.jsonl" in files(machine)
    ran = follow(machine.removal(kind, purge=True))
    assert ran == (["groupdel usb-remote"] if kind is Kind.AGENT else [])
    assert files(machine) == nothing
    assert not (machine.root / "etc/usb-remote").exists()


@pytest.mark.parametrize("kind", Kind)
def test_a_unit_makes_the_place_for_the_configuration_and_purge_leaves_yours(
    machine: Machine, kind: Kind
) -> None:
    install(machine, kind)
    assert "\nConfigurationDirectory=usb-remote\n" in machine.target(kind.unit).read_text()
    config = machine.root / "etc/usb-remote/usb-remote.config"
    config.parent.mkdir()
    config.write_text("timeout: 2\n")
    follow(machine.removal(kind, purge=True))
    assert config.exists()


def test_purge_leaves_what_the_other_service_needs(machine: Machine) -> None:
    install(machine, Kind.SERVER)
    install(machine, Kind.AGENT)
    (machine.root / "var/lib/usb-remote").mkdir(parents=True)
    follow(machine.removal(Kind.AGENT, purge=True))
    assert (machine.root / "var/lib/usb-remote").is_dir()
    assert machine.target(Kind.SERVER.unit).exists()


def test_a_user_gets_the_template_only(machine: Machine, tmp_path: Path) -> None:
    own = UserMachine("3.1", tmp_path / "home", machine.root)
    ran = follow(own.installation(Kind.AGENT, PROGRAM, start=True))
    assert ran == ["systemctl --user daemon-reload"]
    unit = own.target(services.TEMPLATE)
    assert str(unit).endswith("home/.config/systemd/user/usb-remote-attach@.service")
    assert "Protect" not in unit.read_text()
    assert follow(own.removal(Kind.AGENT, purge=False))[0].startswith("systemctl --user stop")
    assert not unit.exists()


def test_without_systemd_there_is_nothing_to_install_for(tmp_path: Path) -> None:
    for kind in Kind:
        with pytest.raises(errors.SystemFault, match="systemd does not run this m") as caught:
            Machine("3.1", tmp_path).check(kind)
        assert str(caught.value.hint).endswith(f"sudo usb-remote {kind}")


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("/opt/a b/usb-remote", '"/opt/a b/usb-remote"'),
        ("/opt/100%/$x", "/opt/100%%/$$x"),
        ('/opt/"a"', '"/opt/\\"a\\""'),
        ("/opt/a\\b", '"/opt/a\\\\b"'),
        ("/opt/a;b'", '"/opt/a;b\'"'),
    ],
)
def test_a_path_is_written_as_systemd_reads_it(word: str, quoted: str) -> None:
    assert f"\nExecStart={quoted} server\n" in services.rendered(Kind.SERVER.unit, [word], "3.1")


def test_only_what_root_alone_may_change_is_safe(tmp_path: Path) -> None:
    assert not services.is_writable_by_others(Path("/usr/bin/env"))
    assert services.is_writable_by_others(tmp_path / "..")  # below /tmp, which all may write to


def test_an_agent_leaves_a_server_of_2x_alone(machine: Machine) -> None:
    old = machine.target(services.OLD_UNIT)
    old.parent.mkdir(parents=True)
    old.write_text("[Unit]\n")
    assert not [line for line in install(machine, Kind.AGENT) if services.OLD_UNIT in line]


def test_a_program_that_a_service_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.SystemFault, match="another one for each service"):
        services.check_program([Path("/tmp")])
    services.check_program([Path("/usr/bin/env"), Path("/"), Path("/root")])


@pytest.mark.parametrize(("mode", "may"), [(0o700, False), (0o770, False), (0o701, True)])
def test_a_service_may_enter_what_is_not_only_its_owners(
    tmp_path: Path, mode: int, may: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 1000, 1000)
    home.chmod(mode)
    assert services._may_enter(home) is may


def test_a_machine_is_this_one_unless_another_is_meant(tmp_path: Path) -> None:
    assert Machine("3").root == UserMachine("3", tmp_path).root == Path("/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_program_in_a_home_that_only_its_owner_may_enter_is_refused() -> None:
    home = Path("/opt/home-of-a-test")
    home.mkdir(mode=0o700)
    try:
        (home / "usb-remote").touch()
        services.check_program([home / "usb-remote"])  # root's own
        os.chown(home, 1000, 1000)
        with pytest.raises(errors.SystemFault, match=f"only its owner may enter {home}") as caught:
            services.check_program([home / "usb-remote"])
        assert "/opt/usb-remote/bin/pip install" in str(caught.value.hint)
        assert services.is_writable_by_others(home / "usb-remote")
    finally:
        shutil.rmtree(home)


def test_a_step_that_fails_says_what_and_what_to_look_at() -> None:
    with pytest.raises(errors.SystemFault, match="no-such-program: No such file"):
        steps.run(["no-such-program"])
    with pytest.raises(errors.SystemFault, match="sh -c") as caught:
        steps.run(["sh", "-c", "echo broken >&2; exit 1", "x.service"])
    assert "broken" in caught.value.message
    assert caught.value.hint == "see why: journalctl -u x.service -n 20 -o cat"
    with pytest.raises(errors.SystemFault) as caught:
        steps.run(["sh", "-c", "echo Failed to connect to bus >&2; exit 1", "--user"])
    assert "XDG_RUNTIME_DIR" in str(caught.value.hint)


def test_sudo_is_told_the_way_to_a_program_that_it_does_not_find(tmp_path: Path) -> None:
    program = installing.program()[0]
    assert installing.word_for_sudo([tmp_path]).startswith(program)
    (tmp_path / "usb-remote").symlink_to(program)
    assert installing.word_for_sudo([tmp_path]) == "usb-remote"


# -- the command line ---------------------------------------------------------------------------


def test_a_dry_run_needs_neither_systemd_nor_root() -> None:
    done = usb_remote("install-service", "agent", "--dry-run")
    assert done.returncode == 0
    assert "would write /etc/systemd/system/usb-remote-agent.service\n" in done.stdout


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this machine")
def test_a_dry_run_says_what_would_be_refused(tmp_path: Path) -> None:
    config = tmp_path / "usb-remote.config"  # in /tmp, which is another one for each service
    config.touch()
    done = usb_remote("--config", str(config), "install-service", "server", "--dry-run")
    assert done.returncode == 0
    assert "warning: it would be refused: systemd does not run this machine" in done.stderr
    assert re.search("warning: it would be refused: a service cannot run /", done.stderr)


def test_a_server_of_one_user_is_refused() -> None:
    done = usb_remote("install-service", "server", "--user")
    assert done.returncode == 2
    assert re.match(r"error: a server cannot be .*\nhint: sudo usb-remote inst", done.stderr)


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this machine")
@pytest.mark.parametrize("verb", ["install-service", "uninstall-service"])
def test_the_command_refuses_without_systemd(verb: str) -> None:
    done = usb_remote(verb, "server")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error: systemd does not run this machine")


# -- what systemd says of the files -------------------------------------------------------------


def analyze(*arguments: str) -> str:
    if ANALYZE is None:
        message = "needs systemd-analyze: apt-get install systemd"
        (pytest.fail if os.environ.get("USB_REMOTE_NO_SKIP") == "1" else pytest.skip)(message)
    done = subprocess.run(
        [ANALYZE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(60),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name.replace("@", "@scope")
    copy.write_text(
        services.rendered(str(unit.relative_to(services.folder())), ["/bin/true"], "3.1")
    )
    assert analyze("verify", "--man=no", str(copy)) == ""


@pytest.mark.parametrize(
    "unit", [path for path in UNITS if path.parent.name != "user"], ids=lambda path: path.name
)
def test_a_unit_has_few_powers(unit: Path) -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level .*: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= LIMIT
