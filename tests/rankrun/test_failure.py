from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rankrun.errors import SaveError
from rankrun.failure import PEER_GONE, own_place, write_failure


def written(tmp_path, act):
    place = tmp_path / "error.json"
    try:
        act()
    except BaseException as error:
        write_failure(str(place), error, 3)
    return json.loads(place.read_text())


def test_the_form_is_torchs_with_a_place_and_a_time_beside_it(tmp_path):
    def act():
        raise ValueError("two\nlines \x1b[2J")

    content = written(tmp_path, act)
    assert content["message"]["message"] == "ValueError: two\nlines \\x1b[2J"
    assert "in act" in content["message"]["extraInfo"]["py_callstack"]
    assert int(content["message"]["extraInfo"]["timestamp"]) > 0
    assert content["where"] == f"{__file__}:{act.__code__.co_firstlineno + 1}"
    assert (content["told"], content["told_by"], content["exit_code"]) == (False, None, 3)
    assert content["ns"] > 0


def test_a_told_error_keeps_its_codes(tmp_path):
    def act():
        raise SaveError("one\ntwo")

    content = written(tmp_path, act)
    assert content["message"]["message"] == "E109 one\nE109 two"
    assert content["told"] is True


def test_a_syntax_error_is_where_it_is(tmp_path):
    content = written(tmp_path, lambda: compile("x = 1\nx = (\n", "job.py", "exec"))
    assert content["where"] == "job.py:2"


def test_an_error_that_can_t_describe_itself(tmp_path):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    def act():
        raise Mute

    assert written(tmp_path, act)["message"]["message"] == "Mute: (its text can't be had)"


def test_an_endless_message_is_cut(tmp_path):
    def act():
        raise ValueError("x" * 10**7)

    written(tmp_path, act)
    assert (tmp_path / "error.json").stat().st_size < 1 << 18


def test_what_can_t_be_written_is_said(tmp_path, capsys):
    write_failure(str(tmp_path / "no/such/folder"), ValueError("x"))
    assert "could not be written" in capsys.readouterr().err


def test_a_process_without_a_file_number_left_can_still_say_why(tmp_path):
    script = (
        "import os, resource, sys\nfrom rankrun.failure import write_failure\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        "try:\n    while True: os.dup(1)\n"
        "except OSError as error: write_failure(sys.argv[1], error)\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "error.json"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=True, capture_output=True).stderr == b""
    content = json.loads((tmp_path / "error.json").read_text())
    assert content["message"]["message"] == "OSError: [Errno 24] Too many open files"


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        ([], None),
        ([("/me/job.py", 3), ("/v/lib/python3.11/site-packages/torch/nn/x.py", 9)], "/me/job.py:3"),
        ([("/me/job.py", 3), ("/me/lib.py", 4), ("/usr/lib/python3.12/json/decoder.py", 9)], "/me/lib.py:4"),
        ([("<frozen runpy>", 1), ("/usr/lib/python3/dist-packages/x.py", 9)], "/usr/lib/python3/dist-packages/x.py:9"),
        ([("<string>", 1)], "<string>:1"),
    ],
)
def test_the_users_own_line(frames, place):
    assert own_place(frames) == place


def test_the_pattern_of_a_lost_peer_does_not_take_what_is_a_cause():
    assert PEER_GONE.search(f"OSError: {sys.platform}: Connection refused by the tracker") is None


@pytest.mark.parametrize(
    "words",
    ["timed out connecting", "Connection closed by peer", "wait timeout after 30ms", "ran 5 s before timing out"],
)
def test_words_that_any_library_uses_are_of_a_peer_only_where_what_connects_ranks_is_named(words):
    assert PEER_GONE.search(f"RuntimeError: {words} (the database)") is None
    assert PEER_GONE.search(f"RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:1] {words}")
    assert PEER_GONE.search(f"RuntimeError: {words}: 7\nof c10d::TCPStore")
