from __future__ import annotations

import pytest

from data.cost import cost
from rankrun.launch import reading
from rankrun.launch.reading import Cost, Facts, describe_reading, size

GB = 1 << 30
THIS_MACHINE = reading.memory_bytes


def facts(rows: int, size_bytes: int, world_size: int, *, exact: bool = True, indexed: bool = True) -> Facts:
    """As the data package tells it."""
    costs = {
        f"{order} {read}": list(cost(rows, size_bytes, world_size=world_size, read=read, lanes=lanes))
        for order, lanes in (("row", None), *([("block", 720)] if size_bytes > GB else []))
        for read in ("shard", "direct")
    }
    return Facts.of(
        {"told": "", "rows": rows, "exact": exact, "size_bytes": size_bytes, "indexed": indexed, "costs": costs}
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "memory_bytes", lambda: 64 * GB)


def test_a_large_file() -> None:
    found = facts(50_000_000, 2 * GB, 8)
    assert found.costs["row shard"] == Cost(6_250_000, 321_560_456, 2 * GB)
    assert describe_reading(found, 8, 8, "rank", "block", "shard") == [
        "data             mode rank, order block, read shard",
        "                 each rank holds only its own rows of an epoch",
        "rows per rank    6,250,000 per epoch, of 50,000,000 in 2.0 GiB",
        "",
        "                                        memory       memory  read per rank",
        "                                      per rank  per machine      and epoch",
        "  rank, order row: two shards          613 MiB      4.8 GiB        2.0 GiB",
        "* rank, order block: two shards        613 MiB      4.8 GiB        256 MiB",
        "  indexed, or rank with read direct       none      1.6 MiB       47.7 GiB",
        "",
        "recommended      mode rank: once its shard is read, an epoch asks the disk for",
        "                 images alone",
    ]


@pytest.mark.parametrize(("mode", "read"), [("indexed", "shard"), ("rank", "direct")])
def test_the_row_of_the_config_is_marked(mode: str, read: str) -> None:
    lines = describe_reading(facts(50_000_000, 2 * GB, 8), 8, 8, mode, "row", read)
    (chosen,) = (line for line in lines if line.startswith("* "))
    assert chosen.startswith("* indexed, or rank with read direct")
    assert lines[0] == f"data             mode {mode}, order row" + ", read direct" * (mode == "rank")


def test_what_is_recommended() -> None:
    def said(found: Facts, nproc: int) -> str:
        lines = describe_reading(found, nproc, nproc, "rank", "row", "shard")
        return " ".join(" ".join(lines).split())

    assert "mode rank; at 1.0 KiB indexed costs no more" in said(facts(30, 1024, 2), 2)
    assert "mode rank: once its shard is read" in said(facts(50_000_000, 2 * GB, 8), 8)
    # a billion rows on one machine of 64 GiB
    large = said(facts(1_000_000_000, 40 * GB, 8), 8)
    assert "mode indexed: shards would take 95.8 GiB of this machine's 64.0 GiB" in large


def test_what_else_is_told() -> None:
    lines = describe_reading(facts(50_000_000, 2 * GB, 7, indexed=False), 7, 7, "rank", "block", "shard")
    text = " ".join(" ".join(lines).split())
    assert "7 ranks don't divide the 720 lanes of order block; a number that does reads 1/W" in text
    assert "index none yet: the first launch reads all 2.0 GiB once" in text
    about = describe_reading(facts(50_000_000, 2 * GB, 8, exact=False), 8, 8, "rank", "row", "shard")
    assert "rows per rank    about 6,250,000 per epoch, of ~50,000,000 in 2.0 GiB" in about


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        *((0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (102_300, "99.9 KiB"), (102_400, "100 KiB")),
        *((2**20 - 1, "1.0 MiB"), (5 * 2**30, "5.0 GiB"), (3000 * 2**40, "3000 TiB")),
    ],
)
def test_sizes(bytes_: int, text: str) -> None:
    assert size(bytes_) == text


def test_the_memory_of_this_machine() -> None:
    assert THIS_MACHINE() > 1 << 28
