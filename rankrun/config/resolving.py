"""A config file, its bases and overrides resolved into settings; settings written down and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from rankrun.config.check import check, place_of
from rankrun.config.keys import fields
from rankrun.config.settings import Settings
from rankrun.config.sources import expand_paths, read_tree
from rankrun.config.strict_yaml import Node, Problem, plain_scalar
from rankrun.errors import ConfigError

__all__ = ["Resolved", "dump", "load_frozen", "resolve", "resolve_with_origins"]

MOST_PROBLEMS: Final = 20
_PATHS: Final = ("train", "val", "root", "classes", "exclude")


@dataclass(frozen=True)
class Resolved:
    """Settings, and for each dotted key where its value came from: `file:line`, an argument, or `default`."""

    settings: Settings
    origins: dict[str, str]


def resolve(path: Path | str, overrides: Sequence[str] = (), *, env: Mapping[str, str] | None = None) -> Settings:
    """The settings of a config file over its bases, with `key.sub=value` words over both.

    `$NAME`, `${NAME}` and a leading `~` in paths are replaced from `env`. ConfigError holds every problem at once.
    """
    return resolve_with_origins(path, overrides, env=env).settings


def resolve_with_origins(
    path: Path | str, overrides: Sequence[str] = (), *, env: Mapping[str, str] | None = None
) -> Resolved:
    """As `resolve`, and where each value came from."""
    problems: list[Problem] = []
    tree = read_tree(Path(path), overrides, problems)
    _expand(tree, env or {}, problems)
    return _finish(tree, problems)


def load_frozen(path: Path | str) -> Settings:
    """The settings that `dump` wrote to `path`; nothing is inherited, overridden or expanded any more."""
    problems: list[Problem] = []
    return _finish(read_tree(Path(path), (), problems, frozen=True), problems).settings


def dump(settings: Settings) -> str:
    """The whole resolved config as YAML that `load_frozen` reads back as the same settings."""
    text: str = yaml.dump(
        settings.model_dump(mode="python"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return text


def _finish(tree: Node, problems: list[Problem]) -> Resolved:
    settings = check(tree, problems)
    if problems or settings is None:
        problems.sort(key=lambda problem: problem.order)
        lines = list(dict.fromkeys(str(problem) for problem in problems))
        if len(lines) > MOST_PROBLEMS:
            rest = len(lines) - (MOST_PROBLEMS - 1)
            lines = [*lines[: MOST_PROBLEMS - 1], f"and {rest} more problems, shown when these are gone"]
        raise ConfigError(lines)
    origins = {}
    for key in fields():
        path = tuple(key.split("."))
        node: Any = tree
        for part in path:
            node = node.value.get(part) if node is not None and isinstance(node.value, dict) else None
        origins[key] = "default" if node is None else place_of(tree, path)[0]
    return Resolved(settings, origins)


def _expand(tree: Node, env: Mapping[str, str], problems: list[Problem]) -> None:
    data = tree.value.get("data")
    if data is None or not isinstance(data.value, dict):
        return
    values = dict(data.value)
    for key in _PATHS:
        # A list of classes is a list of names, and a name may hold a dollar sign.
        if key in values and not (key == "classes" and isinstance(values[key].value, list)):
            values[key] = expand_paths(values[key], f"data.{key}", env, problems)
    tree.value["data"] = Node(values, data.where, data.order, data.keys)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as something else than text (PyYAML quotes by 1.1 only); writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        is_text = isinstance(plain_scalar(text), str)
    except ValueError:
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else '"')


_Dumper.add_representer(str, _text)
