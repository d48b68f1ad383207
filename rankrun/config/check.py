"""All that the schema finds wrong with a tree of nodes, as problems with the place of each key."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rankrun.config.keys import fields
from rankrun.config.legal import legal
from rankrun.config.settings import Section, Settings
from rankrun.config.sources import Unread
from rankrun.config.strict_yaml import Bad, Node, Problem
from rankrun.errors import did_you_mean, nearest

__all__ = ["check", "place_of"]

# What a model is told by other keys; an argument of the same name would quietly win or lose against them.
_SAID_ELSEWHERE: Final = {
    "name": "model.name",
    "init": "model.init",
    "zero_init_last_norm": "model.zero_init_last_norm",
    "num_classes": "data.classes",
    "in_channels": "data.channels",
    "allow_dotted": "nothing",
}
_TRUTHS: Final = {"yes", "no", "on", "off", "y", "n"}
_OTHER_NUMBER: Final = re.compile(r"[-+]?[0-9][0-9_,. ]*(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)


def check(tree: Node, problems: list[Problem]) -> Settings | None:
    """The settings that `tree` holds, or None with every problem added to `problems`."""
    plain = tree.plain()
    for name, info in Settings.model_fields.items():
        # Sections that are left out are there with their defaults; filling them in here spares pydantic from
        # building each section's own validator (half of the time that reading a config takes).
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            plain.setdefault(name, {})
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(plain)
    except ValidationError as error:
        problems += _translate(error, tree)
    _check_together(tree, problems)
    return settings


def place_of(tree: Node, path: tuple[str | int, ...]) -> tuple[str, tuple[int, int]]:
    """Where the key at `path` was written; the nearest key above it that was, when it wasn't."""
    place, node = (tree.where, tree.order), tree
    for part in path:
        child = _child(node, part)
        if child is None:
            break
        place = node.keys.get(part, place) if isinstance(part, str) else (child.where, child.order)
        node = child
    return place


def _translate(error: ValidationError, tree: Node) -> list[Problem]:
    found: dict[tuple[str | int, ...], str] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path = _path_in(tree, detail["loc"], missing=detail["type"] == "missing")
        found.setdefault(path, detail["type"])
    problems: list[Problem] = []
    # A required key that was misspelt is one mistake: the misspelling, with the key as its suggestion.
    misspelt = {(*path[:-1], _meant(path)) for path, kind in found.items() if kind == "extra_forbidden"}
    for path, kind in found.items():
        if kind == "missing" and path in misspelt:
            continue
        # A union complains once per branch; what a deeper branch says is nearer to what was meant.
        if any(len(other) > len(path) and other[: len(path)] == path for other in found):
            continue
        node = _node_at(tree, path)
        if node is not None and isinstance(node.value, Bad):
            continue
        if kind == "missing" and isinstance(tree.value, Unread):
            continue
        where, order = place_of(tree, path)
        problems.append(Problem(where, _dotted(path), _text(path, kind, node), order))
    return problems


def _path_in(tree: Node, loc: tuple[str | int, ...], *, missing: bool) -> tuple[str | int, ...]:
    """pydantic's location without the names of union branches that it mixes in."""
    path: list[str | int] = []
    node: Node | None = tree
    for i, part in enumerate(loc):
        if node is not None and (child := _child(node, part)) is not None:
            node = child
        elif missing and (i == len(loc) - 1 or (i == 0 and part in Settings.model_fields)):
            node = None
        else:
            continue
        path.append(part)
    return tuple(path)


def _node_at(tree: Node, path: tuple[str | int, ...]) -> Node | None:
    node: Node | None = tree
    for part in path:
        node = None if node is None else _child(node, part)
    return node


def _child(node: Node, part: str | int) -> Node | None:
    found: Any = None
    if isinstance(node.value, dict):
        found = node.value.get(part)
    elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        found = node.value[part]
    return found if isinstance(found, Node) else None


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text if len(text) <= 120 else text[:119] + "…"


def _text(path: tuple[str | int, ...], kind: str, node: Node | None) -> str:
    if kind == "extra_forbidden":
        return _unknown(path)
    info = _info(path)
    if info is None:  # the whole
        return f"must be a mapping, not {_shown(node)}"
    words = legal(info)
    if kind == "missing":
        return f"is required: {words} ({info.description})"
    return f"must be {words}, not {_shown(node)}.{_hint(words, node)}".removesuffix(".")


