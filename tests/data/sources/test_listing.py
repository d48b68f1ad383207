from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data.errors import ClassesError, DataError, RowError
from data.formats.classes import Classes
from data.sources import listing
from data.sources.listing import Labels, Stamp, fits_a_line, stamp, unchanged


def numbered(*labels: str | tuple[str, ...], given: object = None) -> tuple[tuple[str, ...], list[str]]:
    gathered = Labels(given)  # type: ignore[arg-type]
    parts = [label if isinstance(label, tuple) else (label,) for label in labels]
    codes = [gathered.code(part, f"row {row}") for row, part in enumerate(parts)]
    classes, texts = gathered.numbered()
    assert [gathered.text(part) for part in parts] == [texts[code] for code in codes]
    return classes.names, [texts[code].decode() for code in codes]


def test_whole_numbers_stand_as_they_are() -> None:
    assert numbered("3", "0", "3", "01") == (("0", "1", "2", "3"), ["3", "0", "3", "1"])
    assert numbered("3", given=10)[0] == tuple("0123456789")
    with pytest.raises(
        RowError, match=r"^row 1  label '3' is none of the 3 classes \(0, 1, 2\): mend it, or data\.clas"
    ):
        numbered("0", "3", given=3)


def test_one_name_makes_all_of_them_names() -> None:
    assert numbered("b", "ä", "10", "B") == (("10", "B", "b", "ä"), ["2", "3", "0", "1"])
    assert numbered("b", "a", given=2) == (("a", "b"), ["1", "0"])
    with pytest.raises(
        ClassesError, match=r"^2 classes by name \(a, b\), but data\.classes is 3: remove data\.classes"
    ):
        numbered("b", "a", given=3)


def test_given_names_decide() -> None:
    assert numbered("b", "c", given=["c", "b", "a"]) == (("c", "b", "a"), ["1", "0"])
    assert numbered("1", "0", given=["1", "0"]) == (("1", "0"), ["0", "1"])
    assert numbered("1", given=Classes(["1", "0"], by_number=True)) == (("1", "0"), ["1"])
    with pytest.raises(RowError, match=r"^row 0  label 'd' is none of the 1 class \(c\)"):
        numbered("d", given=["c"])


def test_several() -> None:
    assert numbered(("3", "1"), "2") == (("0", "1", "2", "3"), ["3,1", "2"])
    assert numbered(("dog", "crane, bird"), "dog") == (("crane, bird", "dog"), ["1,0", "1"])
    gathered = Labels(None)
    gathered.code(("1",), "")
    assert not gathered.several
    gathered.code(("1", "2"), "")
    assert gathered.several


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("", "label '' is neither a number nor a name"),
        (" a", "label ' a' is neither"),
        ("a\nb", r"label 'a\\nb' is neither"),
        ("x" * 300, "label 'x{37}…' is neither a number nor a name of one line, at most 256 long"),
        ("-3", "label -3 is below 0"),
    ],
)
def test_labels_that_are_none(label: str, told: str) -> None:
    with pytest.raises(RowError, match=f"^row 0  {told}"):
        numbered(label)


def test_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_CLASSES", 2)
    with pytest.raises(ClassesError, match="3 different labels: at most 2 classes are legal"):
        numbered("a", "b", "c")
    with pytest.raises(DataError, match=r"legal are 1 … 10000000"):
        numbered("99999999")


def test_names_that_fit_a_line() -> None:
    assert fits_a_line("a b/ä.png")
    for name in ("a\n", "a\rb", "a\0", "a ", "a\t", "\ufeffa", "\udcff"):
        assert not fits_a_line(name)


def test_stamps(tmp_path: Path) -> None:
    assert not unchanged([], time.time_ns()), "no stamp proves nothing"
    path = tmp_path / "x"
    path.write_bytes(b"12")
    os.utime(path, (1, 1))
    seen = stamp(path)
    assert seen == Stamp(str(path), 2, 1_000_000_000)
    assert unchanged([seen], time.time_ns())
    assert not unchanged([seen], 2_000_000_000), "as young as its listing"
    assert not unchanged([seen._replace(size_bytes=3)], time.time_ns())
    assert stamp(tmp_path).size_bytes == -1
    path.unlink()
    assert not unchanged([seen], time.time_ns())
