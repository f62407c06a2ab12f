"""What could be wrong with the parameters a segment reads: another's in their place, another order, another scale."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from parity.execution.changes import Change


def parameter_changes(names: Sequence[str], held: Mapping[str, Tensor], heads: int = 0) -> Iterator[Change]:
    """List what could be wrong with the parameters a segment reads: another's, in another order, scaled.

    Args:
        names: what the segment reads.
        held: all of the model's.
        heads: of attention, 0 where unknown.
    """
    yield from exchanged_modules(names, held)
    yield from other_forms(names, held, heads)


def other_forms(names: Sequence[str], held: Mapping[str, Tensor], heads: int = 0) -> Iterator[Change]:
    """List other forms of the parameters a segment reads: transposed, reordered, scaled."""
    for name in names:
        weight, bias = held[name], held.get(name.removesuffix("weight") + "bias")
        if name.endswith(".weight") and bias is not None and weight.dim() > 1 and len(bias) == len(weight):
            orders = _orders(weight.detach(), 0, "rows", heads), _orders(bias.detach(), 0, "values", heads)
            for (bug, words, new), (_, _, beside) in zip(*orders, strict=True):
                yield Change(f"{name} and its bias {words}", ((weight, new), (bias, beside)), bug=bug)
    for name in names:
        p = held[name]
        for bug, words, new in _forms(p, heads):
            yield Change(f"{name} {words}", ((p, new),), bug=bug)


def exchanged_modules(names: Sequence[str], held: Mapping[str, Tensor]) -> Iterator[Change]:
    """Exchange two modules of a block, or one with its like of a neighbouring block; first all that are named so."""
    modules = list(dict.fromkeys(n.rpartition(".")[0] for n in names))
    own = {m: {n.rpartition(".")[2]: p for n, p in held.items() if n.rpartition(".")[0] == m} for m in modules}
    found: dict[frozenset[str], tuple[str, str, Pairs]] = {}
    for one, other in ((m, o) for m in modules for o in _same_block(m, held)):
        mine, theirs = own[one], {n.rpartition(".")[2]: p for n, p in held.items() if n.rpartition(".")[0] == other}
        if frozenset((one, other)) not in found and _alike(mine, theirs):
            found[frozenset((one, other))] = one, other, [(mine[k], theirs[k]) for k in mine]
    alike: dict[frozenset[str], list[tuple[str, str, Pairs]]] = {}
    for one, other, pairs in found.values():
        if one.rpartition(".")[0] == other.rpartition(".")[0]:
            alike.setdefault(frozenset(m.rpartition(".")[2] for m in (one, other)), []).append((one, other, pairs))
    for group in [*(g for g in alike.values() if len(g) > 1), *([one] for one in found.values())]:
        words, more = f"{group[0][0]} and {group[0][1]} exchanged", len(group) - 1
        words += f", and {more} more pairs named so" if more else ""
        yield Change(words, _exchange([p for _, _, pairs in group for p in pairs]), bug="modules_exchanged")


Pairs = list[tuple[Tensor, Tensor]]


def _exchange(pairs: Pairs) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((a, b.detach().clone()) for a, b in (*pairs, *((b, a) for a, b in pairs)))


def _same_block(module: str, held: Mapping[str, Tensor]) -> list[str]:
    """List what a module could be mistaken for: the others of its block, itself in the blocks beside it."""
    found = re.match(r"(.*?\.)(\d+)(\..*)?$", module)
    others = dict.fromkeys(n.rpartition(".")[0] for n in held)
    if found is None:
        return [o for o in others if o != module and not re.search(r"\.\d+(\.|$)", o)]
    block = f"{found[1]}{found[2]}."
    beside = [f"{found[1]}{int(found[2]) + step}{found[3] or ''}" for step in (-1, 1)]
    return [*(o for o in others if o.startswith(block) and o != module), *(b for b in beside if b in others)]


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return bool(one) and {k: (p.shape, p.dtype) for k, p in one.items()} == {
        k: (p.shape, p.dtype) for k, p in other.items()
    }


def _forms(p: Tensor, heads: int) -> Iterator[tuple[str, str, Tensor]]:
    """List other forms of a parameter, each in its shape, with what having it so is called."""
    p = p.detach()
    if p.dim() == 2 and p.shape[0] == p.shape[1]:
        yield "weights_transposed", "transposed", p.t().contiguous()
    if p.dim() == 1:
        yield "weights_shifted", "plus 1", p + 1
        yield "weights_shifted", "less 1", p - 1
    for dim in range(min(p.dim(), 2)):
        yield from _orders(p, dim, ("rows" if p.dim() > 1 else "values", "columns")[dim], heads)
    yield from (("weights_scaled", f"times {c:g}", p * c) for c in (-1.0, 2.0, 0.5))


def _orders(p: Tensor, dim: int, axis: str, heads: int) -> Iterator[tuple[str, str, Tensor]]:
    """List other orders of a parameter along a dim."""
    size = p.shape[dim]
    for parts in (2, 3, 6):
        if size % parts == 0 and size > parts:
            reversed_chunks = torch.cat(p.chunk(parts, dim)[::-1], dim)
            yield "weights_order", f"with its {parts} chunks of {axis} reversed", reversed_chunks
    if size % 2 == 0 and size > 2:
        pairs = p.unflatten(dim, (2, size // 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)
        yield "weights_order", f"with its halves of {axis} interleaved", pairs
        halves = p.unflatten(dim, (size // 2, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)
        yield "weights_order", f"with its pairs of {axis} taken apart into halves", halves
    if heads > 1 and size % heads == 0:
        each = size // heads
        yield from (("head_order", f"rolled by {s} heads of {axis}", p.roll(s * each, dim)) for s in (1, -1))
        within = p.unflatten(dim, (each, heads)).transpose(dim, dim + 1).flatten(dim, dim + 1)
        yield "head_order", f"with {axis} ordered by head first", within
    if heads > 1 and size % (3 * heads) == 0:
        for words, cut in (("[heads, 3, head_dim]", (3, heads, -1)), ("[3, heads, head_dim]", (heads, 3, -1))):
            turned = p.unflatten(dim, cut).transpose(dim, dim + 1).flatten(dim, dim + 2)
            yield "head_order", f"with its {axis} as {words}", turned
