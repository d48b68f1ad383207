"""The wheel, installed outside the tree: README's example runs there, and site-packages got only `rankrun`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves its build folders in the tree that it builds."""
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    copy.mkdir()
    for name in ("rankrun", "data", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = ("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", ".")
    run(sys.executable, "-m", "pip", *command, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel and sees, through a .pth, this environment's torch."""
    folder = tmp_path_factory.mktemp("outside") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    # Only now, or pip would meet an editable rankrun of this environment. A .pth inside a folder that a .pth
    # names isn't read, so that one stays invisible.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site_packages(folder).joinpath("torch_of_the_tests.pth").write_text("".join(f"{path}\n" for path in here))
    return folder


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3*/site-packages")
    return found


def test_the_package_list_is_what_the_folders_hold() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent for name in ("rankrun", "data", "models") for path in (ROOT / name).rglob("__init__.py")]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    assert sorted(listed) == sorted(name if name.startswith("rankrun") else f"rankrun.{name}" for name in names)


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for name in ("rankrun", "data", "models"):
        for path in (ROOT / name).rglob("*.py"):
            prefix = "" if name == "rankrun" else "rankrun/"
            expected.add(prefix + str(path.relative_to(ROOT)))
    assert inside == expected


def test_site_packages_got_nothing_but_rankrun(installed: Path) -> None:
    names = {path.name for path in site_packages(installed).iterdir()}
    names -= {"torch_of_the_tests.pth", "__pycache__"}
    assert {re.sub(r"-.*\.dist-info", ".dist-info", name) for name in names} == {"rankrun", "rankrun.dist-info"}


def readme_block(holding: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = [block for block in blocks if holding in block]
    assert "from rankrun.data import" in found
    return str(found)


def test_readmes_example_runs_there(installed: Path, tmp_path: Path) -> None:
    example = readme_block("# prints")
    run(sys.executable, ROOT / "datasets" / "digits.py", tmp_path / "datasets" / "digits", cwd=tmp_path)
    (tmp_path / "example.py").write_text(example)
    python = installed / "bin" / "python"
    told = run(python, "example.py", cwd=tmp_path)
    assert told.splitlines() == re.findall(r"# prints (.*)", example)
    place = run(python, "-c", "import rankrun.data; print(rankrun.data.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(site_packages(installed))


def test_readmes_training_script_runs_there_under_plain_torchrun(installed: Path, tmp_path: Path) -> None:
    run(sys.executable, ROOT / "datasets" / "digits.py", tmp_path / "datasets" / "digits", cwd=tmp_path)
    (tmp_path / "mine.py").write_text(readme_block("DistributedDataParallel"))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "mine.py")
    told = run(installed / "bin" / "python", *torchrun, cwd=tmp_path)
    assert told.splitlines()[-3:] == ["0 1408", "1 1408", "2 1408"]  # 1,442 rows, cut at the global batch


def test_the_console_command_answers(installed: Path, tmp_path: Path) -> None:
    assert "run" in run(installed / "bin" / "rankrun", "--help", cwd=tmp_path)
