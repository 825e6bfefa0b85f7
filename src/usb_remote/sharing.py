"""What of a server's devices others get to see, and under which names.

Rule of this file: everybody on the server asks here, so that what is hidden is hidden at both
ports. A device is decided on once, and again when the rules or names change.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from usb_remote import errors
from usb_remote.model import Device, State
from usb_remote.rules import MAX_NAMES, Names, Place, Rule, Verb, decide, keys_of
from usb_remote.state import StateFile
from usb_remote.usbip_wire import Record
from usb_remote.values import BusId, DeviceName, HardwareId, clean

log = logging.getLogger(__name__)


class DeviceSource(Protocol):
    """Where devices come from: udev.devices or virtual."""

    def list_devices(self) -> tuple[Device, ...]: ...
    def find(self, bus_id: BusId) -> Device | None: ...
    def record(self, bus_id: BusId) -> Record | None: ...


class NameBook:
    """Which name a device has: given at run time, else by the configuration.

    Args:
        file: where those of run time are kept.

    Attributes:
        version: another one after each change.

    """

    def __init__(self, file: StateFile) -> None:
        self.version = 0
        self._file = file
        self._given = self._load()
        self._configured: Names = {}
        self._index()

    def _load(self) -> Names:
        names: Names = {}
        for line in self._file.read_lines():
            try:
                name = DeviceName(str(line.pop("name", "")))
                names[name] = Place.model_validate_json(json.dumps(line))
            except ValueError as error:
                self._file.set_aside(clean(str(error).partition("\n")[0]))
                break
        if self._file.was_broken and names:
            with contextlib.suppress(errors.SystemFault):  # they are in the file that is kept
                self._store(names)
        return names

    def _store(self, names: Names) -> None:
        self._file.replace(
            {"name": str(name), **place.model_dump(mode="json", exclude_none=True)}
            for name, place in names.items()
        )

    def configure(self, names: Names) -> None:
        """Take the names of the configuration."""
        self._configured = dict(names)
        self._index()

    def _index(self) -> None:
        """Look-up by serial, hardware id or port; a name of run time goes first."""
        self.version += 1
        self._by_key: dict[tuple[str, str], list[tuple[DeviceName, Place]]] = {}
        given = {name.lower() for name in self._given}
        configured = {n: p for n, p in self._configured.items() if n.lower() not in given}
        for names in (self._given, configured):
            for name, place in names.items():
                self._by_key.setdefault(place.key, []).append((name, place))

    def names_of(self, device: Device) -> list[DeviceName]:
        """The names that this device would have, if no other one had them, the best one first."""
        found = [
            name
            for key in keys_of(device)
            for name, place in self._by_key.get(key, ())
            if place.fits(device)
        ]
        return sorted(found, key=lambda name: name not in self._given)

    def give(self, device: Device, name: str, others: Iterable[Device]) -> None:
        """Name a device from now on; an empty name takes the one of run time away.

        Raises:
            UsageError: it is no name.
            Refused: another device has it, or there are too many.
            SystemFault: it cannot be stored, and then nothing has changed.

        """
        kept = {n: p for n, p in self._given.items() if not p.fits(device)}
        if name:
            kept[self._checked(device, name, others)] = _place_of(device)
        if len(kept) > MAX_NAMES:
            raise errors.Refused(f"there are {MAX_NAMES} names already")
        self._store(kept)
        self._given = kept
        self._index()

    def _checked(self, device: Device, name: str, others: Iterable[Device]) -> DeviceName:
        try:
            checked = DeviceName(name)
        except ValueError as error:
            raise errors.UsageError(str(error)) from None
        lower = name.lower()
        there = [other for other in others if other.bus_id != device.bus_id]
        for other in there:
            if other.name is not None and other.name.lower() == lower:
                raise errors.Refused(
                    f"{name} is the name of {other.id}",
                    hint=f"take it away first: usb-remote name {name} --remove",
                )
        for known, place in (*self._given.items(), *self._configured.items()):
            if known.lower() == lower and not place.fits(device):
                now = next(
                    (o.id for o in there if place.fits(o)), "a device that is not plugged in"
                )
                raise errors.Refused(f"{name} is kept for {now}")
        return checked


def _place_of(device: Device) -> Place:
    """By serial where that tells devices apart, else by position."""
    hardware_id = HardwareId(device.hardware_id)
    if device.serial and "@" not in device.id:
        return Place(serial=device.serial, id=hardware_id)
    return Place(id=hardware_id, port=device.bus_id)


def _key(device: Device) -> tuple[str, int, str]:
    """What tells one plug of a device from any other."""
    return device.bus_id, device.devnum, device.id


@dataclass
class SharedDevices:
    """The devices of a source as the rules and names make them.

    Attributes:
        source: all that is plugged in.
        names: what they are called.
        rules: which of them are shared.

    """

    source: DeviceSource
    names: NameBook
    rules: tuple[Rule, ...] = ()
    _listed: tuple[Device, ...] = ()
    _shown: tuple[Device, ...] = ()
    _verbs: dict[tuple[str, int, str], Verb] = field(default_factory=dict)
    _version: int = 0
    _warned: set[str] = field(default_factory=set)

    def configure(self, rules: Iterable[Rule], names: Mapping[DeviceName, Place]) -> None:
        """Take new rules and names; the next listing goes by them."""
        self.rules = tuple(rules)
        self.names.configure(dict(names))
        self._verbs.clear()

    def list_devices(self) -> tuple[Device, ...]:
        """What others may see, with names; what the machine needs stays protected."""
        listed = self.source.list_devices()
        if not self._is_current or listed is not self._listed:
            self._listed, self._version = listed, self.names.version
            shown = [d for d in map(self._ruled, listed) if d is not None]
            there = {_key(device) for device in listed}
            self._verbs = {key: verb for key, verb in self._verbs.items() if key in there}
            self._shown = tuple(self._named(shown))
        return self._shown

    @property
    def _is_current(self) -> bool:
        return self._version == self.names.version  # another one after `configure`, too

    def find(self, bus_id: BusId) -> Device | None:
        """One device as others may see it now; all are listed only if that has changed."""
        found = self.source.find(bus_id)
        is_known = self._is_current and any(found is device for device in self._listed)
        shown = self._shown if is_known else self.list_devices()
        return next((device for device in shown if device.bus_id == bus_id), None)

    def record(self, bus_id: BusId) -> Record | None:
        return self.source.record(bus_id)

    def gives_away(self, bus_id: BusId) -> bool:
        """Whether a rule shares a device even if this machine uses it itself."""
        device = self.source.find(bus_id)
        return device is not None and self._verb(device) is Verb.ALLOW_PROTECTED

    def _ruled(self, device: Device) -> Device | None:
        verb = self._verb(device)
        if verb is Verb.DENY:
            return None
        if verb is Verb.ALLOW_PROTECTED and device.state is State.PROTECTED:
            return device.model_copy(update={"state": State.AVAILABLE, "reason": None})
        return device

    def _verb(self, device: Device) -> Verb:
        if not self.rules:
            return Verb.ALLOW
        key = _key(device)
        if key not in self._verbs:
            self._verbs[key] = decide(self.rules, device)
        return self._verbs[key]

    def _named(self, devices: list[Device]) -> Iterable[Device]:
        """A name that fits two devices is nobody's: taking the wrong one is worse than none.

        Either may have another name that is less telling, but its own.
        """
        names = [self.names.names_of(device) for device in devices]
        while ambiguous := self._ambiguous(names):
            names = [[name for name in those if name not in ambiguous] for those in names]
        for device, those in zip(devices, names, strict=True):
            yield device.model_copy(update={"name": str(those[0])}) if those else device

    def _ambiguous(self, names: list[list[DeviceName]]) -> set[DeviceName]:
        counts = Counter(those[0] for those in names if those)
        ambiguous = {name for name, count in counts.items() if count > 1}
        for name in ambiguous:
            self._warn(name, counts[name])
        return ambiguous

    def _warn(self, name: str, count: int) -> None:
        if name not in self._warned:
            self._warned.add(name)
            log.warning("the name %s fits %d devices, so none has it", name, count)
