"""QEMU's machine protocol: commands with answers, and events."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kernel.channel import Channel, Message
from tests.patience import patience


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


class Qmp:
    def __init__(self, path: Path) -> None:
        self.events: list[Message] = []
        self._news = threading.Condition()
        self._answers: queue.Queue[Message] = queue.Queue()
        self._asking = threading.Lock()
        self._channel = Channel(path, self._receive, self._end)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        with self._asking:
            try:
                self._channel.send({"execute": command, "arguments": arguments})
            except OSError as error:
                raise QmpError(f"QEMU is gone: {error}") from error
            answer = self._answers.get(timeout=patience(120))
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(
        self, wanted: Callable[[Message], bool], since: int = 0, timeout: float | None = None
    ) -> Message:
        """Return the first event that is wanted, skipping the first `since` ones ever received."""

        def find() -> Message | None:
            return next(filter(wanted, self.events[since:]), None)

        timeout = timeout or patience(60)
        with self._news:
            if (event := self._news.wait_for(find, timeout)) is None:
                raise TimeoutError(f"no such event after {timeout:.0f} s")
            return event

    def close(self) -> None:
        self._channel.close()

    def _receive(self, message: Message) -> None:
        if "event" in message:
            with self._news:
                self.events.append(message)
                self._news.notify_all()
        elif "QMP" not in message:
            self._answers.put(message)

    def _end(self) -> None:
        self._answers.put({"error": {"desc": "QEMU ended the connection"}})
