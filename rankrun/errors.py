"""Everything that rankrun tells a person when something is wrong, and what it leaves with.

    RankrunError                 told: shown as lines "CODE text", without a traceback
    ├── BadInput                 leaves with 2: running it again changes nothing
    │   ├── OptionError   E101   an option or argument of the command line
    │   ├── ConfigError   E102   a config file or a key=value word (all problems at once)
    │   ├── WorldError    E103   RANK, SLURM_PROCID and their like, half set or contradictory
    │   ├── RunFolderError E104  the run folder belongs to another run or can't be written
    │   ├── RunFolderBusy E105   the run folder has a live attempt
    │   ├── CheckpointError E106 a checkpoint that can't or mustn't be read
    │   └── MachineError  E110   this machine or its Python environment can't do it
    ├── SetupError        E107   leaves with 1: the ranks did not find each other
    ├── OrderError        E108   leaves with 1: the ranks were not served what the order says
    └── SaveError         E109   leaves with 1: the run had to be saved and the disk refused

`data` and `models` import nothing from here and have families of their own (E2xx, E3xx). What joins them is a
protocol: an exception with an int attribute `exit_code` and a str attribute `code` is *told*. It may also carry
`told_by`, the one rank that speaks when all ranks raise the same.
"""

from __future__ import annotations

import contextlib
import difflib
import signal
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

__all__ = [
    "BadInput",
    "CheckpointError",
    "ConfigError",
    "ExitCode",
    "MachineError",
    "OptionError",
    "OrderError",
    "RankrunError",
    "RunFolderBusy",
    "RunFolderError",
    "SaveError",
    "SetupError",
    "WorldError",
    "did_you_mean",
    "explain",
    "format_error",
    "is_told",
    "nearest",
    "printable",
    "told_by",
]


class ExitCode(IntEnum):
    """What a rank, an agent and the launcher leave with; schedulers decide by it whether to requeue."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    SAVED = 75
    NO_PROGRESS = 93
    HANG = 124
    INTERRUPTED = 130
    STOPPED = 143


class RankrunError(Exception):
    """The root of the family. `str(error)` is the message without the code, one line per problem."""

    code: str = "E100"
    exit_code: int = ExitCode.FAILED
    told_by: int | None = None


class BadInput(RankrunError):
    """What was given can't work; nothing was started and a second try ends the same way."""

    exit_code = ExitCode.BAD_INPUT


class OptionError(BadInput):
    code = "E101"


class ConfigError(BadInput):
    """Every problem of a config at once; `problems` holds one line for each."""

    code = "E102"

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class WorldError(BadInput):
    code = "E103"


class RunFolderError(BadInput):
    code = "E104"


class RunFolderBusy(BadInput):
    code = "E105"


class CheckpointError(BadInput):
    code = "E106"


class MachineError(BadInput):
    code = "E110"


class SetupError(RankrunError):
    code = "E107"


class OrderError(RankrunError):
    code = "E108"


class SaveError(RankrunError):
    code = "E109"


def is_told(error: BaseException) -> bool:
    """True if `error` follows the protocol, whichever package it comes from."""
    exit_code = getattr(error, "exit_code", None)
    return isinstance(exit_code, int) and isinstance(getattr(error, "code", None), str)


def told_by(error: BaseException) -> int | None:
    """The one rank that should show `error`, or None when whoever meets it should."""
    rank = getattr(error, "told_by", None)
    return rank if isinstance(rank, int) else None


def format_error(error: BaseException) -> str:
    """Lines for a person: `CODE text` per line of a told error, `Type: text` for any other.

    Control characters of whatever was quoted in the message are escaped, so that a hostile file name or value can't
    move the cursor, recolour the terminal or forge a line of a log.
    """
    text = str(error)
    if is_told(error):
        prefix = f"{code} " if (code := getattr(error, "code", "")) else ""  # none: the lines carry their own
    else:
        prefix = f"{type(error).__name__}: " if text else type(error).__name__
    lines = [line for line in text.split("\n") if line.strip()] or [""]
    return "\n".join((prefix + printable(line)).rstrip() for line in lines)


def printable(text: str) -> str:
    """`text` with everything that isn't printable, newlines too, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(given: str, legal: Sequence[str]) -> str | None:
    """The one of `legal` that was most likely meant by `given`, whatever its case, or None."""
    # Hostile input may be megabytes long; comparing it letter by letter would take minutes.
    near = difflib.get_close_matches(given.lower()[:100], [name.lower() for name in legal], n=1, cutoff=0.6)
    return next(name for name in legal if name.lower() == near[0]) if near else None


def did_you_mean(given: str, legal: Sequence[str]) -> str:
    """`" Did you mean 'x'?"`, or nothing when none of `legal` is near."""
    word = nearest(given, legal)
    return f" Did you mean {word!r}?" if word else ""


_EXPLANATIONS: Final[dict[str, str]] = {
    "E101": """An option or argument of the command line can't be honoured: it is unknown, its value is not
