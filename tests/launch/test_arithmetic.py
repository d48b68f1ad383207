from __future__ import annotations

import pytest

from rankrun.launch.arithmetic import Rows, count_rows, shares


@pytest.mark.parametrize(
    ("content", "rows"),
    [(b"", 0), (b"a 1\n", 1), (b"a 1\nb 2", 2), (b"a 1\r\nb 2\r\n", 2), (b"a 1\n" * 70_000, 70_000)],
)
def test_rows_of_a_meta_file(tmp_path, content, rows):
    meta = tmp_path / "meta.txt"
    meta.write_bytes(content)
    assert count_rows([str(meta)]) == Rows(rows, exact=True)
    assert count_rows([str(meta), str(meta)]) == Rows(2 * rows, exact=True)


def test_a_class_folder_is_an_estimate(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert str(count_rows([str(tmp_path)])) == "~3"


@pytest.mark.parametrize(
    ("batch", "ranks", "micro", "text"),
    [
        (64, 2, None, "64 = 2 ranks x 32"),
        (64, 2, 32, "64 = 2 ranks x 32"),
        (10, 3, None, "10 = 3 ranks x 3 or 4"),
        (1024, 4, 100, "1,024 = 4 ranks x 256, each in 3 micro-batches of at most 100"),
    ],
)
def test_shares(batch, ranks, micro, text):
    assert shares(batch, ranks, micro) == text
