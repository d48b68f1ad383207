from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankrun.config import resolve
from rankrun.training.schedule import learning_rate, learning_rates


def test_the_docstrings_drawing() -> None:
    drawn = [round(learning_rate(step, total_steps=6, warmup_steps=2, base=1.0), 3) for step in range(6)]
    assert drawn == [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]


def test_cosine_is_torchs_cosine() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=40, eta_min=0.03)
    for step in range(40):
        ours = learning_rate(step, total_steps=40, warmup_steps=0, base=0.3, final_fraction=0.1)
        assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        reference.step()


@given(st.integers(1, 500), st.integers(0, 600), st.floats(0, 1), st.sampled_from(["cosine", "constant"]))
def test_never_above_base_nor_below_the_end(total: int, warmup: int, final: float, name: str) -> None:
    rates = [
        learning_rate(step, total_steps=total, warmup_steps=warmup, base=0.5, name=name, final_fraction=final)
        for step in range(total)
    ]
    assert all(0 < rate <= 0.5 for rate in rates) or final == 0
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
    assert all(rate >= 0.5 * final - 1e-12 for rate in after)


def test_as_settings_describe_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {train: x}\ntrain: {epochs: 4, global_batch: 2}\n")
    settings = resolve(tmp_path / "a.yaml", ["schedule.warmup_epochs=0.5", "optim.lr=2.0"])
    rate = learning_rates(settings, steps_per_epoch=10)
    assert rate(4) == 2.0
    assert rate(0) == pytest.approx(0.4)
    assert rate(39) < 0.01
