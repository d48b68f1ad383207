"""The configuration: strict YAML files that hold differences, one schema with defaults and documentation.

Names are loaded when they are first used, so that importing this package imports neither pydantic nor yaml.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankrun.config.describing import describe, schema
    from rankrun.config.keys import changed, differences_from_defaults, identity, is_free
    from rankrun.config.resolving import Resolved, dump, load_frozen, resolve, resolve_with_origins
    from rankrun.config.settings import Settings

__all__ = [
    "Resolved",
    "Settings",
    "changed",
    "describe",
    "differences_from_defaults",
    "dump",
    "identity",
    "is_free",
    "load_frozen",
    "resolve",
    "resolve_with_origins",
    "schema",
]

_HOMES = {
    "Resolved": "resolving",
    "Settings": "settings",
    "changed": "keys",
    "describe": "describing",
    "differences_from_defaults": "keys",
    "dump": "resolving",
    "identity": "keys",
    "is_free": "keys",
    "load_frozen": "resolving",
    "resolve": "resolving",
    "resolve_with_origins": "resolving",
    "schema": "describing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
