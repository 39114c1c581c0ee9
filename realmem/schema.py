"""
The shapes of what realmem writes for programs: one JSON Schema for each kind of output.

Schemas are made from the dataclasses that the output is made from, so they cannot disagree.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(cls: type) -> dict[str, Any]:
    """
    Give the JSON Schema of a dataclass as ``dataclasses.asdict`` and JSON show it.

    Tuples and lists are arrays; mappings are objects, whose keys JSON makes strings; properties
    are not part of it, except that further fields are allowed everywhere.
    """
    return {"$schema": DRAFT, "title": cls.__name__, **_schema(cls)}


def _schema(hint: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        names = [field.name for field in dataclasses.fields(hint)]
        return {
            "type": "object",
            "properties": {name: _schema(hints[name]) for name in names},
            "required": names,
        }
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(each) for each in arguments]}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(arguments[0])}
    if origin in (dict, collections.abc.Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if hint is Any:
        return {}
    return {"type": _SIMPLE[hint]}


_SIMPLE = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
}


def __getattr__(name: str) -> Any:
    """Make a schema when it is first asked for: the classes behind it are not light."""
    if name == "TOPOLOGY":
        from realmem.host.survey import Host

        globals()[name] = json_schema(Host)
        return globals()[name]
    if name == "BENCH":
        from realmem.bench.results import Run

        globals()[name] = json_schema(Run)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
