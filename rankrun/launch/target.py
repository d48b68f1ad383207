"""The program of every rank, and whether its ranks can be forked from a process that has imported torch.

A program is read, never imported. What it must find as in an interpreter of its own (a variable that it sets before
torch reads it, a module of its own that shadows a loaded one) decides.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankrun.errors import OptionError

Kind = Literal["config", "script", "module", "command"]

# Read by libraries when they are imported; a script that sets one itself must import them itself.
_READ_AT_IMPORT = re.compile(r"^(OMP|MKL|OPENBLAS|KMP|NUMEXPR|TORCH|PYTORCH|CUDA|NCCL|GLOO|LD)_")
# What the warm parent imports where the target does, torch apart, which it always imports.
_PRELOADABLE = ("torch", "torchvision", "numpy", "PIL")
ASKED_FOR = "asked for"


@dataclass(frozen=True)
class Target:
    """The program of every rank. `path` is a script, a module's name or a command; `arguments` follow it."""

    kind: Kind
    path: str
    arguments: tuple[str, ...] = ()

    def command(self, python: list[str]) -> list[str]:
        """The argv that runs it in a process of its own; `python` is the interpreter with its options."""
        if self.kind == "command":
            return [self.path, *self.arguments]
        module = ["-m"] if self.kind == "module" else []
        return [*python, "-u", *module, self.path, *self.arguments]

    @property
    def file(self) -> Path | None:
        """The source file that will be `__main__`, found without importing anything; None if that can't be told."""
        if self.kind == "command":
            return None
        if self.kind != "module":
            return Path(self.path)
        place = Path(*self.path.split("."))
        candidates = (place.with_suffix(".py"), place / "__main__.py")
        return next((path for path in candidates if path.is_file()), None)

    @property
    def folder(self) -> Path:
        """What the program will have as sys.path[0]."""
        return Path.cwd() if self.kind == "module" else Path(self.path).resolve().parent


def warmth(wanted: str, target: Target, env: Mapping[str, str]) -> tuple[bool, str | None, tuple[str, ...]]:
    """Whether ranks are forked from a process that has torch, if not why, and what that process imports."""
    reason = _why_exec(target, env)
    if wanted == "exec":
        return False, ASKED_FOR, ()
    if wanted == "warm" and reason is not None:
        raise OptionError(f"--start warm: {reason}; use --start exec")
    if reason is not None:
        return False, reason, ()
    if target.kind == "config":
        # torchvision brings torch._dynamo, which the first optimiser would else import in every rank (0.9 s).
        return True, None, ("torch", "torchvision")
    return True, None, _imports_to_share(target)


# DDP and every optimiser import torch._dynamo when the first one is made: 0.9 s in every rank, at every restart.
_USES_DYNAMO = re.compile(rb"\bDistributedDataParallel\b|\boptim\b|\btorch\.compile\b")


def _why_exec(target: Target, env: Mapping[str, str]) -> str | None:
    if target.kind == "command":
        return "the target is no Python program"
    if sys.platform != "linux":
        return f"forking after imports is not safe on {sys.platform}"
    python = env.get("PYTHON_EXEC")  # torchrun's name for the ranks' interpreter
    if python and os.path.abspath(shutil.which(python) or python) != os.path.abspath(sys.executable):
        return f"PYTHON_EXEC={python} is another interpreter than this one"
    shadowing = next((name for name in _PRELOADABLE if _beside(target.folder, name) is not None), None)
    if shadowing is not None:
        return f"{shadowing} beside {target.path} shadows the installed one"
    early = _sets_before_torch(target.file, target.folder, set()) if target.file is not None else None
    if early is not None:
        return f"{early} before torch is imported"
    return None


def shadowed_by(target: Target, loaded: Mapping[str, types.ModuleType]) -> str | None:
    """The first loaded module that the program would find in its own folder instead; `loaded` is `sys.modules`.

    A forked rank has what its warm parent has loaded, so such a program needs an interpreter of its own.
    """
    folder = target.folder
    for name, module in sorted(loaded.items()):
        if "." in name or name == "__main__":
            continue
        own = _beside(folder, name)
        origin = getattr(module, "__file__", None)
        if own is not None and (origin is None or Path(origin).resolve() != own.resolve()):
            return name
    return None


def _beside(folder: Path, module: str) -> Path | None:
    """The file that `import module` would take from `folder`."""
    candidates = (folder / module / "__init__.py", folder / f"{module}.py")
    return next((path for path in candidates if path.is_file()), None)


def _sets_before_torch(file: Path, folder: Path, seen: set[Path]) -> str | None:
    """`file:line sets NAME` for the first variable read at import that a program sets at its top level ahead of torch.

    Local modules that it imports by then are looked into as well.
    """
    seen.add(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    for statement in tree.body:
        if "environ" in ast.dump(statement):
            for node in ast.walk(statement):
                name = node.value if isinstance(node, ast.Constant) else getattr(node, "arg", None)
                if isinstance(name, str) and _READ_AT_IMPORT.match(name):
                    return f"{file}:{getattr(node, 'lineno', statement.lineno)} sets {name}"
        for name in _imported(statement):
            top = name.split(".")[0]
            if top in _PRELOADABLE:
                return None
            local = _beside(folder, top)
            found = _sets_before_torch(local, folder, seen) if local is not None and local not in seen else None
            if found is not None:
                return found
    return None


def _imported(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.level == 0 and statement.module:
        return [statement.module]
    return []


def _imports_to_share(target: Target) -> tuple[str, ...]:
    """torch, and what else of the preloadable packages a program imports at its top level, as it names them."""
    names = {"torch"}
    if target.file is not None:
        source = target.file.read_bytes()
        for statement in ast.parse(source).body:
            names.update(name for name in _imported(statement) if name.split(".")[0] in _PRELOADABLE)
        if _USES_DYNAMO.search(source):
            names.add("torch._dynamo")
    return tuple(sorted(names))
