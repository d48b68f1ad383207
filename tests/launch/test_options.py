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
        (["--nnodes", "2", "s.py"], "--nnodes 2: several machines are not joined yet"),
        (["--rdzv_endpoint", "h:1", "s.py"], "--rdzv-endpoint: several machines are not joined yet"),
        (["--tee", "3", "s.py"], "--tee: the logs of all ranks are in the run folder"),
        (["--allow-change", "a", "s.py"], "the target is none"),
        (["-m", "--no-python", "x"], "-m and --no-python contradict each other"),
    ],
)
def test_mistakes_are_one_told_line(words, says):
    with pytest.raises(OptionError) as caught:
        parse_run(words, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_option_of_this_torchs_torchrun_is_honoured_or_refused():
    from torch.distributed.run import get_args_parser

    ours = {name for action in run_parser({})._actions for name in action.option_strings}
    theirs = {name for action in get_args_parser()._actions for name in action.option_strings}
    assert {name for name in theirs if name.startswith("--")} - ours == set()
    assert {name for name in theirs if not name.startswith("--")} - ours == set()
