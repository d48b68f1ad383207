"""The floors of the house: who may import whom (DESIGN section 2), read from the source of every module.

    roof      launch.py -> rankrun.launch only; train.py, predict.py -> everything below
    floor 3   rankrun.training   torch and its neighbours, floors 0-1        models  the same without rankrun
    floor 2   rankrun.launch     pyyaml, pydantic, rich, psutil, floors 0-1; its agent processes torch as well
    floor 1   rankrun.config, rankrun.world, rankrun.runfolder               pyyaml, pydantic, floor 0
    floor 0   rankrun.errors, rankrun.failure                                standard library
    island    data               its core numpy only, its upper part torch, torchvision, torchcodec, pillow

Imports inside functions count as well. What an import under `if TYPE_CHECKING:` names is only a type and
passes.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CONFIG_LIBRARIES = {"yaml", "pydantic", "pydantic_core"}
TORCH_LIBRARIES = {"torch", "torchvision", "torchmetrics", "safetensors", "matplotlib", "timm", "numpy", "PIL"}
# The island's upper part. Every other module of data/ is its core, which gets by with numpy and imports these, if at
# all, inside a function.
DATA_UPPER = {"agreement", "clips", "datasets", "decode", "erasing", "loader", "reading", "sampler", "sampling"}
DATA_UPPER |= {"transforms", "verbs.grid", "verbs.inspection", "verbs.shrink", "workers"}
# Modules of rankrun.launch that run in the agent or in the processes it forks; with training the only torch in rankrun.
AGENT = {"agent", "local", "meeting", "rank"}
# launch.py and the console command share one door, cli.py.
DOORS = {"launch.py", "rankrun/launch/cli.py", "rankrun/__main__.py", "train.py", "predict.py", "data/__main__.py"}
DOORS |= {"rankrun/training/preflight.py"}  # a program that every rank runs


@dataclass(frozen=True)
class Import:
    """`target` is absolute: rankrun.errors, torch.nn; `level` counts the dots before it."""

    target: str
    level: int
    line: int
    in_function: bool = False


def module_name(path: str) -> str:
    """data/order.py -> data.order, rankrun/config/__init__.py -> rankrun.config."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def imports(path: str, source: str) -> Iterator[Import]:
    """Every import that can run: at the top, in functions, and by importlib.import_module("...")."""
    package = module_name(path) if path.endswith("__init__.py") else module_name(path).rpartition(".")[0]
    tree = ast.parse(source)
    only_types: set[ast.AST] = set()
    in_functions: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            only_types.update(inner for statement in node.body for inner in ast.walk(statement))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            in_functions.update(ast.walk(node))
    for node in ast.walk(tree):
        if node not in only_types:
            for level, name in names_in(node):
                yield Import(absolute(package, level, name), level, node.lineno, node in in_functions)


