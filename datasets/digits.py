"""Makes datasets/digits: 1,797 handwritten digits (real scans, 8 x 8 grey, from scikit-learn) as PNG files.

    python datasets/digits.py [FOLDER]        default: datasets/digits

One fifth of every class is held out as val.txt, chosen by a hash of the image's number: the same on every
machine and with every version. A second run sees that all is there and changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path

import image_folder
import numpy as np

CLASSES = [str(digit) for digit in range(10)]
COUNTS = {"train": 1442, "val": 355}


def held_out(labels: np.ndarray) -> np.ndarray:
    """Mask [n] bool of the images in val: the fifth of every class whose hashes are smallest."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        numbers = np.flatnonzero(labels == label).tolist()
        numbers.sort(key=lambda number: hashlib.sha256(b"digits %d" % number).digest())
        mask[numbers[: len(numbers) // 5]] = True
    return mask


def load() -> Mapping[str, image_folder.Split]:
    """Both splits, from the copy that scikit-learn carries."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        image_folder.stop("scikit-learn is not installed; `make setup`, or: pip install scikit-learn")
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # scikit-learn's pixels are 0 … 16
    val = held_out(bunch.target)
    return {"train": (images[~val], bunch.target[~val]), "val": (images[val], bunch.target[val])}


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the handwritten digits as PNG and meta files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "digits")
    target = parser.parse_args().folder
    if image_folder.is_complete(target, COUNTS):
        print(f"{target}: already there ({COUNTS['train']} + {COUNTS['val']} images)")
        return
    image_folder.write(target, CLASSES, load)
    print(f"{target}: {COUNTS['train']} images in train.txt, {COUNTS['val']} in val.txt")


if __name__ == "__main__":
    main()
