from __future__ import annotations

from pathlib import Path

import pytest

from rankrun.config import Settings
from rankrun.errors import OptionError
from rankrun.launch.arithmetic import describe, shares
from rankrun.launch.reading import Cost, Facts

COSTS = {"row shard": Cost(50, 2000, 4000), "row direct": Cost(50, 0, 400_000)}


def facts(rows: int, *, exact: bool = True, told: str = "m.txt: lines 'path label'") -> Facts:
    return Facts(told, rows, exact, 4000, True, COSTS)


def settings(**data: object) -> Settings:
    return Settings.model_validate(
        {
            "data": {"train": "m.txt", **data},
            "train": {"epochs": 4, "global_batch": 8, "micro_batch": 2},
            **{name: {} for name in ("model", "loss", "optim", "schedule", "eval", "checkpoint", "launch")},
        }
    )


@pytest.mark.parametrize(
    ("batch", "ranks", "micro", "text"),
    [
        (64, 1, None, "64 = 1 rank x 64"),
        (64, 2, None, "64 = 2 ranks x 32"),
        (64, 2, 32, "64 = 2 ranks x 32"),
        (10, 3, None, "10 = 3 ranks x 3 or 4"),
        (1024, 4, 100, "1,024 = 4 ranks x 256, each in 3 micro-batches of at most 100"),
    ],
)
def test_shares(batch, ranks, micro, text):
    assert shares(batch, ranks, micro) == text


def test_the_lines_of_a_plan():
    told = [facts(1442), facts(355, told="v.txt: CSV with a header, path from column 'file', label from 'label'")]
    lines = describe(settings(val="v.txt"), 2, 1, Path("runs/m"), told)
    assert lines[:13] == [
        "run folder       runs/m",
        "ranks            2 on this machine",
        "training rows    1,442 in m.txt",
        "                 read as lines 'path label'",
        "evaluation rows  355 in v.txt, after every epoch",
        "                 read as CSV with a header, path from column 'file', label from",
        "                   'label'",
        "global batch     8 = 2 ranks x 4, each in 2 micro-batches of at most 2",
        "steps per epoch  180, 2 rows of each epoch left out (others each time)",
        "epochs           4, 720 steps in all, 5,760 samples",
        "checkpoints      after every epoch",
        "data             mode rank, order row, read shard",
        "                 each rank holds only its own rows of an epoch",
    ]
    assert max(map(len, lines)) <= 79


def test_estimates_are_marked():
    lines = describe(settings(), 8, 9, Path("runs/m"), [facts(51_000_000, exact=False)])
    assert "ranks            72 on 9 machines, 8 on each" in lines
    assert "training rows    ~51,000,000 in m.txt" in lines
    assert "steps per epoch  ~6,375,000, the rows are estimated" in lines
    assert "epochs           4, ~25,500,000 steps in all, ~204,000,000 samples" in lines


def test_many_files_are_named_by_both_ends():
    lines = describe(settings(train=[f"{name}.txt" for name in "abcd"]), 1, 1, Path("r"), [facts(9)])
    assert "training rows    9 in a.txt, … d.txt (4 files)" in lines


def test_no_step():
    with pytest.raises(OptionError, match=r"m\.txt has 7 rows, fewer than train\.global_batch=8: .*=7 or less"):
        describe(settings(), 1, 1, Path("r"), [facts(7)])
