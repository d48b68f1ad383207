from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankrun.config import Settings, load_frozen
from rankrun.errors import ConfigError, OptionError, RunFolderBusy, RunFolderError
from rankrun.runfolder import Claim, RunFolder, claim
from rankrun.runfolder.holder import Holder, this_process
from rankrun.runfolder.live import OLD_S

ENV = {"PATH": "/nonexistent"}  # no git: what it says is the business of test_recording
MUTATING = ("mkdir", "rename", "write", "fsync", "rmdir", "unlink", "pwrite")


def settings(**train: Any) -> Settings:
    return Settings.model_validate({"data": {"train": "t.txt"}, "train": {"epochs": 2, "global_batch": 8} | train})


def start(path: Path, given: Settings | None = None, **more: Any) -> Claim:
    return claim(path, settings=given or settings(), command=["launch.py", "run", "c.yaml"], env=ENV, **more)


def tree(path: Path) -> dict[str, bytes | None]:
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(path.rglob("*"))
    }


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to a busy disk takes most of these tests' time, and no test can see whether it was done."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Clock:
    """A clock that only sleeping moves, and what else happens meanwhile."""

    def __init__(self, meanwhile: Callable[[float], None] = lambda now: None) -> None:
        self.now, self.meanwhile = 1000.0, meanwhile

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now - 1000.0)

    def options(self) -> dict[str, Any]:
        return {"clock": self.time, "sleep": self.sleep}


def leave_behind(path: Path, **change: Any) -> Holder:
    """A holder as a launch elsewhere leaves it when it is killed."""
    held = start(path)
    file = path / "live" / "holder.json"
    holder = replace(this_process(held.token, "2026-01-01T00:00:00Z", {}), **change)
    file.write_text(holder.as_json())
    return holder


DEAD = {"pid": 2**22 + 1}
ELSEWHERE = {"boot_id": "another", "host": "n7"}


def test_a_first_claim_makes_the_run_folder(tmp_path: Path) -> None:
    with start(tmp_path / "runs" / "a", now=lambda: 0.0) as held:
        folder = held.folder
        assert (held.attempt, held.finished, held.notes) == (0, False, [])
        assert load_frozen(folder.config_file) == settings()
        record = json.loads(folder.record_file.read_text())
        assert (record["run"], record["attempt"], record["since"]) == ("a", 0, "1970-01-01T00:00:00Z")
        assert record["command"] == ["launch.py", "run", "c.yaml"]
        assert folder.log_file(0, 3).parent.is_dir()
        assert folder.live.is_dir()
    assert sorted(os.listdir(folder.path)) == ["attempts", "config.yaml", "launches", "record.json"]
    assert sorted(os.listdir(folder.launches / held.token)) == ["heartbeat", "holder.json", "record.json"]


def test_the_same_run_goes_on_with_the_next_attempt(tmp_path: Path) -> None:
    for attempt in range(3):
        with start(tmp_path / "a") as held:
            assert held.attempt == attempt
    with start(tmp_path / "a") as held:
        assert (held.next_attempt(), held.next_attempt(), held.attempt) == (4, 5, 5)
    assert RunFolder(tmp_path / "a").attempt_numbers() == [0, 1, 2, 3, 4, 5]


def test_the_record_keeps_what_goes_on_with_the_run_and_where_it_lies(tmp_path: Path) -> None:
    with start(tmp_path / "a", resume=["run", "--token", "abc123", "a b"]) as held:
        record = json.loads(held.folder.record_file.read_text())
        assert record["resume"] == ["run", "--token", "***", "a b"]
        assert record["path"] == str(tmp_path / "a")
    with start(tmp_path / "a") as held:
        assert json.loads(held.folder.record_file.read_text())["resume"] == []


def test_a_second_launch_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with start(tmp_path / "a"):
        before = tree(tmp_path)
        with pytest.raises(RunFolderBusy, match=rf"a has a live launch \(host .*, pid {os.getpid()}, since 20"):
            start(tmp_path / "a", sleep=lambda s: pytest.fail("a live process needs no watching"))
        assert tree(tmp_path) == before
    start(tmp_path / "a").release()


