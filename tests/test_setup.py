"""`make setup`: which Python it takes, what it checks first, and that kills and repeats do no harm.

Each test gets a clone of its own with the real tools/, a project without dependencies and a folder of tiny
wheels that stands for the package index, so nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "rankrun"
version = "0"
dependencies = ["torch", "torchvision"]
[project.optional-dependencies]
demo = []
dev = []
"""

# The smallest build backend: an editable wheel is one .pth file.
BACKEND = """
import pathlib, zipfile
from wheel_text import METADATA, WHEEL

def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(pathlib.Path(folder) / "rankrun-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("rankrun_clone.pth", str(pathlib.Path.cwd()))
        wheel.writestr("rankrun-0.dist-info/METADATA", METADATA)
        wheel.writestr("rankrun-0.dist-info/WHEEL", WHEEL)
        wheel.writestr("rankrun-0.dist-info/RECORD", "")
    return "rankrun-0-py3-none-any.whl"
"""
METADATA = """Metadata-Version: 2.1
Name: rankrun
Version: 0
Requires-Dist: torch
Requires-Dist: torchvision
Provides-Extra: demo
Provides-Extra: dev
"""
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def add_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", WHEEL)
        wheel.writestr(f"{info}/RECORD", "")


class Clone:
    """A small project with the real tools/ and its own package index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a clone"  # a space, as in many people's paths
        self.index = folder / "index"
        self.index.mkdir(parents=True)
        for name, version in (
            ("torch", "2.14.1"),
            ("torch", "2.15.0"),
            ("torchvision", "0.29.1"),
            ("setuptools", "80"),
        ):
            add_wheel(self.index, name, version)
        shutil.copytree(ROOT / "tools", self.folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "pyproject.toml").write_text(PYPROJECT)
        (self.folder / "backend.py").write_text(BACKEND)
        (self.folder / "wheel_text.py").write_text(f"METADATA = {METADATA!r}\nWHEEL = {WHEEL!r}\n")
        (self.folder / "rankrun").mkdir()
        (self.folder / "rankrun" / "__init__.py").touch()
        self.pin(torch="2.14.1")
        # The free space of this machine is no part of these tests; check_space has its own.
        tool = self.folder / "tools" / "environment.py"
        tool.write_text(tool.read_text().replace("(6, 3) if", "(0, 0) if"))

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        return kept | {
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": self.index.as_uri(),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_CACHE_DIR": "1",
        }

    def pin(self, torch: str) -> None:
        (self.folder / "constraints.txt").write_text(f"# tested\ntorch=={torch}\ntorchvision==0.29.1\n")

    def setup(self, *, without: tuple[str, ...] = (), **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in (self.environment | changes).items() if name not in without}
        return subprocess.run(
            ["/bin/sh", "tools/setup.sh"], cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def stamp(self) -> Mapping[str, object]:
        return json.loads((self.venv / "rankrun-setup.json").read_text())  # type: ignore[no-any-return]

    def imported(self, name: str) -> str:
        code = f"import {name}; print({name}.__version__)"
        return subprocess.check_output([self.venv / "bin" / "python", "-c", code], cwd="/", text=True).strip()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_makes_the_environment_once_and_renews_it_when_the_pins_change(clone: Clone) -> None:
    first = clone.setup()
    assert first.returncode == 0, first.stderr
    assert "is ready: torch 2.14.1, torchvision 0.29.1" in first.stdout
    subprocess.run([clone.venv / "bin" / "python", "-c", "import rankrun"], cwd="/", check=True)

    before = (clone.venv / "rankrun-setup.json").stat()
    second = clone.setup()
    assert (second.returncode, second.stdout) == (0, f"setup: {clone.venv} is up to date\n")
    assert (clone.venv / "rankrun-setup.json").stat().st_mtime_ns == before.st_mtime_ns

    marker = clone.venv / "kept"
    marker.touch()
    clone.pin(torch="2.15.0")
    third = clone.setup()
    assert third.returncode == 0, third.stderr
    assert clone.imported("torch") == "2.15.0"
    assert marker.exists(), "the environment is mended in place, not made anew"


@pytest.mark.slow
def test_killed_halfway_it_starts_anew(clone: Clone) -> None:
    # A named pipe in place of a wheel holds pip until we kill the whole group.
    wheel = clone.index / "torchvision-0.29.1-py3-none-any.whl"
    content = wheel.read_bytes()
    wheel.unlink()
    os.mkfifo(wheel)
    process = subprocess.Popen(
        ["/bin/sh", "tools/setup.sh"],
        cwd=clone.folder,
        env=clone.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "installing" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert clone.stamp()["state"] == "unfinished"
    (clone.venv / "half-made").touch()

    wheel.unlink()
    wheel.write_bytes(content)
    again = clone.setup()
    assert again.returncode == 0, again.stderr
    assert "making it anew" in again.stdout
    assert not (clone.venv / "half-made").exists()
    assert clone.stamp()["state"] == "done"


@pytest.mark.slow
def test_an_environment_of_ones_own_is_used_and_never_removed(clone: Clone) -> None:
    subprocess.run([sys.executable, "-m", "venv", clone.venv], check=True)
    (clone.venv / "mine").touch()
    (clone.folder / "constraints.txt").write_text("torch==2.14.1\ntorchvision==7\n")
    failed = clone.setup()
    assert failed.returncode == 2
    assert "pip could not install" in failed.stderr
    assert "setup.log" in failed.stderr
    clone.pin(torch="2.14.1")
    assert clone.setup().returncode == 0
    assert (clone.venv / "mine").exists()


@pytest.mark.slow
def test_torch_system_reuses_the_installed_one(clone: Clone, tmp_path: Path) -> None:
    system = tmp_path / "system"
    subprocess.run([sys.executable, "-m", "venv", system], check=True)
    python = str(system / "bin" / "python")
    none = clone.setup(PYTHON=python, TORCH="system")
    assert none.returncode == 2
    assert "TORCH=system, but" in none.stderr
    assert "has no torch" in none.stderr
    assert not clone.venv.exists()

    install = [python, "-m", "pip", "install", "-q", "torch==2.15.0"]
    subprocess.run(install, env=clone.environment, check=True)
    done = clone.setup(PYTHON=python, TORCH="system")
    assert done.returncode == 0, done.stderr
    assert clone.imported("torch") == "2.15.0", "the constraint of 2.14.1 must not replace it"
    assert not list(clone.venv.glob("lib/python*/site-packages/torch.py"))

    add_wheel(clone.index, "torch", "2.9.0")
    subprocess.run([*install[:-1], "torch==2.9.0"], env=clone.environment, check=True)
    shutil.rmtree(clone.venv)
    old = clone.setup(PYTHON=python, TORCH="system")
    assert old.returncode == 2
    assert "has torch 2.9.0; it must be 2.11 or newer" in old.stderr


def test_refuses_a_folder_that_is_something_else(clone: Clone) -> None:
    clone.venv.mkdir()
    (clone.venv / "thesis.tex").touch()
    refused = clone.setup()
    assert refused.returncode == 2
    assert "is not a Python environment" in refused.stderr
    assert [path.name for path in clone.venv.iterdir()] == ["thesis.tex"]


def test_refuses_an_unknown_torch(clone: Clone) -> None:
    refused = clone.setup(TORCH="cuda")
    assert refused.returncode == 2
    assert "TORCH=cuda is unknown" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "without", "said"),
    [
        (
            {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"},
            ("PIP_NO_INDEX", "PIP_FIND_LINKS"),
            "pip found no torch",
        ),
        (
            {"https_proxy": "http://me:secret@10.0.0.1:3128", "PIP_FIND_LINKS": "/"},
            (),
            "http://…@10.0.0.1:3128",
        ),
    ],
    ids=["no connection", "empty index behind a proxy"],
)
def test_an_index_without_torch_is_said_before_any_download(
    clone: Clone, changes: dict[str, str], without: tuple[str, ...], said: str
) -> None:
    stopped = clone.setup(without=without, **changes)
    assert stopped.returncode == 2
    assert said in stopped.stderr
    assert "secret" not in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert not clone.venv.exists(), "nothing half-made is left"


@pytest.mark.slow
def test_an_index_without_the_tested_torch_is_said(clone: Clone) -> None:
    clone.pin(torch="2.99.0")
    stopped = clone.setup()
    assert stopped.returncode == 2
    assert "has torch 2.15.0, 2.14.1, … but not 2.99.0" in stopped.stderr


# Which Python


def choices(clone: Clone, path: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.sh with nothing but `path` on PATH."""
    for tool in ("dirname", "cat"):
        if not (path / tool).exists():
            (path / tool).symlink_to(shutil.which(tool) or tool)
    return clone.setup(without=("PYTHON",), PATH=str(path), **changes)


