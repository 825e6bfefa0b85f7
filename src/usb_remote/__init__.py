"""USB devices on your network, as if they were plugged in here.

The Python API (docs/reference/python.md): ``list_devices``, ``watch``, ``attach`` and the like, and
the same as coroutines in ``usb_remote.aio``. It is loaded when asked for: `usb-remote list` has no
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usb_remote import aio
    from usb_remote.aio import wanted
    from usb_remote.blocking import AttachedDevice, attach, attach_all, list_devices, watch
    from usb_remote.errors import UsbRemoteError

__all__ = [
    "AttachedDevice",
    "UsbRemoteError",
    "__version__",
    "aio",
    "attach",
    "attach_all",
    "list_devices",
    "wanted",
    "watch",
]

__version__ = "3.0.0"

_PLACES = {
    "AttachedDevice": "blocking",
    "UsbRemoteError": "errors",
    "attach": "blocking",
    "attach_all": "blocking",
    "list_devices": "blocking",
    "wanted": "aio",
    "watch": "blocking",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "aio":
        return import_module("usb_remote.aio")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"usb_remote.{_PLACES[name]}"), name)