def test_releasing_twice_and_beating_afterwards_do_nothing(tmp_path: Path) -> None:
    held = start(tmp_path / "a")
    held.release()
    before = tree(tmp_path)
    held.release()
    held.beat()
    assert tree(tmp_path) == before


def test_a_dead_holder_on_this_machine_is_taken_over_at_once_and_aloud(tmp_path: Path) -> None:
    dead = leave_behind(tmp_path / "a", **DEAD)
    said: list[str] = []
    with start(tmp_path / "a", say=said.append, sleep=lambda s: pytest.fail("no need to wait")) as held:
        assert said == held.notes
        assert len(said) == 1
        assert "took" in said[0]
        assert "over from a dead launch" in said[0]
        assert said[0].endswith("its process is gone")
        assert held.attempt == 1
        assert (held.folder.launches / dead.token / "holder.json").is_file()


def test_a_holder_elsewhere_is_dead_when_its_heart_stands_still(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a", **ELSEWHERE)
    clock, said = Clock(), list[str]()
    with start(tmp_path / "a", say=said.append, **clock.options()) as held:
        assert held.notes[0].endswith("its heartbeat did not change for 60 s")
        assert "watching its heartbeat for up to 60 s" in said[0]
    assert 60 <= clock.now - 1000 < 62


def test_a_holder_elsewhere_that_beats_is_busy_whatever_its_clock_says(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a", **ELSEWHERE)
    heartbeat = tmp_path / "a" / "live" / "heartbeat"

    def meanwhile(now: float) -> None:
        if now >= 50:
            heartbeat.write_text("another\n")
            os.utime(heartbeat, (0, 0))  # a clock that stands in 1970

    clock = Clock(meanwhile)
    with pytest.raises(RunFolderBusy, match=r"has a live launch \(host n7, pid"):
        start(tmp_path / "a", **clock.options())
    assert clock.now - 1000 == 50


def test_a_holder_elsewhere_that_leaves_meanwhile_makes_room(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a", **ELSEWHERE)
    folder = RunFolder(tmp_path / "a")
    clock = Clock(lambda now: os.rename(folder.live, folder.path / "gone") if folder.live.exists() else None)
    with start(tmp_path / "a", **clock.options()) as held:
        assert held.notes == []


def test_of_two_that_find_the_same_dead_holder_one_takes_over(tmp_path: Path) -> None:
    dead = leave_behind(tmp_path / "a", **ELSEWHERE)
    folder = RunFolder(tmp_path / "a")
    first: list[Claim] = []

    def meanwhile(now: float) -> None:
        if now >= 60 and not first:
            # Another launch has watched for as long, and is a moment faster.
            os.mkdir(folder.launches)
            os.rename(folder.live, folder.launches / dead.token)
            first.append(start(tmp_path / "a"))

    with pytest.raises(RunFolderBusy, match="has a live launch"):
        start(tmp_path / "a", **Clock(meanwhile).options())
    first[0].beat()
    first[0].release()


def test_an_old_holder_that_wakes_up_is_told_and_can_not_release_the_new_one(tmp_path: Path) -> None:
    old = start(tmp_path / "a")
    file = tmp_path / "a" / "live" / "holder.json"
    woken = Holder.from_json(file.read_text())
    assert woken is not None
    file.write_text(replace(woken, **DEAD).as_json())
    new = start(tmp_path / "a")
    with pytest.raises(RunFolderBusy, match="was taken over by another launch"):
        old.beat()
    old.release()
    assert new.folder.live.is_dir()
    new.beat()
    new.release()


def test_a_holder_whose_folder_was_removed_is_told(tmp_path: Path) -> None:
    held = start(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "live")
    with pytest.raises(RunFolderBusy, match="its live/ folder is gone"):
        held.beat()
    held.release()


def test_every_beat_changes_the_heartbeat(tmp_path: Path) -> None:
    with start(tmp_path / "a") as held:
        seen = set()
        for _ in range(5):
            held.beat()
            seen.add((held.folder.live / "heartbeat").read_bytes())
        assert len(seen) == 5
        assert len({len(text) for text in seen}) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", None])
def test_a_live_folder_that_names_nobody_is_moved_away_after_a_while(tmp_path: Path, content: bytes | None) -> None:
    leave_behind(tmp_path / "a")
    file = tmp_path / "a" / "live" / "holder.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    clock = Clock()
    with start(tmp_path / "a", **clock.options()) as held:
        assert held.attempt == 1
    assert 60 <= clock.now - 1000 < 62


def test_another_config_is_refused_naming_the_keys(tmp_path: Path) -> None:
    start(tmp_path / "a").release()
    before = tree(tmp_path)
    with pytest.raises(RunFolderError) as caught:
        start(tmp_path / "a", settings(epochs=3, global_batch=4, micro_batch=1))
    assert str(caught.value) == (
        f"{tmp_path / 'a'} belongs to a run with another config; different: train.epochs (2 -> 3), train.global_batch "
        "(8 -> 4). Give this run another --name, or change that one with --allow-change train.epochs --allow-change "
        "train.global_batch"
    )
    assert tree(tmp_path) == before


def test_what_is_free_changes_and_is_said(tmp_path: Path) -> None:
    start(tmp_path / "a").release()
    with start(tmp_path / "a", settings(micro_batch=4)) as held:
        assert held.notes == ["changed within the run: train.micro_batch (null -> 4)"]
        assert load_frozen(held.folder.config_file).train.micro_batch == 4
        assert json.loads(held.folder.record_file.read_text())["allowed_changes"] == []


@pytest.mark.parametrize("allow", [["train.epochs"], ["train"], ["optim.lr", "train.epochs"]])
def test_an_allowed_change_is_made_and_recorded(tmp_path: Path, allow: list[str]) -> None:
    start(tmp_path / "a").release()
    with start(tmp_path / "a", settings(epochs=3), allow_change=allow) as held:
        assert load_frozen(held.folder.config_file).train.epochs == 3
        record = json.loads(held.folder.record_file.read_text())
        assert record["allowed_changes"] == [{"key": "train.epochs", "old": 2, "new": 3}]
    start(tmp_path / "a", settings(epochs=3)).release()


def test_allowing_a_key_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"--allow-change 'train\.epoch': there is no such key\. Did you mean 'train\.ep"
    ):
        start(tmp_path / "a", allow_change=["train.epoch"])
    assert tree(tmp_path) == {}


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    start(tmp_path / "a").release()
    (tmp_path / "a" / "final.json").write_text("{}")
    before = tree(tmp_path)
    with start(tmp_path / "a", settings(micro_batch=4)) as held:
        assert (held.finished, held.attempt, held.notes) == (True, 0, [])
        held.beat()
    assert tree(tmp_path) == before
    with pytest.raises(RunFolderError, match="belongs to a run with another config"):
        start(tmp_path / "a", settings(epochs=3))
    assert tree(tmp_path) == before
    held = start(tmp_path / "a", settings(epochs=3), allow_change=["train.epochs"])
    assert not held.finished
    assert not (tmp_path / "a" / "final.json").exists(), "a kill now must not leave the old end to the new config"
    held.withdraw()
    assert tree(tmp_path) == before


def test_a_launch_that_is_withdrawn_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    held = start(tmp_path / "a")
    (held.folder.log_file(0, 0)).write_text("a rank's last words")
    held.withdraw()
    held.release()
    assert tree(tmp_path) == {}
    start(tmp_path / "b").release()
    before = tree(tmp_path)
    start(tmp_path / "b", settings(micro_batch=4)).withdraw()
    assert tree(tmp_path) == before


def test_targets_with_and_without_a_config_do_not_share_a_folder(tmp_path: Path) -> None:
    def foreign(name: str) -> Claim:
        return claim(tmp_path / name, settings=None, command=["x.py"], env=ENV)

    foreign("f").release()
    assert not (tmp_path / "f" / "config.yaml").exists()
    with foreign("f") as held:
        assert held.attempt == 1
    with pytest.raises(RunFolderError, match="belongs to a run without a config; give another --name"):
        start(tmp_path / "f")
    start(tmp_path / "c").release()
    with pytest.raises(RunFolderError, match="belongs to a run with a config; give another --name"):
        foreign("c")


def test_what_is_no_run_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.symlink(tmp_path / "gone", tmp_path / "link")
    os.mkdir(tmp_path / "photos")
    (tmp_path / "photos" / "a.jpg").write_text("x")
    before = tree(tmp_path)
    for name, message in [
        ("file", "file is a file, not a run folder"),
        ("link", "link is a link to nothing, not a run folder"),
        ("photos", r"photos is there and is not a run folder \(it holds 'a.jpg'\)"),
        ("file/a", "file/a can't be written: Not a directory"),
        ("a\0b", "can't be the name of a run folder"),
        ("n" * 300, "File name too long"),
    ]:
        with pytest.raises(RunFolderError, match=message) as caught:
            start(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    assert tree(tmp_path) == before


def test_an_empty_folder_and_a_link_to_one_will_do(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "empty")
    start(tmp_path / "empty").release()
    os.mkdir(tmp_path / "scratch")
    os.symlink(tmp_path / "scratch", tmp_path / "link")
    start(tmp_path / "link").release()
    assert (tmp_path / "scratch" / "config.yaml").is_file()


def test_a_damaged_config_of_the_run_is_told_with_its_line(tmp_path: Path) -> None:
    start(tmp_path / "a").release()
    (tmp_path / "a" / "config.yaml").write_text("seed: x\n")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"a/config\.yaml:1  seed: must be a whole number"):
        start(tmp_path / "a")
    assert tree(tmp_path) == before


def in_child(act: Callable[[], object], before: Callable[[], object] = lambda: None) -> int:
    """Run `act` in a forked child after `before`; its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            before()
            act()
            code = 0
        except RunFolderError as error:
            os.write(2, f"{error}\n".encode())
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach (pytest's own are closed to others)."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for entry in path.rglob("*"):
        if entry.is_dir():
            entry.chmod(0o755)
    shutil.rmtree(path)


def as_a_plain_user() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


@pytest.mark.parametrize("place", ["a", "runs/b"])
def test_a_folder_that_is_closed_is_one_line(open_folder: Path, place: str, capfd: pytest.CaptureFixture[str]) -> None:
    start(open_folder / "a").release()
    for folder in (open_folder, open_folder / "a"):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    before = tree(open_folder)
    assert in_child(lambda: start(open_folder / place), as_a_plain_user) == 2
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"{open_folder / place} can't be written: Permission denied (the folder {open_folder}" in said
    assert tree(open_folder) == before


class At:
    """Counts the calls that change a disk, and does something at the k-th."""

    def __init__(self, patch: pytest.MonkeyPatch, k: int, act: Callable[[], None], *, once: bool = False) -> None:
        self.calls, self.k, self.act, self.once = 0, k, act, once
        for name in (*MUTATING, "open"):
            patch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            undoing = name in ("rmdir", "unlink")  # a full disk lets those through
            reading = name == "open" and not args[1] & os.O_CREAT
            mine = isinstance(args[0], int) and args[0] <= 2
            if not (reading or mine):
                self.calls += 1
                if self.calls == self.k or (self.calls > self.k and not self.once and not undoing):
                    self.act()
            return real(*args, **kwargs)

        return call


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def number_of_calls(path: Path, given: Settings) -> int:
    with pytest.MonkeyPatch.context() as patch:
        at = At(patch, 10**9, full)
        start(path, given, allow_change=["train.epochs"]).release()
    return at.calls


@pytest.mark.parametrize("once", [False, True], ids=["stays full", "full once"])
@pytest.mark.parametrize("again", [False, True], ids=["first launch", "later launch"])
def test_a_disk_that_fills_up_at_any_call_leaves_the_folder_as_it_was(tmp_path: Path, again: bool, once: bool) -> None:
    given = settings(epochs=3)
    if again:
        start(tmp_path / "count").release()
    total = number_of_calls(tmp_path / "count", given)
    assert total > 15
    refused: list[str] = []
    for k in range(1, total + 1):
        path = tmp_path / f"{k}" / "runs" / "a"
        if again:
            start(path).release()
        else:
            (tmp_path / f"{k}").mkdir()
        before = tree(tmp_path / f"{k}")
        held: Claim | None = None
        with pytest.MonkeyPatch.context() as patch:
            At(patch, k, full, once=once)
            try:
                held = start(path, given, allow_change=["train.epochs"])
            except RunFolderError as error:
                refused.append(str(error))
        if held is not None:
            held.release()
        elif once or not again:
            # Where nothing can be renamed any more a config that was changed already can't be put back.
            assert tree(tmp_path / f"{k}") == before, k
        start(path, given, allow_change=["train.epochs"]).release()
    assert len(refused) >= total - 6  # the last calls are those of release()
    assert all("can't be written: No space left on device" in line for line in refused)


@pytest.mark.parametrize("again", [False, True], ids=["first launch", "later launch"])
def test_a_kill_at_any_call_lets_the_next_launch_go_on(tmp_path: Path, again: bool) -> None:
    given = settings(epochs=3)
    if again:
        start(tmp_path / "count").release()
    for k in range(1, number_of_calls(tmp_path / "count", given) + 1):
        path = tmp_path / f"{k}" / "runs" / "a"
        if again:
            start(path).release()

        def launch(path: Path = path, k: int = k) -> None:
            with pytest.MonkeyPatch.context() as patch:
                At(patch, k, die)
                start(path, given, allow_change=["train.epochs"]).release()

        assert in_child(launch) == -signal.SIGKILL
        with start(path, given, allow_change=["train.epochs"], sleep=lambda s: pytest.fail("no need to wait")) as held:
            assert load_frozen(held.folder.config_file) == given
            held.beat()
        names = os.listdir(path)
        assert sorted(set(names)) == ["attempts", "config.yaml", "launches", "record.json"], k


def test_half_made_folders_of_launches_that_may_live_are_left(tmp_path: Path) -> None:
    start(tmp_path / "a").release()
    young, old = tmp_path / "a" / "live.tmp-young", tmp_path / "a" / "live.tmp-old"
    for folder in (young, old):
        folder.mkdir()
    now = os.stat(young).st_mtime
    os.utime(old, (now - 2 * OLD_S, now - 2 * OLD_S))
    start(tmp_path / "a").release()
    assert young.exists()
    assert not old.exists()


def test_of_many_launches_at_once_exactly_one_holds_the_run(tmp_path: Path) -> None:
    """Over and over, with a dead holder to be taken over each time; a holder notes when it comes and when it goes."""
    path, log = tmp_path / "a", tmp_path / "log"
    ready, go = os.pipe()
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.close(go)
                os.read(ready, 1)
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                had = 0
                while had < 4:
                    try:
                        held = start(path)
                    except RunFolderBusy:
                        os.sched_yield()
                        continue
                    had += 1
                    os.write(out, b"+")
                    held.beat()
                    os.write(out, b"-")
                    held.release()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(ready)
    os.close(go)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 6
    text = log.read_text()
    assert text == "+-" * (6 * 4)
    folder = RunFolder(path)
    assert len(folder.attempt_numbers()) == len(text) // 2
    assert sorted(os.listdir(path)) == ["attempts", "config.yaml", "launches", "record.json"]


def test_attempt_numbers_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path / "a") as held:
        os.mkdir(held.folder.attempt(1))
        monkeypatch.setattr(RunFolder, "attempt_numbers", lambda self: [0])  # as a stale directory would be read
        assert held.next_attempt() == 2


def test_too_many_attempts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path / "a").release()
    monkeypatch.setattr("rankrun.runfolder.claiming.MOST_ATTEMPTS", 1)
    with pytest.raises(RunFolderError, match="has 1 attempts; give another --name"):
        start(tmp_path / "a")
