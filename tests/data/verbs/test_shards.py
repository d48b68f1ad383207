from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from data.verbs.packable import Item
from data.verbs.shards import RECORD_BYTES, ShardWriter, Table, read_table, remove_from, shard_name, verify_shard


def item(row: int, *labels: int, size: int = 1000) -> Item:
    return Item(row, "", labels or (row % 3,), bytes([row]) * size, "jpg", None)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    work = tmp_path / "out" / "work"
    work.mkdir(parents=True)
    return tmp_path / "out", work


def write(folders: tuple[Path, Path], *rows: Item, number: int = 0, skipped: tuple[int, ...] = ()) -> Table:
    writer = ShardWriter(folders[1], number, rows[0].row)
    for row in rows:
        writer.add(row)
    return writer.close(folders[0], [(row, f"reason\n{row} ä") for row in skipped])


def test_a_table_says_what_a_shard_holds(folders: tuple[Path, Path]) -> None:
    table = write(folders, item(7), item(9, 4, 5), skipped=(8, 10))
    assert read_table(*folders, 0, 7) == table
    assert (table.first, table.stop, table.count, table.skipped) == (7, 11, 2, 2)
    assert table.size_bytes % RECORD_BYTES == 0
    assert [(row.row, row.offset, row.length, row.labels) for row in table.rows()] == [
        (7, 512, 1000, "1"),
        (9, 3072, 1000, "4,5"),
    ]
    assert list(table.left_out()) == [(8, "reason\n8 ä"), (10, "reason\n10 ä")]
    assert list(table.lines()) == [b"shard-000000.tar@512:1000 1\n", b"shard-000000.tar@3072:1000 4,5\n"]
    with tarfile.open(folders[0] / table.shard) as tar:
        assert tar.getnames() == ["000000007.jpg", "000000007.cls", "000000009.jpg", "000000009.json"]
        file = tar.extractfile("000000009.json")
        assert file is not None
        assert file.read() == b'{"labels": [4, 5]}'
    assert verify_shard(folders[0], table) is None


def test_what_fits(folders: tuple[Path, Path]) -> None:
    writer = ShardWriter(folders[1], 0, 0)
    assert writer.fits(item(0, size=1 << 20), 1), "an empty shard takes any"
    writer.add(item(0))
    for size, limit in ((1000, 10_240), (5 * 1024, 10_240), (5 * 1024 + 1, 20_480)):
        assert writer.fits(item(1, size=size), limit)
    assert not writer.fits(item(1, size=5 * 1024 + 1), 10_240)
    writer.add(item(1, size=5 * 1024))
    assert writer.close(folders[0], []).size_bytes == 10_240
    writer.drop()
    assert read_table(*folders, 0, 0) is not None


def test_what_is_dropped_leaves_nothing(folders: tuple[Path, Path]) -> None:
    writer = ShardWriter(folders[1], 0, 0)
    writer.add(item(0))
    writer.drop()
    assert [path.name for path in folders[0].rglob("*")] == ["work"]


def test_only_whole_shards_have_a_table(folders: tuple[Path, Path]) -> None:
    assert read_table(*folders, 0, 0) is None
    table = write(folders, item(0))
    assert read_table(*folders, 0, 1) is None, "another one must begin where the last ended"
    for content in (b"", b"[]\n", b"{}\n", b"\xff\n", b'{"first": 0, "stop": 1, "count": 1, "skipped": 0}\n'):
        whole = table.path.read_bytes()
        table.path.write_bytes(content)
        assert read_table(*folders, 0, 0) is None
        table.path.write_bytes(whole)
    (folders[0] / table.shard).write_bytes(b"short")
    assert read_table(*folders, 0, 0) is None


def test_shards_behind_the_last_are_removed(folders: tuple[Path, Path]) -> None:
    for number in range(3):
        write(folders, item(number), number=number)
    (folders[0] / "shard-000009.tar.bak").write_bytes(b"not ours")
    remove_from(folders[0], 1)
    assert sorted(path.name for path in folders[0].glob("shard*")) == [shard_name(0), "shard-000009.tar.bak"]
    assert shard_name(1_234_567) == "shard-1234567.tar"


def test_verification_compares_everything(folders: tuple[Path, Path]) -> None:
    out, table = folders[0], write(folders, *(item(row) for row in range(5)))
    lines = table.path.read_text().splitlines(keepends=True)
    for changed, told in [
        (lines[:-1], "holds more than was written"),
        ([*lines, lines[-1]], "row 4 of the source is not at"),
        ([*lines[:2], lines[2].replace(" 1 ", " 0 "), *lines[3:]], "row 1 of the source is not what was written"),
        ([lines[0], lines[1].replace("0 512 ", "0 513 "), *lines[2:]], "row 0 of the source is not at 513:"),
        ([lines[0], lines[1].replace("0 512 ", "9 512 "), *lines[2:]], "row 9 of the source is not at 512:"),
        ([lines[0], lines[1][:-3] + "zz\n", *lines[2:]], "row 0 of the source is not what was written"),
    ]:
        table.path.write_text("".join(changed))
        assert told in str(verify_shard(out, table))
    table.path.write_text("".join(lines))
    assert verify_shard(out, table) is None
    content = bytearray((out / table.shard).read_bytes())
    content[600] ^= 1
    (out / table.shard).write_bytes(content)
    assert "row 0 of the source is not what was written" in str(verify_shard(out, table))
    (out / table.shard).write_bytes(content[:3000])
    assert "can't be read back" in str(verify_shard(out, table))
    (out / table.shard).unlink()
    assert "No such file" in str(verify_shard(out, table))
