#!/usr/bin/env python3
"""What a trained model sees: a checkpoint and images, folders or meta files in, a CSV with the top classes out.

    python predict.py runs/digits datasets/digits/val.txt
    python predict.py runs/digits/best photo.png

The checkpoint alone says which model, classes and transforms belong to it. Paths in a list are relative to the
folder that it lies in, or to --root. Of one picture the answer is printed; --out writes a CSV of it too.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankrun.errors import CheckpointError, OptionError
from rankrun.runfolder import RunFolder
from rankrun.training.reporting import report_errors


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Writes what a trained model sees in images to a CSV.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder, or a run's (its best, else its latest)")
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE",
                        help="images, folders, tars, lists (lines 'path' or 'path label', CSV, …)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="default: predictions.csv in the run's folder; none for one picture")
    parser.add_argument("--root", type=Path, help="what paths in lists are relative to (default: the list's folder)")
    parser.add_argument("--allow-outside-root", action="store_true", help="images may lie outside of the root")
    parser.add_argument("--allow-code", action="append", default=[], metavar="PKG.THING",
                        help="let the checkpoint import and run this; may be given again")  # fmt: skip
    parser.add_argument("--topk", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument("--batch", type=int, default=64, help="images at once (default: 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--debug", action="store_true", help="tracebacks of mistakes too")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what is half written goes
    with report_errors(os.environ, debug=options.debug):
        refuse_mistakes(options)
        predict(options)


def predict(options: argparse.Namespace) -> None:
    import torch

    import models
    from data import build_transforms
    from data.decode import ImageDecoder, UnreadableImage, resolve_decoder
    from data.errors import counted
    from data.formats.classes import Classes
    from data.keys import RowRandom
    from data.pictures import open_pictures
    from data.sampling import SampleReader
    from rankrun.training.checkpoint import find_checkpoint, load_weights, read_state

    # The model, as its checkpoint describes it.
    checkpoint = find_checkpoint(options.checkpoint, lambda text: print(text, file=sys.stderr))
    about = read_state(checkpoint)["prediction"]
    classes: list[str] = about["classes"]
    refuse_code(checkpoint, about, options.allow_code)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: torch sees no GPU here; legal here: cpu, auto")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    name, channels, own = about["model"], about["channels"], about["model"] in options.allow_code
    model = models.build(name, len(classes), channels, allow_dotted=own, **about["model_args"])
    load_weights(checkpoint, model)
    model.to(device).eval()

    # The images, as it saw them when it was evaluated.
    specs: list[Any] = about["eval_transforms"]
    transforms = build_transforms(specs, channels, "data.eval_transforms", allow_dotted=options.allow_code)
    decoder = ImageDecoder(resolve_decoder(about["decoder"]).name, channels)
    confined = {"root": options.root, "allow_outside_root": options.allow_outside_root}
    known = Classes(classes, by_name=about.get("by_name", False))
    sources = [open_pictures(source, classes=known, **confined) for source in options.sources]
    topk = min(options.topk, len(classes))
    unread: list[str] = []

    @torch.inference_mode()
    def look(loaded: list[tuple[list[str], torch.Tensor, torch.Tensor]]) -> Iterator[list[str]]:
        places, images, draws = zip(*loaded, strict=True)
        inputs = transforms.device(torch.stack(images).to(device), torch.stack(draws).to(device))
        best = model(inputs).float().softmax(dim=1).topk(topk)
        for place, values, labels in zip(places, best.values.tolist(), best.indices.tolist(), strict=True):
            pairs = [(classes[label], f"{value:.6f}") for value, label in zip(values, labels, strict=True)]
            yield [*place, *(word for pair in pairs for word in pair)]

    def rows() -> Iterator[list[str]]:
        waiting: list[tuple[list[str], torch.Tensor, torch.Tensor]] = []
        for meta, labelled in sources:
            reader = SampleReader(meta, seed=0, transform=None, decoder=decoder)
            for row in range(meta.n):
                try:
                    pixels, label = reader.pixels(row, None)
                except UnreadableImage as error:
                    unread.append(str(error))
                    continue
                image = transforms.sample(pixels)
                draws = torch.tensor(transforms.draw(RowRandom(0, 0, row), (image.shape[1], image.shape[2])))
                if waiting and (len(waiting) == options.batch or waiting[-1][1].shape != image.shape):
                    yield from look(waiting)
                    waiting = []
                place = str(meta.root_of(row) / meta.record(row).written)
                known = labelled and isinstance(label, int)  # of several labels none is *the* one to compare with
                waiting.append(([place, classes[label] if known else ""], image, draws))
        if waiting:
            yield from look(waiting)

    alone = sum(meta.n for meta, _ in sources) == 1
    out = options.out or (None if alone else default_out(options.checkpoint))
    tally = Tally()
    header = ["path", "label", *(f"{what}_{k}" for k in range(1, topk + 1) for what in ("name", "probability"))]
    write_csv(out, header, tally.count_all(rows(), unread))
    for line in unread:
        print(f"not read: {line}", file=sys.stderr)
    if tally.count == 1:
        path, _, answer, probability, *_ = tally.first
        print(f"{path}: {answer} ({float(probability):.3f})")
    share = tally.right / max(tally.known, 1)
    score = f"; {tally.right} of {tally.known} with a known label are right ({share:.4f})" if tally.known else ""
    left_out = f"; {len(unread)} could not be read" if unread else ""
    written = out or "no CSV written (--out FILE writes one)"
    print(f"{written}: {counted(tally.count, 'image')} by {checkpoint}{score}{left_out}")


def refuse_mistakes(options: argparse.Namespace) -> None:
    """OptionError or CheckpointError for what can be told before torch is imported."""
    if options.topk < 1 or options.batch < 1:
        raise OptionError(f"--topk {options.topk} --batch {options.batch}: both must be at least 1")
    out = options.out or default_out(options.checkpoint)
    if not out.parent.is_dir():
        raise OptionError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise OptionError(f"--out {out}: is a folder; give the name of a file in it")
    for source in options.sources:
        if not source.exists():
            raise OptionError(f"{source}: there is no such image, folder or list")
    folder = RunFolder(options.checkpoint)
    if folder.config_file.exists() and not folder.checkpoints.is_dir():
        raise CheckpointError(f"{options.checkpoint}: this run has no checkpoint yet")


def refuse_code(checkpoint: Path, about: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """CheckpointError for code that the checkpoint names and nobody allowed: importing a module runs it."""
    entries = [[entry] if isinstance(entry, str) else entry for entry in about["eval_transforms"]]
    names = [about["model"], *(name for entry in entries for name in entry)]
    if strange := [name for name in names if "." in name and name not in allowed]:
        options = " ".join(f"--allow-code {name}" for name in strange)
        raise CheckpointError(f"{checkpoint}: would run code of somebody's own; if you trust it, add {options}")


def default_out(checkpoint: Path) -> Path:
    """predictions.csv in the run folder that `checkpoint` is or lies in, else in the current folder."""
    place = Path(os.path.abspath(checkpoint))  # a link such as `best` lies in its run, wherever it leads
    for folder in (place, *place.parents[:2]):
        if RunFolder(folder).checkpoints.is_dir():
            out = folder / "predictions.csv"
            return out if checkpoint.is_absolute() else Path(os.path.relpath(out))
    return Path("predictions.csv")


class Tally:
    """How many rows there were, how many had a label, how many of those were right; and the first row."""

    def __init__(self) -> None:
        self.count = self.known = self.right = 0
        self.first: list[str] = []

    def count_all(self, rows: Iterator[list[str]], unread: Sequence[str]) -> Iterator[list[str]]:
        """The same rows; OptionError, with the first of `unread`, if there are none."""
        for row in rows:
            self.first = self.first or row
            self.count, self.known = self.count + 1, self.known + bool(row[1])
            self.right += row[1] != "" and row[1] == row[2]
            yield row
        if not self.count:
            raise OptionError(f"none of the images ({len(unread)}) could be read; the first: {unread[0]}")


def write_csv(path: Path | None, header: list[str], rows: Iterator[list[str]]) -> None:
    """Writes the file in one piece or, after an error, not at all. Without a path the rows are only gone through."""
    if path is None:
        list(rows)
        return
    if path.exists() and not path.is_file():  # the rename would take the place of a device
        raise OptionError(f"--out {path}: is no regular file")
    begun = f".{path.name}.tmp-"
    temporary = path.with_name(f"{begun}{os.getpid()}")
    try:
        for left in path.parent.iterdir():
            if left.name.startswith(begun):  # of a run that was killed; one that goes on to write here is refused
                left.unlink(missing_ok=True)
        # a file name may hold what can't be written as UTF-8
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([header])
            csv.writer(file).writerows(rows)
        os.replace(temporary, path)
    except OSError as error:
        raise OptionError(f"--out {path}: can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
