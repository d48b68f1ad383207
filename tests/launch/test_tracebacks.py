from __future__ import annotations

import subprocess
import sys

import pytest

from rankrun.launch.tracebacks import any_exception, last_crash, last_exception, last_words, within


def output(folder, script, *options):
    """What a script prints on stderr, and the name of its file."""
    place = folder / "job.py"
    place.write_text(script)
    done = subprocess.run([sys.executable, *options, place], capture_output=True, text=True, check=False, cwd=folder)
    return done.stderr.splitlines(), str(place)


@pytest.mark.parametrize(
    ("script", "line", "error"),
    [
        ("def f():\n    raise ValueError('boom')\nf()\n", 2, "ValueError: boom"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e\n", 4, "KeyError: 'k'"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    {}['k']\n", 4, "KeyError: 'k'"),
        ("x = 1\nx = (\n", 2, "SyntaxError: '(' was never closed"),
        ("if True:\nx = 1\n", 2, "IndentationError: expected an indented block after 'if' statement on line 1"),
        (
            "import json\n\njson.loads('{')\n",
            3,
            "json.decoder.JSONDecodeError: Expecting property name enclosed in double",
        ),
        ("def f(): f()\nf()\n", 1, "RecursionError: maximum recursion depth exceeded"),
        ("class E(Exception): pass\nraise E\n", 2, "E"),
        ("raise ValueError('a\\nb')\n", 1, "ValueError: a"),
        (
            "import atexit\natexit.register(lambda: print('bye', file=__import__('sys').stderr))\n1 / 0\n",
            3,
            "ZeroDivision",
        ),
    ],
)
def test_the_users_own_line_of_a_real_traceback(tmp_path, script, line, error):
    lines, file = output(tmp_path, script)
    trace = last_exception(lines, 1)
    assert trace.where == f"{file}:{line}"
    assert trace.error.startswith(error)
    assert trace.error in trace.text


def test_a_syntax_error_of_an_import_is_where_it_is_and_not_where_it_was_imported(tmp_path):
    (tmp_path / "broken.py").write_text("\n\ndef\n")
    lines, _ = output(tmp_path, "import broken\n")
    assert last_exception(lines, 1).where == f"{tmp_path}/broken.py:3"


def test_a_traceback_that_was_printed_long_before_the_end_is_not_the_end(tmp_path):
    lines, _ = output(
        tmp_path,
        "import sys, traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()\n"
        "for i in range(20): print('step', i, file=sys.stderr)\n",
    )
    assert any("ZeroDivisionError" in line for line in lines)
    assert last_exception(lines, 1) is None
    assert any_exception(lines).error == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("after", "ended_with_it"),
    [
        ([], True),
        (["recovered"], False),
        (["line 0", "line 1"], False),
        (["Exception ignored in: <function f at 0x7f>", "Traceback (most recent call last):",
          '  File "/x/y.py", line 3, in __del__', "    self.close()", "TypeError: late"], True),
        (["Exception ignored in: <function f at 0x7f>", "gone on"], False),
        (["/x/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to "
          "be 1 leaked semaphore objects to clean up at shutdown", "  warnings.warn('…')"], True),
        (["[W1123 22:01:02.3 ProcessGroupNCCL.cpp:1553] Warning: destroy_process_group() was not called"], True),
        (["wandb: You can sync this run to the cloud"], True),
    ],
)  # fmt: skip
def test_a_program_that_chose_its_exit_code_ended_with_what_nothing_of_its_own_follows(after, ended_with_it):
    lines = [
        "Traceback (most recent call last):",
        '  File "/me/job.py", line 2, in <module>',
        "ValueError: old",
        *after,
    ]
    trace = last_exception(lines, 3)
    assert (trace is not None) is ended_with_it
    assert (trace or any_exception(lines)).where == "/me/job.py:2"
    assert last_exception(lines, 1).error == "ValueError: old", "1 is what Python itself leaves with"
    assert last_exception(['  File "/me/job.py", line 2', "SyntaxError: invalid syntax"], 3) is None


def test_a_message_that_carries_the_traceback_of_a_worker():
    message = (
        "KeyError: Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/x/site-packages/torch/utils/data/_utils/worker.py", line 358, in _worker_loop\n    data = fetch()\n'
        '  File "/home/me/mine.py", line 5, in __getitem__\n    raise KeyError(i)\n    ^^^^^\nKeyError: 0\n'
    )
    trace = within(message)
    assert (trace.where, trace.error) == ("/home/me/mine.py:5", "KeyError: 0")
    assert within("ValueError: no traceback in here") is None


def test_the_line_that_a_crash_was_called_from(tmp_path):
    script = "import ctypes\ndef f():\n    ctypes.string_at(0)\nf()\n"
    lines, file = output(tmp_path, script, "-X", "faulthandler")
    assert last_crash(lines).where == f"{file}:3"
    assert last_crash(["no dump"]) is None


def test_the_thread_that_crashed_counts_and_not_the_first():
    lines = [
        "Fatal Python error: Segmentation fault",
        "",
        "Thread 0x00007f01 (most recent call first):",
        '  File "/a/other.py", line 1 in wait',
        "",
        "Current thread 0x00007f02 (most recent call first):",
        '  File "/x/lib/python3.11/ctypes/__init__.py", line 519 in string_at',
        '  File "/a/job.py", line 9 in load',
    ]
    assert last_crash(lines).where == "/a/job.py:9"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["free(): double free detected in tcache 2"], "free(): double free detected in tcache 2"),
        (
            ["terminate called after throwing an instance of 'std::runtime_error'", "  what():  boom"],
            "boom",
        ),
        (["job: a.c:3: main: Assertion `x > 0' failed."], "Assertion `x > 0' failed."),
        (["*** stack smashing detected ***: terminated"], "*** stack smashing detected ***"),
        (["terminate called without an active exception"], "terminate called without an active exception"),
        (["nothing of the kind"], None),
        ([], None),
    ],
)
def test_the_last_words_of_c_and_cpp(lines, words):
    assert last_words(lines) == words


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["Traceback (most recent call last):"],
        ["Traceback (most recent call last):", '  File "x", line 3'],
        ["Traceback (most recent call last):", '  File "x", line 99999999999999999999, in f', "E"],
        ["SyntaxError: alone"],
        ["Current thread 0x1 (most recent call first):"],
        ["  " * 50_000],
        ['  File "' + "a" * 50_000],
    ],
)
def test_torn_text_breaks_nothing(lines):
    for code in (1, 3):
        last_exception(lines, code)
    any_exception(lines)
    last_crash(lines)
    last_words(lines)
    within("\n".join(lines))
