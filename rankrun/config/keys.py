"""Dotted keys: a resolved config as flat pairs, which of them are a run's identity, and what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from rankrun.config.settings import FREE, Section, Settings

__all__ = ["changed", "differences_from_defaults", "fields", "flat", "identity", "is_free"]


def fields() -> dict[str, FieldInfo]:
    """Every dotted key of the schema in its order, without the sections: `{"seed": …, "data.train": …}`."""
    return dict(_fields(Settings, ""))


def _fields(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _fields(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def is_free(key: str) -> bool:
    """True if the dotted key may change between the attempts of a run."""
    info = fields().get(key)
    return info is not None and FREE in info.metadata


def flat(settings: Settings) -> dict[str, Any]:
    """`settings` as dotted keys and builtin values; a list or a mapping of arguments is one value."""
    values: dict[str, Any] = {}
    dumped = settings.model_dump(mode="python")
    for key in fields():
        value: Any = dumped
        for part in key.split("."):
            value = value[part]
        values[key] = value
    return values


def identity(settings: Settings) -> dict[str, object]:
    """The keys and values that make a run this run: everything but what is free to change between attempts."""
    free = {key for key, info in fields().items() if FREE in info.metadata}
    return {key: value for key, value in flat(settings).items() if key not in free}


def changed(old: Settings, new: Settings) -> list[str]:
    """The dotted keys whose values differ, in the schema's order; 1 and 1.0 and true are different arguments."""
    before, after = flat(old), flat(new)
    return [key for key in after if not same(before[key], after[key])]


def differences_from_defaults(settings: Settings) -> dict[str, object]:
    """The dotted keys that are not at their defaults, with their values; required keys always belong to them."""
    values = flat(settings)
    return {
        key: values[key]
        for key, info in fields().items()
        if info.is_required() or not same(values[key], info.get_default(call_default_factory=True))
    }


def same(one: object, other: object) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
