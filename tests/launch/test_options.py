from __future__ import annotations

import pytest

from rankrun.errors import OptionError
from rankrun.launch.options import parse_run, run_parser


def test_options_ahead_of_a_script_are_ours_and_those_after_it_its_own():
    options = parse_run(["--nproc", "2", "train_it.py", "--nproc", "7", "--", "-x"], {})
    assert (options.nproc, options.target) == ("2", "train_it.py")
    assert options.words == ("--nproc", "7", "--", "-x")
    assert not options.is_config


def test_options_stand_on_both_sides_of_a_config():
    options = parse_run(["--name", "a", "c.yaml", "optim.lr=0.1", "--nproc", "2", "seed=3"], {})
    assert options.is_config
    assert (options.name, options.nproc, options.words) == ("a", "2", ("optim.lr=0.1", "seed=3"))


def test_allow_change_collects_from_both_sides():
    options = parse_run(["--allow-change", "a.b", "c.yaml", "--allow-change", "c.d"], {})
    assert options.allow_change == ("a.b", "c.d")


@pytest.mark.parametrize("spelling", ["--nproc-per-node", "--nproc_per_node", "--nproc", "--nproc-per-node=4"])
def test_torchrun_spellings_of_nproc(spelling):
    words = [spelling] if "=" in spelling else [spelling, "4"]
    assert parse_run([*words, "s.py"], {}).nproc == "4"


def test_pet_variables_give_defaults_and_options_win():
    env = {"PET_NPROC_PER_NODE": "3", "PET_MAX_RESTARTS": "2"}
    assert parse_run(["s.py"], env).nproc == "3"
    assert parse_run(["s.py"], env).max_restarts == 2
    assert parse_run(["--nproc", "5", "--max_restarts", "0", "s.py"], env).max_restarts == 0


def test_module_target():
    options = parse_run(["-m", "pkg.mod", "-v"], {})
    assert (options.module, options.target, options.words) == (True, "pkg.mod", ("-v",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "run needs a TARGET"),
        (["--nproc"], "expected one argument"),
        (["--nprok", "2", "s.py"], "unknown option --nprok. Did you mean --nproc?"),
        (["c.yaml", "--nprok=2"], "unknown option --nprok. Did you mean --nproc?"),
        (["c.yaml", "epochs"], "'epochs' after a config: give key=value"),
        (["--max-restarts", "-1", "s.py"], "'-1' is not a whole number from 0"),
        (["--max-restarts", "²", "s.py"], "'²' is not a whole number from 0"),
        (["--grace", "nan", "s.py"], "'nan' is not a number of seconds"),
        (["--start", "cold", "s.py"], "invalid choice: 'cold'"),
        (["--hang-timeout", "0", "s.py"], "--hang-timeout: '0': give a number of seconds above 0"),
        (["--attach", "first", "s.py"], "--attach: 'first' is not a whole number"),
        (["--allow-change", "a", "s.py"], "the target is none"),
        (["-m", "--no-python", "x"], "-m and --no-python contradict each other"),
        (["-m", "--run-path", "x"], "-m and --run-path contradict each other"),
        (["--runs", "a", "--log-dir", "b", "x.py"], "--runs a and --log-dir b mean the same folder; give one"),
        (["--runs", "", "x.py"], "--runs: '' is no folder"),
        (["--no-dist-env", "c.yaml"], "--no-dist-env is for programs of your own"),
        (["c.yaml", "--virtual-local-rank"], "--virtual-local-rank is for programs of your own"),
    ],
)
def test_mistakes_are_one_told_line(words, says):
    with pytest.raises(OptionError) as caught:
        parse_run(words, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_of_80_kilobytes_is_shown_short():
    with pytest.raises(OptionError) as caught:
        parse_run(["--" + "x" * 80_000, "s.py"], {})
    assert len(str(caught.value)) < 200


def test_log_dir_is_runs():
    assert parse_run(["--log-dir", "there", "s.py"], {}).runs == "there"
    assert parse_run(["--log-dir", "there", "--runs", "there", "s.py"], {}).runs == "there"


def test_run_path_runs_a_script_as_ever_and_wins_over_no_python():
    options = parse_run(["--run-path", "--no-python", "/a/s.py"], {})
    assert not options.no_python


def test_a_preflight_needs_no_target():
    assert parse_run(["--preflight", "--nproc", "2"], {}).preflight
    options = parse_run(["--preflight", "c.yaml", "train.epochs=1"], {})
    assert (options.target, options.words, options.is_config) == ("c.yaml", ("train.epochs=1",), True)


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["--nproc=2", "--name", "a", "s.py", "--nproc", "7"], ["--nproc=2"]),
        (["--runs", "r", "--log-dir", "r", "--dry-run", "--start", "exec", "s.py"], ["--start", "exec"]),
        (["-m", "-r3", "-t", "1", "pkg", "-m"], ["-m", "-r3", "-t", "1"]),
        (
            ["--nproc", "2", "c.yaml", "a=1", "--grace", "5", "b=--x", "--debug"],
            ["--nproc", "2", "--grace", "5", "--debug"],
        ),
        (["c.yaml", "--allow_change", "a.b", "--max_restarts", "1"], ["--max_restarts", "1"]),
        (["--", "s.py", "--nproc", "2"], []),
    ],
)
def test_the_words_that_a_resumed_run_is_given_again(words, again):
    assert parse_run(words, {}).again == tuple(again)


def test_a_resumed_run_gets_what_the_environment_said_as_well():
    env = {"PET_MAX_RESTARTS": "3", "PET_VIRTUAL_LOCAL_RANK": "1", "PET_LOG_DIR": "r", "PET_NPROC_PER_NODE": "4"}
    again = parse_run(["--nproc", "2", "s.py"], env).again
    assert again == ("--max-restarts", "3", "--virtual-local-rank", "--nproc", "2")
    assert parse_run([*again, "s.py"], {}).max_restarts == 3


def test_the_help_shows_one_spelling_of_each_option(capsys):
    run_parser().print_help()
    text = capsys.readouterr().out
    assert "--max-restarts N" in text
    assert "--max_restarts N" not in text
    assert "--numa-binding" not in text  # refused
