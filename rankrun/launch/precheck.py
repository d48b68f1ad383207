"""The look at a config's data before torch is imported: by a process of the data package, which alone knows how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun.errors import BadInput

if TYPE_CHECKING:
    from rankrun.config import Settings


class DataRefused(BadInput):
    """The data package has refused the data; its lines, with codes of its own, are the message."""

    code = ""


def data_command(words: list[str], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The argv and environment that run the data package's command line.

    In a clone that package is `data` beside `rankrun`, in an installed wheel it is `rankrun.data`.
    """
    package = Path(__file__).resolve().parent.parent
    installed = (package / "data").is_dir()
    paths = [str(package.parent), *filter(None, [env.get("PYTHONPATH")])]
    module = "rankrun.data" if installed else "data"
    return [sys.executable, "-m", module, *words], {**env, "PYTHONPATH": os.pathsep.join(paths)}


def data_words(settings: Settings, nproc: int = 1) -> list[list[str]]:
    """The words that stand for a config's data on the data package's command line: training, then evaluation."""
    data = settings.data
    common = [f"--classes={json.dumps(data.classes)}"] if data.classes is not None else []
    if data.root is not None:
        common.append(f"--root={data.root}")
    if data.allow_outside_root:
        common.append("--allow-outside-root")
    sources = [[source] if isinstance(source, str) else source for source in (data.train, data.val) if source]
    words = [[*common, "--", *source] for source in sources]
    words[0][:0] = [f"--global-batch={settings.train.global_batch}", f"--world-size={nproc}"]
    return words


def check_data(settings: Settings, nproc: int, env: Mapping[str, str]) -> None:
    """Look at the first and last lines of the config's meta files; DataRefused with what is wrong with them."""
    looks = []
    for words in data_words(settings, nproc):
        command, environment = data_command(["check", "--head", *words], env)
        looks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    said = [look.communicate()[1].decode(errors="replace").strip() for look in looks]
    lines = [line for text, look in zip(said, looks, strict=True) if look.returncode for line in text.splitlines()]
    if any(look.returncode for look in looks):
        raise DataRefused("\n".join(dict.fromkeys(lines)) or "the data package left without a word")
