"""The small verbs: they answer and start nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rankrun.errors import ExitCode, OptionError
from rankrun.errors import explain as explain_code
from rankrun.launch.options import Parser
from rankrun.launch.precheck import data_command, data_words


def plan(words: list[str], env: Mapping[str, str]) -> int:
    """`plan CONFIG [--nproc N] [key=value …]`: print the arithmetic of a run."""
    parser = Parser(prog="launch.py plan", description="Ranks, batch arithmetic and steps; starts nothing.")
    parser.usage = "launch.py plan CONFIG [--nproc N] [key=value …]"
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--nproc", "--nproc-per-node", dest="nproc", metavar="N")
    parser.add_argument("words", metavar="key=value", nargs="*")
    found, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise parser.unknown(unknown[0])

    from rankrun.config import resolve
    from rankrun.launch.arithmetic import describe
    from rankrun.launch.options import RunOptions
    from rankrun.launch.plan import make_plan, visible_gpus
    from rankrun.launch.precheck import check_data

    settings = resolve(Path(found.config), found.words, env=env)
    options = RunOptions(target=found.config, words=tuple(found.words), nproc=found.nproc)
    run_plan = make_plan(options, env, settings, gpus=visible_gpus(env))
    check_data(settings, run_plan.nproc, env)
    print("\n".join(describe(settings, run_plan.nproc, run_plan.folder)))
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

    Where a config stands in place of meta files, its training and evaluation data take turns.
    """
    configs = [word for word in words if word.endswith((".yaml", ".yml"))]
    if not configs:
        command, environment = data_command(words, env)
        return subprocess.call(command, env=environment)

    from rankrun.config import resolve

    verb, place = words[0], words.index(configs[0])
    overrides = [word for word in words[place + 1 :] if "=" in word and not word.startswith("-")]
    others = [word for word in words[1:] if word != configs[0] and word not in overrides]
    settings = resolve(Path(configs[0]), overrides, env=env)
    transforms = (settings.data.train_transforms, settings.data.eval_transforms)
    for source_words, looked_through in zip(data_words(settings), transforms, strict=False):
        more = []
        if verb == "inspect":
            more = [f"--channels={settings.data.channels}", f"--transforms={json.dumps(looked_through)}"]
        command, environment = data_command([verb, *others, *more, *source_words], env)
        code = subprocess.call(command, env=environment)
        if code != ExitCode.DONE:
            return code
    return ExitCode.DONE


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def explain(words: list[str], env: Mapping[str, str]) -> int:
    """`explain CODE`."""
    if len(words) != 1 or words[0].startswith("-"):
        raise OptionError("explain needs one code, as in explain E102 or explain 75")
    print(explain_code(words[0]))
    return ExitCode.DONE
