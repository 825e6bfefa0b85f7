"""A program as its users write it, with types: `make check` looks at it as mypy does at theirs.

What belongs here: each function of the public API once, its results used by their types.
"""

from __future__ import annotations

import usb_remote
from usb_remote import aio, errors


def list_all() -> list[str]:
    words: list[str] = []
    for server, device in usb_remote.list_devices():
        words += [server.name, device.bus_id, device.label, device.state]
    return words


def use(handle: str, wait: float | None) -> tuple[str, bool] | str:
    try:
        with usb_remote.attach_all([usb_remote.wanted(handle, wait=wait)]) as (held,):
            path: str = held.tty
            lost: bool = held.wait_lost(timeout=0.01) is not None
            return path, lost
    except errors.Busy as error:
        return error.message + (error.hint or "")
    except usb_remote.UsbRemoteError as error:
        return error.message


async def work(handle: str) -> str:
    async with aio.attach(handle) as held:
        return held.usb
