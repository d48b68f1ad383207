from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from rankrun.failure import write_failure
from rankrun.launch.rank_end import RankEnd


@pytest.fixture
def read(tmp_path):
    """The end of a rank, with the error file and log that it left."""

    def make(code=1, *, error=None, log=b"last words\n", ordered=False, early=False, error_log=None):
        error_file, log_file = tmp_path / "3.json", tmp_path / "3.log"
        log_file.write_bytes(log)
        if isinstance(error, BaseException):
            write_failure(str(error_file), error, 1)
        elif error is not None:
            error_file.write_bytes(error if isinstance(error, bytes) else json.dumps(error).encode())
        return RankEnd.read(
            rank=3,
            local_rank=1,
            node=1,
            host="nodeb",
            pid=103,
            code=code,
            ns=50,
            ordered=ordered,
            early=early,
            error_file=error_file,
            log_file=log_file,
            error_log=error_log,
        )

    return make


def raised(act):
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_exception_is_told_with_the_users_own_line(read):
    end = read(error=raised(lambda: json.loads("{")))
    assert end.how.startswith("JSONDecodeError: Expecting property name")
    assert end.where.startswith(__file__), "the line of this file that called json, not one of json's own"
    assert "json/decoder.py" in end.traceback
    assert end.ns != 50, "its own word on when it failed"


def test_an_error_of_a_loader_worker_is_told_by_its_own_words_and_line(read):
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, row):
            raise KeyError(f"row {row}")

    loader = DataLoader(Broken(), num_workers=1, multiprocessing_context="fork")
    end = read(error=raised(lambda: next(iter(loader))))
    assert torch.__version__
    assert end.how == "KeyError: 'row 0' (in DataLoader worker process 0)"
    line = Broken.__getitem__.__code__.co_firstlineno + 1
    assert end.where == f"{__file__}:{line}"


def test_a_program_of_another_interpreter_is_told_by_its_log(read):
    log = (
        b"step 1\r\rstep 2\n\x1b[31m[rank3]: Traceback (most recent call last):\x1b[0m\n"
        b'[rank3]:   File "/home/me/job.py", line 7, in <module>\n[rank3]:     main()\n'
        b"[rank3]: ValueError: boom\n"
    )
    end = read(log=log)
    assert (end.how, end.where) == ("ValueError: boom", "/home/me/job.py:7")
    assert end.tail[:2] == ["step 1", "step 2"]
    assert read(code=0, log=log).message is None, "it handled what it printed"
    assert read(code=-15, log=log, ordered=True).message is None


def test_the_log_of_stderr_goes_before_that_of_stdout(read, tmp_path):
    errors = tmp_path / "3.err"
    errors.write_text('Traceback (most recent call last):\n  File "/a/b.py", line 2, in <module>\nE: e\n')
    assert read(log=b"out\n", error_log=errors).how == "E: e"
    errors.write_text("")
    assert read(log=b"out\n", error_log=errors).tail == ["out"]


def test_a_crash_is_told_with_the_line_that_faulthandler_saw(read):
    log = (
        b"Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f0 (most recent call first):\n"
        b'  File "/home/me/job.py", line 4 in f\n'
    )
    end = read(-signal.SIGSEGV, log=log)
    assert (end.how, end.where) == ("killed by SIGSEGV", "/home/me/job.py:4")
    assert read(-signal.SIGABRT, log=b"free(): invalid pointer\n").how == "killed by SIGABRT (free(): invalid pointer)"


@pytest.mark.parametrize(
    ("code", "pid_known", "how"),
    [(9, True, "left with exit code 9"), (None, True, "was not seen to end"), (-64, True, "killed by SIGRTMAX")],
)
def test_ends_without_words(read, code, pid_known, how):
    assert read(code).how == how


def test_leaving_with_0_too_early(read):
    assert read(0, early=True).how == "left with exit code 0 before its program had ended"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"message": 3}',
        b'{"message": {}}',
        b'{"message": {"message": [], "extraInfo": 3}, "ns": true, "where": {}, "exit_code": "x"}',
        b'{"message": {"message": "m", "extraInfo": {"py_callstack": 7}}, "told_by": []}',
        b"[" * 100_000,
    ],
)
def test_a_torn_or_strange_error_file_breaks_nothing(read, garbage):
    end = read(4, error=garbage, log=b"\xff\xfe broken \x1b[2J \x00")
    assert end.code == 4
    assert end.ns == 50
    assert all(line.isprintable() for line in end.tail)


