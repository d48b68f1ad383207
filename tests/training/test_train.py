"""train.py as a whole, with real ranks: what is promised is equality of hashes."""

from __future__ import annotations

import csv
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankrun.beat import SIZE_BYTES, Phase, Reading
from rankrun.config import load_frozen
from rankrun.runfolder import RunFolder, read_json_lines
from rankrun.training.metrics import read_metrics
from rankrun.training.schedule import learning_rates
from rankrun.training.snapshot import snapshot_steps
from tests.system.doors import Doors, clean_environment
from tests.training.helpers import ROOT, end_of, start_ranks, write_digits

EPOCHS, CUT = 2, 36  # 44 rows in steps of 9


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def train(config: Path, name: str, world_size: int, *words: str, **how: Any) -> tuple[list[tuple[int, str]], RunFolder]:
    runs = config.parent / "runs"
    arguments = [str(ROOT / "train.py"), str(config), *words, "--runs", str(runs), "--name", name]
    return end_of(start_ranks(arguments, world_size, **how)), RunFolder(runs / name)


def hashes(folder: RunFolder) -> tuple[str, str, dict[str, float]]:
    final = json.loads(folder.final_file.read_text())
    return final["weights_sha256"], final["optimizer_sha256"], final["metrics"]


def assert_each_position_once(folder: RunFolder, world_size: int, rows: int) -> None:
    """Position g belongs to rank g mod W; of several attempts the highest counts."""
    served: dict[tuple[int, int], tuple[int, int]] = {}
    for rank in range(world_size):
        for line in read_json_lines(folder.audit_file(rank)):
            first = line["position"] + (rank - line["position"]) % world_size
            for place, row in enumerate(line["rows"]):
                key = (line["epoch"], first + place * world_size)
                served[key] = max(served.get(key, (-1, -1)), (line["attempt"], row))
    assert sorted(served) == [(epoch, position) for epoch in range(EPOCHS) for position in range(CUT)]
    for epoch in range(EPOCHS):
        assert len({served[epoch, position][1] for position in range(CUT)}) == CUT <= rows


def test_alone_whole_run_and_again(config: Path) -> None:
    ends, folder = train(config, "alone", 1, launcher="single")
    assert ends[0][0] == 0, ends
    final = json.loads(folder.final_file.read_text())
    assert (final["step"], final["epoch"], final["metrics"]["rows"]) == (8, 2, 13)
    assert [line["step"] for line in read_metrics(folder.metrics_file)["train"]] == [2, 4, 6, 8]
    rate = learning_rates(load_frozen(folder.config_file), 4)
    assert [line["lr"] for line in read_metrics(folder.metrics_file)["train"]] == [rate(step) for step in (1, 3, 5, 7)]
    assert [line["step"] for line in read_metrics(folder.metrics_file)["evaluate"]] == [4, 8]
    assert snapshot_steps(folder) == [4, 8]
    assert (folder.best / "model.safetensors").exists()
    assert folder.curves_file.exists()
    assert not folder.live.exists()
    assert_each_position_once(folder, 1, 44)
    before = folder.final_file.read_bytes()
    ends, _ = train(config, "alone", 1, launcher="single")
    assert ends[0][0] == 0
    assert "is finished" in ends[0][1]
    assert folder.final_file.read_bytes() == before


def test_the_beat_has_been_through_every_phase_and_ends_with_done(config: Path, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    beat.write_bytes(bytes(SIZE_BYTES))
    extra = {"RANKRUN_BEAT": str(beat)}
    ends, _ = train(config, "beating", 1, "checkpoint.every_steps=3", launcher="single", extra=extra)
    assert ends[0][0] == 0, ends
    reading = Reading.of(beat.read_bytes())
    assert (reading.phase, reading.step, reading.started) == (Phase.DONE, 8, True)
    assert all(usual_s > 0 for usual_s in reading.usual_s)


def test_a_run_that_fails_does_not_say_done(config: Path, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    beat.write_bytes(bytes(SIZE_BYTES))
    extra = {"RANKRUN_BEAT": str(beat)}
    ends, _ = train(config, "failing", 1, "data.val=null", "model.name=no.such", launcher="single", extra=extra)
    assert ends[0][0] != 0, ends
    reading = Reading.of(beat.read_bytes())
    assert (reading.opened, reading.phase, reading.started) == (True, Phase.START, False)


def test_a_mistake_in_the_config_is_told_once_and_leaves_nothing(config: Path) -> None:
    ends, folder = train(config, "wrong", 2, "optim.lr=-1")
    assert [code for code, _ in ends] == [2, 2]
    assert "optim.lr" in ends[0][1]
    assert ends[1][1] == ""
    assert not folder.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("data.train=nowhere.txt",), ("model.name=resnte18",), ("train.global_batch=50",)])
def test_a_mistake_found_later_is_told_once_and_leaves_nothing(config: Path, words: tuple[str, ...]) -> None:
    ends, folder = train(config, "later", 2, *words)
    assert [code for code, _ in ends] == [2, 2], ends
    assert len(ends[0][1].splitlines()) == 1, ends
    assert ends[1][1] == ""
    assert not folder.path.exists()


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> tuple[str, str, dict[str, float]]:
    ends, folder = train(config, "undisturbed", 2)
    assert [code for code, _ in ends] == [0, 0], ends
    assert_each_position_once(folder, 2, 44)
    return hashes(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "how"),
    [
        ("indexed", ("data.mode=indexed", "data.workers=1"), {}),
        ("workers", ("data.workers=3",), {}),
        ("srun", (), {"launcher": "srun"}),
    ],
)
def test_hash_does_not_depend_on_how_it_was_run(
    config: Path, undisturbed: object, name: str, words: tuple[str, ...], how: dict[str, Any]
) -> None:
    ends, folder = train(config, name, 2, *words, **how)
    assert [code for code, _ in ends] == [0, 0], ends
    assert hashes(folder) == undisturbed
    assert_each_position_once(folder, 2, 44)


# Ends or signals itself in the middle of a run, at a step that the test names: no clock decides.
DISTURBED = """
import os, runpy, signal, sys
import rankrun.training.progress as progress
number, when, who = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
advance = progress.Progress.advance
def disturbed(self, state):
    advance(self, state)
    if self.step == when and os.environ["RANK"] in who:
        os.kill(os.getpid(), number)
progress.Progress.advance = disturbed
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when", "who", "codes"),
    [
        (signal.SIGKILL, 3, "01", lambda codes: codes == [-9, -9]),
        (signal.SIGKILL, 6, "1", lambda codes: codes[1] == -9 and codes[0] != 0),
        (signal.SIGUSR2, 2, "1", lambda codes: codes == [75, 75]),
        (signal.SIGUSR2, 3, "0", lambda codes: codes == [75, 75]),
        (signal.SIGINT, 5, "0", lambda codes: codes == [130, 130]),
    ],
    ids=["all-killed", "one-killed", "notice-mid-epoch", "notice-at-the-end-of-an-epoch", "interrupt"],
)
def test_hash_does_not_depend_on_what_happened(
    config: Path, undisturbed: object, number: int, when: int, who: str, codes: Callable[[list[int]], bool]
) -> None:
    name, runs = f"{number}-{when}", config.parent / "runs"
    words = [str(config), "checkpoint.every_steps=2", "--runs", str(runs), "--name", name]
    ends = end_of(start_ranks(["-c", DISTURBED, str(int(number)), str(when), who, *words], 2))
    assert codes([code for code, _ in ends]), ends
    ends, folder = train(config, name, 2)
    assert [code for code, _ in ends] == [0, 0], ends
    assert "goes on from" in ends[0][1]
    assert hashes(folder) == undisturbed
    assert_each_position_once(folder, 2, 44)


def disturbed(config: Path, name: str, world_size: int, number: int, when: int, *words: str) -> list[tuple[int, str]]:
    runs = config.parent / "runs"
    arguments = [str(int(number)), str(when), "01", str(config), *words, "--runs", str(runs), "--name", name]
    return end_of(start_ranks(["-c", DISTURBED, *arguments], world_size))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["0", "1"])
def test_torchrun_restarts_a_killed_rank(config: Path, undisturbed: object, tmp_path: Path, who: str) -> None:
    """Its agent keeps one store over all restarts: what the dead ranks left in it must not be found."""
    script, name = tmp_path / "disturbed.py", f"restarted-{who}"
    once = 'and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"'
    script.write_text(DISTURBED.replace('os.environ["RANK"] in who', f'os.environ["RANK"] in who {once}'))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    words = [str(config), "checkpoint.every_steps=2", "--runs", str(config.parent / "runs"), "--name", name]
    killing = [*torchrun, str(script), str(int(signal.SIGKILL)), "3", who, *words]
    command = Doors(ROOT, clean_environment()).start(killing, {"PYTHONPATH": str(ROOT)})
    try:
        assert command.wait() == 0, command.output
    finally:
        command.kill_all()  # torchrun's ranks outlive it where it is killed at the limit
    assert "goes on from" in command.output
    assert hashes(RunFolder(config.parent / "runs" / name)) == undisturbed


# From step `begin` to step `end` no file of rank `who` may grow past `limit` bytes, as on a disk that is full.
LIMITED = """
import os, resource, runpy, signal, sys
import rankrun.training.progress as progress
limit, begin, end, who = int(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
advance = progress.Progress.advance
def limited(self, state):
    advance(self, state)
    if os.environ["RANK"] in who:
        now = limit if begin <= self.step < end else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (now, resource.RLIM_INFINITY))
progress.Progress.advance = limited
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def limited(config: Path, name: str, limit: int, begin: int, end: int, who: str) -> tuple[list[tuple[int, str]], str]:
    runs = config.parent / "runs"
    words = [str(config), "checkpoint.every_steps=1", "--runs", str(runs), "--name", name]
    ends = end_of(start_ranks(["-c", LIMITED, str(limit), str(begin), str(end), who, *words], 2))
    output = "".join(output for _, output in ends)
    assert "Traceback" not in output
    assert not [entry for entry in (runs / name / "checkpoints").iterdir() if "tmp" in entry.name]
    return ends, output


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_checkpoints_only(config: Path, undisturbed: object) -> None:
    ends, output = limited(config, "full-for-a-while", 1500, 1, 4, "01")
    assert [code for code, _ in ends] == [0, 0], ends
    assert output.count("could not be saved ([Errno 27]") == 3
    assert hashes(RunFolder(config.parent / "runs" / "full-for-a-while")) == undisturbed


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_fails_the_run(config: Path, undisturbed: object) -> None:
    ends, output = limited(config, "full-at-the-end", 1500, 8, 9, "01")
    assert [code for code, _ in ends] == [1, 1], ends
    assert output.count("E109 step 8 could not be saved") == 1
    ends, folder = train(config, "full-at-the-end", 2)
    assert [code for code, _ in ends] == [0, 0], ends
    assert hashes(folder) == undisturbed


@pytest.mark.slow
def test_all_ranks_stop_when_one_can_not_write_its_audit(config: Path) -> None:
    ends, output = limited(config, "no-audit", 1, 2, 9, "1")
    assert [code for code, _ in ends] == [1, 1], ends
    assert output.count("E109 the audit of rank 1 could not be written") == 1
    assert snapshot_steps(RunFolder(config.parent / "runs" / "no-audit"))[-1] == 2


def change_a_label(meta: Path) -> None:
    lines = meta.read_text().splitlines(keepends=True)
    meta.write_text("".join([lines[0].replace(" 0", " 1"), *lines[1:]]))


@pytest.mark.slow
def test_other_data_is_refused_by_its_key(tmp_path: Path) -> None:
    config = write_digits(tmp_path)
    ends = disturbed(config, "run", 1, signal.SIGUSR2, 2)
    assert ends[0][0] == 75, ends
    change_a_label(tmp_path / "val.txt")
    ends, _ = train(config, "run", 1)
    assert ends[0][0] == 2, ends
    assert "this run was trained with data.val = " in ends[0][1]
    assert "--allow-change data.val" in ends[0][1]
    assert "data.train" not in ends[0][1]
    change_a_label(tmp_path / "train.txt")
    ends, _ = train(config, "run", 1, "--allow-change", "data.val")
    assert ends[0][0] == 2, ends
    assert "this run was trained with data.train = " in ends[0][1]
    ends, _ = train(config, "run", 1, "--allow-change", "data.val", "--allow-change", "data.train")
    assert ends[0][0] == 0, ends


