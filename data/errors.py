"""What can be wrong with data, and how it is told.

    DataError                E200   anything below; carries `code` and `exit_code`
    ├── MetaFileError        E201   the meta file itself: missing, a folder, packed, empty, too long a line
    ├── RowError             E202   rows of it: blank, without a label, label out of range, not UTF-8
    ├── ClassesError         E203   the class list, or a folder of class folders
    ├── TransformError       E204   a transform's name, arguments, place or result
    ├── SplitError           E205   world size, rank, global batch, start, seed; an epoch without a step
    ├── ImageError           E206   an image that can't be read, with on_error "raise"
    ├── OutsideRootError     E207   a path that leaves the root
    ├── TooManyBadError      E208   more images were replaced than the budget allows
    ├── DecoderError         E209   the wanted decoder is missing or broken
    ├── DisagreementError    E210   ranks see different data
    ├── ChangedError         E211   the meta file changed while it was in use
    ├── WorkerDiedError      E212   a loader worker was killed (exit code 1: nobody's input was wrong)
    ├── OptionError          E213   an argument of one of this package's functions or verbs
    └── PackError            E214   shards that can't be written, continued or verified

`str(error)` is one line per problem, without the code. An error that all ranks raise alike names in `told_by` the
one that prints it.
"""

from __future__ import annotations

MAX_PROBLEMS = 20


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 image", "2 images", "2 classes"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def sized(bytes_: float) -> str:
    """ "28 bytes", "1.5 KiB", "100 GiB"."""
    amount, unit = float(bytes_), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1023.5:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 99.95 else f"{amount:.1f} {unit}"


class DataError(Exception):
    """One or more problems with data, each a line that says what was given, what is legal and what to do."""

    code = "E200"
    exit_code = 2
    told_by: int | None = None

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """The lines; of more than 20 the first 20 and one that counts the rest."""
        lines = tuple(str(problem) for problem in self.args)
        if len(lines) <= MAX_PROBLEMS:
            return lines
        return (*lines[:MAX_PROBLEMS], f"… and {len(lines) - MAX_PROBLEMS} more")


class MetaFileError(DataError):
    """A meta file that can't be used as one."""

    code = "E201"


class RowError(DataError):
    """Rows that are not `path label`."""

    code = "E202"


class NamedLabelError(RowError):
    """A row whose label is no number, where no classes were given; one cause for all such rows."""


class ClassesError(DataError):
    """A class list or a tree of class folders that gives no labels."""

    code = "E203"


class TransformError(DataError):
    """A list of transforms that can't be built, or that doesn't yield uint8 images of one shape."""

    code = "E204"


class SplitError(DataError, ValueError):
    """Numbers that give no fair split of an epoch. A ValueError too, as torch's samplers raise."""

    code = "E205"


class ImageError(DataError):
    """An image file that can't be read."""

    code = "E206"


class OutsideRootError(DataError):
    """A path that leaves the root; never replaced, always refused."""

    code = "E207"


class TooManyBadError(DataError):
    """More unreadable images than the budget allows."""

    code = "E208"


class DecoderError(DataError):
    """No decoder of the wanted name works here."""

    code = "E209"


class DisagreementError(DataError):
    """Ranks that would train on different data."""

    code = "E210"


class ChangedError(DataError):
    """A meta file that is no longer what it was when it was opened."""

    code = "E211"


class WorkerDiedError(DataError):
    """A loader worker that is gone; restarting the run is the cure."""

    code = "E212"
    exit_code = 1


class OptionError(DataError, ValueError):
    """An argument outside of what is legal."""

    code = "E213"


class PackError(DataError):
    """Tar shards that can't be written, continued or verified."""

    code = "E214"


def by_code() -> dict[str, type[DataError]]:
    """Every class of the family by its code, to build an error anew that came from another rank."""
    family: list[type[DataError]] = [DataError, *DataError.__subclasses__()]
    return {kind.code: kind for kind in family}
