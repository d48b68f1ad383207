from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rankrun.errors import OptionError
from rankrun.launch.options import RunOptions
from rankrun.launch.plan import Target, _nproc, check_name, default_name, make_plan, shadowed_by, visible_gpus


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Writes a script into an empty current folder and returns the plan for it."""
    monkeypatch.chdir(tmp_path)

    def plan_for(text="import torch\n", name="job.py", env=None, gpus=0, **options):
        Path(name).write_text(text)
        return make_plan(RunOptions(target=name, words=("a", "-b"), **options), env or {}, None, gpus=gpus)

    return plan_for


def test_a_script_runs_warm_with_the_torch_modules_it_names(script):
    plan = script("import json\nimport torch.distributed as dist\nfrom torchvision.transforms import v2\n")
    assert plan.warm
    assert plan.preload == ("torch", "torch.distributed", "torchvision.transforms")
    assert plan.target == Target("script", "job.py", ("a", "-b"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('import os\nos.environ["OMP_NUM_THREADS"] = "4"\nimport torch\n', "job.py:2 sets OMP_NUM_THREADS"),
        ('import os\nos.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")\nimport torch\n', "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_script_that_sets_what_torch_reads_at_import_gets_processes_of_its_own(script, text, reason):
    plan = script(text)
    assert not plan.warm
    assert reason in plan.why_not_warm
    with pytest.raises(OptionError, match="--start warm"):
        script(text, start="warm")


def test_setting_it_after_the_import_or_reading_it_is_harmless(script):
    assert script('import torch, os\nos.environ["OMP_NUM_THREADS"] = "4"\n').warm
    assert script('NAME = "OMP_NUM_THREADS"\nimport torch\n').warm


def test_a_module_beside_the_script_that_shadows_torchvision(script, tmp_path):
    (tmp_path / "torchvision.py").write_text("")
    assert "torchvision beside job.py shadows" in script().why_not_warm


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


def test_commands():
    assert Target("script", "a.py", ("x y",)).command(["py"]) == ["py", "-u", "a.py", "x y"]
    assert Target("module", "a.b", ()).command(["py", "-O"]) == ["py", "-O", "-u", "-m", "a.b"]
    assert Target("command", "ls", ("-l",)).command(["py"]) == ["ls", "-l"]


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("import os\nos.environ.update(OMP_NUM_THREADS='1')\n", "job.py:2 sets OMP_NUM_THREADS"),
        ("import settings_of_mine\n", "settings_of_mine.py:2 sets MKL_NUM_THREADS"),
    ],
)
def test_settings_by_keyword_and_in_local_modules_are_found_too(script, tmp_path, before, reason):
    (tmp_path / "settings_of_mine.py").write_text("import os\nos.environ['MKL_NUM_THREADS'] = '1'\n")
    assert reason in script(before + "import torch\n").why_not_warm


def test_the_file_of_a_module_is_looked_into(script, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__main__.py").write_text("import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch\n")
    plan = make_plan(RunOptions(target="pack", words=(), module=True), {}, None, gpus=0)
    assert "pack/__main__.py:2 sets OMP_NUM_THREADS" in plan.why_not_warm


def test_a_local_module_that_stands_for_a_loaded_one_is_found(script, tmp_path):
    import secrets
    import sys

    target = script().target
    assert shadowed_by(target, sys.modules) is None
    (tmp_path / "secrets.py").write_text("")
    assert shadowed_by(target, {"secrets": secrets}) == "secrets"
    assert shadowed_by(target, {"other": secrets}) is None


def test_a_linked_script_is_at_home_where_the_link_leads(script, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/job.py").write_text("import torch\n")
    (tmp_path / "real/numpy.py").write_text("")
    (tmp_path / "link.py").symlink_to("real/job.py")
    plan = make_plan(RunOptions(target="link.py", words=()), {}, None, gpus=0)
    assert "numpy beside link.py shadows" in plan.why_not_warm


@pytest.mark.parametrize(("nproc", "told"), [("1", "1 rank with"), ("2", "2 ranks with")])
def test_more_ranks_than_gpus(nproc, told):
    settings = SimpleNamespace(train=SimpleNamespace(device="cuda", global_batch=8))
    with pytest.raises(OptionError, match=f"^{told} train.device=cuda, but this machine shows 0 GPUs; use"):
        _nproc(SimpleNamespace(nproc=nproc), settings, 0)
