"""Meta files for the benchmarks: `n01440764/n01440764_10026.JPEG 417`, as many rows as wanted, made once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

AT_ONCE = 1 << 20


def meta_file(folder: Path, rows: int) -> Path:
    """A meta file of `rows` lines of 39 bytes with labels 0 … 999, made if it is not there."""
    path = folder / f"{rows}.txt"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    making = path.with_suffix(f".tmp-{os.getpid()}")
    with open(making, "wb") as file:
        for first in range(0, rows, AT_ONCE):
            numbers = np.arange(first, min(first + AT_ONCE, rows))
            labels = numbers * 2654435761 % 1000
            text = np.empty((numbers.size, 39), np.uint8)
            text[:] = np.frombuffer(b"train/n00000000/n00000000_000.JPEG 000\n", np.uint8)
            _digits(text, 7, 8, numbers % 99_999_989)
            _digits(text, 17, 8, numbers)
            _digits(text, 26, 3, numbers % 997)
            _digits(text, 35, 3, labels)
            file.write(text.tobytes())
    os.replace(making, path)
    return path


def _digits(text: np.ndarray, at: int, count: int, values: np.ndarray) -> None:
    for place in range(count):
        text[:, at + count - 1 - place] = 48 + values // 10**place % 10
