"""Match tensors of two models that hold the same values: a checkpoint both have loaded, or one converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from parity.scaffold.keys import fit
from parity.scaffold.names import sort_of
from parity.scaffold.proposal import Match
from parity.scaffold.stacks import Group

Tensors = Mapping[str, Tensor]
MOST = 0.9
"""Share of the native's tensors whose values must be found in the reference. Models drawn from one seed have some equal
tensors by accident, in the wrong places."""


def value_matches(
    reference: Sequence[Group], native: Sequence[Group], expected: Tensors, actual: Tensors
) -> list[Match]:
    """Return matches of tensors whose values are equal, after a cast to the coarser dtype; none where few are.

    Constant tensors say nothing and are left out, as are values that several tensors hold.
    """
    r_told = [g for g in reference if _tells(g, expected)]
    n_told = [g for g in native if _tells(g, actual)]
    found = [m for r in r_told for n in n_told if (m := _whole(r, n, expected, actual)) is not None]
    said = "equal values, by rows"
    found += [Match("split", (r,), p, said) for r in r_told for p in _tiles(r, n_told, expected, actual)]
    found += [Match("fuse", p, (n,), said) for n in n_told for p in _tiles(n, r_told, actual, expected)]
    count = Counter(g for m in found for g in (*m.reference, *m.native))
    once = [m for m in found if all(count[g] == 1 for g in (*m.reference, *m.native))]
    return once if sum(len(m.native) for m in once) >= MOST * max(1, len(n_told)) else []


def _tells(group: Group, tensors: Tensors) -> bool:
    values = [tensors[key] for key in group.keys]
    return all(v.numel() > 1 and not v.is_meta and not bool((v == v.flatten()[0]).all()) for v in values)


def _whole(r: Group, n: Group, expected: Tensors, actual: Tensors) -> Match | None:
    how = fit(r, n)
    if how is None:
        return None
    turned = len(r.shape) == 2 and r.shape[0] == r.shape[1]
    for transpose in (False, True) if turned else (how.get("transpose", False),):
        if all(_equal(_turned(expected[a], transpose), actual[b]) for a, b in zip(r.keys, n.keys, strict=True)):
            return Match("rename", (r,), (n,), "equal values", transpose=transpose, reshape=how.get("reshape", False))
    return None


def _turned(value: Tensor, transpose: bool) -> Tensor:
    return value.t() if transpose else value


def _equal(one: Tensor, other: Tensor) -> bool:
    dtype = min((one.dtype, other.dtype), key=lambda d: torch.finfo(d).bits if d.is_floating_point else 0)
    return one.numel() == other.numel() and torch.equal(one.reshape(other.shape).to(dtype), other.to(dtype))


def _tiles(whole: Group, parts: Sequence[Group], held: Tensors, pieces: Tensors) -> Iterator[tuple[Group, ...]]:
    """Yield the parts whose rows, one after another, are those of the whole. Shapes: [I, ...] from [Ik, ...]."""
    fitting = [p for p in parts if _could_tile(p, whole)]
    chosen: list[Group] = []
    at = 0
    while whole.shape and at < whole.shape[0]:
        here = [p for p in fitting if p not in chosen and _rows_equal(whole, p, at, held, pieces)]
        if len(here) != 1:
            return
        chosen.append(here[0])
        at += here[0].shape[0]
    if len(chosen) > 1 and at == whole.shape[0]:
        yield tuple(chosen)


def _could_tile(part: Group, whole: Group) -> bool:
    alike = part.indices == whole.indices and sort_of(part.leaf) == sort_of(whole.leaf)
    return alike and part.shape[1:] == whole.shape[1:] and len(part.shape) > 0 and part.shape[0] < whole.shape[0]


def _rows_equal(whole: Group, part: Group, at: int, held: Tensors, pieces: Tensors) -> bool:
    stop = at + part.shape[0]
    pairs = zip(whole.keys, part.keys, strict=True)
    return stop <= whole.shape[0] and all(_equal(held[w][at:stop], pieces[p]) for w, p in pairs)
