from __future__ import annotations

import pytest
import torch

from rankrun.errors import ConfigError, WorldError
from rankrun.training.device import choose_device, settle
from rankrun.world import World


def world(local_rank: int, local_world_size: int, launcher: str = "torchrun") -> World:
    return World(local_rank, local_world_size, local_rank, local_world_size, 0, 1, launcher)  # type: ignore[arg-type]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    def show(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return show


def test_cpu_where_it_is_asked_for_or_all_there_is(gpus) -> None:
    gpus(0)
    assert choose_device("auto", world(1, 2)).type == "cpu"
    gpus(4)
    assert choose_device("cpu", world(1, 2)).type == "cpu"


def test_each_rank_has_its_gpu(gpus) -> None:
    gpus(4)
    assert choose_device("auto", world(3, 4)) == torch.device("cuda", 3)
    gpus(1)
    assert choose_device("cuda", world(3, 4, "srun")) == torch.device("cuda", 0)


def test_refusals(gpus) -> None:
    gpus(0)
    with pytest.raises(ConfigError, match="cuda was asked for, but torch sees no GPU here; legal here: cpu, auto"):
        choose_device("cuda", world(0, 1))
    gpus(2)
    with pytest.raises(WorldError, match="4 ranks and 2 GPUs; start at most 2 per node"):
        choose_device("auto", world(0, 4))


def test_threads_are_those_of_the_config() -> None:
    before = torch.get_num_threads()
    environ: dict[str, str] = {}
    try:
        settle(torch.device("cpu"), 3, environ)
        assert torch.get_num_threads() == 3
        assert torch.are_deterministic_algorithms_enabled()
        assert environ == {}
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)
