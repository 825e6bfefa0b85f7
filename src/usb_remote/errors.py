"""Every error that we raise on purpose: what happened, whose turn it is, what to type next.

Rule of this file: one class for each thing that a *caller* can do something different about. The
``code`` travels in the control protocol and in ``--json``; the same class is raised on both sides.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class Exit(IntEnum):
    """Exit status of every command (docs/reference/errors.md).

    LOST is of `run --fail-on-loss` alone, which otherwise ends as its command did.
    """

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    SYSTEM = 5
    UNREACHABLE = 6
    LOST = 7


class UsbRemoteError(Exception):
    """The base of all; also what a peer's unknown error code becomes.

    Attributes:
        message: one sentence without a full stop, for people.
        hint: the next thing to do, if we know it.
        holder: who has the device, as JSON keys, where that is the reason.

    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[Exit] = Exit.UNEXPECTED

    def __init__(
        self, message: str, *, hint: str | None = None, holder: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.holder = holder


class UsageError(UsbRemoteError):
    """The command line asks for something that makes no sense."""

    code = "usage"
    exit_status = Exit.USAGE


class ConfigError(UsbRemoteError):
    """The configuration is wrong; the message names file, line and key."""

    code = "configuration"
    exit_status = Exit.USAGE


class InvalidRequest(UsbRemoteError):
    """A peer sent something that is not a request of this protocol."""

    code = "invalid_request"
    exit_status = Exit.UNEXPECTED


class InvalidReply(UsbRemoteError):
    """What answers there does not speak our protocol."""

    code = "invalid_reply"
    exit_status = Exit.UNREACHABLE


class NotFound(UsbRemoteError):
    """No such device, or no server at all."""

    code = "not_found"
    exit_status = Exit.NOT_FOUND


class Ambiguous(UsbRemoteError):
    """More than one device matches."""

    code = "ambiguous"
    exit_status = Exit.NOT_FOUND


class Busy(UsbRemoteError):
    """Somebody else has the device; ``holder`` says who."""

    code = "busy"
    exit_status = Exit.REFUSED


class Refused(UsbRemoteError):
    """The server does not give this device away."""

    code = "refused"
    exit_status = Exit.REFUSED


class SystemFault(UsbRemoteError):
    """A kernel module, a program, a permission or a port is missing."""

    code = "system"
    exit_status = Exit.SYSTEM


class Unreachable(UsbRemoteError):
    """The server did not answer in time, or at all."""

    code = "unreachable"
    exit_status = Exit.UNREACHABLE


class Silent(Unreachable):
    """Nothing at all is heard of the server: its machine, or the way to it, may be dead."""


_BY_CODE = {cls.code: cls for cls in UsbRemoteError.__subclasses__()}


def from_code(
    code: str, message: str, *, hint: str | None = None, holder: dict[str, Any] | None = None
) -> UsbRemoteError:
    """The error that a peer told us of."""
    return _BY_CODE.get(code, UsbRemoteError)(message, hint=hint, holder=holder)
