"""The agent's unix socket, made so that only root and one group can use it.

Rule of this file: there is never a moment at which others could, and one agent for a socket.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import socket
from pathlib import Path

from usb_remote import errors

log = logging.getLogger(__name__)

GROUP = "usb-remote"
"""Whose members may use the agent."""


def listen(path: Path, group: str) -> socket.socket:
    """The socket; raises SystemFault if another agent has it, or it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        listening = _bound(path)
        _hand_to_group(path, group)
    except OSError as error:
        raise errors.SystemFault(
            f"cannot listen on {path}: {error.strerror}",
            hint="the agent needs root: sudo usb-remote agent",
        ) from error
    return listening


def _bound(path: Path) -> socket.socket:
    """The socket, closed to everybody but root until :func:`_hand_to_group`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if _is_used(path):
            raise errors.SystemFault(
                f"another agent listens on {path}", hint="systemctl status usb-remote-agent"
            )
        path.unlink(missing_ok=True)
        listening.bind(str(path))
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(mask)
    return listening


def _is_used(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _hand_to_group(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.warning("there is no group %s, so that only root can use the agent", group)
        log.info("hint: sudo groupadd --system %s   and start the agent again", group)
        return
    except PermissionError:
        log.debug("%s stays with our own group", path)
        return
    path.chmod(0o660)
