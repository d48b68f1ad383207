from __future__ import annotations

import json
import signal

import pytest

from rankrun.launch.verdict import RankEnd, judge

PEER_GONE = "RuntimeError: Connection closed by peer [127.0.0.1]:7"


@pytest.fixture
def end(tmp_path):
    """Makes the end of a rank, with the error file and log that it left."""

    def make(rank, code, ns, *, error=None, ordered=False, log=b"last words\n"):
        error_file, log_file = tmp_path / f"{rank}.json", tmp_path / f"{rank}.log"
        log_file.write_bytes(log)
        if error is not None:
            error_file.write_bytes(error if isinstance(error, bytes) else json.dumps(error).encode())
        return RankEnd.read(
            rank=rank,
            local_rank=rank,
            pid=100 + rank,
            code=code,
            ns=ns,
            ordered=ordered,
            error_file=error_file,
            log_file=log_file,
        )

    return make


def exception(text, *, ns=None, **more):
    stack = {"py_callstack": f"Traceback …\n{text}", "timestamp": "1"}
    return {"message": {"message": text, "extraInfo": stack}, **({"ns": ns} if ns is not None else {}), **more}


def verdict(*ends, cooperating=False, parent_gone=False):
    return judge(ends, host="h", attempt=0, cooperating=cooperating, parent_gone=parent_gone, notice=None)


def test_a_closed_connection_never_outranks_the_rank_that_closed_it(end):
    found = verdict(
        end(0, 1, 5, error=exception(PEER_GONE)),
        end(1, 1, 9, error=exception("ValueError: boom", where="t.py:3")),
        end(2, -15, 20, ordered=True),
    )
    assert found.root.rank == 1
    lines = found.lines(lambda log: False)
    assert lines[0] == "rank 1 on h failed at t.py:3: ValueError: boom"
    assert "stopped because of it: rank 0, 2" in lines


def test_the_earlier_of_two_real_failures_by_their_own_clock(end):
    found = verdict(end(0, 1, 9, error=exception("A: a", ns=9)), end(1, 1, 1, error=exception("B: b", ns=7)))
    assert found.root.rank == 1
    assert any(line == "rank 0 failed too: A: a" for line in found.lines(lambda log: False))


def test_a_signal_is_the_cause_of_a_peers_exception(end):
    found = verdict(end(0, 1, 5, error=exception(PEER_GONE)), end(1, -signal.SIGSEGV, 6))
    assert (found.root.rank, found.exit_code) == (1, 139)
    assert "killed by SIGSEGV" in found.lines(lambda log: True)[0]


def test_only_consequences_give_the_first_of_them(end):
    assert verdict(end(0, 1, 5, error=exception(PEER_GONE)), end(1, 1, 4, error=exception(PEER_GONE))).root.rank == 1


@pytest.mark.parametrize(("code", "foreign", "ours"), [(7, 7, 7), (2, 1, 2), (75, 1, 75), (143, 1, 143), (1, 1, 1)])
def test_codes_of_ours_mean_nothing_from_a_foreign_program(end, code, foreign, ours):
    assert verdict(end(0, code, 1)).exit_code == foreign
    assert verdict(end(0, code, 1), cooperating=True).exit_code == ours


def test_a_told_error_is_its_lines_and_no_traceback(end):
    told = exception("E201 a.txt:3  no label\nE201 a.txt:9  no label", told=True, told_by=1, exit_code=2)
    copy = exception("E201 stopped because rank 1 failed", told=True, told_by=1, exit_code=2)
    found = verdict(end(0, 2, 1, error=copy), end(1, 2, 1, error=told), end(2, 2, 0), cooperating=True)
    assert found.exit_code == 2
    assert found.lines(lambda log: False) == ["E201 a.txt:3  no label", "E201 a.txt:9  no label"]
    assert found.lines(lambda log: True) == []


def test_what_is_on_the_screen_is_not_said_again(end):
    found = verdict(end(0, 3, 1))
    assert any("last words" in line for line in found.lines(lambda log: False))
    assert not any("last words" in line for line in found.lines(lambda log: True))


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff", b'{"message": 3}', b'{"message": {}}'])
def test_a_torn_or_strange_error_file_says_nothing_and_breaks_nothing(end, garbage):
    found = verdict(end(0, 4, 1, error=garbage, log=b"\xff\xfe broken"))
    assert found.exit_code == 4
    json.dumps(found.as_dict())


def test_the_warm_parents_death_has_its_own_words(end):
    found = verdict(end(0, None, 1), parent_gone=True)
    assert found.lines(lambda log: False) == ["the warm parent died, and all ranks with it"]
    assert found.exit_code == 1
