"""The nouns of a diagnosis: what was looked at, how it is, and what mends it.

Rule of this file: values only. The words are those of docs/reference/doctor.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator

from usb_remote.model import Model
from usb_remote.values import clean

MAX_LINE = 500
"""Longest text of a finding, in characters."""


def _clean_line(text: object) -> str:
    return clean(text, MAX_LINE)


Line = Annotated[str, BeforeValidator(_clean_line)]
"""One line for people: what servers and processes call themselves is untrusted."""


class Status(StrEnum):
    """How it is. ``skipped``: it does not apply, or could not be looked at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Role(StrEnum):
    """What a machine is for; it may be both."""

    CLIENT = "client"
    SERVER = "server"


class Check(StrEnum):
    """Every check there is (docs/reference/doctor.md)."""

    CONFIGURATION = "configuration"
    CLIENT_MODULE = "client-module"
    USBIP_TOOL = "usbip-tool"
    PERMISSION = "permission"
    AGENT = "agent"
    VHCI_PORTS = "vhci-ports"
    ATTACHMENTS = "attachments"
    SERVER_MODULE = "server-module"
    SERVER = "server"
    SERVER_USBIP_PORT = "server-usbip-port"
    SERVER_PERMISSION = "server-permission"
    SERVER_DEVICES = "server-devices"
    FIREWALL = "firewall"
    ANNOUNCED = "announced"
    MDNS_PORT = "mdns-port"
    MULTICAST_OUT = "multicast-out"
    MULTICAST_IN = "multicast-in"
    SERVERS = "servers"
    CONTROL_PORT = "control-port"
    USBIP_PORT = "usbip-port"
    VERSION = "version"
    CLOCK = "clock"
    DISCOVERY = "discovery"


class Fix(Model):
    """What `--fix` may do, after asking.

    Attributes:
        what: for the question, "load the module vhci_hcd now and at every start".
        commands: run as root, one after the other; the first failure ends it.

    """

    what: str
    commands: tuple[tuple[str, ...], ...]


class Finding(Model):
    """What one check has found.

    Attributes:
        check: its name.
        status: how it is.
        text: one sentence for people, without a full stop.
        mend: the command that mends it, if there is one.
        server: the server it is about, None for this machine.
        fix: what of it is safe to do without thinking.

    """

    check: Check
    status: Status
    text: Line
    mend: Line | None = None
    server: Line | None = None
    fix: Fix | None = None


class Report(Model):
    """All findings, and what was looked at.

    Attributes:
        roles: as what this machine was examined.
        why: how we know that it is a server, or that it is none.
        findings: in the order of the checks, servers last.

    """

    roles: tuple[Role, ...]
    why: str
    findings: tuple[Finding, ...]

    def count(self, status: Status) -> int:
        return sum(finding.status == status for finding in self.findings)

    @property
    def is_well(self) -> bool:
        """Whether nothing has failed; a warning is no failure."""
        return not self.count(Status.FAILED)

    @property
    def fixes(self) -> list[Fix]:
        """Each one once."""
        found = [finding.fix for finding in self.findings if finding.fix]
        return [fix for number, fix in enumerate(found) if fix not in found[:number]]


def ok(check: Check, text: str) -> Finding:
    return Finding(check=check, status=Status.OK, text=text)


def skipped(check: Check, text: str) -> Finding:
    return Finding(check=check, status=Status.SKIPPED, text=text)


def warning(check: Check, text: str, mend: str | None = None, fix: Fix | None = None) -> Finding:
    return Finding(check=check, status=Status.WARNING, text=text, mend=mend, fix=fix)


def failed(check: Check, text: str, mend: str | None = None, fix: Fix | None = None) -> Finding:
    return Finding(check=check, status=Status.FAILED, text=text, mend=mend, fix=fix)


def about(server: str, findings: Iterable[Finding]) -> list[Finding]:
    """The same findings, of this server."""
    return [finding.model_copy(update={"server": server}) for finding in findings]