# The row at position 1 is served at position 0 too.
REPEATED = """
import runpy, sys
import data.loader
rows_at = data.loader.rows_at
def repeated(positions, n, order):
    rows = rows_at(positions, n, order).copy()
    rows[positions == 0] = rows_at([1], n, order)
    return rows
data.loader.rows_at = repeated
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_row_that_is_served_twice_ends_the_run(config: Path) -> None:
    words = [str(config), "data.mode=indexed", "--runs", str(config.parent / "runs"), "--name", "repeated"]
    ends = end_of(start_ranks(["-c", REPEATED, *words], 2))
    assert [code for code, _ in ends] == [1, 1], ends
    assert "E108 epoch 0: the ranks were served other rows" in ends[0][1]
    assert ends[1][1] == ""


def bad_samples(config: Path) -> list[list[str]]:
    return list(csv.reader((config.parent / "runs/run/bad_samples.csv").read_text().splitlines()))[1:]


@pytest.mark.slow
def test_past_the_budget_of_bad_samples_all_ranks_stop_together(tmp_path: Path) -> None:
    config = write_digits(tmp_path)
    for row in range(0, 44, 3):
        (tmp_path / f"train{row}.png").write_bytes(b"")
    ends, folder = train(config, "run", 2, "data.on_error=replace", "data.bad_budget=0.1")
    assert [code for code, _ in ends] == [2, 2], ends
    assert ends[0][1].count("E208") == 1
    assert ends[1][1] == ""
    assert len(bad_samples(config)) > 3
    assert snapshot_steps(folder) == []  # it did not go on to the end of the epoch


@pytest.mark.slow
def test_bad_samples_are_listed_before_what_knows_of_them_is_saved(tmp_path: Path) -> None:
    config = write_digits(tmp_path)
    for row in range(0, 44, 3):
        (tmp_path / f"train{row}.png").write_bytes(b"")
    words = ["data.on_error=replace", "data.bad_budget=0.9", "checkpoint.every_steps=1", "train.log_every_steps=50"]
    ends = disturbed(config, "run", 2, signal.SIGKILL, 3, *words)
    assert [code for code, _ in ends] == [-9, -9], ends
    state = json.loads((tmp_path / "runs/run/checkpoints/step-00000002/state.json").read_text())
    assert len(bad_samples(config)) == state["progress"]["loader"]["replaced"] > 0
    ends, _ = train(config, "run", 2, *words)
    assert [code for code, _ in ends] == [0, 0], ends
    assert len({(epoch, row) for epoch, row, *_ in bad_samples(config)}) == len(bad_samples(config))


def test_numbers_are_not_evaluated_by_a_model_that_learns_names(tmp_path: Path) -> None:
    config = write_digits(tmp_path)

    def give_names(path: Path) -> None:
        path.write_text(path.read_text().replace(" 0\n", " cat\n").replace(" 1\n", " dog\n"))

    give_names(tmp_path / "train.txt")
    turned = f"data.train={tmp_path}/val.txt", f"data.val={tmp_path}/train.txt"
    for words, told in (
        ((), "E203 .*val.txt: its labels are numbers, but those of the training data are names, of 2 classes"),
        (turned, "E203 .*train.txt: its labels are names, but there are 2 classes"),
    ):
        ends, folder = train(config, "mixed", 1, "data.classes=null", *words, launcher="single")
        assert ends[0][0] == 2
        assert re.search(told, ends[0][1]), ends
        assert not folder.path.exists()
    give_names(tmp_path / "val.txt")
    ends, folder = train(config, "named", 1, "data.classes=null", "train.epochs=1", launcher="single")
    assert ends[0][0] == 0, ends
    assert json.loads((folder.path / "best" / "state.json").read_text())["prediction"]["by_name"] is True
