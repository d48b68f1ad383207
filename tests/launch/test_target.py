from __future__ import annotations

from pathlib import Path

import pytest

from rankrun.errors import OptionError
from rankrun.launch.options import RunOptions
from rankrun.launch.plan import make_plan
from rankrun.launch.target import Target, shadowed_by


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
    "line",
    [
        "from torch.nn.parallel import DistributedDataParallel as DDP",
        "opt = torch.optim.SGD(p)",
        "m = torch.compile(m)",
    ],
)
def test_what_the_first_optimiser_imports_is_shared_as_well(script, line):
    assert "torch._dynamo" in script(f"import torch\n{line}\n").preload


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


def test_another_interpreter_for_the_ranks_is_no_fork_of_this_one(script, tmp_path):
    import sys

    assert script(env={"PYTHON_EXEC": sys.executable}).warm
    other = script(env={"PYTHON_EXEC": "/opt/python"})
    assert other.why_not_warm == "PYTHON_EXEC=/opt/python is another interpreter than this one"
