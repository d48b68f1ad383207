from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from rankrun.training.process_group import Group
from rankrun.training.step import Rehearsal, distribute, gradients_wait, seed_micro_batch, share_of_loss
from tests.training.helpers import end_of, start_ranks

CPU = torch.device("cpu")


def test_any_split_gives_the_loss_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model, images, labels = nn.Linear(6, 3).double(), torch.rand(11, 6).double(), torch.randint(3, (11,))
    weights = torch.ones(11, dtype=torch.float64)
    weights[-2:] = 0
    losses = functional.cross_entropy(model(images), labels, reduction="none")
    (whole,) = torch.autograd.grad((losses * weights).sum() / 9, [model.weight])
    for world_size, micro_batches in ((1, 1), (3, 1), (4, 2), (5, 3)):
        mean = torch.zeros_like(whole)
        for rank in range(world_size):
            for part in torch.arange(rank, 11, world_size).tensor_split(micro_batches):
                losses = functional.cross_entropy(model(images[part]), labels[part], reduction="none")
                share_of_loss(losses, weights[part], 9.0, world_size).backward()
            mean += model.weight.grad / world_size
            model.weight.grad = None
        assert torch.allclose(mean, whole, rtol=1e-12, atol=0)


def test_seed_of_a_micro_batch() -> None:
    def draw(*place: int) -> float:
        seed_micro_batch(*place, CPU)
        return torch.rand(1).item()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**63 - 1, 2**40, 4096, 9)]
    first = [draw(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [draw(*place) for place in places] == first


def test_one_rank_needs_no_wrapping() -> None:
    model = nn.Linear(2, 2)
    network = distribute(model, Group(0, 1), CPU)
    assert network is model
    calls: list[int] = []
    Rehearsal(network).once(lambda: torch.zeros(calls.append(1) or 1))
    assert calls == []
    with gradients_wait(network, last=False):
        pass


# Prints the hash after six steps from one start, and from a second start after three.
STARTS = """
import copy, os, sys
from pathlib import Path
import torch
from torch import nn
from rankrun.training.hashes import tensors_sha256
from rankrun.training.process_group import process_group
from rankrun.training.step import Rehearsal, distribute
from rankrun.world import World
world, cpu = World.from_env(os.environ), torch.device("cpu")

def train(model, steps):
    network = distribute(model, group, cpu)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    if sys.argv[2] == "rehearsed":
        Rehearsal(network).once(lambda: network(torch.ones(2, 64)).square().mean())
    for step in steps:
        torch.manual_seed(step * world.world_size + world.rank)
        optimiser.zero_grad()
        network(torch.rand(4, 64)).square().mean().backward()
        optimiser.step()
    return tensors_sha256(model.state_dict())

with process_group(world, cpu, rendezvous=Path(sys.argv[1])) as group:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    stopped = copy.deepcopy(model)
    whole = train(model, range(6))
    train(stopped, range(3))
    print(whole == train(copy.deepcopy(stopped), range(3, 6)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rehearsed", "not"])
def test_a_later_start_sums_in_the_same_order_thanks_to_the_rehearsal(tmp_path: Path, how: str) -> None:
    ends = end_of(start_ranks(["-c", STARTS, str(tmp_path), how], 3))
    assert ends == [(0, f"{how == 'rehearsed'}\n")] * 3, ends
