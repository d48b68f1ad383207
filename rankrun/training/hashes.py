"""One hash over many tensors, equal where and only where every name, dtype, shape and bit is equal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over the tensors sorted by name: name, dtype, shape and bytes of each, wherever they live.

    Every field is preceded by its length, so that no two different sets run into the same bytes. Strides don't
    count: a channels_last copy hashes like the plain one.
    """
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy()  # a view: bfloat16 has no numpy type of its own
        for field in (name, str(tensor.dtype), str(tuple(tensor.shape))):
            text = field.encode()
            whole.update(len(text).to_bytes(8, "little"))
            whole.update(text)
        whole.update(raw.nbytes.to_bytes(8, "little"))
        whole.update(raw.data)
    return whole.hexdigest()
