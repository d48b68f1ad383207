"""Files of JSON lines that several attempts append to, and that a kill may tear at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["JsonLines", "read_json_lines"]


class JsonLines:
    """Appends JSON objects to `path`, one line and one write each, so that lines of two writers never mix.

    A last line without its newline (a kill tore it) is ended first. `write` raises OSError when the disk is full and
    ValueError for NaN and infinities, which are not JSON; neither spoils later lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o666)
        try:
            size = os.fstat(self._descriptor).st_size
            self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        except BaseException:
            self.close()
            raise

    def write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":"), allow_nan=False)
        content = (b"\n" if self._torn else b"") + text.encode("ascii") + b"\n"
        self._torn = True  # until the write is known to be whole
        written = os.write(self._descriptor, content)
        if written != len(content):
            raise OSError(
                28, f"{os.strerror(28)}: only {written} of {len(content)} bytes of a line written", str(self.path)
            )
        self._torn = False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file in order; none when there is no file.

    Lines that are not a whole JSON object are passed over: that is what a kill leaves at the end of the file and, after
    a later attempt has ended it with a newline, in its middle. A torn object is never a shorter whole one.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    objects: list[dict[str, Any]] = []
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects
