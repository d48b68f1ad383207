from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rankrun.config import resolve
from rankrun.errors import ConfigError
from tests.config.conftest import LEAST

Write = Callable[..., Path]
Problems = Callable[..., list[str]]


def refused(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(path, overrides)
    return caught.value.problems


def test_a_base_is_relative_to_its_file_and_is_merged_key_by_key(write: Write) -> None:
    os.mkdir("sub")
    write(
        "data: {train: far.txt, val: v.txt}\noptim: {lr: 0.5, betas: [0.1, 0.2]}\nmodel: {args: {a: 1, b: 2}}\n",
        "far.yaml",
    )
    write("base: ../far.yaml\ntrain: {epochs: 1, global_batch: 4}\nmodel: {args: {b: 3}}\n", "sub/mid.yaml")
    write("base: sub/mid.yaml\noptim: {betas: [0.3, 0.4]}\ntrain: {epochs: 9}\n")
    settings = resolve("c.yaml", ["data.val=w.txt"])
    assert (settings.data.train, settings.data.val, settings.train.epochs) == ("far.txt", "w.txt", 9)
    assert (settings.optim.lr, settings.optim.betas, settings.model.args) == (0.5, [0.3, 0.4], {"a": 1, "b": 3})


def test_a_problem_of_a_base_is_told_at_its_own_line(write: Write) -> None:
    write("# a base\ndata: {train: t.txt}\noptim: {lr: -1}\n", "b.yaml")
    write("base: b.yaml\ntrain: {epochs: 0, global_batch: 8}\n")
    assert refused("c.yaml") == [
        "c.yaml:2  train.epochs: must be a whole number >= 1, not 0",
        "b.yaml:3  optim.lr: must be a number > 0, not -1",
    ]


def test_bases_that_go_round_are_refused(write: Write) -> None:
    write("base: c.yaml\n", "b.yaml")
    write("base: b.yaml\n" + LEAST)
    assert refused("c.yaml") == ["b.yaml:1  base: goes round in a circle: c.yaml -> b.yaml -> c.yaml"]
    write("base: ./c.yaml\n" + LEAST)
    assert refused("c.yaml") == ["c.yaml:1  base: goes round in a circle: c.yaml -> c.yaml"]


def test_bases_too_deep_are_refused(write: Write) -> None:
    for i in range(30):
        write(f"base: c{i + 1}.yaml\n" + LEAST, f"c{i}.yaml")
    assert refused("c0.yaml") == ["c20.yaml:1  base: more than 20 files deep"]


@pytest.mark.parametrize("base", ["3", "''", "[a.yaml]", "null", "{a: 1}"])
def test_a_base_must_be_a_path(problems: Problems, base: str) -> None:
    assert problems(f"base: {base}\n" + LEAST) == [
        "c.yaml:1  base: must be the path of another config, relative to this file"
    ]


def test_a_missing_base_is_told_at_the_line_that_names_it(write: Write) -> None:
    write("# x\nbase: digit.yaml\n" + LEAST)
    write(LEAST, "digits.yaml")
    assert refused("c.yaml") == ["c.yaml:2  base: 'digit.yaml' no such file. Did you mean 'digits.yaml'?"]


def test_a_missing_config_suggests_one_that_is_there(write: Write) -> None:
    os.mkdir("configs")
    write(LEAST, "configs/digits.yaml")
    assert refused("digits.yml") == ["digits.yml  no such file. Did you mean 'configs/digits.yaml'?"]
    assert refused("nowhere/x") == ["nowhere/x  no such file."]


def test_what_is_no_file_is_refused_without_waiting(write: Write) -> None:
    write(LEAST)
    os.mkfifo("pipe.yaml")
    os.mkdir("folder.yaml")
    assert refused("pipe.yaml") == ["pipe.yaml  is a pipe or device; a config is a YAML file"]
    assert refused("folder.yaml") == ["folder.yaml  is a folder; a config is a YAML file"]
    assert refused("/dev/zero") == ["/dev/zero  is a pipe or device; a config is a YAML file"]
    assert refused("c.yaml/x") == ["c.yaml/x  can't be read: Not a directory"]
    assert refused("a\0b") == ["a\\x00b  can't be the name of a file"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "c.yaml  is empty; a config has at least data.train, train.epochs and train.global_batch"),
        (b"# only a comment\n\n", "c.yaml  is empty; "),
        (b"---\n", "c.yaml  is empty; "),
        (b"- a\n", "c.yaml:1  a config is a mapping of keys to values"),
        (b"text", "c.yaml:1  a config is a mapping of keys to values"),
        (LEAST.encode("utf-16"), "c.yaml  is UTF-16; save it as UTF-8"),
        (b"a: 1\nb: \xe9t\xe9\n", "c.yaml:2  byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"a: 1\nb: \0\n", "c.yaml:2  holds a NUL byte; a config is text"),
        (b"\x1f\x8b\x08\x00abc", "c.yaml:1  byte 0x8b is not UTF-8"),
        (b"a: " + b"x" * 300_000, "c.yaml  has more than 256 KiB; a config is small"),
    ],
)
def test_a_file_that_is_no_config(problems: Problems, content: bytes, problem: str) -> None:
    found = problems(content)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_windows_line_ends_and_a_byte_order_mark_are_read(problems: Problems) -> None:
    assert problems(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode()) == []


