from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import lines
from data.errors import ChangedError, RowError
from data.meta import MetaFile
from data.shard import build_shard

Write = Callable[..., Path]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), chunk=st.integers(1, 64), data=st.data())
def test_a_shard_holds_the_chosen_rows_in_serving_order(
    n: int, chunk: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "shard.txt"
    path.write_text("\r\n".join(f"a{'b' * (row % 7)}-{row} {row % 5}" for row in range(n)))
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=50)), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        meta = MetaFile([path, path], classes=5)
        shard = build_shard(meta, np.concatenate([rows, rows + n]))
    assert [shard.line(i) for i in range(len(shard))] == [meta.line(int(row)) for row in [*rows, *(rows + n)]]
    distinct = len({*rows.tolist()})
    assert shard.text.size <= 2 * distinct * 20
    assert shard.size_bytes == shard.text.nbytes + 16 * len(shard)


def test_only_own_rows_are_checked(write: Write) -> None:
    meta = MetaFile(write("a 0\nbad\nc 1\nd 9\n"), classes=2)
    assert len(build_shard(meta, np.array([2, 0]))) == 2
    with pytest.raises(RowError, match=r"m\.txt:4  label 9 is out of range"):
        build_shard(meta, np.array([0, 3]))
    with pytest.raises(RowError, match=r"m\.txt:2  'bad' has no label"):
        build_shard(meta, np.array([1]))


def test_a_changed_file_gives_no_shard(write: Write) -> None:
    path = write("a 0\nb 1\n")
    meta = MetaFile(path, classes=2)
    path.write_text("a 1\nb 0\n")
    with pytest.raises(ChangedError, match="changed after it was opened"):
        build_shard(meta, np.array([0]))