def fake_python(path: Path) -> Path:
    """Works like a Python from 3.11 on for the question, and says its own name when it is taken."""
    return script(path, f'case "$1" in -c) exit 0;; *) echo "taken: {path.name} $*";; esac')


def test_takes_the_newest_that_runs_and_passes_by_broken_shims(clone: Clone, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    script(path / "python3.14", 'echo "pyenv: python3.14: command not found" >&2; exit 127')
    script(path / "python3.13", "exit 1")  # older than its name, or without ssl
    fake_python(path / "python3.12")
    fake_python(path / "python3")
    assert choices(clone, path).stdout.startswith("taken: python3.12 ")
    (path / "python3.12").unlink()
    assert choices(clone, path).stdout.startswith("taken: python3 ")


def test_conda_comes_before_the_path_and_a_named_one_before_conda(clone: Clone, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    fake_python(path / "python3.14")
    conda = tmp_path / "conda env"
    (conda / "bin").mkdir(parents=True)
    fake_python(conda / "bin" / "python")
    named = fake_python(tmp_path / "named python")
    assert choices(clone, path, CONDA_PREFIX=str(conda)).stdout.startswith("taken: python ")
    assert choices(clone, path, CONDA_PREFIX=str(conda), PYTHON="").stdout.startswith("taken: python ")
    taken = clone.setup(PATH=str(path), CONDA_PREFIX=str(conda), PYTHON=str(named))
    assert taken.stdout.startswith("taken: named python ")
    assert "--named" in taken.stdout


def test_a_named_python_that_fails_is_said_aloud(clone: Clone, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    fake_python(path / "python3.14")
    (path / "dirname").symlink_to(shutil.which("dirname") or "dirname")
    taken = clone.setup(PATH=str(path), PYTHON="python9")
    assert "PYTHON=python9 does not run" in taken.stderr
    assert taken.stdout.startswith("taken: python3.14 ")


def test_without_any_python_it_says_how_to_get_one(clone: Clone, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    nothing = choices(clone, path)
    assert nothing.returncode == 2
    for way in ("uv python install", "conda create", "module load", "make setup PYTHON="):
        assert way in nothing.stderr


def test_the_environments_own_python_is_enough_when_nothing_changed(clone: Clone, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    (clone.venv / "bin").mkdir(parents=True)
    fake_python(clone.venv / "bin" / "python")
    assert choices(clone, path).stdout.startswith("taken: python ")


# The parts that need a machine unlike this one


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import environment

    return environment


def test_a_full_disk_is_said_with_numbers(environment, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    usage = shutil.disk_usage(tmp_path)._replace(free=1_500_000_000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(SystemExit) as left:
        environment.check_space(tmp_path / "not" / "there", "")
    assert left.value.code == 2
    assert "has 1.5 GB free and" in capsys.readouterr().err
    environment.check_space(tmp_path, "system")  # torch is there already


def test_without_ensurepip_virtualenv_then_uv_then_a_letter(environment, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked: list[str] = []
    works = {"uv"}

    def run(command, **_):  # type: ignore[no-untyped-def]
        asked.append(Path(command[0]).name)
        return subprocess.CompletedProcess(command, Path(command[0]).name not in works, "", "no wheels")

    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(environment.subprocess, "run", run)
    environment.make(tmp_path, "")
    assert asked == ["virtualenv", "uv"]
    assert f"made {tmp_path} with uv" in capsys.readouterr().out

    works.clear()
    with pytest.raises(SystemExit):
        environment.make(tmp_path, "")
    said = capsys.readouterr().err
    assert "venv: this Python has no ensurepip; virtualenv: no wheels; uv: no wheels" in said
    assert "apt-get install python3." in said


def test_a_pair_that_does_not_import_is_said(environment, monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = subprocess.CompletedProcess([], 1, "", "RuntimeError: operator torchvision::nms does not exist")
    monkeypatch.setattr(environment, "ask", lambda *_, **__: broken)
    with pytest.raises(SystemExit):
        environment.try_it(tmp_path)
    assert "torchvision::nms does not exist" in capsys.readouterr().err


def test_an_environment_that_must_be_made_anew_does_not_remove_itself(
    environment, monkeypatch, capsys, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    torn = environment.Stamp("unfinished", True, str(tmp_path), str(ROOT), "3.11", "", "")
    torn.write()
    monkeypatch.setattr(environment, "check_space", lambda venv, torch: None)
    monkeypatch.setattr(environment.sys, "prefix", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        environment.main(["--venv", str(tmp_path)])
    assert left.value.code == 2
    assert "must be made anew, and no other Python is in reach" in capsys.readouterr().err
    assert environment.read_stamp(tmp_path) == torn