def test_overrides_win_and_the_last_of_two_counts(write: Write) -> None:
    settings = resolve(
        write(LEAST),
        ["optim.lr=1e-3", "seed=1", "seed=7", "model.args={width: 8}", "model.args.depth=3", "data.train=[a, b]",
         "optim={name: adamw}", "data.val=a=b #1"],
    )  # fmt: skip
    assert (settings.optim.lr, settings.optim.name, settings.seed) == (1e-3, "adamw", 7)
    assert settings.model.args == {"width": 8, "depth": 3}
    assert (settings.data.train, settings.data.val) == (["a", "b"], "a=b #1")


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("train.epochs", "argument 'train.epochs'  is not key=value, as in train.epochs=5"),
        ("=3", "argument '=3'  is not key=value, as in train.epochs=5"),
        ("train..epochs=3", "argument 'train..epochs=3'  is not key=value, as in train.epochs=5"),
        ("", "argument ''  is not key=value, as in train.epochs=5"),
        ("base=b.yaml", "argument 'base=b.yaml'  base: can't be given as an argument; it is a line of a config file"),
        ("seed.x=1", "argument 'seed.x=1'  seed: must be a whole number >= 0, not a mapping"),
        ("train.epochs.x=1", "argument 'train.epochs.x=1'  train.epochs.x: train.epochs is no mapping (see c.yaml:2)"),
        ("a.b.c.d.e.f.g.h.i.j.k=1", "argument 'a.b.c.d.e.f.g.h.i.j.k=1'  is no key: it has too many parts"),
        ("train.epochs=", "argument 'train.epochs='  train.epochs: must be a whole number >= 1, not null"),
        ("train.epoch=3", "argument 'train.epoch=3'  train.epoch: is not a key of train. Did you mean 'epochs'?"),
        ("data.val=\udcff", "argument  'data.val=\\udcff' is not UTF-8"),
        ("data.val=$(touch canary)\n", "argument 'data.val=$(touch canary)\\n'  "),
        ("data.val=\x1b[31m", "argument 'data.val=\\x1b[31m'  "),
    ],
)  # fmt: skip
def test_a_bad_word_is_told_with_itself_as_the_place(problems: Problems, word: str, problem: str) -> None:
    found = [line for line in problems(LEAST, word) if problem]
    if "canary" in word:
        # A newline at the end is stripped with the rest of the blanks; what remains is a name, taken literally.
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_paths_take_variables_from_the_mapping(write: Write) -> None:
    text = (
        "data: {train: [$D/a.txt, '${D}/b.txt'], val: ~/v.txt, root: '~', classes: [$D, ~x]}\n" + LEAST.splitlines()[1]
    )
    settings = resolve(write(text), env={"D": "/data set", "HOME": "/home/me"})
    assert settings.data.train == ["/data set/a.txt", "/data set/b.txt"]
    assert (settings.data.val, settings.data.root) == ("/home/me/v.txt", "/home/me")
    assert settings.data.classes == ["$D", "~x"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("$NONE/a", "data.val: '$NONE/a' needs the variable 'NONE', which is not set"),
        ("${NONE}${ALSO}", "data.val: '${NONE}${ALSO}' needs the variable 'NONE', 'ALSO', which is not set"),
        ("$EMPTY/a", "data.val: '$EMPTY/a' needs the variable 'EMPTY', which is not set"),
        ("${a b}/a", "data.val: '${a b}/a' needs the variable 'a b', which is not set"),
        ("~/a", "data.val: '~/a' needs the variable 'HOME', which is not set"),
        ("$BAD", "data.val: a variable in '$BAD' holds text with a control character"),
    ],
)
def test_a_variable_that_can_not_be_used_is_a_problem(problems: Problems, path: str, problem: str) -> None:
    found = problems(LEAST, f"data.val={path}", env={"EMPTY": "", "BAD": "a\nb"})
    assert len(found) == 1
    assert problem in found[0]


def test_a_dollar_that_names_nothing_stays(settings_of: Callable[..., object], write: Write) -> None:
    assert resolve(write(LEAST), ["data.val=a$/5$.txt"]).data.val == "a$/5$.txt"
