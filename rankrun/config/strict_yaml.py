"""YAML read strictly into nodes that know their line: 1.2's scalars, no tags, no duplicate keys, no bombs.

PyYAML's own loaders follow YAML 1.1 (`no` is False, `24:00:00` a number, `1e-3` a string), keep the last of two equal
keys without a word, and copy what an alias names as often as it is named. Here its events are read and everything else
is ours, so that all of that can be refused with a line number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from rankrun.errors import printable

__all__ = ["MOST_BYTES", "Bad", "Node", "Problem", "check_text", "parse", "parse_word", "plain_scalar"]

# A config of a thousand class names is 20 kB. What is far past that is a mistake or an attack, and reading it would
# break the promise to answer at once.
MOST_BYTES: Final = 256 * 1024
MOST_NODES: Final = 50_000
MOST_DEPTH: Final = 40

_LOADER: Final[type] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z", re.ASCII)
_BASED: Final = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)
_SPECIAL: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z", re.ASCII)
_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_URL_PASSWORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://[^/\s@]{0,200}:[^/\s@]{1,200}@")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (`file:line` or an argument), at which key (may be empty), and what."""

    where: str
    key: str
    text: str
    order: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return printable(f"{self.where}  {self.key}: {self.text}" if self.key else f"{self.where}  {self.text}")


@dataclass
class Node:
    """A value of a config and the place where it was written.

    `value` is a scalar, a list of nodes, or a mapping of nodes. `order` sorts problems: (source, line).
    """

    value: Any
    where: str
    order: tuple[int, int]
    keys: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without the places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class _Refused(Exception):
    """What makes the rest of a text unreadable."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def plain_scalar(text: str) -> str | int | float | bool | None:
    """What a plain (unquoted) scalar means in YAML 1.2's core schema; ValueError for one that we refuse.

    A number with a leading zero stays text: `0123` is a zip code or a mistake, never 123.
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.match(text) or _BASED.match(text):
        # 2**63 - 1 has 19 digits. int() of a long text takes quadratic time, so it is never tried.
        if len(text) > 24 or not -(2**63) <= int(text, 0) < 2**63:
            raise ValueError("a number of more than 64 bits")
        return int(text, 0)
    if _SPECIAL.match(text):
        raise ValueError("not a finite number")
    if _FLOAT.match(text):
        number = float(text) if len(text) <= 400 else math.inf
        if not math.isfinite(number):
            raise ValueError("not a finite number")
        return number
    return text


def parse(text: str, name: str, source: int, problems: list[Problem]) -> Node | None:
    """The one document of `text`, or None when it is empty or unreadable; what is wrong is added to `problems`."""
    return _Reader(name, source, problems).read(text, argument=False)


def parse_word(text: str, where: str, source: int, problems: list[Problem]) -> Node | None:
    """The value of a `key=value` word: a flow collection or a quoted scalar is YAML, the rest one plain scalar.

    The shell has split and unquoted the word already, so `a: b`, `x #1` and `*x` are text as they stand.
    """
    stripped = text.strip()
    reader = _Reader(where, source, problems, is_word=True)
    if stripped[:1] in ("[", "{", '"', "'"):
        return reader.read(stripped, argument=True)
    node = Node(None, where, (source, 0))
    try:
        node.value = plain_scalar(stripped)
        if isinstance(node.value, str):
            check_text(node.value)
    except ValueError as why:
        problems.append(Problem(where, "", f"{_short(stripped)} is {why}", (source, 0)))
        return None
    return node


def check_text(text: str) -> None:
    """ValueError for text that must not get into logs, scripts, file names or records."""
    for c in text:
        if not (c.isprintable() or (c.isspace() and c >= "\xa0")) or "\ud800" <= c <= "\udfff":
            raise ValueError("text with a control character or a broken one; write it without")
    if _URL_PASSWORD.search(text):
        raise ValueError("a URL with a password, which would be written to the run folder; keep it elsewhere")


def _short(text: str, most: int = 60) -> str:
    if _URL_PASSWORD.search(text):
        return "the value"
    return repr(text if len(text) <= most else text[: most - 1] + "…")


