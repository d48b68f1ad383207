from __future__ import annotations

import pytest

from rankrun.launch.terminal import Choice, Terminal


@pytest.mark.parametrize(
    ("redirects", "tee", "shown"),
    [
        (0, 0, "both"),
        (1, 0, "stderr"),
        (2, 0, "stdout"),
        (3, 0, "none"),
        (3, 1, "stdout"),
        (3, 3, "both"),
        (1, 2, "stderr"),
        (0, 3, "both"),
    ],
)
def test_a_redirected_stream_is_shown_only_if_it_is_teed(redirects, tee, shown):
    terminal = Terminal(redirects=Choice(redirects), tee=Choice(tee))
    assert terminal.streams(5) == shown
    assert terminal.splits(5) == (shown in ("stdout", "stderr"))


def test_by_local_rank():
    terminal = Terminal(redirects=Choice(each={0: 3, 1: 1}), tee=Choice(each={0: 2}))
    assert [terminal.streams(rank) for rank in range(3)] == ["stderr", "stderr", "both"]


def test_ranks_that_are_filtered_out_are_not_shown_and_need_no_second_file():
    terminal = Terminal(local_ranks=frozenset({1}), redirects=Choice(1))
    assert [terminal.streams(rank) for rank in range(2)] == ["none", "stderr"]
    assert not terminal.splits(0)


def test_of_a_config_rank_0_is_shown_and_the_attached_one():
    terminal = Terminal(attach=5, one_speaks=True)
    assert [terminal.shown(rank, rank % 4) for rank in (0, 1, 5)] == ["both", "none", "both"]
    assert Terminal().shown(3, 3) == "both"


def test_prefixes():
    assert [Terminal().prefix("default", rank, 0, "h") for rank in (0, 12)] == [None, "[12] "]
    assert Terminal(attach=1, attached=True).prefix("default", 0, 0, "h") == "[0] "
    template = "${role_name} ${local_rank} ${rank} ${hostname} ${other} $ "
    assert Terminal(template=template).prefix("t", 0, 2, "node7") == "t 2 0 node7 ${other} $ "
    assert Terminal(template=template, attached=True).prefix("t", 0, 2, "node7") is None
