from __future__ import annotations

from pathlib import Path

from rankrun.training.curves import draw_curves
from rankrun.training.metrics import MetricsLog, read_metrics


def test_the_later_attempt_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path, 0, print)
    for step in (2, 4, 6):
        first.write("train", step, 0, {"loss": 1.0, "lr": 0.1})
    with path.open("a") as file:
        file.write('{"kind":"train","attempt":0,"step":8,"lo')  # a kill in the middle of a line
    second = MetricsLog(path, 1, print)
    second.write("train", 6, 0, {"loss": 2.0, "lr": 0.1})
    second.write("train", 8, 0, {"loss": float("nan"), "lr": 0.1})
    second.write("evaluate", 8, 1, {"top1": 0.5, "loss": 1.5})
    kinds = read_metrics(path)
    assert [(line["step"], line["attempt"], line["loss"]) for line in kinds["train"]] == [
        (2, 0, 1.0),
        (4, 0, 1.0),
        (6, 1, 2.0),
        (8, 1, None),
    ]
    assert [line["top1"] for line in kinds["evaluate"]] == [0.5]


def test_an_old_writer_that_wakes_up_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 3, print).write("train", 2, 0, {"loss": 1.0})
    MetricsLog(path, 2, print).write("train", 2, 0, {"loss": 9.0})
    assert read_metrics(path)["train"][0]["loss"] == 1.0


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    MetricsLog(None, 0, print).write("train", 2, 0, {})
    assert list(tmp_path.iterdir()) == []
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


def test_curves_are_a_picture(tmp_path: Path) -> None:
    path, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    assert not draw_curves(path, picture)
    log = MetricsLog(path, 0, print)
    log.write("train", 2, 0, {"loss": 1.0, "lr": 0.1})
    log.write("evaluate", 2, 1, {"loss": float("inf"), "top1": 0.5})
    assert draw_curves(path, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_a_disk_that_refuses_is_told_once_and_tried_again(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.mkdir()
    log = MetricsLog(path, 0, said.append)
    for step in (2, 4):
        log.write("train", step, 0, {"loss": 1.0})
    assert len(said) == 1
    assert "step 2 and maybe later ones are missing" in said[0]
    path.rmdir()
    log.write("train", 6, 0, {"loss": 1.0})
    assert [line["step"] for line in read_metrics(path)["train"]] == [6]
