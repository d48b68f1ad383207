from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rankrun.errors import OptionError
from rankrun.launch.options import RunOptions, parse_run
from rankrun.launch.plan import Target, _nproc, check_name, default_name, make_plan, visible_gpus


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Writes a script into an empty current folder and returns the plan for it."""
    monkeypatch.chdir(tmp_path)

    def plan_for(text="import torch\n", name="job.py", env=None, gpus=0, **options):
        Path(name).write_text(text)
        return make_plan(RunOptions(target=name, words=("a", "-b"), **options), env or {}, None, gpus=gpus)

    return plan_for


@pytest.mark.parametrize(
    ("word", "gpus", "ranks"), [(None, 0, 1), ("3", 0, 3), ("auto", 0, 1), ("auto", 4, 4), ("gpu", 2, 2)]
)
def test_number_of_ranks(script, word, gpus, ranks):
    assert script(nproc=word, gpus=gpus).nproc == ranks


@pytest.mark.parametrize("word", ["0", "-1", "abc", "2.5", "", "²"])
def test_numbers_of_ranks_that_cannot_be(script, word):
    with pytest.raises(OptionError, match="give a number of ranks from 1"):
        script(nproc=word)


def test_gpu_without_gpus(script):
    with pytest.raises(OptionError, match="shows no GPU"):
        script(nproc="gpu")


def test_several_ranks_get_one_thread_each_unless_told_otherwise(script):
    assert script(nproc="2").environment == {"OMP_NUM_THREADS": "1"}
    assert script(nproc="2", env={"OMP_NUM_THREADS": "3"}).environment == {}
    assert script(nproc="1").environment == {}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_text("def f(:\n"), "job.py:1  invalid syntax"),
        (lambda p: p.write_bytes(b"\0\0"), "no Python script"),
    ],
)
def test_scripts_that_could_not_even_begin(tmp_path, monkeypatch, make, says):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "job.py")
    with pytest.raises(OptionError, match=says):
        make_plan(RunOptions(target="job.py", words=()), {}, None, gpus=0)


def test_a_missing_script_names_its_nearest_neighbour(script):
    script(name="finetune.py")
    with pytest.raises(OptionError, match=r"did you mean finetune\.py\?"):
        make_plan(RunOptions(target="finetone.py", words=()), {}, None, gpus=0)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "a\nb", "$(touch x)", "a" * 300, "🚀"])
def test_names_that_are_no_folder_names(name):
    with pytest.raises(OptionError, match="a run's name is 1 to 128"):
        check_name(name)


def test_default_names():
    assert default_name("configs/digits.yaml") == "digits"
    assert default_name("my script (2).py") == "my-script--2-"
    assert default_name("/") == "run"


@pytest.mark.parametrize(
    ("shown", "count"), [("", 0), ("0,1", 2), ("-1", 0), ("0,-1,1", 1), ("GPU-8a,GPU-9b", 2), (" 0 , 1 ", 2)]
)
def test_gpus_of_cuda_visible_devices(shown, count):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": shown}) == count


@pytest.mark.parametrize(("nproc", "told"), [("1", "1 rank with"), ("2", "2 ranks with")])
def test_more_ranks_than_gpus(nproc, told):
    settings = SimpleNamespace(train=SimpleNamespace(device="cuda", global_batch=8))
    with pytest.raises(OptionError, match=f"^{told} train.device=cuda, but this machine shows 0 GPUs; use"):
        _nproc(RunOptions(target="c.yaml", words=(), nproc=nproc), settings, 0)


def plan_for(*words, env=None, settings=None, gpus=0):
    options = parse_run([*words], env or {})
    return make_plan(options, env or {}, settings, gpus=gpus)


def settings_of(global_batch=8, device="cpu", **launch):
    launch = {"nproc": None, "max_restarts": 3, "grace_s": 20.0, "hang_timeout_s": None, **launch}
    train = SimpleNamespace(device=device, global_batch=global_batch, threads=1)
    return SimpleNamespace(train=train, launch=SimpleNamespace(**launch))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: a job.py, and a train.py for configs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("import torch\n")
    (tmp_path / "train.py").write_text("import torch\n")
    return tmp_path


def test_defaults_that_are_not_torchruns(here):
    plan = plan_for("job.py")
    assert (plan.nnodes, plan.node_rank, plan.endpoint, plan.run_id) == (1, None, None, "job")
    assert (plan.stop_grace_s, plan.grace_s, plan.hang_timeout_s, plan.role) == (1.0, 30.0, None, "default")
    assert plan.signals == ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    assert plan.dist_env


def test_what_torchruns_options_come_to(here):
    words = ["--rdzv-id", "j7", "--role", "t", "--shutdown-timeout", "4", "--signals-to-handle", "SIGALRM"]
    plan = plan_for(*words, "--master-port", "29777", "--rdzv-conf", "timeout=9,read_timeout=3", "job.py")
    assert (plan.run_id, plan.role, plan.stop_grace_s, plan.signals) == ("j7", "t", 4.0, ("SIGALRM",))
    assert (plan.store_port, plan.join_timeout_s, plan.read_timeout_s) == (29777, 9.0, 3.0)


def test_a_config_has_limits_of_its_own_and_options_win(here):
    settings = settings_of(hang_timeout_s=50.0)
    plan = plan_for("c.yaml", settings=settings)
    assert (plan.hang_timeout_s, plan.grace_s, plan.max_restarts) == (50.0, 20.0, 3)
    plan = plan_for("c.yaml", "--hang-timeout", "9", "--grace", "0", "--max-restarts", "0", settings=settings)
    assert (plan.hang_timeout_s, plan.grace_s, plan.max_restarts) == (9.0, 0.0, 0)


def test_only_one_rank_of_a_config_is_shown_unless_more_is_asked_for(here):
    assert plan_for("c.yaml", settings=settings_of()).terminal.one_speaks
    assert not plan_for("c.yaml", "--tee", "3", settings=settings_of()).terminal.one_speaks
    assert not plan_for("c.yaml", "--local-ranks-filter", "1", settings=settings_of()).terminal.one_speaks
    assert not plan_for("job.py").terminal.one_speaks


def test_the_global_batch_counts_the_ranks_of_all_machines(here):
    words = ["--nnodes", "2", "--rdzv-endpoint", "h", "--nproc", "5", "c.yaml"]
    with pytest.raises(
        OptionError, match=r"global_batch=8 is less than 10 ranks: .* use train.global_batch=10 or --nproc 4"
    ):
        plan_for(*words, settings=settings_of())
    with pytest.raises(OptionError, match=r"global_batch=1 is less than 10 ranks.*=10$"):
        plan_for(*words, settings=settings_of(global_batch=1))


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (["--attach", "2", "--nproc", "2"], {}, "--attach 2: with 2 ranks it is at most 1"),
        (["--attach", "1"], {}, "--attach 1: with 1 rank it is at most 0"),
        (["--no-dist-env", "--nproc", "2"], {}, "--no-dist-env is for one rank; 2 need the variables"),
        (["--no-dist-env", "--nnodes", "2", "--rdzv-endpoint", "h"], {}, "--no-dist-env is for one rank"),
        (["--virtual-local-rank", "--nproc", "2"], {"CUDA_VISIBLE_DEVICES": "3"}, "CUDA_VISIBLE_DEVICES=3 names fewer"),
    ],
)
def test_what_the_number_of_ranks_makes_impossible(here, words, env, says):
    with pytest.raises(OptionError, match=says):
        plan_for(*words, "job.py", env=env)


def test_a_rank_of_another_machine_may_be_attached(here):
    plan = plan_for("--nnodes", "2", "--rdzv-endpoint", "h", "--attach", "3", "--nproc", "2", "job.py")
    assert (plan.terminal.attach, plan.terminal.attached) == (3, True)


@pytest.mark.parametrize("target", [["job.py"], ["c.yaml"], []])
def test_a_preflight_runs_our_check_in_a_folder_of_its_own(here, target):
    plan = plan_for("--preflight", "--nproc", "2", *target, settings=settings_of() if target == ["c.yaml"] else None)
    words = ("--shared", "--device", "cpu") if target == ["c.yaml"] else ()
    assert plan.target == Target("module", "rankrun.training.preflight", words)
    assert plan.name == (f"{Path(target[0]).stem}-preflight" if target else "preflight")
    assert (plan.settings, plan.new_folder, plan.max_restarts, plan.warm) == (None, True, 0, True)
    assert plan.resume_words("x") == []
    assert plan_for("--preflight", gpus=3).nproc == 3
    assert (Path(plan.environment["PYTHONPATH"].split(":")[0]) / "rankrun").is_dir()


def test_the_words_that_go_on_with_a_run(here):
    plan = plan_for(
        "--nproc", "2", "c.yaml", "a.b=1", "--grace", "3", "--name", "n", "--runs", "r", settings=settings_of()
    )
    words = plan.resume_words("n")
    assert words == ["run", "r/n/config.yaml", "--name", "n", "--runs", "r", "--nproc", "2", "--grace", "3"]
    plan = plan_for("--max-restarts", "1", "--log-dir", "r", "-m", "json.tool", "x y", "", "--name", "é")
    words = plan.resume_words("tool-20260101-000000")
    assert words[:4] == ["run", "--max-restarts", "1", "-m"]
    assert words[4:] == ["--name", "tool-20260101-000000", "--runs", "r", "json.tool", "x y", "", "--name", "é"]
    again = plan_for(*words[1:])
    assert (again.target, again.max_restarts, again.runs, again.new_folder) == (plan.target, 1, plan.runs, False)


def test_a_target_that_looks_like_an_option_is_given_again_as_one_that_is_none(here):
    words = plan_for("--no-python", "--", "-x", "y").resume_words("n")
    assert words == ["run", "--no-python", "--name", "n", "--runs", "runs", "--", "-x", "y"]
    assert plan_for(*words[1:]).target == Target("command", "-x", ("y",))


def test_a_dry_run_tells_of_all_machines(here):
    text = "\n".join(plan_for("--nnodes", "2", "--rdzv-endpoint", "h:1", "--node-rank", "1", "job.py").lines())
    assert "machines     2; this one is 1; they meet at h port 1" in text
    assert "ranks        1 on each machine" in text
    assert "machines" not in "\n".join(plan_for("job.py").lines())


def test_a_module_or_command_that_is_nowhere_is_refused(here):
    with pytest.raises(OptionError, match=r"-m no_such\.thing: there is no module 'no_such' here or among"):
        plan_for("-m", "no_such.thing")
    (here / "mine").mkdir()
    assert plan_for("-m", "mine.thing").target.path == "mine.thing"
    with pytest.raises(OptionError, match="no-such-command: no such command on PATH"):
        plan_for("--no-python", "no-such-command", env={"PATH": str(here)})
    assert plan_for("--no-python", sys.executable, env={"PATH": str(here)}).target.kind == "command"
