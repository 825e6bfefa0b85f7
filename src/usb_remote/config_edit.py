"""The configuration's file changed by commands: `config add-server`, `rm-server`, `set-timeout`.

Rule of this file: the user's comments and order stay; what is wrong, or would be, is not written;
nothing is ever half written.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from usb_remote import config_file, errors
from usb_remote.config import Config


def add_server(path: Path, server: str) -> bool:
    """Append to ``servers``; False if it was there already. Raises ConfigError, UsageError."""
    Config().server_at(server)
    if server in config_file.load(path if path.is_file() else None).servers:
        return False
    _change(path, lambda data: data.setdefault("servers", []).append(server))
    return True


def remove_server(path: Path, server: str) -> bool:
    """Remove from ``servers``; False if it was not there."""
    if not path.is_file() or server not in config_file.load(path).servers:
        return False
    _change(path, lambda data: data["servers"].remove(server))
    return True


def set_timeout(path: Path, timeout: float) -> None:
    """Set ``timeout`` in seconds; raises UsageError."""
    try:
        Config(timeout=timeout)
    except ValidationError:
        raise errors.UsageError("the timeout is a number of seconds, 0 < timeout <= 3600") from None
    _change(path, lambda data: data.__setitem__("timeout", timeout))


def _change(path: Path, change: Any) -> None:
    """Change a file in place: comments, quotes and order stay, and it is never half written."""
    yaml = config_file.yaml()
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    config_file.load(path if text else None)
    parsed = config_file.parse(path, yaml) if text else None
    only_comments = parsed is None
    data: Any = yaml.map() if only_comments else parsed
    if data.get("servers", ...) is None:
        del data["servers"]
    change(data)
    with io.StringIO() as out:
        yaml.dump(data, out)
        _replace(path, text * only_comments + out.getvalue())


def _replace(path: Path, text: str) -> None:
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            fresh = Path(file.name)
            file.write(text)
        fresh.chmod(mode)
        fresh.replace(path.resolve())
    except OSError as error:
        if fresh is not None:
            fresh.unlink(missing_ok=True)
        raise errors.ConfigError(f"{path}: cannot be written: {error.strerror}") from None