def names_in(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(dots, name) of what this one node imports; `from rankrun import errors` names a module as well."""
    if isinstance(node, ast.Import):
        yield from ((0, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        prefix = f"{node.module}." if node.module else ""
        yield from ((node.level, prefix + alias.name) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if isinstance(name, str):
            yield len(name) - len(name.lstrip(".")), name.lstrip(".")


def absolute(package: str, level: int, name: str) -> str:
    """`name` with `level` dots before it, seen from `package`; one dot too many leads nowhere."""
    if level == 0:
        return name
    parents = package.split(".")
    if level > len(parents):
        return f"<above {parents[0]}>.{name}"
    return ".".join([*parents[: len(parents) - level + 1], name])


def is_in(target: str, *packages: str) -> bool:
    return any(target == package or target.startswith(f"{package}.") for package in packages)


def allowed(path: str, target: str, in_function: bool) -> bool:
    """Whether the module at `path` may import `target`, a module or a name in one."""
    top = target.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    module = module_name(path)
    floor_0 = is_in(target, "rankrun.errors", "rankrun.failure", "rankrun.__version__")
    floor_1 = is_in(target, "rankrun.config", "rankrun.world", "rankrun.runfolder")
    if is_in(module, "data"):
        if top == "data":
            return in_data_upper(module) or not in_data_upper(target) or in_function
        if module == "data.sources.parquet" and top == "pyarrow":
            return True
        return top == "numpy" or (in_data_upper(module) and top in {"torch", "torchvision", "torchcodec", "PIL"})
    if is_in(module, "models"):
        return top in TORCH_LIBRARIES | {"models"}
    if module == "rankrun.errors":
        return False
    if is_in(module, "rankrun.config", "rankrun.world", "rankrun.runfolder"):
        return top in CONFIG_LIBRARIES or floor_0 or floor_1
    if is_in(module, "rankrun.launch"):
        agent = module.rpartition(".")[2] in AGENT and top == "torch"
        below = floor_0 or floor_1 or is_in(target, "rankrun.launch", "rankrun.beat")
        return top in CONFIG_LIBRARIES | {"rich", "psutil"} or agent or below
    if is_in(module, "rankrun.training"):
        below = floor_0 or floor_1 or is_in(target, "rankrun.training", "rankrun.beat")
        return top in TORCH_LIBRARIES | CONFIG_LIBRARIES or below
    if module == "launch":
        return is_in(target, "rankrun.launch")
    if module == "rankrun.__main__":
        return is_in(target, "rankrun.launch") or floor_0
    if module in {"train", "predict"}:
        return top in TORCH_LIBRARIES | {"data", "models"} or (
            is_in(target, "rankrun") and not is_in(target, "rankrun.launch")
        )
    return floor_0 or module == "rankrun"  # rankrun.beat and whatever else stands beside the errors


def in_data_upper(name: str) -> bool:
    return is_in(name, *(f"data.{upper}" for upper in DATA_UPPER))


def reads_environment(source: str) -> Iterator[int]:
    """Lines that reach for os.environ or os.getenv."""
    names = {"environ", "environb", "getenv", "putenv"}
    for node in ast.walk(ast.parse(source)):
        attribute = isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os"
        imported = isinstance(node, ast.ImportFrom) and node.module == "os"
        if attribute or (imported and names & {alias.name for alias in node.names}):
            yield node.lineno


def violations(path: str, source: str) -> list[str]:
    """One line for everything in the module at `path` that breaks the floors."""
    found = []
    island = path.startswith(("data/", "models/"))
    for imported in imports(path, source):
        where, target = f"{path}:{imported.line}  ", imported.target
        if not allowed(path, target, imported.in_function):
            found.append(f"{where}may not import {target}")
        elif island and imported.level == 0 and is_in(target, "data", "models"):
            found.append(f"{where}must import {target} relatively, or it breaks as rankrun.{target}")
    door = path in DOORS or (path.startswith("rankrun/launch/") and Path(path).stem in AGENT)
    lines = [] if door else reads_environment(source)
    return found + [f"{path}:{line}  os.environ is for the doors and the agent" for line in lines]


def modules() -> list[str]:
    """Every Python file that the floors speak of, relative to the root."""
    files = [path for name in ("rankrun", "data", "models") for path in (ROOT / name).rglob("*.py")]
    files += [path for name in ("launch.py", "train.py", "predict.py") if (path := ROOT / name).exists()]
    return sorted(str(path.relative_to(ROOT)) for path in files)


@pytest.mark.parametrize("path", modules())
def test_no_module_imports_above_its_floor(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


def test_a_renamed_module_does_not_slip_out_of_its_row() -> None:
    assert {f"data/{name.replace('.', '/')}.py" for name in DATA_UPPER} <= set(modules())
    assert {f"rankrun/launch/{name}.py" for name in AGENT} <= set(modules())
    assert set(modules()) >= DOORS


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("data/order.py", "import torch", "may not import torch"),
        ("data/order.py", "def f():\n    from torch import nn", "data/order.py:2  may not import torch.nn"),
        ("data/order.py", "from .loader import Loader", "may not import data.loader.Loader"),
        ("data/loader.py", "import rankrun.errors", "may not import rankrun.errors"),
        ("data/loader.py", "from ..rankrun import errors", "may not import"),
        ("data/loader.py", "from data.order import cut", "must import data.order.cut relatively"),
        ("data/loader.py", "import importlib\nimportlib.import_module('rankrun.world')", "may not import"),
        ("models/factory.py", "from rankrun import errors", "may not import rankrun.errors"),
        ("models/factory.py", "import models.small_resnet", "relatively"),
        ("models/factory.py", "from data import Batch", "may not import data.Batch"),
        ("rankrun/errors.py", "import yaml", "may not import yaml"),
        ("rankrun/world.py", "import torch", "may not import torch"),
        ("rankrun/world.py", "from .launch import plan", "may not import rankrun.launch.plan"),
        ("rankrun/config/schema.py", "import numpy", "may not import numpy"),
        ("rankrun/config/schema.py", "from ..training import step", "may not import rankrun.training.step"),
        ("rankrun/launch/plan.py", "import torch", "may not import torch"),
        ("rankrun/launch/plan.py", "from data import order", "may not import data.order"),
        ("rankrun/launch/agent.py", "import torchvision", "may not import torchvision"),
        ("rankrun/launch/agent.py", "from ..training import step", "may not import rankrun.training.step"),
        ("rankrun/training/step.py", "from ..launch import agent", "may not import rankrun.launch.agent"),
        ("rankrun/training/step.py", "from data import Batch", "may not import data.Batch"),
        ("rankrun/training/step.py", "from rankrun.data import Batch", "may not import rankrun.data.Batch"),
        ("rankrun/beat.py", "import torch", "may not import torch"),
        ("launch.py", "import torch", "may not import torch"),
        ("launch.py", "from rankrun.config import resolve", "may not import rankrun.config.resolve"),
        ("rankrun/world.py", "import os\nrank = os.environ['RANK']", "rankrun/world.py:2  os.environ is for"),
        ("data/loader.py", "from os import getenv", "os.environ is for the doors"),
        ("rankrun/launch/plan.py", "import os\nos.getenv('X')", "os.environ is for the doors"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str, said: str) -> None:
    assert said in "\n".join(violations(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/order.py", "from __future__ import annotations\nimport numpy\nfrom .errors import E"),
        ("data/order.py", "def f():\n    from .loader import Loader"),
        ("data/order.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/loader.py", "import torch\nfrom PIL import Image\nfrom . import order"),
        ("models/factory.py", "import torchvision\nfrom .small_resnet import SmallResNet"),
        ("rankrun/config/schema.py", "import yaml\nfrom pydantic import Field\nfrom ..errors import E"),
        ("rankrun/launch/agent.py", "import os, torch\nfrom ..runfolder import claim\nos.environ['RANK']"),
        ("rankrun/training/step.py", "import torch\nfrom ..world import World"),
        ("launch.py", "import os, sys\nfrom rankrun.launch.cli import main"),
        ("train.py", "import torch\nfrom data import build_loader\nfrom rankrun.training import step"),
    ],
)
def test_what_the_table_allows_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_every_third_party_import_is_a_declared_dependency_and_every_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules_of = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    optional = project["optional-dependencies"]["parquet"]
    names = [requirement.partition(">")[0] for requirement in [*project["dependencies"], *optional]]
    declared = {modules_of.get(name, name) for name in names}
    used = {
        imported.target.partition(".")[0] for path in modules() for imported in imports(path, (ROOT / path).read_text())
    }
    used -= sys.stdlib_module_names | {"rankrun", "data", "models", "pydantic_core"}
    assert used == declared
