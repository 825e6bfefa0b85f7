"""What this machine asks a server about one device: to reserve it, to have it back, and the like.

Rule of this file: a request says who asks, and means the device that was listed and no other one.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from usb_remote import errors, protocol, replies
from usb_remote.connection import Connection, Tell
from usb_remote.model import Device, Match

R = TypeVar("R", bound=protocol.WhichDevice)


class Asking:
    """Asks for this machine.

    Args:
        client_id: of this machine, see identity.py.
        user_name: who asks, if a request does not say otherwise.

    """

    def __init__(self, client_id: str, user_name: Callable[[], str]) -> None:
        self._client_id = client_id
        self._user_name = user_name

    async def ask(
        self,
        connection: Connection,
        model: type[R],
        match: Match,
        tell: Tell = lambda event: None,
        **more: object,
    ) -> Device:
        """Ask the server of a connection; what is wrong on its machine is said to be there.

        Args:
            connection: to the server of the device.
            model: what to ask.
            match: which device.
            tell: called with each event that comes before the answer.
            more: what else the request says.

        Raises:
            UsageError: that is no such request.
            UsbRemoteError: as :meth:`Connection.request`.

        """
        request = protocol.build(model, {**_which(match), **self._who(), **more})
        try:
            reply = await connection.request(request, tell)
        except errors.SystemFault as error:
            name = connection.server.host_name or connection.server.name
            hint = f"on {name}, {error.hint}" if error.hint else None
            raise errors.SystemFault(f"on {name}: {error.message}", hint=hint) from None
        return replies.parse_device(reply.data)

    async def give_back(
        self, connection: Connection, match: Match, since: datetime | None = None
    ) -> Device:
        """Give a reservation back, or a session: only the one that began then, if that is said."""
        return await self.ask(
            connection, protocol.DeviceRequest, match, command="detach", since=since
        )

    def _who(self) -> dict[str, str]:
        return {
            "user": self._user_name(),
            "host": socket.gethostname(),
            "client": self._client_id,
        }


def _which(match: Match) -> dict[str, str]:
    """One device in its place: another one may have been plugged in there since it was listed.

    A 2.x server binds whatever has the bus id.
    """
    device = match.device
    if match.server.version is None:
        return {"bus": str(device.bus_id)}
    serial = re.sub(r"[*?\[]", "?", device.serial or "")  # no glob
    return {"bus": str(device.bus_id), "id": device.hardware_id, "serial": serial}
