"""Where one request ends and the next begins.

Rule of this file: bytes in, bytes out, linear in their number, whatever they are.
"""

from __future__ import annotations

import re

from usb_remote import errors

MAX_REQUEST = 64 * 1024
"""Longest request line in bytes. The longest sensible one has about 1 kB."""
MAX_DEPTH = 16
"""Deepest nesting of a request."""


class RequestFramer:
    """Cuts a stream of bytes into requests: a line, or a complete JSON object without a newline.

    2.x clients end a request with nothing at all, so a closing brace is as good as a newline.
    """

    _STRUCTURE = re.compile(rb'[\n"\\{}\[\]]')
    _IN_STRING = re.compile(rb'[\n"\\]')
    _INK = re.compile(rb"\S")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start_over()

    def _start_over(self) -> None:
        self._seen = 0
        self._depth = 0
        self._quoted = False

    @property
    def rest(self) -> bytearray:
        """What has arrived and was not taken yet."""
        return self._buffer

    def feed(self, data: bytes) -> None:
        """Keep what has arrived."""
        self._buffer += data

    def take(self) -> bytes | None:
        """The next request, None if it is not complete yet.

        Raises:
            InvalidRequest: what has arrived cannot become a request any more. Whatever does not
                begin with a brace never can: HTTP of a browser, TLS, somebody's terminal.

        """
        self._skip_blanks()
        if self._buffer and self._buffer[0] != ord("{"):
            raise errors.InvalidRequest("not a JSON object", hint='try {"command":"list"}')
        end = self._end()
        if (end or len(self._buffer)) > MAX_REQUEST:
            raise errors.InvalidRequest(f"request longer than {MAX_REQUEST} bytes")
        if end:
            request = bytes(self._buffer[:end]).strip()
            del self._buffer[:end]
            self._start_over()
            return request
        return None

    def _skip_blanks(self) -> None:
        """All at once, before a request; somebody may send nothing else."""
        if self._seen == 0:
            found = self._INK.search(self._buffer)
            del self._buffer[: found.start() if found else None]

    def _end(self) -> int:
        """Where the first request ends, 0 if it is not complete."""
        while found := (self._IN_STRING if self._quoted else self._STRUCTURE).search(
            self._buffer, self._seen
        ):
            character = found.group()
            self._seen = found.end() + (character == b"\\")
            if character == b"\n":
                return found.end()
            if character == b'"':
                self._quoted = not self._quoted
            elif character != b"\\" and self._close_or_open(character):
                return found.end()
        self._seen = max(self._seen, len(self._buffer))
        return 0

    def _close_or_open(self, bracket: bytes) -> bool:
        self._depth += 1 if bracket in b"{[" else -1
        if self._depth > MAX_DEPTH:
            raise errors.InvalidRequest(f"nested deeper than {MAX_DEPTH} levels")
        return self._depth <= 0
