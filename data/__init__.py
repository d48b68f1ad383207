"""From a meta file or a folder of images to batches, exact for any world size.

    from data import RankDataset, build_loader

The package is told its rank and never asks for it: no environment, no process group, no config object. Its core
(order, index, formats, sources, meta, shard, split, audit) needs numpy only; names below are imported when they are
first used, so that `import data` costs neither torch nor torchvision.

    index/    the bytes of a meta file: where its lines are, kept beside it        order, blocks, split, audit
    formats/  what a line means                                                    positions, rows, and who gets which
    sources/  folders, tars and Parquet files, read as lines                       shard, slots, builder
    meta      rows, of whatever kind of file                                       a rank's rows, one epoch ahead
    verbs/    what `python -m data VERB` does                                      sampling … datasets, loader, workers
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import errors
from .errors import DataError

if TYPE_CHECKING:
    from .agreement import agree, prepare
    from .audit import EpochAudit, expected_sums
    from .datasets import FolderDataset, IndexedDataset, RankDataset, open_dataset
    from .erasing import RandomErasing
    from .loader import Batch, Loader, build_loader
    from .meta import MetaFile
    from .order import Permutation
    from .sampler import Draw, ElasticSampler
    from .transforms import Transforms, build_transforms

__all__ = [
    "Batch",
    "DataError",
    "Draw",
    "ElasticSampler",
    "EpochAudit",
    "FolderDataset",
    "IndexedDataset",
    "Loader",
    "MetaFile",
    "Permutation",
    "RandomErasing",
    "RankDataset",
    "Transforms",
    "agree",
    "build_loader",
    "build_transforms",
    "errors",
    "expected_sums",
    "open_dataset",
    "prepare",
]

_HOME = {
    "Batch": "loader",
    "Draw": "sampler",
    "ElasticSampler": "sampler",
    "EpochAudit": "audit",
    "FolderDataset": "datasets",
    "IndexedDataset": "datasets",
    "Loader": "loader",
    "MetaFile": "meta",
    "Permutation": "order",
    "RandomErasing": "erasing",
    "RankDataset": "datasets",
    "Transforms": "transforms",
    "agree": "agreement",
    "build_loader": "loader",
    "build_transforms": "transforms",
    "expected_sums": "audit",
    "open_dataset": "datasets",
    "prepare": "agreement",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
