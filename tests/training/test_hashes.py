from __future__ import annotations

import hashlib

import torch

from rankrun.training.hashes import tensors_sha256


def test_any_difference_is_another_hash() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    others = [
        {"a": torch.zeros(3, 2), "b": base["b"]},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": base["b"]},
        {"a": torch.full((2, 3), -0.0), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
        {"a": base["a"], "b": torch.zeros(1, dtype=torch.int64)},
        {},
    ]
    hashes = {tensors_sha256(tensors) for tensors in [base, *others]}
    assert len(hashes) == 1 + len(others)


def test_order_of_names_strides_and_gradients_do_not_count() -> None:
    a, b = torch.rand(2, 3, 4, 4), torch.rand(5).bfloat16()
    one = tensors_sha256({"a": a, "b": b})
    assert one == tensors_sha256({"b": b.clone().requires_grad_(), "a": a.to(memory_format=torch.channels_last)})


def test_what_is_hashed_is_fixed() -> None:
    value = torch.tensor([1.5, -2.0])
    fields = [b"w", b"torch.float32", b"(2,)", value.numpy().tobytes()]
    expected = hashlib.sha256(b"".join(len(field).to_bytes(8, "little") + field for field in fields)).hexdigest()
    assert tensors_sha256({"w": value}) == expected


def test_scalars_and_empty_tensors() -> None:
    assert tensors_sha256({"n": torch.tensor(3)}) != tensors_sha256({"n": torch.tensor([3])})
    assert len(tensors_sha256({"n": torch.zeros(0, 4)})) == 64
