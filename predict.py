#!/usr/bin/env python3
"""What a trained model sees: a checkpoint and images, folders or meta files in, a CSV with the top classes out.

    python predict.py runs/digits datasets/digits/val.txt --out predictions.csv
    python predict.py runs/digits/best photo.png

The checkpoint alone says which model, classes and transforms belong to it.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rankrun.errors import OptionError
from rankrun.training.reporting import report_errors

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Picture(NamedTuple):
    """One image to look at; `label` is its class where the source says it, else empty."""

    path: str
    label: str


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Writes what a trained model sees in images to a CSV.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder, or a run's (its best, else its latest)")
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="images, folders, meta files")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    parser.add_argument("--topk", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument("--batch", type=int, default=64, help="images at once (default: 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--debug", action="store_true", help="tracebacks of mistakes too")
    options = parser.parse_args(argv)
    with report_errors(os.environ, debug=options.debug):
        if options.topk < 1 or options.batch < 1:
            raise OptionError(f"--topk {options.topk} --batch {options.batch}: both must be at least 1")
        if not options.out.parent.is_dir():
            raise OptionError(f"--out {options.out}: there is no folder {options.out.parent}")
        predict(options)


def predict(options: argparse.Namespace) -> None:
    import torch

    import models
    from data import build_transforms
    from data.decode import ImageDecoder, UnreadableImage, resolve_decoder
    from data.keys import RowRandom
    from data.sampling import read_file
    from rankrun.training.checkpoint import find_checkpoint, load_weights, read_state

    # The model, as its checkpoint describes it.
    checkpoint = find_checkpoint(options.checkpoint, lambda text: print(text, file=sys.stderr))
    about = read_state(checkpoint)["prediction"]
    classes: list[str] = about["classes"]
    if options.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: torch sees no GPU here; legal here: cpu, auto")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    model = models.build(about["model"], len(classes), about["channels"], **about["model_args"])
    load_weights(checkpoint, model)
    model.to(device).eval()

    # The images, as it saw them when it was evaluated.
    transforms = build_transforms(about["eval_transforms"], about["channels"])
    decode = ImageDecoder(resolve_decoder(about["decoder"]).name, about["channels"])

    def load(picture: Picture, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = transforms.sample(decode(read_file(picture.path)))
        draws = transforms.draw(RowRandom(0, 0, number), (image.shape[1], image.shape[2]))
        return image, torch.tensor(draws)

    topk = min(options.topk, len(classes))
    unread: list[str] = []

    @torch.inference_mode()
    def look(loaded: list[tuple[Picture, torch.Tensor, torch.Tensor]]) -> Iterator[list[str]]:
        pictures, images, draws = zip(*loaded, strict=True)
        inputs = transforms.device(torch.stack(images).to(device), torch.stack(draws).to(device))
        best = model(inputs).float().softmax(dim=1).topk(topk)
        for picture, values, labels in zip(pictures, best.values.tolist(), best.indices.tolist(), strict=True):
            pairs = [(classes[label], f"{value:.6f}") for value, label in zip(values, labels, strict=True)]
            yield [picture.path, picture.label, *(word for pair in pairs for word in pair)]

    def rows() -> Iterator[list[str]]:
        waiting: list[tuple[Picture, torch.Tensor, torch.Tensor]] = []
        for number, picture in enumerate(find_pictures(options.sources, classes)):
            try:
                image, draws = load(picture, number)
            except (UnreadableImage, OSError) as error:
                unread.append(f"{picture.path}: {error}")
                continue
            if waiting and (len(waiting) == options.batch or waiting[-1][1].shape != image.shape):
                yield from look(waiting)
                waiting = []
            waiting.append((picture, image, draws))
        if waiting:
            yield from look(waiting)

    header = ["path", "label", *(f"{what}_{k}" for k in range(1, topk + 1) for what in ("name", "probability"))]
    count, known, right = write_csv(options.out, header, rows())
    for line in unread:
        print(f"not read: {line}", file=sys.stderr)
    score = f"; {right} of {known} with a known label are right ({right / known:.4f})" if known else ""
    left_out = f"; {len(unread)} could not be read" if unread else ""
    print(f"{options.out}: {count} images by {checkpoint}{score}{left_out}")


def find_pictures(sources: list[Path], classes: list[str]) -> Iterator[Picture]:
    """Every image of the sources in order; OptionError names a source that is none."""
    from data import MetaFile

    for source in sources:
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
            if not found:
                raise OptionError(f"{source}: holds no images ({' '.join(sorted(SUFFIXES))})")
            for path in found:
                yield Picture(str(path), path.parent.name if path.parent.name in classes else "")
        elif source.suffix.lower() in SUFFIXES:
            yield Picture(str(source), "")
        else:
            meta = MetaFile(source, classes=classes)
            for row in range(len(meta)):
                path_text, label = meta.parse(row)
                yield Picture(str(meta.root_of(row) / path_text), classes[label])


def write_csv(path: Path, header: list[str], rows: Iterator[list[str]]) -> tuple[int, int, int]:
    """Writes the file in one piece; returns how many rows, how many with a label, how many of those are right."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    count = known = right = 0
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for row in rows:
                writer.writerow(row)
                count, known, right = count + 1, known + bool(row[1]), right + (row[1] != "" and row[1] == row[2])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count, known, right


if __name__ == "__main__":
    main(sys.argv[1:])
