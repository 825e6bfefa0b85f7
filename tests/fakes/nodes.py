"""Device nodes as drivers make them: there while a device is attached, other ones each time.

What belongs here: files that stand for nodes, and who lists them. What is true of the real ones,
too, is in contracts/nodes.py.
"""

from __future__ import annotations

from pathlib import Path


class Nodes:
    """A folder that stands for /dev.

    A device's own node has its number on the bus, which the kernel never gives twice. The number of
    its tty is another one each time, too, as where a program still has the former one open.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, list[tuple[str, Path]]] = {}
        self._count = 0

    def appear(self, local_bus_id: str) -> None:
        """A device is attached, and its drivers are bound."""
        self._count += 1
        self._parts[local_bus_id] = []
        self.add(local_bus_id, "usb", f"bus/usb/009/{self._count:03}")
        self.add(local_bus_id, "tty", f"ttyACM{self._count}")

    def add(self, local_bus_id: str, subsystem: str, name: str) -> Path:
        """A driver makes one more node, or the same one anew."""
        node = self._folder / name
        node.parent.mkdir(parents=True, exist_ok=True)
        fresh = node.with_name(f".{node.name}")
        fresh.touch(0o600)
        fresh.replace(node)
        parts = self._parts[local_bus_id]
        if (subsystem, node) not in parts:
            parts.append((subsystem, node))
        return node

    def remove(self, local_bus_id: str, name: str) -> None:
        """A driver takes a node away, and the device stays."""
        node = self._folder / name
        self._parts[local_bus_id] = [part for part in self._parts[local_bus_id] if part[1] != node]
        node.unlink()

    def vanish(self, local_bus_id: str) -> None:
        """The device is detached."""
        for _, node in self._parts.pop(local_bus_id, []):
            node.unlink()

    def list_parts(self, local_bus_id: str) -> list[tuple[str, str]]:
        """As `udev.nodes.list_parts`."""
        return [(kind, str(node)) for kind, node in self._parts.get(local_bus_id, [])]