legal, or two of them contradict each other. Nothing was started. The line names the option, what was
given and what is legal; `python launch.py VERB --help` lists all of a verb's options.""",
    "E102": """A config file or a key=value word is wrong. All problems were collected first, so fixing every
line that was shown is enough (at most 20 are shown at once). Each line starts with the place: file:line,
or the argument. YAML is read strictly: true and false are the only booleans, a duplicate key is an error,
indentation is spaces, tags are refused. `python launch.py config help KEY` says what a key may hold,
`config show CONFIG` where each value came from.""",
    "E103": """The environment says only half of which rank this process is, or contradicts itself. Under
torchrun and launch.py all of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT
are set; under srun SLURM sets SLURM_PROCID and its like; a single process needs none of them. The usual
cause is a leftover `export RANK=0` or `export WORLD_SIZE=…` in a shell or batch script: unset it, or set
the whole family.""",
    "E104": """The run folder can't be used: it belongs to a run with another config, it isn't a run folder,
or it can't be written. A run's identity is every key of its config but the few that are free (loader
workers, micro batch, logging, saving and evaluating intervals, audit, launch). Give the new run a name of
its own with --name, or, when the change is meant, allow it key by key with --allow-change KEY; that is
recorded.""",
    "E105": """The run folder has a live attempt: a launch that is still running holds it. Two launches that
write one run would overwrite each other's checkpoints. Wait, stop the other launch (`python launch.py stop
RUN`, from any shell), or use --name. A holder counts as dead when its process is gone (same machine, same
boot) or when its heartbeat has not changed for 60 s as seen from here; then the folder is taken over and a
line says so.""",
    "E106": """A checkpoint can't be used: it is damaged, made by a newer version, holds another model's or
shape's tensors, or belongs to data that has changed. Checkpoints are never loaded by running code in
them, and there is no fallback that would. Damaged ones among a run's own are passed over by themselves;
this error is for the one you named.""",
    "E107": """The ranks did not find each other within the set-up limit. The line names who is missing. Usual
causes: a rank that died while it started (its log in attempts/NNNN/logs/ says why), a host name that
doesn't resolve, a firewall between nodes, or a run folder that the nodes don't share.""",
    "E108": """At the end of an epoch the ranks compare what they were served with what the order says:
number, sum and sum of squares of the row numbers. They differ, so a row was lost or repeated. That is a
fault of the program or of the data that changed under it, never of the settings; don't trust what was
trained since the last good epoch.""",
    "E109": """A checkpoint had to be written (at a notice, or at the end of the run) and the disk refused:
full, read-only or gone. The older checkpoints are whole. Make room (`df -h`, `df -i`), then give the
same command again: it goes on from the latest.""",
    "E110": """This machine, or the Python environment that was used, can't do what was asked: torch doesn't import,
or the system's limits (open files, processes) are too low. The line says which; `make setup` makes an
environment with versions that are tested together, `ulimit -n` raises the number of open files.""",
    "E200": """Something is wrong with the data. The line says what; `python launch.py data check META` looks
at all rows.""",
    "E201": """A meta file can't be used: it is missing, empty, a folder or a pipe, packed (gzip, zip), or of
a shape that no guess fits. A meta file is text with one sample per line: `path label`, CSV, TSV, JSON lines,
frame lists. `python launch.py data index META` says how one is read; data.format and data.columns overrule
the guess. Paths in a config are relative to the folder that you start from, not to the config.""",
    "E202": """Rows of a meta file are wrong: blank in the middle, without a label, with a label that is out
of range or no class name, or not UTF-8; or, under `data check --against`, in both of two sets. A launch looks
at the first and last 1,000 lines, a rank at the rows that it takes; `python launch.py data check META` looks
at all of them and shows the first 20; with `--clean OUT` it decodes the images, too, and writes a list of the
good rows alone, which names the same images from where it lies.""",
    "E203": """The classes give no labels: a class list that is missing or names a class twice, a class folder
without images, or labels that are names in a large file that has no index yet (`python launch.py data index
META` lists them once). With class folders the label is the folder's number when all names are numbers,
else its place among the sorted names.""",
    "E204": """A transform can't be built or doesn't yield what a batch needs. Transforms are names of
torchvision's v2, our own, or dotted paths to a class of yours; arguments are a mapping below the name.
All images must leave with one shape.""",
    "E205": """The rows can't be dealt to the ranks: the global batch is smaller than the world size or larger
than the epoch (no step would be left), a start position lies outside of the epoch, or the meta file is too
small for data.order=block. Change train.global_batch, the number of ranks, or data.order.""",
    "E206": """An image can't be read. With data.on_error: replace another row takes its place, is counted and
listed in bad_samples.csv; with raise (the default) the run ends here.""",
    "E207": """An image path is absolute or leaves the root folder, by .. or through a link. Set data.root to
the folder that holds all images, or data.allow_outside_root: true when the meta file is to be trusted.""",
    "E208": """More images had to be replaced than data.bad_budget allows, so all ranks stopped together.
bad_samples.csv lists them. A missing mount or a wrong data.root is the usual cause.""",
    "E209": """The decoder that the run was set to is missing or doesn't load. Pixels are part of a run's
identity, so another decoder is not taken silently: repair it, or change data.decoder with --allow-change
data.decoder.""",
    "E210": """Ranks see different data: another meta file, other rows, classes or decoder. Nodes often hold
copies of different age; give all of them the same files.""",
    "E211": """The meta file changed while it was in use, or something still writes it. A run's rows are its
identity: start a new run on the changed file, or put the old one back.""",
    "E212": """A process that loads images, or looks at them for `data check`, was killed, most often by the
system for want of memory: lower data.workers (--processes), or give the job more memory. A run is restarted
from the last checkpoint while restarts are left.""",
    "E213": """An argument of the data package's functions or of a `data` verb is not legal; the line says
what would be.""",
    "E214": """`data pack` can't go on: the folder holds something else or another pack, the disk is full, an
image can't be read, or a shard is not what was written. Whole shards are kept: mend what the line names and
give the same command again.""",
    "E301": """The model can't be built: the name, an argument or the initialisation does not exist or does
not fit the classes and channels. `model.name` is one of ours, any classification model of torchvision, or
a dotted path to yours.""",
    "0": "Done. A finished run that is given again also says so and leaves with 0. Don't requeue.",
    "1": """The program failed; the verdict names the rank, the host and the line; or the ranks or nodes did not
find each other (E107). Requeue only while restarts are left. A program that left with a code of its own keeps
it, unless that is one of ours (2, 75, 93, 124, 130, 143) and it knows nothing of rankrun; a signal n gives
128 + n.""",
    "2": """Bad input: the config, an option, the data or the environment. Nothing was trained, and running
the same again ends the same way: don't requeue.""",
    "75": """Saved at a notice (a preemption, a time limit, SIGUSR2) and wants to go on: requeue. The same
command goes on with the next sample.""",
    "93": """Three attempts in a row ended without a new checkpoint. Another try would end like them: don't
requeue, read the verdicts in attempts/.""",
    "124": """A rank hung. Python stacks of all ranks are in attempts/NNNN/stacks/. Requeued as configured.""",
    "131": "SIGQUIT (Ctrl-\\) ended the run at once; the stacks of all ranks are in attempts/NNNN/stacks/.",
    "130": """A person interrupted the run (Ctrl-C, or its terminal was closed); a config's run was saved. The same
command goes on, and so does `python launch.py resume RUN`.""",
    "143": """A person stopped the run (`stop`, or SIGTERM outside SLURM); a config's run was saved. After `stop` it
stays stopped until `python launch.py resume RUN`, which goes on; after SIGTERM the same command goes on, too.""",
}


def explain(code: str) -> str:
    """The longer text for an error code (`E102`, any case) or an exit code (`75`); OptionError for any other."""
    key = code.strip().upper()
    text = _EXPLANATIONS.get(key)
    if not text and key.isdecimal() and len(key) <= 3 and int(key) <= 255:
        text = _about_exit_code(int(key))
    if not text:
        raise OptionError(f"there is no code {code[:40]!r}. The codes are {', '.join(_EXPLANATIONS)}")
    return f"{key}: {' '.join(text.split())}"


def _about_exit_code(code: int) -> str:
    """What an exit code means that is none of ours."""
    with contextlib.suppress(ValueError):
        name = signal.Signals(code - 128).name
        return (
            f"A rank was killed by {name} (128 + {code - 128}). The verdict names the rank and, for SIGKILL, whether "
            "the kernel sent it because memory ran out."
        )
    if code in (126, 127):
        return "A command of --no-python can't be executed, or is not there, as a shell says it."
    return "The program's own code: the one that the rank left with which failed first. The verdict names it."
