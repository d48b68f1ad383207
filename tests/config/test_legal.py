from __future__ import annotations

import pytest
from pydantic.fields import FieldInfo

from rankrun.config.keys import fields
from rankrun.config.legal import legal, yaml_word


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed", "a whole number >= 0"),
        ("data.train", "a path or a list of paths"),
        ("data.val", "a path, a list of paths or null"),
        ("data.classes", "a whole number >= 1, a list of names, a path or null"),
        ("data.mode", "rank or indexed"),
        ("data.channels", "1 or 3"),
        ("data.format", "lines, csv, tsv, jsonl, frames or null"),
        ("data.columns", "a mapping of the keys path, label, labels, frames, start, stop, or null"),
        ("data.workers", "a whole number from 0 to 4096"),
        ("data.train_transforms", "a list of names, or Name: {its arguments}"),
        ("model.args", "a mapping of names to values"),
        ("train.micro_batch", "a whole number >= 1 or null"),
        ("loss.label_smoothing", "a number >= 0 and < 1"),
        ("loss.name", "cross_entropy"),
        ("optim.betas", "a list of 2 numbers >= 0 and < 1"),
        ("optim.nesterov", "true or false"),
    ],
)
def test_words_for_what_a_key_may_hold(key: str, words: str) -> None:
    assert legal(fields()[key]) == words


def test_every_key_has_words() -> None:
    assert all(legal(info) for info in fields().values())


def test_a_type_without_words_is_an_error_of_ours() -> None:
    with pytest.raises(TypeError, match="no words for <class 'complex'>"):
        legal(FieldInfo(annotation=complex))


def test_values_are_shown_as_yaml() -> None:
    assert yaml_word({"a": [1, None, True, "x"]}) == "{a: [1, null, true, x]}"
