"""`install-service` and `uninstall-service`: follow a plan, and show each step."""

from __future__ import annotations

import shlex
import sys
import sysconfig
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from usb_remote import __version__, errors, services, steps
from usb_remote.cli import output
from usb_remote.config_file import find_path
from usb_remote.services import Kind, Machine, UserMachine

SECURE = (Path("/usr/local/bin"), Path("/usr/bin"))
"""Where sudo looks on every distribution (secure_path)."""


def install(kind: Kind, option: Path | None, *, user: bool, dry_run: bool, start: bool) -> None:
    named = find_path(option) if option else None
    command = program(named)
    machine = _machine(kind, user=user)
    if dry_run:
        _foresee(machine, kind, [] if user else _places(command, named))
    else:
        _check(machine, kind, "install-service", user=user)
        services.check_program([] if user else _places(command, named))
    follow(machine.installation(kind, command, start=start), dry_run=dry_run)
    if not user and services.is_writable_by_others(Path(command[0])):
        output.warn(f"whoever can write {command[0]} is root here at its next start")
    for line in [] if dry_run else _next(kind, user=user):
        output.note(line)


def uninstall(kind: Kind, *, user: bool, dry_run: bool, purge: bool) -> None:
    machine = _machine(kind, user=user)
    if not dry_run:
        _check(machine, kind, "uninstall-service", user=user)
    follow(machine.removal(kind, purge=purge), dry_run=dry_run)
    kept = machine.root / services.STATE
    if not user and not dry_run and kept.exists():
        output.note(f"kept: {kept} (names, history); --purge removes it with the last service")


def _machine(kind: Kind, *, user: bool) -> Machine:
    if not user:
        return Machine(__version__)
    if kind is Kind.SERVER:
        raise errors.UsageError(
            "a server cannot be a service of one user: only root may give devices away",
            hint="sudo usb-remote install-service server",
        )
    return UserMachine(__version__, Path.home())


def _foresee(machine: Machine, kind: Kind, places: Sequence[Path]) -> None:
    """A dry run says what would be refused, and goes on."""
    for check in (partial(machine.check, kind), partial(services.check_program, places)):
        try:
            check()
        except errors.SystemFault as error:
            output.warn(f"it would be refused: {error.message}")


def _check(machine: Machine, kind: Kind, command: str, *, user: bool) -> None:
    machine.check(kind)
    if user == services.is_root():
        raise errors.SystemFault(
            "root has no services of one user" if user else "services of a machine need root",
            hint=f"type: {'' if user else 'sudo '}{program()[0]} {command} {kind}",
        )


def follow(plan: Sequence[steps.Step], *, dry_run: bool, run: steps.Run = steps.run) -> None:
    """Do each step that is needed, or only say so."""
    for step in plan:
        todo, done, already = step.words
        if step.is_done:
            print(f"{already} {step}")
        elif dry_run:
            print(f"would {todo} {step}")
        else:
            _do(step, run)
            print(f"{done} {step}", flush=True)


def _do(step: steps.Step, run: steps.Run) -> None:
    try:
        step.do(run)
    except OSError as error:
        raise errors.SystemFault(f"{step.words[0]} {step}: {error.strerror}") from error


def _next(kind: Kind, *, user: bool) -> list[str]:
    if user:
        return [
            "next: systemctl --user start "
            '"$(systemd-escape --template=usb-remote-attach@.service DEVICE)"',
            "the agent of this machine attaches it: sudo usb-remote install-service agent",
        ]
    last = f"next: systemctl status {kind.unit}; journalctl -u {kind.unit} -o cat"
    member = "for who may attach without being root: sudo usermod -aG usb-remote USER"
    return [last, *([member] if kind is Kind.AGENT else [])]


def program(config: Path | None = None) -> list[str]:
    """The `usb-remote` of this environment, with the configuration that was asked for by name."""
    options = ["--config", str(config.absolute())] if config else []
    for path in (Path(sysconfig.get_path("scripts"), "usb-remote"), Path(sys.argv[0])):
        if path.name == "usb-remote" and path.is_file():
            return [str(path.absolute()), *options]
    return [sys.executable, "-m", "usb_remote", *options]


def word_for_sudo(folders: Sequence[Path] = SECURE) -> str:
    """What to type after sudo for this very program."""
    words = program()
    found = (folder / "usb-remote" for folder in folders)
    is_found = any(path.resolve() == Path(words[0]).resolve() for path in found)
    return "usb-remote" if is_found else shlex.join(words)


def _places(command: Sequence[str], config: Path | None) -> list[Path]:
    """Everything that has to be readable: the script, the interpreter, the packages, the file."""
    package = Path(services.__file__).parent
    places = [Path(command[0]), Path(sys.executable), Path(sys.base_prefix), package]
    return [*places, *([config] if config else [])]
