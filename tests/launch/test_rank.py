from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("linux")

ROOT = Path(__file__).resolve().parents[2]


def settled(then: str, env: dict[str, str] | None = None, **start: object) -> subprocess.CompletedProcess[str]:
    """A process that settles as a rank does and goes on with `then`."""
    fields = {"local_rank": 0, "environment": {}, "log_file": "log", "keeps_stdin": False, "holds_notices": False}
    program = (
        "import json, os, sys\nfrom rankrun.launch.rank import settle\nfrom rankrun.launch.warm import RankStart\n"
        f"settle(RankStart(**json.loads({json.dumps(json.dumps({**fields, **start}))})))\n{then}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT), **(env or {})}, capture_output=True, text=True
    )


def test_without_its_log_a_rank_does_not_begin_and_says_so(tmp_path):
    place = tmp_path / "gone/log"
    done = settled("open('begun', 'w')", log_file=str(place))
    assert done.returncode == 1
    assert done.stderr == f"E109 {place}: No such file or directory; a rank can't begin without its log\n"


def test_streams_in_one_file_and_in_two(tmp_path):
    say = "print('out')\nprint('err', file=sys.stderr)\nos.system('echo child; echo of child >&2')"
    settled(say, log_file=str(tmp_path / "both"))
    assert (tmp_path / "both").read_text() == "out\nerr\nchild\nof child\n"
    settled(say, log_file=str(tmp_path / "out"), error_log=str(tmp_path / "err"))
    assert (tmp_path / "out").read_text() == "out\nchild\n"
    assert (tmp_path / "err").read_text() == "err\nof child\n"


def test_a_stripped_rank_finds_no_world_in_its_environment(tmp_path):
    names = ["RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "MASTER_PORT"]
    names += ["TORCHELASTIC_RUN_ID", "RANKRUN_BEAT", "RANKRUN_DEBUG"]
    kept = {"RANKED": "1", "MY_RANK": "2", "MASTER_KEY": "3", "RANKRUN_TEST_MARK": "4"}
    log = str(tmp_path / "log")
    settled("print(json.dumps(dict(os.environ)))", env={**dict.fromkeys(names, "7"), **kept}, log_file=log, strips=True)
    found = json.loads(Path(log).read_text())
    assert set(names) & set(found) == set()
    assert kept.items() <= found.items()


def test_stacks_are_dumped_where_the_agent_looks_although_the_gil_is_held(tmp_path):
    (tmp_path / "stacks").touch()
    then = (
        "import ctypes\nfrom rankrun.launch.stacks import STACKS_SIGNAL\n"
        "def hold():\n    ctypes.PyDLL(None)['raise'](STACKS_SIGNAL)  # a call that does not let the GIL go\nhold()"
    )
    done = settled(then, log_file=str(tmp_path / "log"), stacks=str(tmp_path / "stacks"))
    assert done.returncode == 0
    text = (tmp_path / "stacks").read_text()
    assert "(most recent call first)" in text
    assert "in hold" in text


def test_a_stacks_file_that_can_not_be_opened_stops_no_rank(tmp_path):
    done = settled("print('goes on')", log_file=str(tmp_path / "log"), stacks=str(tmp_path / "gone/stacks"))
    assert done.returncode == 0
    assert (tmp_path / "log").read_text() == "goes on\n"
