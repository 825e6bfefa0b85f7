"""Whose a device is: what this machine has imported, and what its server says of it.

Rule of this file: what both sides say is compared, and nobody is asked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from usb_remote.model import Attachment, Device, Holder, Match, State


class Ownership:
    """Tells what is this machine's.

    Args:
        client_id: of this machine, see identity.py.
        local_addresses: every address of this machine, for holders that said no id.

    """

    def __init__(self, client_id: str, local_addresses: Callable[[], set[str]]) -> None:
        self._client_id = client_id
        self._local_addresses = local_addresses

    def belongs(self, attachment: Attachment, match: Match) -> bool:
        """Whether an import here is of this device on this server.

        Only root may read what it is an import of. Others need everything that they can see to fit,
        and the server to say that this machine has the device: identical servers are common.
        """
        device = match.device
        if attachment.bus_id is not None:
            here = {address.partition("%")[0] for address in match.server.addresses}
            address = attachment.address.partition("%")[0]
            return attachment.bus_id == device.bus_id and address in here
        seen = (attachment.devid, attachment.hardware_id, attachment.serial)
        return self.is_mine(device) and seen == (_devid(device), device.hardware_id, device.serial)

    def is_alive(self, local: Attachment, match: Match) -> bool:
        """Whether the server still knows of our import; a 2.x server never says who has what."""
        known = self.is_mine(match.device) or match.server.version is None
        return known and local.devid == _devid(match.device)

    def is_mine(self, device: Device) -> bool:
        """Whether the server says that this machine has the device."""
        holder = device.holder
        if device.state is not State.IN_USE or holder is None:
            return False
        return self.is_me(holder)

    def is_me(self, holder: Holder) -> bool:
        """Whether a holder is this machine."""
        if holder.client:
            me = Holder(client=self._client_id, host=socket.gethostname())
            return me.is_same_client(holder)
        return holder.address in self._local_addresses()


def _devid(device: Device) -> int:
    """The number that vhci-hcd shows for an import (drivers/usb/usbip/vhci_sysfs.c)."""
    return device.bus << 16 | device.devnum
