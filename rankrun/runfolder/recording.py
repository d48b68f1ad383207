"""What was run, with what and where: all that is needed to do it again, and nothing that must stay secret."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rankrun import __version__
from rankrun.runfolder.secrets import filtered_environment, mask_arguments, mask_text

__all__ = ["record"]

MOST_DIFF_BYTES: Final = 256 * 1024
GIT_LIMIT_S: Final = 5.0

_PACKAGES: Final = (
    "torch", "torchvision", "torchcodec", "torchmetrics", "numpy", "pillow", "pyyaml", "pydantic", "rich", "psutil",
    "submitit", "safetensors", "matplotlib", "timm", "tensorboard", "mlflow", "pyarrow", "triton", "nvidia-nccl-cu12",
    "nvidia-cudnn-cu12",
)  # fmt: skip


def record(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    host: str,
    since: str,
    resume: Sequence[str] = (),
    cwd: str | None = None,
) -> dict[str, Any]:
    """Command, commit with its uncommitted changes, packages, host, SLURM job and a filtered environment, as builtins.

    `since` is when the launch began, `resume` what goes on with the run later in place of `command`. Git is asked only
    where there is one, for a bounded time and size.
    """
    folder = cwd or os.getcwd()
    return {
        "version": 1,
        "rankrun": __version__,
        "command": mask_arguments(command),
        "resume": mask_arguments(resume),
        "folder": folder,
        "since": since,
        "host": host,
        "job": env.get("SLURM_JOB_ID"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": _packages(),
        "git": _git(folder, env),
        "environment": filtered_environment(env),
    }


def _packages() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: str, env: Mapping[str, str]) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the clone that `folder` is in; None where there is no clone or no git."""
    commit = _ask_git(folder, env, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _ask_git(folder, env, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    text = diff[: MOST_DIFF_BYTES + 1].decode("utf-8", "replace") if diff is not None else ""
    cut = diff is not None and len(diff) > MOST_DIFF_BYTES
    return {
        "commit": commit.decode("ascii", "replace").strip(),
        "dirty": bool(diff) if diff is not None else None,
        "diff": mask_text(text),
        "diff_is_cut": cut,
    }


def _ask_git(folder: str, env: Mapping[str, str], *arguments: str) -> bytes | None:
    # A repository's own settings can name programs that git starts; none is wanted here. Optional locks off: a launch
    # must not make another git wait.
    quiet = {
        "PATH": env.get("PATH", os.defpath),
        "HOME": env.get("HOME", "/nonexistent"),
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", folder, *arguments]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=quiet
        )
    except OSError:
        return None
    with process:
        assert process.stdout is not None
        try:
            answer, _ = process.communicate(timeout=GIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    return answer if process.returncode == 0 else None