def _info(path: tuple[str | int, ...]) -> FieldInfo | None:
    """What the schema says of the key at `path`, or of the nearest one above it, such as a list of its items."""
    section: type[Section] | None = Settings
    found: FieldInfo | None = None
    for part in path:
        if section is None or part not in section.model_fields:
            break
        found = section.model_fields[str(part)]
        section = _section_of(found)
    return found


def _section_of(info: FieldInfo) -> type[Section] | None:
    """The section that a key holds: always, or where it isn't null (`Columns | None`)."""
    kinds = (info.annotation, *get_args(info.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _hint(words: str, node: Node | None) -> str:
    value = node.value if node is not None else None
    if not isinstance(value, str):
        return ""
    if words == "true or false" and value.lower() in _TRUTHS:
        return f" Write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}; YAML 1.2 knows no other words"
    if "number" in words and _OTHER_NUMBER.match(value):
        return " Write the number without quotes, separators or leading zeros"
    if value.lower() == "gpu" and "cuda" in words:
        return " Did you mean 'cuda'?"
    return did_you_mean(value, [word for word in re.split(r", | or ", words) if " " not in word])


def _siblings(path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand where the unknown key at `path` stands."""
    section: type[Section] | None = Settings
    for part in path[:-1]:
        section = None if section is None else _section_of(section.model_fields[str(part)])
    assert section is not None, "an unknown key stands in a section"
    return list(section.model_fields)


def _meant(path: tuple[str | int, ...]) -> str | None:
    return nearest(str(path[-1]), _siblings(path))


def _unknown(path: tuple[str | int, ...]) -> str:
    given, siblings = str(path[-1]), _siblings(path)
    group = f"is not a key of {_dotted(path[:-1])}" if len(path) > 1 else "is not a key of a config"
    if given == "<<":
        return f"{group}. Merge keys are not of YAML 1.2; use base: other.yaml"
    if given == "base":
        return f"{group}; base stands at the top level"
    near = did_you_mean(given, siblings)
    if not near:
        # The right word at the wrong place: `epochs` at the top, `optim.batch` …
        elsewhere = {key.rpartition(".")[2]: key for key in reversed(fields())}
        elsewhere.update({name: name for name in Settings.model_fields})
        word = nearest(given, list(elsewhere))
        near = f" Did you mean {elsewhere[word]!r}?" if word else ""
    return f"{group}.{near}" if near else f"{group}. Its keys: {', '.join(siblings)}"


def _shown(node: Node | None) -> str:
    value = node.value if node is not None else None
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:59] + "…") if value else "an empty text"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_together(tree: Node, problems: list[Problem]) -> None:
    """What no single key shows: contradictions between keys, names given twice, two transforms in one item."""

    def value(key: str) -> Any:
        node = _node_at(tree, tuple(key.split(".")))
        return fields()[key].get_default(call_default_factory=True) if node is None else node.value

    def tell(path: tuple[str | int, ...], text: str) -> None:
        where, order = place_of(tree, path)
        problems.append(Problem(where, _dotted(path), text, order))

    for key, info in fields().items():
        # pydantic compares: true and 1.0 are equal to 1.
        choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        node = _node_at(tree, tuple(key.split(".")))
        if node is not None and any(
            choice == node.value and type(choice) is not type(node.value) for choice in choices
        ):
            tell(tuple(key.split(".")), f"must be {legal(info)}, not {_shown(node)}")
    still = value("optim.momentum") == 0 and value("optim.momentum") is not False
    if still and value("optim.name") == "sgd" and value("optim.nesterov") is True:
        tell(("optim", "momentum"), "must be > 0 while optim.nesterov is true; set optim.nesterov to false as well")
    given = value("model.args")
    for name in given if isinstance(given, dict) else ():
        if name in _SAID_ELSEWHERE:
            tell(("model", "args", name), f"is no argument to give here: {_SAID_ELSEWHERE[name]} says it")
    classes = value("data.classes")
    if isinstance(classes, list):
        seen: set[str] = set()
        for i, item in enumerate(classes):
            if isinstance(item.value, str) and item.value in seen:
                tell(("data", "classes", i), f"names {item.value[:60]!r} a second time")
            seen.add(item.value if isinstance(item.value, str) else "")
        if not classes:
            tell(("data", "classes"), "is an empty list; name the classes, or leave it out")
    for key in ("train_transforms", "eval_transforms"):
        items = value(f"data.{key}")
        for i, item in enumerate(items if isinstance(items, list) else []):
            if isinstance(item.value, dict) and len(item.value) != 1:
                tell(("data", key, i), f"names {len(item.value)} transforms; give each an item of its own")
            elif item.value == "":
                tell(("data", key, i), "is an empty text; name a transform")
