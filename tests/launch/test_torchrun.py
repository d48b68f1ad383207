"""Every option of this torch's torchrun is honoured or refused, in each spelling, typed and from the environment."""

from __future__ import annotations

import argparse

import pytest
from torch.distributed.argparse_util import check_env, env
from torch.distributed.run import get_args_parser

from rankrun.errors import OptionError
from rankrun.launch.options import RunOptions, parse_run, run_parser
from rankrun.launch.terminal import Choice
from rankrun.launch.torchrun import ROWS, conf, endpoint, local_ranks, nodes, port, signal_names, streams

THEIRS = [action for action in get_args_parser()._actions if action.option_strings and action.dest != "help"]
BY_DEST = {action.dest: action for action in THEIRS}
# A value that says something, for every option of theirs that takes one.
SAID = {
    "nnodes": "3",
    "nproc_per_node": "2",
    "rdzv_backend": "c10d",
    "rdzv_endpoint": "node0:4000",
    "rdzv_id": "7",
    "rdzv_conf": "join_timeout=5",
    "max_restarts": "4",
    "monitor_interval": "2.5",
    "start_method": "fork",
    "event_log_handler": "console",
    "role": "trainer",
    "log_dir": "logs",
    "redirects": "1",
    "tee": "0:3",
    "log_line_prefix_template": "${hostname}: ",
    "local_ranks_filter": "0,1",
    "duplicate_stdout_filters": "apple",
    "duplicate_stderr_filters": "apple",
    "node_rank": "1",
    "master_addr": "node0",
    "master_port": "4001",
    "local_addr": "10.0.0.7",
    "logs_specs": "mine",
    "numa_binding": "node",
    "signals_to_handle": "SIGTERM,SIGALRM",
    "shutdown_timeout": "9",
    "print_completion": "bash",
}
# Honoured by how every run is, so that nothing in the options says so.
NOTHING_TO_DO = {"rdzv_backend", "monitor_interval", "run_path"}


def outcome(words: list[str], environment: dict[str, str]) -> RunOptions | str:
    """What comes of them: the options, without the words for `resume`, or the words of the refusal."""
    try:
        options = parse_run([*words, "job.py"], environment)
    except OptionError as error:
        return str(error)
    return RunOptions(**{**vars(options), "again": ()})


def test_all_spellings_are_known() -> None:
    ours = {name for action in run_parser()._actions for name in action.option_strings}
    assert {name for action in THEIRS for name in action.option_strings} - ours == set()


def test_the_table_holds_what_torchrun_has_and_nothing_else() -> None:
    assert {row.dest for row in ROWS} == set(BY_DEST)
    for row in ROWS:
        assert (row.parse is None) == (BY_DEST[row.dest].nargs == 0), row.name
        assert row.pet == isinstance(BY_DEST[row.dest], (env, check_env)), row.name


def test_every_value_of_the_test_is_one_of_an_option_that_takes_one() -> None:
    assert set(SAID) == {action.dest for action in THEIRS if action.nargs != 0}


@pytest.mark.parametrize("dest", sorted(BY_DEST))
def test_what_is_said_is_honoured_or_refused(dest: str) -> None:
    name = BY_DEST[dest].option_strings[-1]
    result = outcome([name, SAID[dest]] if dest in SAID else [name], {})
    assert dest in NOTHING_TO_DO or result != outcome([], {}), f"{name} is ignored"


@pytest.mark.parametrize(
    "dest", sorted(dest for dest, action in BY_DEST.items() if isinstance(action, (env, check_env)))
)
def test_the_environment_says_the_same_as_the_option(dest: str) -> None:
    name, variable = BY_DEST[dest].option_strings[-1], f"PET_{dest.upper()}"
    typed = outcome([name, SAID[dest]] if dest in SAID else [name], {})
    read = outcome([], {variable: SAID.get(dest, "1")})
    assert type(read) is type(typed)
    if isinstance(read, str):
        assert read.startswith(f"{variable} in the environment, which means {name.replace('_', '-')}: ")
    else:
        assert read == typed
        assert dest not in SAID or outcome([], {variable: ""}) == outcome([], {})


@pytest.mark.parametrize(
    "dest", sorted(dest for dest, action in BY_DEST.items() if isinstance(action.default, str | int | float))
)
def test_torchruns_own_default_can_always_be_typed(dest: str) -> None:
    default = BY_DEST[dest].default
    if isinstance(default, bool):
        assert isinstance(outcome([], {f"PET_{dest.upper()}": "0"}), RunOptions)
    else:
        assert isinstance(outcome([BY_DEST[dest].option_strings[0], str(default)], {}), RunOptions)


def test_what_is_typed_wins_over_the_environment() -> None:
    assert parse_run(["--tee", "1", "job.py"], {"PET_TEE": "3"}).tee == Choice(1)
    assert parse_run(["--runs", "here", "job.py"], {"PET_LOG_DIR": "there"}).runs == "here"


