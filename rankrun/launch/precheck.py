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
from rankrun.launch.reading import Facts

if TYPE_CHECKING:
    from rankrun.config import Settings


class DataRefused(BadInput):
    """The data package has refused the data; its lines, with codes of its own, are the message."""

    code = ""


class LabelsDiffer(DataRefused):
    """Names in one set and numbers in the other, and nothing that says which number means which name."""


def data_command(words: list[str], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The argv and environment that run the data package's command line.

    In a clone that package is `data` beside `rankrun`, in an installed wheel it is `rankrun.data`.
    """
    package = Path(__file__).resolve().parent.parent
    installed = (package / "data").is_dir()
    paths = [str(package.parent), *filter(None, [env.get("PYTHONPATH")])]
    module = "rankrun.data" if installed else "data"
    return [sys.executable, "-m", module, *words], {**env, "PYTHONPATH": os.pathsep.join(paths)}


def index_folder(runs: Path) -> Path:
    """Where runs keep indexes that can't lie beside their files; train.py says the same."""
    return runs / ".index"


def data_words(settings: Settings, cache: Path) -> list[list[str]]:
    """The words that stand for a config's data on the data package's command line: training, then evaluation."""
    data = settings.data
    common = ["--of-config", *([f"--classes={json.dumps(data.classes)}"] if data.classes is not None else [])]
    if data.root is not None:
        common.append(f"--root={data.root}")
    if data.allow_outside_root:
        common.append("--allow-outside-root")
    if data.format is not None:
        common.append(f"--format={data.format}")
    if data.columns is not None:
        common.append(f"--columns={json.dumps(data.columns.model_dump())}")
    common.append(f"--cache={cache}")
    sources = [_several(source) for source in (data.train, data.val) if source]
    words = [[*common, "--", *source] for source in sources]
    # rows are left out of the training data, which the order is of as well
    words[0][:0] = [f"--exclude={name}" for name in _several(data.exclude or [])]
    return words


def _several(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


def check_data(settings: Settings, world_size: int, env: Mapping[str, str], *, cache: Path) -> list[Facts]:
    """Look at the first and last lines of the config's meta files; returns what they are, training first.

    DataRefused with what is wrong with them.
    """
    root = settings.data.root
    if root is not None and not Path(root).is_dir():
        raise DataRefused(f"E213 data.root={root}: there is no such folder; paths in the meta files are relative to it")
    training, *rest = data_words(settings, cache)
    batch = [f"--global-batch={settings.train.global_batch}", f"--order={settings.data.order}"]
    looks = []
    for words in ([*batch, *training], *rest):
        command, environment = data_command(["check", "--facts", f"--world-size={world_size}", *words], env)
        looks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE))
    said = [look.communicate() for look in looks]
    if any(look.returncode for look in looks):
        told = [text.decode(errors="replace").strip() for (_, text), look in zip(said, looks, strict=True)]
        lines = [line for text, look in zip(told, looks, strict=True) if look.returncode for line in text.splitlines()]
        raise DataRefused("\n".join(dict.fromkeys(lines)) or "the data package left without a word")
    facts = [Facts.of(json.loads(out.splitlines()[-1])) for out, _ in said]
    _compare_labels(settings, facts)
    return facts


def check_labels(settings: Settings, env: Mapping[str, str], *, cache: Path) -> None:
    """LabelsDiffer as check_data has it; whatever else is wrong with the data is left to a longer look to tell."""
    if settings.data.classes is not None or settings.data.val is None:
        return
    try:
        check_data(settings, 1, env, cache=cache)
    except LabelsDiffer:
        raise
    except DataRefused:
        return


def _compare_labels(settings: Settings, facts: list[Facts]) -> None:
    """LabelsDiffer where, of meta files without data.classes, the labels of one set are names, the other's numbers.

    A run refuses that as well, whatever its sources are; here it costs nothing yet.
    """
    data = settings.data
    if data.classes is not None or data.val is None or not all(map(_are_lines, (data.train, data.val))):
        return
    kinds = ["names" if found.named else "numbers" for found in facts]
    if kinds[0] != kinds[1]:
        raise LabelsDiffer(
            f"E203 the labels of data.train are {kinds[0]}, those of data.val {kinds[1]}: which number means which "
            "name? Give data.classes (the names in the order of their numbers)"
        )


def _are_lines(source: str | list[str]) -> bool:
    return not any(Path(path).is_dir() or path.lower().endswith((".tar", ".parquet")) for path in _several(source))
