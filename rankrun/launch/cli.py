"""The command line: words to a verb, mistakes to one line and exit code 2. Imports only what the verb at hand needs."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun import __version__
from rankrun.errors import ExitCode, OptionError, RunFolderError, did_you_mean, format_error, is_told

if TYPE_CHECKING:
    from rankrun.launch.local import Forked

_HELP = """\
usage: launch.py VERB …

  run TARGET …          start a run: a config (*.yaml), a Python script, -m MODULE, or with
                        --no-python any command
  list                  all runs, the newest last
  status [RUN]          what a run does, or how it ended
  logs RUN [-f] [--rank N]
                        what a rank has printed; -f follows a live run
  stop RUN              let a run save and end, from any shell
  resume RUN …          go on with a run that was stopped or has failed
  plan CONFIG …         ranks, batches, steps, memory and bytes read of a config; starts nothing
  config show|help|diff|schema …
                        values and where each came from; every key explained
  data index|check|inspect|pack|where …
                        about meta files, class folders, tars and Parquet files
  explain CODE          an error code (E102) or an exit code (75), at length

launch.py VERB --help says more.
Not built yet: submit, doctor.
"""
_NOT_BUILT = ("submit", "doctor")
_VERBS = ("run", "list", "status", "logs", "stop", "resume", "plan", "config", "data", "explain")


def main(argv: Sequence[str] | None = None) -> int:
    """The whole command; returns its exit code. In a forked rank it runs the target and returns the target's."""
    _open_missing_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    outcome = _told(words)
    return outcome if isinstance(outcome, int) else outcome.run()


def _open_missing_streams() -> None:
    """Make sure of descriptors 0 to 2: where one is closed (`>&-`) our own next file would be taken for it."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(fd, True)
            opened = open(fd, "r" if fd == 0 else "w", closefd=False)  # noqa: SIM115  # for the whole process
            setattr(sys, name, opened)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no "…" is no reason to fail


def _told(words: list[str]) -> int | Forked:
    """What the verb gives, with told errors turned into their lines."""
    try:
        return _dispatch(words, os.environ)
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except KeyboardInterrupt as interrupt:
        print(f"rankrun: {str(interrupt) or 'interrupted'}; nothing was started", file=sys.stderr)
        return int(getattr(interrupt, "exit_code", ExitCode.INTERRUPTED))
    except Exception as error:
        if not is_told(error) or "--debug" in words:
            raise
        print(format_error(error), file=sys.stderr)
        return int(getattr(error, "exit_code", ExitCode.FAILED))


def _dispatch(words: list[str], env: Mapping[str, str]) -> int | Forked:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return ExitCode.DONE if words else ExitCode.BAD_INPUT
    if words[0] == "--version":
        print(__version__)
        return ExitCode.DONE
    verb, rest = words[0], words[1:]
    if verb == "run":
        return _run(rest, env)
    if verb not in _VERBS:
        raise OptionError(_about_unknown(verb))
    if verb == "resume":
        return _resume(rest, env)
    with _told_of_the_disk() if verb in ("list", "status", "logs", "stop") else contextlib.nullcontext():
        return _verb(verb)(rest, env)


def _verb(name: str) -> Callable[[list[str], Mapping[str, str]], int]:
    """The function of a verb that starts nothing; nothing is imported for the others."""
    if name == "list":
        from rankrun.launch.life.listing import list_runs

        return list_runs
    if name == "status":
        from rankrun.launch.life.status import status

        return status
    if name == "logs":
        from rankrun.launch.life.logs import logs

        return logs
    if name == "stop":
        from rankrun.launch.life.stopping import stop

        return stop
    from rankrun.launch import verbs

    return {"plan": verbs.plan, "config": verbs.config, "data": verbs.data, "explain": verbs.explain}[name]


@contextlib.contextmanager
def _told_of_the_disk() -> Iterator[None]:
    """A run folder that can't be read, of another user or on a server that is gone, is no fault of ours to trace."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunFolderError(f"{error.filename or 'the run folder'} can't be read: {error.strerror}") from error


def _about_unknown(verb: str) -> str:
    if verb in _NOT_BUILT:
        return f"{verb!r} is not built yet; launch.py --help lists what is"
    if verb.endswith((".yaml", ".yml", ".py")):
        return f"{verb!r} is no verb. Did you mean launch.py run {verb}?"
    hint = did_you_mean(verb, _VERBS)
    return f"unknown verb {verb[:80]!r}.{hint} launch.py --help lists them"


def _run(words: list[str], env: Mapping[str, str]) -> int | Forked:
    from rankrun.launch.options import parse_run, run_parser

    if _asks_for_help(words):
        run_parser().print_help()
        return ExitCode.DONE
    options = parse_run(words, env)

    from rankrun.launch.plan import make_plan, visible_gpus

    settings = None
    if options.is_config:
        from rankrun.config import resolve
        from rankrun.launch.precheck import check_data, index_folder

        settings = resolve(Path(options.target), options.words, env=env)
        plan = make_plan(options, env, settings, gpus=visible_gpus(env))
        if not plan.preflight:
            check_data(settings, plan.nproc * plan.nnodes, env, cache=index_folder(plan.runs))
    else:
        plan = make_plan(options, env, None, gpus=visible_gpus(env))
    if options.dry_run:
        print("\n".join(plan.lines()))
        return ExitCode.DONE

    from rankrun.launch.local import launch

    return launch(plan, ["launch.py", "run", *words], env)


def _resume(words: list[str], env: Mapping[str, str]) -> int | Forked:
    from rankrun.launch.life.resuming import resume

    with _told_of_the_disk():
        again = resume(words, env)
    return again.code if again.code is not None else _run(list(again.words), env)


def _asks_for_help(words: list[str]) -> bool:
    """`run --help` asks us; `run script.py --help` asks the script."""
    return bool(words) and words[0] in ("-h", "--help")
