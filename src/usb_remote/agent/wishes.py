"""What shall be attached here, and how that is kept over restarts.

Rule of this file: nouns and their file; nothing here attaches anything.
"""

from __future__ import annotations

import logging
import re

from pydantic import ValidationError

from usb_remote import errors
from usb_remote.agent.links import Access
from usb_remote.agent_protocol import Attached, Kind, Loss
from usb_remote.config import WishConfig
from usb_remote.matching import Query
from usb_remote.model import Match, Model, Server
from usb_remote.state import StateFile
from usb_remote.values import clean

log = logging.getLogger(__name__)


MAX_NAME = 64
"""Longest name of a directory, in characters."""


class Wish(Model):
    """A device that somebody wants here.

    Attributes:
        query: which one.
        kind: for how long.
        by: who asked for it.
        name: of its directory; None for what the query or the device says.
        user, group, mode: who may use its nodes.
        parent: key of the wish for many places that this is one of.

    """

    query: Query
    kind: Kind
    by: str = "root"
    name: str | None = None
    parent: str | None = None
    user: str | None = None
    group: str | None = None
    mode: int | None = None

    def __str__(self) -> str:
        return str(self.query)

    @property
    def key(self) -> str:
        """Two wishes for the same are one, whoever asked and however."""
        return str(self.query).lower()

    @property
    def holder(self) -> str | None:
        """Whose session it is to be, None for that of the agent's own user."""
        return None if self.kind is Kind.CONFIGURED else self.by

    @property
    def access(self) -> Access:
        return Access(self.user, self.group, self.mode)

    @property
    def is_lasting(self) -> bool:
        """Whether it goes on when the device is lost, and when nobody here uses it."""
        return self.kind in (Kind.CONFIGURED, Kind.KEPT)

    @property
    def is_for_many(self) -> bool:
        """Whether it is for everything that sits in some places, such as all ports of a hub."""
        return self.query.bus is not None and any(c in self.query.bus for c in "*?[")

    def name_for(self, match: Match | None) -> str:
        """What the directory is called: the same after each time that the device was away."""
        if self.name:
            return self.name
        if match is not None and self.kind is Kind.ONCE:
            return path_name(match.device.name or f"{match.server.name}-{match.device.bus_id}")
        return path_name(str(self.query))

    def once(self, name: str, by: str | None = None) -> Wish:
        """The same device under the same name, for as long as it stays attached."""
        update = {"kind": Kind.ONCE, "name": name, "by": by or self.by, "parent": None}
        return self.model_copy(update=update)

    def at(self, match: Match) -> Wish:
        """What a wish for many places is for one of them: whatever sits there."""
        server, place = match.server, match.device.bus_id
        host = server.id or server.name
        query = self.query.model_copy(update={"bus": str(place), "host": host, "first": True})
        name = path_name(f"{self.name or server.name}-{place}")
        return self.model_copy(update={"query": query, "name": name, "parent": self.key})


def path_name(words: str) -> str:
    """Words of people or of servers as one part of a path: ``bench3/1-1.4`` is ``bench3-1-1.4``."""
    text = re.sub(r"(^|\s)--\w+\s", " ", words)
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:MAX_NAME] or "device"


def of_config(entry: WishConfig) -> Wish:
    """A wish of the configuration."""
    query = Query(
        handle=entry.device,
        id=entry.id,
        serial=entry.serial,
        bus=entry.port,
        host=entry.server,
        first=entry.first,
    )
    return Wish(
        query=query,
        kind=Kind.CONFIGURED,
        by="the configuration",
        name=entry.name,
        user=entry.user,
        group=entry.group,
        mode=int(entry.mode, 8) if entry.mode else None,
    )


class Note(Model):
    """A line of the state file.

    Attributes:
        wish: what was wished for.
        ended: why it is not wished for any more, until it is asked for again.
        attached: what was attached for it.

    """

    wish: Wish
    ended: Loss | None = None
    attached: Attached | None = None


class WishBook:
    """The state file of the agent: a line for each wish that must outlive it."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._written: list[Note] = []
        self._notes: list[Note] | None = None

    def read(self) -> list[Note]:
        """What was noted before our start; a line that says nothing to us sets the file aside."""
        if self._notes is None:
            self._notes = self._read()
        return self._notes

    def list_servers(self) -> list[Server]:
        """Whose devices were attached before our start."""
        return [note.attached.server for note in self.read() if note.attached]

    def _read(self) -> list[Note]:
        notes = []
        for number, line in enumerate(self._file.read_lines(), 1):
            try:
                notes.append(Note.model_validate(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = clean(".".join(map(str, first["loc"])))
                self._file.set_aside(f"line {number}: {where}: {first['msg']}")
                break
        return notes

    def write(self, notes: list[Note]) -> None:
        """Note all of them, if anything is new; a full disk is a warning, once."""
        if notes == self._written:
            return
        try:
            self._file.replace(note.model_dump(mode="json", exclude_none=True) for note in notes)
        except errors.SystemFault as error:
            log.warning("%s; %s", error, error.hint)
        self._written = notes
