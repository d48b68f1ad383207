from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from data.formats.format import FORMATS
from data.formats.sniff import ROLES
from rankrun.config.settings import Columns, Data
from tests.config.conftest import LEAST

Problems = Callable[..., list[str]]


def test_five_mistakes_are_five_lines_in_the_order_of_the_file(problems: Problems) -> None:
    text = "data:\n  trian: t.txt\n  mode: indxed\n  workers: two\ntrain:\n  epochs: 5\n  global_batch: 0\nmodle: {}\n"
    assert problems(text) == [
        "c.yaml:2  data.trian: is not a key of data. Did you mean 'train'?",
        "c.yaml:3  data.mode: must be rank or indexed, not 'indxed'. Did you mean 'indexed'?",
        "c.yaml:4  data.workers: must be a whole number from 0 to 4096, not 'two'",
        "c.yaml:7  train.global_batch: must be a whole number >= 1, not 0",
        "c.yaml:8  modle: is not a key of a config. Did you mean 'model'?",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.epochs='5'", "not '5'. Write the number without quotes, separators or leading zeros"),
        ("train.epochs=1_000", "not '1_000'. Write the number without"),
        ("train.epochs=2.0", "must be a whole number >= 1, not 2.0"),
        ("train.epochs=true", "must be a whole number >= 1, not true"),
        ("data.audit=yes", "must be true or false, not 'yes'. Write true; YAML 1.2 knows no other words"),
        ("data.audit=off", "not 'off'. Write false; YAML 1.2 knows no other words"),
        ("data.audit=1", "must be true or false, not 1"),
        ("data.channels=2", "must be 1 or 3, not 2"),
        ("train.device=gpu", "must be auto, cpu or cuda, not 'gpu'. Did you mean 'cuda'?"),
        ("model.args={num_classes: 3}", "model.args.num_classes: is no argument to give here: data.classes says it"),
        ("model.args={name: x}", "model.args.name: is no argument to give here: model.name says it"),
        ("data.channels=true", "must be 1 or 3, not true"),
        ("data.channels=1.0", "must be 1 or 3, not 1.0"),
        ("optim.lr=-0.1", "must be a number > 0, not -0.1"),
        ("optim.lr=.nan", "'.nan' is not a finite number"),
        ("optim.lr=1e999", "'1e999' is not a finite number"),
        ("optim.lr=true", "must be a number > 0, not true"),
        ("optim.betas=[0.9]", "must be a list of 2 numbers >= 0 and < 1, not a list of 1"),
        ("optim.betas=[0.9, 1]", "optim.betas[1]: must be a list of 2 numbers >= 0 and < 1, not 1"),
        ("data.train=", "data.train: must be a path or a list of paths, not null"),
        ("data.train=''", "data.train: must be a path or a list of paths, not an empty text"),
        ("data.train=[]", "data.train: must be a path or a list of paths, not an empty list"),
        ("data.train=[a, 3]", "data.train[1]: must be a path or a list of paths, not 3"),
        ("data.classes=0", "data.classes: must be a whole number >= 1, a list of names, a path or null, not 0"),
        ("data.classes=[a, b, a]", "data.classes[2]: names 'a' a second time"),
        ("data.classes=[]", "data.classes: is an empty list; name the classes, or leave it out"),
        ("data.order=Block", "data.order: must be row or block, not 'Block'. Did you mean 'block'?"),
        ("data.read=stream", "data.read: must be shard or direct, not 'stream'"),
        ("data.format=CSV", "must be lines, csv, tsv, jsonl, frames or null, not 'CSV'. Did you mean 'csv'?"),
        ("data.columns=file", "must be a mapping of the keys path, label, labels, frames, start, stop, or null, not"),
        ("data.columns.lable=x", "data.columns.lable: is not a key of data.columns. Did you mean 'label'?"),
        ("data.columns.label=-1", "data.columns.label: must be a name, a whole number >= 0 or null, not -1"),
        ("data.columns={path: [a]}", "data.columns.path: must be a name, a whole number >= 0 or null, not a list of 1"),
        ("data.exclude=[]", "data.exclude: must be a path, a list of paths or null, not an empty list"),
        ("data.train_transforms=Flip", "must be a list of names, or Name: {its arguments}, not 'Flip'"),
        ("data.train_transforms=[{RandomCrop: 28}]", "data.train_transforms[0].RandomCrop: must be a list of"),
        ("data.train_transforms=[{A: {}, B: {}}]", "data.train_transforms[0]: names 2 transforms; give each an item"),
        ("data.train_transforms=[{}]", "data.train_transforms[0]: names 0 transforms"),
        ("data.train_transforms=['']", "data.train_transforms[0]: is an empty text; name a transform"),
        ("data.train_transforms=[5]", "data.train_transforms[0]: must be a list of"),
        ("optim.momentum=0", "must be > 0 while optim.nesterov is true; set optim.nesterov to false as well"),
        ("train=5", "train: must be a mapping of the keys epochs, global_batch, "),
        ("model=", "model: must be a mapping of the keys name, args, init, zero_init_last_norm, not null"),
        ("model.args=[1]", "model.args: must be a mapping of names to values, not a list of 1"),
        ("epochs=3", "epochs: is not a key of a config. Did you mean 'train.epochs'?"),
        ("optim.global_batch=3", "optim.global_batch: is not a key of optim. Did you mean 'train.global_batch'?"),
        ("zzzz=3", "zzzz: is not a key of a config. Its keys: seed, data, model, train, "),
        ("seed=9223372036854775808", "is a number of more than 64 bits"),
        ("seed=-1", "seed: must be a whole number >= 0, not -1"),
        ("train.base=x", "train.base: is not a key of train; base stands at the top level"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_with_what_is_legal(problems: Problems, override: str, problem: str) -> None:
    found = problems(LEAST, override)
    assert len(found) == 1
    assert found[0].startswith("argument ")
    assert problem in found[0]


def test_contradictions_are_seen_beside_other_problems(problems: Problems) -> None:
    found = problems(LEAST + "optim:\n  momentum: 0.0\n  lr: 0\n")
    assert [line.split(": ")[0] for line in found] == ["c.yaml:4  optim.momentum", "c.yaml:5  optim.lr"]
    assert problems(LEAST, "optim.momentum=0", "optim.name=adamw") == []


def test_merge_keys_are_refused_with_the_cure(problems: Problems) -> None:
    text = LEAST.replace("train: {", "train:\n  <<: {log_every_steps: 3}\n  x: {")
    assert any(
        "<<: is not a key of train. Merge keys are not of YAML 1.2; use base: other.yaml" in p for p in problems(text)
    )


def test_at_most_twenty_lines(problems: Problems) -> None:
    found = problems(LEAST + "".join(f"key{i}: 1\n" for i in range(50)))
    assert len(found) == 20
    assert found[0].startswith("c.yaml:3  key0: ")
    assert found[-1] == "and 31 more problems, shown when these are gone"
    assert len(problems(LEAST + "".join(f"key{i}: 1\n" for i in range(20)))) == 20


def test_a_refused_value_is_not_told_twice_and_an_unreadable_file_misses_nothing(problems: Problems) -> None:
    assert problems("data: {train: .nan}\ntrain: {epochs: 1, global_batch: 1}") == [
        "c.yaml:1  data.train: '.nan' is not a finite number"
    ]
    assert len(problems("data: {train: [\n")) == 1


def test_long_and_hostile_keys_stay_short_and_printable(problems: Problems) -> None:
    found = problems(LEAST + f"{'k' * 900}: 1\n'a\\x1b[2Jb': 2\n")
    assert len(found) == 2
    assert all(len(line) < 500 for line in found)


def test_the_formats_are_those_of_the_data_package() -> None:
    (names, _) = get_args(Data.model_fields["format"].annotation)
    assert set(get_args(names)) == set(FORMATS)
    assert list(Columns.model_fields) == ["path", "label", "labels", "frames", "start", "stop"]
    assert {*ROLES, "labels"} == set(Columns.model_fields)
