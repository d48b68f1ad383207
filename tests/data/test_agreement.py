from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.agreement import agree, prepare
from data.datasets import open_dataset
from data.errors import DisagreementError, MetaFileError, RowError
from data.meta import MetaFile

World = Callable[[int, Callable[..., object]], list[Any]]
Write = Callable[..., Path]


def test_all_ranks_get_the_same_facts(pictures: Any, as_world: World) -> None:
    meta = pictures.meta(9)  # once: a rank must not read it while another's thread writes it anew

    def act(rank: int, gather: Any) -> object:
        dataset = open_dataset(meta, rank=rank, world_size=3)
        return prepare(dataset, rank=rank, world_size=3, gather=gather)

    facts = as_world(3, act)
    assert facts[0] == facts[1] == facts[2]
    assert json.loads(json.dumps(facts[0])) == facts[0]
    assert facts[0]["n"] == 9
    assert facts[0]["classes"] == ["0", "1", "2"]
    assert facts[0]["decoder"].startswith("torchcodec")
    assert facts[0]["channels"] == 3


def test_one_ranks_error_is_everybodys(write: Write, as_world: World, tmp_path: Path) -> None:
    good, bad = write("a 0\n", "good.txt"), write("a 0\nb\n", "bad.txt")

    def act(rank: int, gather: Any) -> object:
        path = bad if rank in (1, 2) else good
        return prepare(lambda: MetaFile(path, classes=1), rank=rank, world_size=4, gather=gather)

    errors = as_world(4, act)
    assert {type(error) for error in errors} == {RowError}
    assert len({str(error) for error in errors}) == 1
    assert "bad.txt:2  'b' has no label" in str(errors[0])
    assert [error.told_by for error in errors] == [1] * 4

    def missing(rank: int, gather: Any) -> object:
        return agree(lambda: MetaFile(tmp_path / "none" if rank == 2 else good), gather=gather)

    errors = as_world(3, missing)
    assert all(isinstance(error, MetaFileError) and error.told_by == 2 for error in errors)


def test_ranks_that_see_different_files_stop_alike(write: Write, as_world: World) -> None:
    files = [write("a 0\n", "0.txt"), write("a 0\n", "1.txt"), write("b 0\n", "2.txt")]

    def act(rank: int, gather: Any) -> object:
        return prepare(MetaFile(files[rank]), rank=rank, world_size=3, gather=gather)

    errors = as_world(3, act)
    assert all(isinstance(error, DisagreementError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert "fingerprint is" in str(errors[0])
    assert "on rank 2; is the same meta file" in str(errors[0])
    assert errors[1].told_by == 0


def test_a_gather_of_the_wrong_size(write: Write) -> None:
    with pytest.raises(DisagreementError, match="rank 0 heard of 1 rank, the world size is 2"):
        prepare(MetaFile(write("a 0\n")), rank=0, world_size=2, gather=lambda thing: [thing])
