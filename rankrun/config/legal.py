"""What a key may hold, in words, from its annotation: for messages and for `config help`."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rankrun.config.settings import Path, Section, Transform

__all__ = ["legal", "yaml_word"]


def legal(info: FieldInfo) -> str:
    """`"a whole number >= 1"`, `"rank or indexed"`, `"a path, a list of paths or null"` …"""
    return _words(info.annotation, list(info.metadata))


def yaml_word(value: object) -> str:
    """`value` as a person would write it in YAML, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(yaml_word(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_word(item)}" for key, item in value.items()) + "}"
    return str(value)


def _words(annotation: Any, metadata: list[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        flat: list[Any] = []
        for item in more:
            flat += item.metadata if isinstance(item, FieldInfo) else [item]
        return _words(inner, flat)
    if annotation == Transform:
        return "name, or Name: {its arguments}"
    if origin in (Union, types.UnionType):
        return _joined([word for part in get_args(annotation) for word in _branch(part, metadata)])
    if origin is Literal:
        return _joined([yaml_word(value) for value in get_args(annotation)])
    if origin is list:
        (item,) = get_args(annotation)
        lengths = [getattr(m, "max_length", None) for m in metadata]
        length = next((f"{n} " for n in lengths if n is not None), "")
        words = re.sub(r"\A(?:a )?(number|path|name)", r"\1s", _words(item, []))
        return f"a list of {length}{words}"
    if origin is dict:
        return "a mapping of names to values"
    if annotation is type(None):
        return "null"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return _number("a whole number" if annotation is int else "a number", metadata)
    if annotation is str:
        return "a path" if Path in metadata else "a name"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a mapping of the keys {', '.join(annotation.model_fields)}"
    raise TypeError(f"no words for {annotation!r}")


def _branch(part: Any, metadata: list[Any]) -> list[str]:
    """The words of one branch of a union: every value of a Literal by itself."""
    if get_origin(part) is Literal:
        return [yaml_word(value) for value in get_args(part)]
    return [_words(part, metadata if part is not type(None) else [])]


def _number(kind: str, metadata: list[Any]) -> str:
    bounds: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt"):
            value = getattr(item, name, None)
            if value is not None and value != 2**63 - 1:
                bounds[name] = value
    if set(bounds) == {"ge", "le"}:
        return f"{kind} from {bounds['ge']} to {bounds['le']}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = " and ".join(f"{signs[name]} {value}" for name, value in bounds.items())
    return f"{kind} {limits}".rstrip()


def _joined(words: list[str]) -> str:
    if len(words) == 1:
        return words[0]
    comma = "," if any(", " in word for word in words) else ""  # "a mapping of the keys path, label, or null"
    return f"{', '.join(words[:-1])}{comma} or {words[-1]}"