def test_no_files_at_all(tmp_path):
    end = RankEnd.read(
        rank=0, local_rank=0, node=0, host="h", pid=0, code=None, ns=1, ordered=False, early=False,
        error_file=tmp_path / "none", log_file=tmp_path / "none", error_log=tmp_path,
    )  # fmt: skip
    assert (end.how, end.tail) == ("never started", [])


def test_a_message_over_the_network_is_the_same_end_on_the_other_clock(read):
    end = read(error=raised(lambda: 1 / 0), log=b"a\nb\n")
    sent = json.loads(json.dumps(end.as_message(now_ns=end.ns + 700)))
    back = RankEnd.from_message(sent, arrived_ns=10_000)
    assert back.ns == 10_000 - 700
    assert back == RankEnd(**{**vars(end), "ns": back.ns})


@pytest.mark.parametrize(
    "message",
    [None, 3, [], "x", {}, {"rank": -1, "local_rank": 0, "node": 0}, {"rank": True, "local_rank": 0, "node": 0},
     {"rank": 1 << 40, "local_rank": 0, "node": 0}, {"rank": 0, "local_rank": 0.5, "node": 0}],
)  # fmt: skip
def test_what_is_no_report_of_an_end_is_none(message):
    assert RankEnd.from_message(message, 5) is None


@pytest.mark.parametrize(
    "value", [None, True, -1, 1 << 200, 0.5, float("nan"), "x", "\x1b[2J\0", [], {}, [[1]], ["a", 3]]
)
def test_a_hostile_peer_breaks_nothing(value):
    fields = ["host", "pid", "code", "age_ns", "ordered", "early", "message", "traceback", "where", "told", "told_code"]
    for field in [*fields, "log", "tail"]:
        end = RankEnd.from_message({"rank": 1, "local_rank": 1, "node": 0, field: value}, arrived_ns=9)
        assert (end.rank, end.ns) == (1, 9) if field != "age_ns" else True
        json.dumps(end.as_message(9))
        shown = [end.how, end.host, end.where or "", *end.tail, str(end.log)]
        assert all(text.isprintable() for text in shown)
        assert isinstance(end.obeyed, bool)


def test_a_peer_can_t_make_it_swell():
    big = {
        "rank": 1,
        "local_rank": 1,
        "node": 0,
        "message": "m" * 10**7,
        "traceback": "t" * 10**7,
        "tail": ["l" * 10**6] * 500,
    }
    end = RankEnd.from_message(big | {"host": "h" * 10**6, "log": "p" * 10**6, "where": "w" * 10**6}, 9)
    assert len(json.dumps(end.as_message(9))) < 200_000


def test_what_is_told_of_a_tail_is_printable_and_short(read):
    end = read(log=b"x" * 100_000 + b"\n" + b"\ttab \x07\n" * 500)
    assert len(end.tail) == 80
    assert all(line.isprintable() and len(line) <= 500 for line in end.tail)
    assert end.log == Path(end.log)


def test_an_old_traceback_is_not_why_a_program_left_with_a_code_of_its_own(read):
    log = b'Traceback (most recent call last):\n  File "/me/job.py", line 1, in <module>\nValueError: old\nwent on\n'
    end = read(3, log=log)
    assert (end.how, end.where, end.traceback) == ("left with exit code 3", None, None)
    assert read(3, log=log.removesuffix(b"went on\n")).how == "ValueError: old"


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt()])
def test_a_handlers_way_out_obeys_the_order_and_is_a_failure_without_one(read, error):
    assert read(143, error=error, ordered=True).obeyed
    assert not read(143, error=error).obeyed
    assert not read(143, error=ValueError("in the handler"), ordered=True).obeyed


@pytest.mark.parametrize(
    ("file", "missed"),
    [
        ("/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", True),
        ("/v/lib/python3.11/site-packages/torch/distributed/elastic/multiprocessing/errors/__init__.py", False),
        ("/v/lib/python3.11/site-packages/torch/nn/parallel/distributed.py", False),
        ("/me/torch.py", False),
    ],
)
def test_a_timeout_is_of_a_peer_where_torchs_own_connections_raised_it(read, file, missed):
    stack = f'Traceback …\n  File "/me/job.py", line 1, in main\n  File "{file}", line 9, in f\nRuntimeError: x\n'
    message = {"message": "RuntimeError: timed out connecting", "extraInfo": {"py_callstack": stack}}
    assert read(error={"message": message}).misses_a_peer is missed
    further = stack.replace("RuntimeError: x", '  File "/me/data.py", line 3, in read\nRuntimeError: x')
    message["extraInfo"] = {"py_callstack": further}
    assert not read(error={"message": message}).misses_a_peer, "the innermost frame is somebody else's"
