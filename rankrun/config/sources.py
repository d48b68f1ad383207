"""From a config file, its bases and the key=value words to one tree of nodes that know where they were written."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rankrun.config.strict_yaml import MOST_BYTES, Bad, Node, Problem, check_text, parse, parse_word

__all__ = ["expand_paths", "read_file", "read_tree"]

MOST_BASES: Final = 20
_ARGUMENTS: Final = 1_000  # problems of arguments are told after those of files

_VARIABLE: Final = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))|\A~(?=/|\Z)", re.ASCII)


def read_tree(path: Path, overrides: Sequence[str], problems: list[Problem], *, frozen: bool = False) -> Node:
    """The values of `path` over those of its bases, under those of `overrides`; what is wrong goes to `problems`.

    Mappings merge key by key, all else replaces what was there. A frozen file has no base.
    """
    tree = _with_bases(path, problems, frozen)
    for number, word in enumerate(overrides):
        tree = _override(tree, word, _ARGUMENTS + number, problems)
    return tree


def _with_bases(path: Path, problems: list[Problem], frozen: bool) -> Node:
    layers: list[Node] = []
    chain: list[Path] = []
    complete = False
    here, asked = path, ""
    while True:
        if "\0" in str(here):
            problems.append(Problem(asked or str(here), "", "can't be the name of a file", (len(chain), 0)))
            break
        real = Path(os.path.realpath(here))
        if real in chain:
            names = " -> ".join(str(link.name) for link in [*chain[chain.index(real) :], real])
            problems.append(Problem(asked, "base", f"goes round in a circle: {names}", (len(chain) - 1, 0)))
            break
        if len(chain) > MOST_BASES:
            problems.append(Problem(asked, "base", f"more than {MOST_BASES} files deep", (len(chain) - 1, 0)))
            break
        text = read_file(here, asked, (max(len(chain) - 1, 0), 0), problems)
        if text is None:
            break
        layer = _mapping_of(here, text, len(chain), problems)
        chain.append(real)
        layers.append(layer)
        base = None if frozen else layer.value.pop("base", None)
        if base is None or isinstance(base.value, Bad):
            complete = base is None
            break
        asked = layer.keys["base"][0]
        if not isinstance(base.value, str) or not base.value.strip():
            text = "must be the path of another config, relative to this file"
            problems.append(Problem(asked, "base", text, base.order))
            break
        here = here.parent / base.value
    tree = Node({} if complete else Unread(), f"{path}:1", (0, 1))
    for layer in reversed(layers):
        tree = merge(tree, layer)
    return tree


def _mapping_of(path: Path, text: str, source: int, problems: list[Problem]) -> Node:
    """The mapping in `text`, a new one that may be changed; empty where there is none, which is a problem."""
    before = len(problems)
    node = parse(text, str(path), source, problems)
    if len(problems) == before and (node is None or node.value is None):
        words = "is empty; a config has at least data.train, train.epochs and train.global_batch, or a base with them"
        problems.append(Problem(str(path), "", words, (source, 0)))
    elif node is not None and not isinstance(node.value, dict):
        problems.append(Problem(node.where, "", "a config is a mapping of keys to values", node.order))
    elif node is not None:
        return Node(dict(node.value), f"{path}:1", (source, 1), dict(node.keys))
    return Node(Unread(), f"{path}:1", (source, 1))


class Unread(dict[str, Node]):
    """The keys of files of which some could not be read: none is complained about for being missing."""


def read_file(path: Path, asked: str, order: tuple[int, int], problems: list[Problem]) -> str | None:
    """The text of a config file, or None with a problem; never waits for a pipe, never reads what is far too big.

    `asked` is the place that names the file, when that is another config.
    """
    name = str(path)
    where, key = (asked, "base") if asked else (name, "")
    given = f"{name!r} " if asked else ""

    def refuse(text: str) -> None:
        problems.append(Problem(where, key, given + text, order))

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if path.is_dir() else "a pipe or device"
            refuse(f"is {kind}; a config is a YAML file")
            return None
        # O_NONBLOCK: the name may have become a pipe since the line above.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        refuse(f"no such file.{_near_file(path)}")
        return None
    except OSError as error:
        refuse(f"can't be read: {error.strerror or error}")
        return None
    if len(content) > MOST_BYTES:
        refuse(f"has more than {MOST_BYTES // 1024} KiB; a config is small (class names go into a file of their own)")
        return None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        refuse("is UTF-16; save it as UTF-8")
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        words = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        problems.append(Problem(f"{name}:{line}", "", words, order))
        return None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        problems.append(Problem(f"{name}:{line}", "", "holds a NUL byte; a config is text", order))
        return None
    return text


def _near_file(path: Path) -> str:
    """Another config near by: a letter was swapped, the ending forgotten, or the folder left out."""
    folders = [path.parent, Path("configs")]
    names: dict[str, Path] = {}
    for folder in folders:
        try:
            entries = sorted(os.listdir(folder))[:1000]
        except OSError:
            continue
        for entry in entries:
            if entry.endswith((".yaml", ".yml")):
                names.setdefault(entry, folder / entry)
    near = difflib.get_close_matches(path.name[:100], list(names), n=1, cutoff=0.6)
    return f" Did you mean {str(names[near[0]])!r}?" if near else ""


def merge(below: Node, above: Node) -> Node:
    """`above` over `below`; neither is changed, since an alias may have put the same node into several places."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    values = dict(below.value)
    for key, node in above.value.items():
        values[key] = merge(values[key], node) if key in values else node
    unread = isinstance(below.value, Unread) or isinstance(above.value, Unread)
    return Node(Unread(values) if unread else values, above.where, above.order, {**below.keys, **above.keys})