class _Reader:
    def __init__(self, name: str, source: int, problems: list[Problem], *, is_word: bool = False) -> None:
        self.name, self.source, self.problems, self.is_word = name, source, problems, is_word
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = 0
        self.line = 1

    def where(self, line: int) -> str:
        return self.name if self.is_word else f"{self.name}:{line}"

    def tell(self, line: int, key: str, text: str) -> None:
        self.problems.append(Problem(self.where(line), key, text, (self.source, line)))

    def read(self, text: str, *, argument: bool) -> Node | None:
        try:
            # An explicit list of generator steps: events come one by one, so a bomb stops the reading early.
            events = self.events(text)
            next(events)  # the stream's start
            if isinstance(next(events), yaml.StreamEndEvent):
                return None
            node = self.node(next(events), events, "", 0)
            next(events)  # the document's end
            after = next(events)
            if not isinstance(after, yaml.StreamEndEvent):
                raise _Refused(self.line, "a second document starts here; a config is one")
            return node
        except _Refused as refused:
            self.tell(refused.line, "", refused.text)
        except yaml.YAMLError as error:
            line, words = _explain_syntax(error, text)
            self.tell(line, "", words)
        except StopIteration:
            self.tell(self.line, "", "ends in the middle of a value")
        return None

    def events(self, text: str) -> Iterator[Any]:
        parsed: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        for event in parsed:
            self.line = event.start_mark.line + 1
            yield event

    def count(self, line: int, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MOST_NODES:
            raise _Refused(line, f"more than {MOST_NODES} values, those of an alias counted wherever it is used")

    def node(self, event: Any, events: Iterator[Any], key: str, depth: int) -> Node:
        line = event.start_mark.line + 1
        if depth > MOST_DEPTH:
            raise _Refused(line, f"values are nested deeper than {MOST_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _Refused(line, f"*{event.anchor} names no anchor above it (or one that it is inside of)")
            node, size = self.anchors[event.anchor]
            self.count(line, size)
            return node
        before = self.nodes
        self.count(line, 1)
        if event.tag is not None:
            # Refused before anything is made of it: a tag is how YAML asks for objects of any class.
            self.tell(line, key, f"tag {_short(event.tag)} is refused; write the value plainly")
        node = Node(None, self.where(line), (self.source, line))
        if isinstance(event, yaml.ScalarEvent):
            node.value = self.scalar(event, key)
        elif isinstance(event, yaml.SequenceStartEvent):
            node.value = self.sequence(events, key, depth)
        else:
            node.value, node.keys = self.mapping(events, key, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, self.nodes - before)
        return node

    def scalar(self, event: Any, key: str) -> Any:
        line = event.start_mark.line + 1
        text: str = event.value
        try:
            value = plain_scalar(text) if event.implicit[0] and not event.style else text
            if isinstance(value, str):
                check_text(value)
        except ValueError as why:
            self.tell(line, key, f"{_short(text)} is {why}")
            return _BAD
        return value

    def sequence(self, events: Iterator[Any], key: str, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self.node(event, events, f"{key}[{len(items)}]", depth + 1))
        return items

    def mapping(
        self, events: Iterator[Any], key: str, depth: int
    ) -> tuple[dict[str, Node], dict[str, tuple[str, tuple[int, int]]]]:
        values: dict[str, Node] = {}
        places: dict[str, tuple[str, tuple[int, int]]] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise _Refused(line, f"{key or 'the config'} has a key that is not a word")
            self.count(line, 1)
            name: str = event.value
            dotted = f"{key}.{name}" if key else name
            if event.tag is not None:
                self.tell(line, key, f"tag {_short(event.tag)} is refused; write the key plainly")
            try:
                check_text(name)
            except ValueError as why:
                self.tell(line, key, f"the key {_short(name)} is {why}")
                name = repr(name)
            value = self.node(next(events), events, dotted, depth + 1)
            if name in values:
                self.tell(line, dotted[:200], f"stands here a second time (first in line {lines[name]}); keep one")
                continue
            values[name], lines[name] = value, line
            places[name] = (self.where(line), (self.source, line))
        return values, places


class Bad:
    """Stands where a value was refused already, so that it is not complained about a second time."""

    def __repr__(self) -> str:
        return "<refused>"


_BAD: Final = Bad()


def _explain_syntax(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and words for what PyYAML could not read."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        # A reader error: a character that YAML forbids. Its position counts characters, or bytes under libyaml.
        position = min(int(getattr(error, "position", 0) or 0), len(text))
        return text.count("\n", 0, position) + 1, "holds a control character, which YAML forbids"
    line = int(mark.line) + 1
    lines = text.split("\n")
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())] or "'\\t'" in str(getattr(error, "problem", "")):
        return line, "a tab; YAML is indented with spaces"
    words = str(getattr(error, "problem", None) or error).split("\n")[0]
    return line, f"is not YAML: {words} (column {int(mark.column) + 1})"