def test_a_flag_of_the_environment_is_0_or_1() -> None:
    assert parse_run(["pkg"], {"PET_MODULE": "1"}).module
    assert not parse_run(["pkg"], {"PET_MODULE": "0"}).module
    with pytest.raises(OptionError, match=r"PET_MODULE='yes' in the environment: give 1 \(as --module\) or 0"):
        parse_run(["pkg"], {"PET_MODULE": "yes"})


def test_torchruns_own_variables_for_the_prefix_and_the_shutdown() -> None:
    assert parse_run(["job.py"], {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "${rank}: "}).template == "${rank}: "
    variable = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "12"}
    assert parse_run(["job.py"], variable).shutdown_timeout_s == 12
    assert parse_run(["--shutdown-timeout", "3", "job.py"], variable).shutdown_timeout_s == 3
    with pytest.raises(OptionError, match="TORCH_ELASTIC_SHUTDOWN_TIMEOUT in the environment: 'x' is not a number"):
        parse_run(["job.py"], {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "x"})


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("", None),
        ("node0", ("node0", 29400)),
        ("node0:0", ("node0", 0)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[fe80::1]:80", ("fe80::1", 80)),
        ("[::1]", ("::1", 29400)),
        ("fe80::1%eth0", ("fe80::1%eth0", 29400)),
        (" host_1.example.com:65535 ", ("host_1.example.com", 65535)),
    ],
)
def test_endpoints(word: str, place: tuple[str, int] | None) -> None:
    assert endpoint(word) == place


@pytest.mark.parametrize(
    ("parse", "word", "says"),
    [
        (endpoint, "node0:", "'' is not a whole number"),
        (endpoint, "node0:65536", "65536 is no port; ports end at 65535"),
        (endpoint, ":80", "'' is no host name or address"),
        (endpoint, "a b:1", "'a b' is no host name"),
        (endpoint, "$(touch x):1", r"'$(touch x)' is no host name"),
        (endpoint, "[::1]x:5", "is no host name"),
        (endpoint, "h\n", None),
        (endpoint, "x" * 300, "is no host name"),
        (nodes, "0", "give a number of machines from 1 to 65536"),
        (nodes, "1:4", "a run has one number of machines"),
        (nodes, "4:1", "a run has one number of machines"),
        (nodes, "two", "'two' is not a number of machines"),
        (nodes, "-1", "is not a number of machines"),
        (nodes, "1:2:3", "is not a number of machines"),
        (nodes, ":2", "is not a number of machines"),
        (nodes, "²", "is not a number of machines"),
        (port, "-1", "is not a whole number"),
        (conf, "last_call_timeout=3", "'last_call_timeout' is a setting of a rendezvous that rankrun does not use"),
        (conf, "join_timeout", "join_timeout: '' is not a number of seconds"),
        (conf, "join_timeout=0", "join_timeout: '0': give a number of seconds above 0"),
        (conf, "is_host=maybe", "is_host=maybe: give true or false"),
        (conf, "timeout=3,join_timeout=4", "join_timeout=4 and timeout=3 mean the same here; give one"),
        (streams, "4", "'4': give 0 (none), 1 (stdout), 2 (stderr) or 3 (both)"),
        (streams, "0:1,", "give 0 (none)"),
        (streams, "", "give 0 (none)"),
        (local_ranks, "0,a", "'0,a': give local ranks with commas between them"),
        (local_ranks, "-1", "give local ranks"),
        (signal_names, "SIGKILL", "SIGKILL can't be handled by a launcher"),
        (signal_names, "SIGTERM,", "'' is no signal here"),
        (signal_names, "TERM", "'TERM' is no signal here; names are SIGTERM"),
        (signal_names, "SIG_IGN", "is no signal here"),
    ],
)
def test_words_that_are_no_values(parse, word: str, says: str | None) -> None:
    if says is None:
        parse(word)
        return
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(word)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values() -> None:
    assert nodes("3:3") == 3
    assert conf(" join_timeout=5 , is_host=True") == {"join_timeout": 5.0, "is_host": True}
    assert conf("") == {}
    assert (streams("0:3,12:1").of(12), streams("0:3").of(1), streams("2").of(7)) == (1, 0, 2)
    assert local_ranks(" 0, 3") == {0, 3}
    assert signal_names("SIGTERM, SIGUSR1") == ("SIGTERM", "SIGUSR1")


def test_a_refusal_names_one_spelling_and_the_reason() -> None:
    with pytest.raises(OptionError) as caught:
        parse_run(["--start_method", "fork", "job.py"], {})
    assert str(caught.value).startswith("--start-method: fork: ranks are forked warm or executed; use --start")
    with pytest.raises(OptionError) as caught:
        parse_run(["-t", "9", "job.py"], {})
    assert str(caught.value).startswith("--tee: '9': give 0 (none)")
