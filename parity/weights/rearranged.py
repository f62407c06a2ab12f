"""The right values at the wrong places, scaled or moved: which order a tensor holds them in, in words.

Letters in shapes: I rows and J columns of a tensor seen as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.numerics.metrics import bit_equal
from parity.weights.orders import Rows, described

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20
_SHORT = 8
"""Numbers of an order that are printed."""


def rearranged(value: Tensor, held: Tensor) -> str | None:
    """Return how `held` has the values of `value` at other places, scaled or moved; None where it has not.

    Shapes: both any one shape.
    """
    if value.ndim == 2 and value.shape[0] == value.shape[1] and bit_equal(value.t(), held):
        return "holds its own transpose"
    if not value.is_floating_point() or not value.numel():
        return None
    while value.ndim > 2 and value.shape[0] == 1:
        value, held = value[0], held[0]
    return _turned(value, held) or _reordered(value, held) or _refilled(value, held) or _scaled(value, held)


def _turned(value: Tensor, held: Tensor) -> str | None:
    """Recognise dims in another order, in a tensor that has more than two."""
    if value.ndim < 3 or value.ndim > 5:
        return None
    for dims in permutations(range(value.ndim)):
        turned = value.permute(dims)
        if dims != tuple(range(value.ndim)) and turned.shape == value.shape and bit_equal(turned, held):
            return f"holds its own values with {_dims_said(dims)}"
    return None


def _dims_said(dims: Sequence[int]) -> str:
    if dims[:2] == (1, 0) and list(dims[2:]) == list(range(2, len(dims))):
        return "in- and out-channels exchanged"
    if dims[:2] == (0, 1):
        return f"the axes of its kernel exchanged: dims {list(dims)}"
    return f"its dims exchanged: {list(dims)}"


def _reordered(value: Tensor, held: Tensor) -> str | None:
    rows = _order(*(t.reshape(t.shape[0], -1) for t in (value, held))) if value.ndim else None
    if rows is not None:
        return f"holds the right {'out-channels' if value.ndim > 2 else 'rows'} in another order{_said(rows)}"
    if value.ndim < 2:
        return None
    if value.ndim > 2 and (channels := _order(*(t.transpose(0, 1).flatten(1) for t in (value, held)))) is not None:
        return f"holds the right in-channels in another order{_said(channels)}"
    columns = _order(*(t.flatten(1).t() for t in (value, held)))
    return None if columns is None else f"holds the right columns in another order{_said(columns)}"


def _order(value: Tensor, held: Tensor) -> Rows | None:
    """Return which row of the value each row that is held is; None where they are others. Shapes: [I, J]."""
    one, other = _row_digests(value), _row_digests(held)
    order, order_held = one.argsort(stable=True), other.argsort(stable=True)
    if not torch.equal(one[order], other[order_held]) or not torch.equal(value[order], held[order_held]):
        return None
    out = torch.empty_like(order)
    out[order_held] = order
    return np.asarray(out.numpy(), dtype=np.int64)


def _row_digests(values: Tensor) -> Tensor:
    """Return an integer for each row, the same for the same bytes wherever the row lies. Shapes: [I, J] to [I]."""
    plain = values.contiguous()
    bits = plain.view(_INTEGERS[plain.element_size()])
    factors = torch.randint(1, 1 << 62, (values.shape[1],), generator=torch.Generator().manual_seed(0))
    step = max(_CHUNK // max(values.shape[1], 1), 1)
    return torch.cat([(chunk.long() * factors).sum(1) for chunk in bits.split(step)])


def _said(order: Rows) -> str:
    """Return an order in words; of a part where the rest is in place; nothing where it has no pattern."""
    moved = np.flatnonzero(order != np.arange(len(order)))
    first, last = (int(moved[0]), int(moved[-1]) + 1) if len(moved) else (0, len(order))
    part = order[first:last] - first
    closed = len(moved) > 0 and part.min() == 0 and part.max() == len(part) - 1
    words = described(order) or {}
    where = ""
    if "rows" in words and closed and _SHORT < len(part) < len(order):
        words, where = described(part) or {}, f" of {first} to {last}"
    text = _in_words(words)
    return f": {text}{where}" if text else ""


def _in_words(words: dict[str, Any]) -> str:
    if "view" in words:
        return f"a view of {words['view']} with dims {words['dims']}"
    if "rows" in words:
        return str(words["rows"]) if len(words["rows"]) <= _SHORT else ""
    if "blocks" not in words or len(words["order"]) > _SHORT:
        return f"blocks of {words['blocks']} moved" if "blocks" in words else ""
    if words["order"] == [1, 0]:
        return "its halves exchanged (scale and shift, gate and up?)"
    return f"blocks of {words['blocks']} in the order {words['order']}"


def _refilled(value: Tensor, held: Tensor) -> str | None:
    """Recognise a tensor that was reshaped where it had to be transposed, and any other mix of its values."""
    pairs = ((value, held), (held, value)) if value.ndim > 1 else ()
    if any(bit_equal(one.transpose(0, 1).reshape(one.shape), other) for one, other in pairs):
        return "holds its values reshaped where they should be transposed, or the other way round"
    same = value.numel() > 1 and _digest(value) == _digest(held)
    return "holds the right values, but in another order" if same else None


def _digest(values: Tensor) -> tuple[int, ...]:
    """Return sums over the bits of each value, which no order of the values changes."""
    plain = torch.view_as_real(values) if values.is_complex() else values
    bits = plain.reshape(-1).view(_INTEGERS[plain.element_size()])
    sums = torch.zeros(3, dtype=torch.int64)
    for chunk in bits.split(_CHUNK):
        wide = chunk.long()
        for power in range(3):
            sums[power] += wide.sum()
            wide = wide * chunk
    return tuple(sums.tolist())


def _scaled(value: Tensor, held: Tensor) -> str | None:
    one, other = value.double().reshape(-1), held.double().reshape(-1)
    scale = float(one.dot(other) / one.dot(one)) if float(one.dot(one)) else math.nan
    if scale == -1.0:
        return "has the sign turned"
    size = float(other.norm())
    if math.isfinite(scale) and float((other - scale * one).norm()) < 1e-3 * size and abs(scale - 1) > 1e-2:
        return f"is the right tensor times {scale:.4g}"
    offset = float((other - one).mean())
    close = len(one) > 1 and float((other - one - offset).abs().max()) < 1e-2 * abs(offset)
    said = _OFFSETS.get(round(offset, 2))
    return f"is the right tensor plus {offset:.4g}{f': {said}' if said else ''}" if close else None


_OFFSETS = {-1.0: "a gain stored without its 1?", 1.0: "a gain stored as 1 + weight?"}
