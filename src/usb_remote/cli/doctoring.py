"""`doctor`: print what was found, mend what is safe after asking."""

from __future__ import annotations

import sys
from pathlib import Path

from usb_remote import __version__, errors, wiring
from usb_remote.cli import output
from usb_remote.config import Config
from usb_remote.config_file import load_in_force
from usb_remote.doctor.examination import Doctor
from usb_remote.doctor.machine import Machine
from usb_remote.doctor.report import Finding, Fix, Report, Role, Status
from usb_remote.mdns.browse import browse
from usb_remote.mdns.probe import probe

MENDING_TIME = 30.0
"""Seconds that one command of a fix may take."""


def examine(
    option: Path | None,
    role: str | None,
    host: str | None,
    *,
    fix: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Exit status 5 if something has failed, after mending if that was asked for."""
    wanted = _role(role)
    if fix:
        _refuse_to_guess(yes)
    machine = Machine()
    doctor = Doctor(machine, _config(option), browse, probe, __version__)
    report = wiring.run(doctor.examine(wanted, host))
    if fix and report.fixes:
        if not as_json:
            _print(report)
        if _mend(machine, report.fixes, yes):
            report = wiring.run(doctor.examine(wanted, host))
            output.note("afterwards:")
    (_print_json if as_json else _print)(report)
    _end(report, fix)


def _role(word: str | None) -> Role | None:
    if word is None:
        return None
    try:
        return Role(word)
    except ValueError:
        raise errors.UsageError(f"{word!r} is neither server nor client") from None


def _config(option: Path | None) -> Config | errors.ConfigError:
    try:
        return load_in_force(option)
    except errors.ConfigError as error:
        return error


# -- printing


def _print(report: Report) -> None:
    roles = " and ".join(report.roles)
    output.note(f"examined as {roles} ({report.why})")
    for finding in report.findings:
        print(_line(finding))
        if finding.mend and finding.status in (Status.WARNING, Status.FAILED):
            print(f"{'':9}mend: {finding.mend}")
    sys.stdout.flush()


def _line(finding: Finding) -> str:
    where = f"{finding.server}: " if finding.server else ""
    return f"{finding.status:8} {finding.check:17}  {where}{finding.text}"


def _print_json(report: Report) -> None:
    output.print_json(
        **report.model_dump(),
        **{str(status): report.count(status) for status in Status},
    )


def _end(report: Report, fixed: bool) -> None:
    failures, warnings = report.count(Status.FAILED), report.count(Status.WARNING)
    if report.is_well:
        some = "1 warning" if warnings == 1 else f"{warnings} warnings"
        output.note(f"it works, with {some}" if warnings else "all is well")
        return
    hint = "usb-remote doctor --fix mends some of it" if report.fixes and not fixed else None
    raise errors.SystemFault(f"{failures} of {len(report.findings)} checks failed", hint=hint)


# -- mending


def _refuse_to_guess(yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise errors.UsageError(
            "--fix asks before it does anything, and stdin is no terminal",
            hint="type: usb-remote doctor --fix --yes",
        )


def _mend(machine: Machine, fixes: list[Fix], yes: bool) -> bool:
    """Do what is agreed to; returns whether anything was done."""
    agreed = [fix for fix in fixes if yes or _is_agreed(fix)]
    if agreed and not machine.is_root:
        raise errors.SystemFault("mending needs root", hint="type: sudo usb-remote doctor --fix")
    for fix in agreed:
        output.note(f"mending: {fix.what}")
        if complaint := wiring.run(_run(machine, fix)):
            output.warn(f"that failed: {complaint}")
    return bool(agreed)


def _is_agreed(fix: Fix) -> bool:
    for command in fix.commands:
        output.note(f"  {' '.join(command)}")
    print(f"{fix.what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _run(machine: Machine, fix: Fix) -> str | None:
    """What went wrong, if anything did."""
    for command in fix.commands:
        status, said = await machine.ask(command, MENDING_TIME)
        if status != 0:
            return f"{' '.join(command)}: {said.strip() or f'exit status {status}'}"
    return None
