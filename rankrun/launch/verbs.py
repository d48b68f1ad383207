"""The small verbs: they answer and start nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankrun.errors import ExitCode, OptionError
from rankrun.errors import explain as explain_code
from rankrun.launch.options import Parser
from rankrun.launch.precheck import check_labels, data_command, data_words, index_folder

if TYPE_CHECKING:
    from rankrun.config import Settings

_MOST_NODES = 65536
_ANSWER_S = 2.0


def plan(words: list[str], env: Mapping[str, str]) -> int:
    """`plan CONFIG [--nproc N] [--nodes N] [key=value …]`: print the arithmetic of a run."""
    parser = Parser(
        prog="launch.py plan",
        description="Ranks, batch arithmetic, steps, and what reading the data costs; starts nothing.",
    )
    parser.usage = "launch.py plan CONFIG [--nproc N] [--nodes N] [key=value …]"
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--nproc", "--nproc-per-node", dest="nproc", metavar="N", help="ranks on each machine")
    parser.add_argument("--nodes", "--nnodes", dest="nodes", metavar="N", default="1", help="machines (default: 1)")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="parent of the run folders (default: runs)")
    parser.add_argument("words", metavar="key=value", nargs="*")
    found, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise parser.unknown(unknown[0])

    from rankrun.config import resolve
    from rankrun.launch.arithmetic import describe
    from rankrun.launch.options import RunOptions
    from rankrun.launch.plan import make_plan, visible_gpus
    from rankrun.launch.precheck import check_data

    if not (found.nodes.isascii() and found.nodes.isdigit() and 1 <= int(found.nodes) <= _MOST_NODES):
        raise OptionError(f"--nodes {found.nodes}: a whole number from 1 to {_MOST_NODES}")
    settings = resolve(Path(found.config), found.words, env=env)
    options = RunOptions(target=found.config, words=tuple(found.words), nproc=found.nproc, runs=found.runs)
    run_plan = make_plan(options, env, settings, gpus=visible_gpus(env))
    nodes = int(found.nodes)
    facts = check_data(settings, run_plan.nproc * nodes, env, cache=index_folder(run_plan.runs))
    print("\n".join(describe(settings, run_plan.nproc, nodes, run_plan.folder, facts)))
    return ExitCode.DONE


def config(words: list[str], env: Mapping[str, str]) -> int:
    """`config show CONFIG …`, `config diff CONFIG …`, `config help [KEY]`, `config schema`."""
    parser = Parser(
        prog="launch.py config",
        description="show: every value and where it came from · diff: what differs from the defaults · "
        "help [KEY]: what a key may hold · schema: the JSON schema that editors complete from",
    )
    parser.add_argument("what", choices=("show", "help", "diff", "schema"))
    parser.add_argument("words", nargs="*", metavar="CONFIG key=value … | KEY")
    found = parser.parse_args(words)

    from rankrun import config as configuration
    from rankrun.config.keys import flat

    if found.what == "schema":
        print(json.dumps(configuration.schema(), indent=2))
    elif found.what == "help":
        if len(found.words) > 1:
            raise OptionError(f"config help takes one key, not {len(found.words)}")
        print(configuration.describe(found.words[0] if found.words else None))
    elif not found.words:
        raise OptionError(f"config {found.what} needs a CONFIG")
    elif found.what == "show":
        resolved = configuration.resolve_with_origins(Path(found.words[0]), found.words[1:], env=env)
        values = flat(resolved.settings)
        rows = [(f"{key}: {_shown(values[key])}", origin) for key, origin in resolved.origins.items()]
        width = min(60, max(len(text) for text, _ in rows))
        for text, origin in rows:
            print(f"{text:{width}}  {origin}")
    else:
        settings = configuration.resolve(Path(found.words[0]), found.words[1:], env=env)
        for key, value in configuration.differences_from_defaults(settings).items():
            print(f"{key}: {_shown(value)}")
    return ExitCode.DONE


def data(words: list[str], env: Mapping[str, str]) -> int:
    """Hand over to the data package's own command line, as a process: only that one needs numpy.

    Where a config stands in place of meta files, its training and evaluation data take turns. Words behind the config
    that are key=value change it; all others are the verb's options, which come last and so win.
    """
    configs = [word for word in words if word.endswith((".yaml", ".yml"))]
    if not configs or words[0].startswith("-"):
        if words[:1] == ["index"]:  # to where a run would look for it; a --cache that was given comes later and wins
            words = ["index", f"--cache={index_folder(Path('runs'))}", *words[1:]]
        command, environment = data_command(words, env)
        return _call(command, environment)

    from rankrun.config import resolve

    verb, place = words[0], words.index(configs[0])
    overrides = [word for word in words[place + 1 :] if "=" in word and not word.startswith("-")]
    others = [word for word in words[1:] if word != configs[0] and word not in overrides]
    settings = resolve(Path(configs[0]), overrides, env=env)
    if verb == "check":
        check_labels(settings, env, cache=index_folder(Path("runs")))
    parts = data_words(settings, index_folder(Path("runs")))
    for number, source_words in enumerate(parts):
        own = _for_part(others, ("train", "val")[number]) if len(parts) > 1 else others
        command, environment = data_command([verb, *_of_verb(verb, settings, number, own), *own, *source_words], env)
        code = _call(command, environment)
        if code != ExitCode.DONE:
            return code
        if verb == "where":  # the order is the training data's
            break
    return ExitCode.DONE


def _call(command: list[str], env: Mapping[str, str]) -> int:
    """What a process leaves with. It answers Ctrl-C itself, and says so."""
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            return process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # no terminal has told it
            return process.wait()


def _of_verb(verb: str, settings: Settings, number: int, own: list[str]) -> list[str]:
    """What a verb takes from a config besides the source: of the training data (number 0) or of evaluation."""
    data, train = settings.data, settings.train
    batch = train.global_batch if number == 0 else settings.eval.global_batch or train.global_batch
    ranks = f"--world-size={settings.launch.nproc or 1}"
    if verb == "check":
        if number == 0:
            return [f"--global-batch={batch}", f"--order={data.order}"]
        against = [data.train] if isinstance(data.train, str) else data.train
        return [] if {"--head", "--facts"} & set(own) else [f"--against={source}" for source in against]
    if verb == "inspect":
        transforms = data.train_transforms if number == 0 else data.eval_transforms
        return [
            *(f"--channels={data.channels}", f"--transforms={json.dumps(transforms)}", f"--seed={settings.seed}"),
            *(f"--global-batch={batch}", ranks, f"--order={data.order if number == 0 else 'row'}"),
            *([] if number == 0 else ["--tail=mask"]),
        ]
    if verb == "where":
        micro = [f"--micro-batch={train.micro_batch}"] if train.micro_batch is not None else []
        words = [f"--global-batch={batch}", ranks, f"--seed={settings.seed}", f"--order={data.order}"]
        return [*words, f"--epochs={train.epochs}", *micro]
    return []


_WRITES_FILES = ("--grid", "--clean")
_WRITES_FOLDER = "--out"


def _for_part(words: list[str], part: str) -> list[str]:
    """The options, with what they write told apart: grid.png is grid-val.png for evaluation, a folder has two in it."""
    named: list[str] = []
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not equals and place:
            option, value = words[place - 1], word
        path = Path(value)
        if option in _WRITES_FILES and value and part == "val":
            value = str(path.with_stem(f"{path.stem}-{part}")) if path.name else value
        elif option == _WRITES_FOLDER and value:
            value = str(path / part)
        named.append(f"{option}={value}" if equals else value or word)
    return named


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def explain(words: list[str], env: Mapping[str, str]) -> int:
    """`explain CODE`."""
    if len(words) != 1 or words[0].startswith("-"):
        raise OptionError("explain needs one code, as in explain E102 or explain 75")
    print(explain_code(words[0]))
    return ExitCode.DONE
