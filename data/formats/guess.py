"""What all guesses of a format have in common: the names that people give columns, and how well a format fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import MetaFileError
from .format import Format

Columns = Mapping[str, str | int]

# As people call their columns, the likeliest first; compared in small letters.
PATHS = (
    *("path", "file_path", "filepath", "image_path", "img_path", "video_path", "frame_dir", "relative_path"),
    *("file_name", "filename", "file", "image_file_name", "video_file_name", "image_file", "image_filename"),
    *("image_name", "img_name", "video_name", "image", "img", "video", "clip", "name", "folder", "dir"),
    *("image_id", "img_id", "imageid", "video_id", "id"),
)
LABELS = (
    *("label", "labels", "label_id", "label_idx", "label_index", "class_id", "class_idx", "class_index", "class"),
    *("target", "targets", "category_id", "category", "class_name", "classname", "label_name", "category_name"),
    *("classes", "categories", "tags", "fine_label"),
)
FRAMES = ("frames", "num_frames", "n_frames", "frame_count", "total_frames", "nframes")
STARTS = ("start_s", "start", "time_start", "t_start", "start_time", "start_sec", "clip_start")
STOPS = ("stop_s", "stop", "end_s", "end", "time_end", "t_end", "end_time", "stop_time", "end_sec", "clip_end")
ROLES = {"path": PATHS, "label": LABELS, "frames": FRAMES, "start": STARTS, "stop": STOPS}
SEVERAL = frozenset({"labels", "tags", "targets", "classes", "categories"})


@dataclass(frozen=True)
class Guess:
    """How well a format fits, and the format, or the error that tells what is missing to it."""

    score: float
    found: Format | MetaFileError

    def format(self) -> Format:
        """The format; raises what is missing to it."""
        if isinstance(self.found, MetaFileError):
            raise self.found
        return self.found


def is_digits(field: str) -> bool:
    """Whether a field is a label as a number, or several with commas."""
    return all(part.isascii() and part.isdigit() for part in field.split(","))


def kind_of(media: Sequence[str], rows: int) -> str:
    return "video" if media.count("video") > 0.5 * max(1, rows) else "image"


def told_of(found: Format) -> str:
    """What the guess has to say besides columns."""
    told = ", several labels each" if found.separator is not None else ""
    told += ", labels are names" if found.named else ""
    return told + (", videos" if found.kind == "video" else "")
