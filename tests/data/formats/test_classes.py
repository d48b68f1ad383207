from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import ClassesError
from data.formats.classes import Classes, read_classes

Write = Callable[..., Path]


def test_where_classes_come_from(write: Write) -> None:
    assert read_classes(None) is None
    for given in (["a b", "c"], write("a b\nc\n"), write("\ufeffa b\r\nc\r\n\r\n")):
        classes = read_classes(given)
        assert classes is not None
        assert classes.names == ("a b", "c")
    numbered = read_classes(3)
    assert numbered is not None
    assert numbered.names == ("0", "1", "2")
    assert numbered.told == "3 classes (0, 1, 2)"


def test_digits_mean_a_label_unless_a_class_is_named_so() -> None:
    assert Classes(["cat", "dog"]).numbers_are_labels
    assert Classes.numbered(4).numbers_are_labels
    odd = Classes(["1", "0"])
    assert not odd.numbers_are_labels
    assert odd.label("1") == 0
    assert Classes(["cat", "dog"]).label("1") == 1
    assert Classes(["cat", "dog"]).label("2") is None


def test_they_travel_small() -> None:
    wnids = [f"n{index * 7919 % 10**8:08d}" for index in range(1000)]
    for classes, most in ((Classes.numbered(1_000_000), 150), (Classes(wnids), 6000), (Classes(["1", "0"]), 200)):
        pickled = pickle.dumps(classes)
        copy = pickle.loads(pickled)
        assert len(pickled) < most
        assert (len(copy), copy.told, copy.is_numbered) == (len(classes), classes.told, classes.is_numbered)
        assert copy.numbers_are_labels == classes.numbers_are_labels
        assert copy.names[:5] == classes.names[:5]
        assert copy.label(classes.names[1]) == 1


def test_numbered_classes_are_a_number() -> None:
    assert Classes(["0", "1", "2"]).is_numbered
    assert not Classes(["0", "2", "1"]).is_numbered
    few = Classes.numbered(12)
    assert (len(few), few.names[11], few.label("11"), few.label("12"), few.label("x")) == (12, "11", 11, None, None)
    assert few.told == "12 classes (0, 1, 2, 3, 4, …)"


def test_labels_by_number_alone() -> None:
    odd = Classes(["1", "cat"], by_number=True)
    assert odd.numbers_are_labels
    assert (odd.label("1"), odd.label("cat"), odd.names) == (1, None, ("1", "cat"))
    assert pickle.loads(pickle.dumps(odd)).label("1") == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (0, "0 classes: legal are 1 … 10000000"),
        ([], "the list of classes is empty"),
        (["a", "b", "a"], r"entry 3: 'a' stands there twice \(first as entry 1\)"),
        (["a", ""], "entry 2: is blank"),
        ("nowhere.txt", "class file nowhere.txt: No such file or directory"),
    ],
)
def test_refusals(given: object, told: str) -> None:
    with pytest.raises(ClassesError, match=told):
        read_classes(given)  # type: ignore[arg-type]


def test_bad_class_files(write: Write) -> None:
    with pytest.raises(ClassesError, match="is empty"):
        read_classes(write(""))
    with pytest.raises(ClassesError, match="entry 2: is blank"):
        read_classes(write("a\n\nb\n"))
    with pytest.raises(ClassesError, match="is no regular file"):
        read_classes(write("x").parent)
    with pytest.raises(ClassesError, match="is not UTF-8 text"):
        read_classes(write(b"\xff\xfe"))


def test_labels_by_name_alone() -> None:
    known = Classes(["cat", "1"], by_name=True)
    for classes in (known, pickle.loads(pickle.dumps(known))):
        assert (classes.by_name, classes.numbers_are_labels) == (True, False)
        assert [classes.label(field) for field in ("cat", "1", "0")] == [0, 1, None]
    assert not Classes(["0", "1"], by_name=True).by_name, "these names are numbers"


def test_blanks_around_names() -> None:
    classes = read_classes(["cat", " dog "])
    assert classes is not None
    assert classes.names == ("cat", "dog")
    for given in ("", " "):
        with pytest.raises(ClassesError, match=r"^data\.classes is empty: it is a number, a list of names, or a file"):
            read_classes(given)
