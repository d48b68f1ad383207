"""What is taken for a message of an agent, and what is not."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from rankrun.launch.nodes.messages import Decision, Hello, Meeting, Welcome, read_report, read_text
from tests.launch.nodes.cluster import HELLO

EVIL = "\x1b[2Ja\ud800\nrankrun: done"
START = {
    "nprocs": [1, 2],
    "hosts": ["a", "b"],
    "attempt": 3,
    "restart": 0,
    "address": "",
    "port": 29500,
}
WELCOME = {"node": 1, "host": "a", "run": "r", "token": "t", "folder": "/r"}


def is_harmless(text):
    return text.isprintable() and text.encode()


def test_a_meeting_is_read_as_it_was_sent():
    meeting = Meeting.read(START, 1, 2, "10.0.0.1")
    assert meeting == Meeting(1, (1, 2), ("a", "b"), 3, 0, "10.0.0.1", 29500)


@pytest.mark.parametrize(
    "change",
    [
        {"nprocs": [1]},
        {"nprocs": [1, 0]},
        {"nprocs": [1, 65537]},
        {"nprocs": [1, "2"]},
        {"nprocs": 2},
        {"hosts": ["a"]},
        {"hosts": ["a", 2]},
        {"hosts": None},
        {"attempt": -1},
        {"attempt": math.inf},
        {"attempt": 1e999},
        {"restart": -1},
        {"restart": True},
        {"address": None},
        {"port": 0},
        {"port": 65536},
        {"port": math.nan},
    ],
)
def test_a_meeting_that_can_not_be_is_none(change):
    with pytest.raises(ValueError, match=r"nprocs|no "):
        Meeting.read(START | change, 1, 2, "10.0.0.1")


@pytest.mark.parametrize("fields", [None, [], 3, "start", {}])
@pytest.mark.parametrize("read", [lambda it: Meeting.read(it, 1, 2, ""), Decision.read, lambda it: Welcome.read(it, 2)])
def test_what_has_another_shape_is_no_message(read, fields):
    with pytest.raises(ValueError, match=r"nprocs|no "):
        read(fields)


@pytest.mark.parametrize("change", [{"exit_code": 256}, {"exit_code": -1}, {"exit_code": math.inf}, {"line": 3}])
def test_a_decision_has_a_code_that_a_process_can_leave_with(change):
    with pytest.raises(ValueError, match=r"no "):
        Decision.read({"restart": False, "exit_code": 0, "line": "", **change})


@pytest.mark.parametrize("change", [{"node": 0}, {"node": 2}, {"node": "1"}, {"run": None}, {"host": 7}])
def test_a_welcome_names_a_place_of_this_run(change):
    assert Welcome.read(WELCOME, 2).node == 1
    with pytest.raises(ValueError, match=r"no "):
        Welcome.read(WELCOME | change, 2)


def test_no_text_of_a_peer_moves_the_cursor_or_forges_a_line():
    said = HELLO.as_message()["hello"] | dict.fromkeys(("run", "host", "program", "torch", "token"), EVIL)
    hello = Hello.read(said)
    assert isinstance(hello, Hello)
    texts = [text for text in asdict(hello).values() if isinstance(text, str)]
    texts += Meeting.read(START | {"hosts": [EVIL, EVIL], "address": EVIL}, 1, 2, "").hosts
    texts += [text for text in asdict(Welcome.read({**WELCOME, "host": EVIL, "folder": EVIL}, 2)).values() if text != 1]
    texts.append(Decision.read({"restart": False, "exit_code": 0, "line": EVIL}).line)
    report = read_report({"ends": [], "stacks": [], "host": EVIL, "oom": EVIL}, 0)
    assert report is not None
    texts += [report["host"], report["oom"]]
    assert all(is_harmless(text) for text in texts)
    assert "rankrun: done" in texts[0]


def test_a_text_of_several_lines_becomes_one():
    assert read_text("first\nsecond\r\nthird") == "first; second; third"


def test_a_report_has_all_that_a_judge_asks_for_whatever_was_sent():
    nonsense = dict.fromkeys(("host", "oom", "cooperating", "started", "parent_gone", "now_ns", "sent_ns"), "x" * 9)
    expected = {"cooperating": False, "started": False, "parent_gone": False, "now_ns": 5, "sent_ns": 5}
    assert read_report({"ends": [], "stacks": []}, 5) == {**expected, "ends": [], "stacks": [], "host": "", "oom": None}
    report = read_report({"ends": [1], "stacks": [2], **nonsense, "more": 1}, 5)
    assert report == {**expected, "ends": [1], "stacks": [2], "host": "x" * 9, "oom": "x" * 9}
    assert read_report({"ends": [], "stacks": [], "oom": 3, "host": 4}, 5)["oom"] is None


@pytest.mark.parametrize("report", [None, [], {}, {"ends": []}, {"ends": [], "stacks": {}}])
def test_what_is_no_report_is_dropped(report):
    assert read_report(report, 0) is None
