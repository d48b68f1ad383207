from __future__ import annotations

import pickle

import pytest

import data
from data import errors
from data.errors import DataError, sized


def test_codes_are_distinct_and_drawn() -> None:
    family = errors.by_code()
    assert len(family) == 1 + len(DataError.__subclasses__())
    for code, kind in family.items():
        assert code in (errors.__doc__ or "")
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.exit_code == (1 if kind is errors.WorkerDiedError else 2)


@pytest.mark.parametrize("kind", errors.by_code().values())
def test_errors_travel_between_processes(kind: type[DataError]) -> None:
    error = kind("one", "two")
    error.told_by = 3
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "one\ntwo"
    assert copy.told_by == 3


def test_no_more_than_twenty_problems() -> None:
    error = DataError(*(f"p{i}" for i in range(30)))
    assert error.problems[-2:] == ("p19", "… and 10 more")


def test_exported_names() -> None:
    assert set(data.__all__) >= {
        "Batch", "ElasticSampler", "FolderDataset", "IndexedDataset", "MetaFile", "Permutation", "RandomErasing",
        "RankDataset", "build_loader", "errors", "prepare",
    }  # fmt: skip
    assert all(getattr(data, name) is not None for name in data.__all__)
    assert set(dir(data)) == set(data.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = data.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (102_348, "99.9 KiB"),
        (102_359, "100 KiB"),
        (1_048_166, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes_are_short(count: int, said: str) -> None:
    assert sized(count) == said