def _insert(tree: Node, parts: list[str], value: Node) -> Node:
    """A copy of `tree` with `value` at the dotted place; sections that a file has keep their place in that file."""
    part, *rest = parts
    old = tree.value.get(part)
    if rest:
        inside = old if old is not None else Node({}, value.where, value.order)
        new = _insert(inside, rest, value)
    else:
        new = value if old is None else merge(old, value)
    place = tree.keys[part] if rest and old is not None else (value.where, value.order)
    values = {**tree.value, part: new}
    value_of_tree = Unread(values) if isinstance(tree.value, Unread) else values
    return Node(value_of_tree, tree.where, tree.order, {**tree.keys, part: place})


def _override(tree: Node, word: str, source: int, problems: list[Problem]) -> Node:
    shown = word if len(word) <= 80 else word[:79] + "…"
    where, order = f"argument {shown!r}", (source, 0)
    key, equals, text = word.partition("=")
    key = key.strip()
    if any("\ud800" <= c <= "\udfff" for c in word):
        problems.append(Problem("argument", "", f"{shown!a} is not UTF-8", order))
        return tree
    parts = key.split(".")
    if not equals or not all(part.strip() for part in parts):
        problems.append(Problem(where, "", "is not key=value, as in train.epochs=5", order))
        return tree
    if len(parts) > 10 or len(key) > 200:
        problems.append(Problem(where, "", "is no key: it has too many parts", order))
        return tree
    if parts[0] == "base":
        problems.append(Problem(where, "base", "can't be given as an argument; it is a line of a config file", order))
        return tree
    before = len(problems)
    value = parse_word(text, where, source, problems)
    if value is None:
        if len(problems) == before:
            problems.append(Problem(where, key, "has no value", order))
        return tree
    here: Node | None = tree
    for depth, part in enumerate(parts[:-1]):
        here = here.value.get(part) if here is not None else None
        if here is not None and not isinstance(here.value, dict):
            name = ".".join(parts[: depth + 1])
            problems.append(Problem(where, key, f"{name} is no mapping (see {here.where}), so it has no keys", order))
            return tree
    return _insert(tree, parts, value)


def expand_paths(node: Node, key: str, env: Mapping[str, str], problems: list[Problem]) -> Node:
    """`node`, a path or a list of them, with `$NAME`, `${NAME}` and a leading `~` replaced from `env`."""
    if isinstance(node.value, list):
        items = [expand_paths(item, f"{key}[{i}]", env, problems) for i, item in enumerate(node.value)]
        return Node(items, node.where, node.order)
    if not isinstance(node.value, str):
        return node
    unset: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        name = (match[1] if match[1] is not None else match[2]) or ("HOME" if match[0] == "~" else "")
        if not env.get(name):
            unset.append(name)
        return env.get(name, "")

    text = _VARIABLE.sub(replaced, node.value)
    if unset:
        names = ", ".join(repr(name[:60]) for name in dict.fromkeys(unset))
        words = f"{node.value[:120]!r} needs the variable {names}, which is not set"
        problems.append(Problem(node.where, key, words, node.order))
        return Node(Bad(), node.where, node.order)
    try:
        check_text(text)
    except ValueError as why:
        problems.append(Problem(node.where, key, f"a variable in {node.value[:120]!r} holds {why}", node.order))
        return Node(Bad(), node.where, node.order)
    return Node(text, node.where, node.order)
