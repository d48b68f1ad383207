"""Makes datasets/fashion_mnist: 70,000 real pictures of clothes (28 x 28 grey, 10 classes) as PNG files.

    python datasets/fashion_mnist.py [--from FOLDER] [FOLDER]        default: datasets/fashion_mnist

The four idx files (…-ubyte or …-ubyte.gz) come from the folder that --from names, else from Debian's package
dataset-fashion-mnist, else from torchvision's download. A second run sees that all is there and changes
nothing.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import image_folder
import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
COUNTS = {"train": 60_000, "val": 10_000}
PREFIX = {"train": "train", "val": "t10k"}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The unsigned bytes of an idx file, which must have exactly this shape. Gzip is seen by its first bytes.

    An idx file: two zero bytes, 8 (unsigned byte), the number of dimensions, each dimension as big-endian
    uint32, data.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            image_folder.stop(f"{path} is a damaged gzip file ({error}); get it again")
    header = 4 + 4 * len(shape)
    if content[:4] != bytes((0, 0, 8, len(shape))):
        image_folder.stop(f"{path} is not an idx file of unsigned bytes in {len(shape)} dimension(s)")
    found = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    if found != shape or len(content) != header + int(np.prod(shape)):
        image_folder.stop(
            f"{path} says it holds {found} and has {len(content) - header:,} bytes; Fashion-MNIST has {shape} there"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_split(folder: Path, split: str) -> image_folder.Split:
    """Images and labels of "train" or "val"; whatever isn't Fashion-MNIST there stops the program."""
    count = COUNTS[split]
    arrays = []
    for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
        stem = folder / f"{PREFIX[split]}-{kind}-ubyte"
        path = next((path for path in (stem, Path(f"{stem}.gz")) if path.is_file()), None)
        if path is None:
            image_folder.stop(f"{folder} has neither {stem.name} nor {stem.name}.gz")
        try:
            arrays.append(read_idx(path, shape))
        except OSError as error:
            image_folder.stop(f"could not read {path}: {error}")
    images, labels = arrays
    per_class = np.bincount(labels, minlength=len(CLASSES)).tolist()
    if per_class != [count // len(CLASSES)] * len(CLASSES):
        image_folder.stop(f"{folder}: {split} has {per_class} images per class, not {count // len(CLASSES)} of each")
    return images, labels


def load(source: Path) -> Mapping[str, image_folder.Split]:
    return {split: read_split(source, split) for split in COUNTS}


def download() -> Mapping[str, image_folder.Split]:
    """Both splits by torchvision's download, whose files are not kept."""
    print("downloading Fashion-MNIST (30 MB) with torchvision")
    with tempfile.TemporaryDirectory() as folder:
        try:
            from torchvision.datasets import FashionMNIST

            FashionMNIST(folder, download=True)
        except (ImportError, OSError, RuntimeError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            image_folder.stop(
                f"the download failed ({first_line}); install Debian's package dataset-fashion-mnist, or "
                "name a "
                "folder that holds the four idx files: --from FOLDER (make fashion FASHION=FOLDER)"
            )
        return load(Path(folder) / "FashionMNIST" / "raw")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes Fashion-MNIST as PNG and meta files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "fashion_mnist")
    parser.add_argument("--from", dest="source", type=Path, help="folder that holds the four idx files")
    options = parser.parse_args()
    if image_folder.is_complete(options.folder, COUNTS):
        print(f"{options.folder}: already there ({COUNTS['train']:,} + {COUNTS['val']:,} images)")
        return
    source = options.source or (DEBIAN if DEBIAN.is_dir() else None)
    if source is not None and not source.is_dir():
        image_folder.stop(f"--from {source} is not a folder")
    image_folder.write(options.folder, CLASSES, download if source is None else lambda: load(source))
    origin = "torchvision's download" if source is None else os.fspath(source)
    print(f"{options.folder}: {COUNTS['train']:,} images in train.txt, {COUNTS['val']:,} in val.txt, from {origin}")


if __name__ == "__main__":
    main()
