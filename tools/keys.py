"""docs/reference/configuration.md: the tables of all keys, with types, limits and defaults.

They are made of the models in config.py, and stand between `<!-- generated: keys of … -->` and
`<!-- end -->`. What a key means is written by people, in its row, and kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from usb_remote import config, rules

SECTIONS: tuple[type[BaseModel], ...] = (config.Config, config.ServerConfig, config.WishConfig)
PART = re.compile(r"<!-- generated: keys of (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \|.*\| (.*?) \|$", re.MULTILINE)
HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"
PLAIN: dict[Any, str] = {bool: "true or false", float: "number", int: "number"}
UNITS = {str: " characters", dict: " names"}


def page(old: str) -> str:
    """The page with its tables as they should be."""
    models = {model.__name__: model for model in SECTIONS}
    return PART.sub(lambda part: _part(models[part[1]], dict(ROW.findall(part[2]))), old)


def _part(model: type[BaseModel], meanings: dict[str, str]) -> str:
    rows = [
        f"| `{key}` | {type_of(field)} | {default_of(field)} | {meanings.get(key, '')} |\n".replace(
            "|  |", "| |"
        )
        for name, field in model.model_fields.items()
        for key in [field.alias or name]
    ]
    return f"<!-- generated: keys of {model.__name__} -->\n\n{HEAD}{''.join(rows)}\n<!-- end -->\n"


def type_of(field: FieldInfo) -> str:
    """What may be written there, as people say it."""
    kind = _bare(field.annotation)
    if kind is int and (ends := _ends(field)):
        return ends
    return ", ".join([_kind(kind, "_parse_command" in repr(field.metadata)), *_limits(kind, field)])


def _bare(kind: Any) -> Any:
    """Without `None`, and without what pydantic does with it."""
    if get_origin(kind) is UnionType:
        kind = next(one for one in get_args(kind) if one is not type(None))
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _kind(kind: Any, is_command: bool = False) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        return "text or list of text" if is_command else f"list of {_many(get_args(kind)[0])}"
    if get_origin(kind) is dict or issubclass(kind, BaseModel):
        return "section"
    return PLAIN.get(kind, "text")


def _many(item: Any) -> str:
    if item is rules.Rule:
        return "rules"
    return "text or sections" if issubclass(_bare(item), BaseModel) else "text"


def _ends(field: FieldInfo) -> str:
    least = [limit.ge for limit in field.metadata if isinstance(limit, annotated_types.Ge)]
    most = [limit.le for limit in field.metadata if isinstance(limit, annotated_types.Le)]
    return f"{least[0]} to {most[0]}" if least and most else ""


def _limits(kind: Any, field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        match limit:
            case annotated_types.MaxLen(longest):
                unit = UNITS.get(get_origin(kind) or kind, "")
                yield f"at most {longest:,}{unit}".replace(",", " " if longest > 9999 else "")
            case annotated_types.Gt(number):
                yield f"> {number}"
            case annotated_types.Le(number):
                yield f"≤ {number}"


def default_of(field: FieldInfo) -> str:
    """As it would be written in the file; empty for a section, and for what has none."""
    if field.default is None or isinstance(field.default, dict | BaseModel):
        return ""
    is_word = get_origin(field.annotation) is Literal
    return f"`{field.default if is_word else json.dumps(field.default)}`"
