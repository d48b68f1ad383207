from __future__ import annotations

import resource
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankrun.config.strict_yaml import Problem, parse, parse_word, plain_scalar


def read(text: str) -> tuple[Any, list[str]]:
    problems: list[Problem] = []
    node = parse(text, "f", 0, problems)
    return (None if node is None else node.plain()), [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("Null", None), ("nUll", "nUll"),
        ("true", True), ("FALSE", False), ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"),
        ("0", 0), ("-0", 0), ("+12", 12), ("0123", "0123"), ("-01", "-01"), ("0o17", 15), ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"), ("24:00:00", "24:00:00"), ("1e-3", 1e-3), ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5),
        ("+.5e+1", 5.0), ("00.5", "00.5"), ("1.5.2", "1.5.2"), ("2026-01-01", "2026-01-01"), ("inf", "inf"),
        ("nan", "nan"), ("9223372036854775807", 2**63 - 1), ("=", "="), ("<<", "<<"), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_plain_scalars_are_yaml_1_2(text: str, value: object) -> None:
    found = plain_scalar(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", [".nan", ".NaN", ".inf", "-.INF", "1e999", "1" + "0" * 500 + ".5", "9" * 10_000_000])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a finite number|more than 64 bits"):
        plain_scalar(text)


def test_numbers_keep_64_bits() -> None:
    for text in ("9223372036854775808", "-9223372036854775809", "0xffffffffffffffff"):
        with pytest.raises(ValueError, match="a number of more than 64 bits"):
            plain_scalar(text)


def test_quoted_scalars_are_text() -> None:
    assert read("""[ '1', "true", '', "~" ]""") == (["1", "true", "", "~"], [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3  a: stands here a second time (first in line 1); keep one"),
        ("a: {b: 1,\n b: 2}\n", "f:2  a.b: stands here a second time (first in line 1); keep one"),
        ("a:\n\tb: 1\n", "f:2  a tab; YAML is indented with spaces"),
        ("a: 1\n\tb: 1\n", "f:2  a tab; YAML is indented with spaces"),
        ("a: [1, 2\nb: 3\n", "f:2  is not YAML: "),
        ("a: 'x\n", "f:2  is not YAML: "),
        ("a: *x\n", "f:1  *x names no anchor above it (or one that it is inside of)"),
        ("a: &x [*x]\n", "f:1  *x names no anchor above it (or one that it is inside of)"),
        ("a: 1\n---\nb: 2\n", "f:2  a second document starts here"),
        ("a: !!python/object/apply:os.system [touch canary]\n", "f:1  a: tag 'tag:yaml.org,2002:python/object/apply:"),
        ("a: !!int '3'\n", "f:1  a: tag 'tag:yaml.org,2002:int' is refused"),
        ("a: !x 3\n", "f:1  a: tag '!x' is refused"),
        ("!!str a: 3\n", "f:1  tag 'tag:yaml.org,2002:str' is refused"),
        ("[a]: 3\n", "f:1  the config has a key that is not a word"),
        ("? {a: b}\n: 3\n", "f:1  the config has a key that is not a word"),
        ('a: "x\\ny"\n', "f:1  a: 'x\\ny' is text with a control character"),
        ('a: "\\e[31m"\n', "f:1  a: '\\x1b[31m' is text with a control character"),
        ('a: "\\ud800"\n', "f:1  "),
        ('"a\\nb": 1\n', "f:1  the key 'a\\nb' is text with a control character"),
        ("a: |\n  x\n  y\n", "f:1  a: 'x\\ny\\n' is text with a control character"),
        ("a: http://me:hunter2@host/x\n", "f:1  a: the value is a URL with a password"),
        ("a: .nan\n", "f:1  a: '.nan' is not a finite number"),
        ("a: \x07\n", "f:1  holds a control character, which YAML forbids"),
        ("a: [[[" + "[" * 100 + "\n", "f:1  values are nested deeper than 40 levels"),
        ("a: @b\n", "f:1  is not YAML: "),
        ("%YAML 1.9\n", "f:"),
    ],
)  # fmt: skip
def test_what_is_refused_has_a_line_and_words(text: str, problem: str) -> None:
    _, problems = read(text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert "hunter2" not in problems[0]


def test_several_problems_of_one_file_are_told_together() -> None:
    _, problems = read("a: .nan\nb: !x 1\na: 2\n")
    assert [line.split("  ")[0] for line in problems] == ["f:1", "f:2", "f:3"]


def test_an_alias_is_read_and_an_empty_text_is_nothing() -> None:
    assert read("a: &x {b: 1}\nc: *x\n") == ({"a": {"b": 1}, "c": {"b": 1}}, [])
    assert read("# nothing\n") == (None, [])
    assert read("") == (None, [])


def test_an_alias_bomb_is_refused_before_it_goes_off() -> None:
    levels = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(40))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    _, problems = read("a0: &a0 [lol]\n" + levels)
    assert problems == ["f:6  more than 50000 values, those of an alias counted wherever it is used"]
    # Limits of the fault contract, with slack: not speeds.
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def word(text: str) -> tuple[Any, list[str]]:
    problems: list[Problem] = []
    node = parse_word(text, "argument", 0, problems)
    return (None if node is None else node.plain()), [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), (" 1e-3 ", 1e-3), ("", None), ("a: b", "a: b"), ("x #1", "x #1"), ("*x", "*x"), ("@x", "@x"), ("%", "%"),
     ("'3'", "3"), ('"a b"', "a b"), ("[1, a]", [1, "a"]), ("{a: [1.5]}", {"a": [1.5]}), ("- a", "- a"), ("!x", "!x")],
)  # fmt: skip
def test_a_word_is_a_plain_scalar_or_flow(text: str, value: object) -> None:
    assert word(text) == (value, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[1", "is not YAML"), (".inf", "'.inf' is not a finite number"), ("a\nb", "text with a control character"),
     ("[1] 2", "is not YAML"), ("[!!python/name:os.system '']", "tag 'tag:yaml.org,2002:python/name:os.sys"),
     ("ftp://u:pw1234@h", "the value is a URL with a password")],
)  # fmt: skip
def test_a_bad_word_is_refused(text: str, problem: str) -> None:
    _, problems = word(text)
    assert len(problems) == 1
    assert problem in problems[0]
    assert "pw1234" not in problems[0]


@settings(deadline=None)
@given(st.text(alphabet="ab01.:-[]{},'\"&*!|>#?% \t\n~\\", max_size=40))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    _, problems = read(text)
    assert all(line.startswith("f:") and line.isprintable() for line in problems)
