"""`config show|path|add-server|rm-server|set-timeout`."""

from __future__ import annotations

from pathlib import Path

from usb_remote import config_edit, config_file
from usb_remote.cli import output


def show(option: Path | None, *, as_json: bool) -> None:
    path = config_file.find_path(option)
    values = config_file.load(path).model_dump(mode="json", by_alias=True, exclude_none=True)
    if as_json:
        output.print_json(path=str(path) if path else None, config=values)
        return
    output.note(f"from {path}" if path else "no configuration file: these are the defaults")
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, text in value.items():
                print(f"  {inner}: {_yaml(text)}")
        else:
            print(f"{key}: {_yaml(value)}")


def _yaml(value: object) -> str:
    """A value as YAML's flow style writes it, which for these types is JSON."""
    import json

    return json.dumps(value, ensure_ascii=False)


def show_path(option: Path | None, *, as_json: bool) -> None:
    path = config_file.find_path(option)
    if as_json:
        candidates = [str(candidate) for candidate in config_file.candidate_paths()]
        output.print_json(path=str(path) if path else None, candidates=candidates)
    elif path:
        print(path)
    else:
        output.note("no configuration file; looked for:")
        for candidate in config_file.candidate_paths():
            output.note(f"  {candidate}")
        output.note(f"usb-remote config add-server HOST makes {config_file.path_to_write(option)}")


def add_server(option: Path | None, host: str) -> None:
    path = config_file.path_to_write(option)
    added = config_edit.add_server(path, host)
    print(f"{'added' if added else 'already there:'} {host} ({path})")


def remove_server(option: Path | None, host: str) -> None:
    path = config_file.path_to_write(option)
    removed = config_edit.remove_server(path, host)
    print(f"{'removed' if removed else 'was not there:'} {host} ({path})")


def set_timeout(option: Path | None, seconds: float) -> None:
    path = config_file.path_to_write(option)
    config_edit.set_timeout(path, seconds)
    print(f"timeout is {seconds:g} s ({path})")
