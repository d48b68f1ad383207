from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

from rankrun import __version__, errors
from rankrun.errors import (
    ConfigError,
    ExitCode,
    OptionError,
    RankrunError,
    RunFolderBusy,
    WorldError,
    did_you_mean,
    explain,
    format_error,
    is_told,
    told_by,
)


class Foreign(Exception):
    """As an error of data is: it follows the protocol without knowing the family."""

    code = "E299"
    exit_code = 2
    told_by = 3


def test_a_told_error_is_its_lines_with_the_code() -> None:
    assert format_error(ConfigError(["a.yaml:1  x: wrong", "a.yaml:2  y: wrong"])) == (
        "E102 a.yaml:1  x: wrong\nE102 a.yaml:2  y: wrong"
    )
    assert format_error(Foreign("row 3")) == "E299 row 3"


def test_another_error_is_its_type_and_text() -> None:
    assert format_error(KeyError("x")) == "KeyError: 'x'"
    assert format_error(ValueError()) == "ValueError"


def test_quoted_control_characters_can_not_move_the_cursor() -> None:
    assert format_error(OptionError("name '\x1b[2J\r\x07\u202e'")) == r"E101 name '\x1b[2J\r\x07\u202e'"


def test_the_protocol_asks_for_both_attributes() -> None:
    assert is_told(Foreign())
    assert is_told(WorldError())
    assert not is_told(ValueError())
    assert not is_told(SystemExit(2))
    assert told_by(Foreign()) == 3
    assert told_by(WorldError()) is None


def test_a_config_error_keeps_its_problems_through_pickle() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert error.problems == ["a", "b"]
    assert str(error) == "a\nb"


def test_exit_codes_are_the_designs() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0, "FAILED": 1, "BAD_INPUT": 2, "SAVED": 75, "NO_PROGRESS": 93, "HANG": 124,
        "INTERRUPTED": 130, "STOPPED": 143,
    }  # fmt: skip


def _family(root: type[RankrunError]) -> list[type[RankrunError]]:
    return [root, *(cls for child in root.__subclasses__() for cls in _family(child))]


def test_every_error_has_a_code_of_its_own_and_an_explanation() -> None:
    family = [cls for cls in _family(RankrunError) if cls.__module__ == "rankrun.errors"]
    leaves = [cls for cls in family if "code" in vars(cls) and cls is not RankrunError]
    codes = [cls.code for cls in leaves]
    assert len(set(codes)) == len(codes)
    for cls in leaves:
        assert explain(cls.code).startswith(f"{cls.code}: ")
        assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("package", ["data", "models"])
def test_the_codes_of_other_packages_are_explained(package: str) -> None:
    family = importlib.import_module(f"{package}.errors")
    codes = {cls.code for cls in vars(family).values() if isinstance(cls, type) and hasattr(cls, "exit_code")}
    assert codes
    for code in codes:
        assert explain(code).startswith(f"{code}: ")


@pytest.mark.parametrize("code", [str(int(code)) for code in ExitCode])
def test_every_exit_code_is_explained(code: str) -> None:
    assert len(explain(code)) > 20


def test_explain_refuses_what_is_no_code() -> None:
    with pytest.raises(OptionError, match=r"there is no code 'E999'\. The codes are E101, "):
        explain("E999")
    assert explain(" e105 ").startswith("E105: The run folder has a live attempt")
    assert RunFolderBusy.exit_code == 2


def test_suggestions_ignore_case_and_survive_megabytes() -> None:
    assert did_you_mean("Epochs", ["epochs", "lr"]) == " Did you mean 'epochs'?"
    assert did_you_mean("zzz", ["epochs"]) == ""
    assert did_you_mean("e" * 10_000_000, ["epochs"]) == ""


def test_the_lower_floors_import_nothing_heavy() -> None:
    code = (
        "import sys, rankrun.errors, rankrun.world, rankrun.runfolder, rankrun.config; "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_version_is_a_release_number() -> None:
    assert [part.isdecimal() for part in __version__.split(".")] == [True] * 3


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("137", "killed by SIGKILL (128 + 9)"),
        ("139", "killed by SIGSEGV (128 + 11)"),
        ("127", "can't be executed"),
        ("7", "The program's own code"),
        ("131", "stacks of all ranks"),
    ],
)
def test_codes_that_are_none_of_ours_are_explained_too(code: str, says: str) -> None:
    assert says in explain(code)
