from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rankrun.errors import ConfigError, RunFolderBusy
from rankrun.training.reporting import report_errors


class Left(BaseException):
    """Stands for the end of the process."""


def leave(code: int):
    raise Left(code)


def left_with(error: BaseException, environ: dict[str, str], debug: bool = False) -> int:
    with pytest.raises(Left) as end, report_errors(environ, debug=debug, leave=leave):  # type: ignore[arg-type]
        raise error
    return int(end.value.args[0])


def test_told_errors_are_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert left_with(ConfigError(["a.yaml:1  x: wrong", "a.yaml:2  y: wrong"]), {}) == 2
    assert capfd.readouterr().err == "E102 a.yaml:1  x: wrong\nE102 a.yaml:2  y: wrong\n"


def test_one_rank_speaks_for_all(capfd: pytest.CaptureFixture[str]) -> None:
    error = RunFolderBusy("busy")
    assert left_with(error, {"LOCAL_RANK": "1", "RANK": "1"}) == 2
    assert capfd.readouterr().err == ""
    error.told_by = 1
    assert left_with(error, {"LOCAL_RANK": "1", "RANK": "1"}) == 2
    assert capfd.readouterr().err == "E105 busy\n"
    assert left_with(error, {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == 2
    assert capfd.readouterr().err == ""


def test_debug_and_the_untold_show_tracebacks(capfd: pytest.CaptureFixture[str]) -> None:
    assert left_with(ConfigError("x"), {}, debug=True) == 2
    assert "Traceback" in capfd.readouterr().err
    assert left_with(ZeroDivisionError("by zero"), {}) == 1
    assert "ZeroDivisionError: by zero" in capfd.readouterr().err


def test_interrupts_and_exits(capfd: pytest.CaptureFixture[str]) -> None:
    assert left_with(KeyboardInterrupt(), {}) == 130
    assert "interrupted; nothing was saved since the last checkpoint" in capfd.readouterr().err
    assert left_with(SystemExit(7), {}) == 7
    assert left_with(SystemExit(), {}) == 0
    assert left_with(SystemExit("words"), {}) == 1
    assert capfd.readouterr().err == "words\n"


def test_the_line_that_left_is_known(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    environ = {"TORCHELASTIC_ERROR_FILE": str(path)}
    assert left_with(SystemExit(0), environ) == 0
    assert not path.exists()
    assert left_with(SystemExit(7), environ) == 7
    record = json.loads(path.read_text())
    assert (record["message"]["message"], record["exit_code"], record["told"]) == ("SystemExit: 7", 7, False)
    assert record["where"].startswith(__file__)


def test_error_file_has_torchs_form(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    left_with(ConfigError("wrong"), {"TORCHELASTIC_ERROR_FILE": str(path)})
    record = json.loads(path.read_text())
    assert record["message"]["message"] == "E102 wrong"
    assert "ConfigError" in record["message"]["extraInfo"]["py_callstack"]
    assert record["message"]["extraInfo"]["timestamp"].isdecimal()
    assert (record["told"], record["exit_code"]) == (True, 2)
    left_with(ValueError("deep"), {"TORCHELASTIC_ERROR_FILE": str(path)})
    assert json.loads(path.read_text())["told"] is False


def test_an_error_file_that_cannot_be_written_hides_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert left_with(ConfigError("wrong"), {"TORCHELASTIC_ERROR_FILE": "/nowhere/error.json"}) == 2
    assert "could not be written to /nowhere/error.json" in capfd.readouterr().err


def test_leave_ends_a_process_whose_thread_never_ends() -> None:
    program = textwrap.dedent("""
        import atexit, threading
        from rankrun.training.reporting import report_errors
        atexit.register(lambda: print("exit functions ran"))
        threading.Thread(target=threading.Event().wait).start()
        with report_errors({}):
            raise ZeroDivisionError
    """)
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert end.returncode == 1
    assert "exit functions ran" in end.stdout


def test_torch_is_not_needed_to_tell_a_mistake() -> None:
    program = (
        "import sys, rankrun.training.reporting, rankrun.training.opening, rankrun.training.notice, "
        "rankrun.training.log; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
