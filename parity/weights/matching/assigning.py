"""Assign the lines of one tensor to the lines of others by their sketches, completed by the order they follow.

Letters in shapes: n lines of the native tensor, m lines of all candidates, K size of a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.lines import SURE, Lines, Norms, Part
from parity.weights.matching.rows import Ints

_FOLLOWED = 0.97
"""Share of the sure lines, by norm, an order has to explain."""
_CHUNK = 1 << 24


def assign(native: Lines, candidates: Sequence[Lines]) -> list[Part]:
    """Assign every native line to a line of the candidates, none used twice unless each is used as often.

    What sketches leave open, because noise drowns weak lines or lines are alike, is completed by the order the rest
    follows: blocks of lines that share one inner order (heads, their RoPE layout, fused parts, repeated heads).
    """
    pool = torch.cat([held.units for held in candidates]).float()
    best, cosine = _nearest(native.units.float(), pool)
    best[cosine < SURE] = -1
    norms = native.norms.numpy()
    chosen = completed(best, norms, len(pool))
    if chosen is None and (times := _times(best)) > 1:
        chosen = completed(best, norms, len(pool), times)
    if chosen is None:
        chosen = _each_completed(best, norms, [held.count for held in candidates])
    chosen = _filled(native.units.float(), pool, chosen)
    return _parts(chosen, candidates)


def _nearest(units: Tensor, pool: Tensor) -> tuple[Ints, Norms]:
    best: list[Tensor] = []
    values: list[Tensor] = []
    for chunk in units.split(max(_CHUNK // max(len(pool), 1), 1)):
        value, index = (chunk @ pool.t()).max(dim=1)
        best.append(index)
        values.append(value)
    return torch.cat(best).numpy().astype(np.int64), torch.cat(values).numpy()


def _times(best: Ints) -> int:
    """Return how often the lines that are sure were claimed, on the average."""
    sure = best[best >= 0]
    return max(round(len(sure) / len(np.unique(sure))), 1) if len(sure) else 1


def _each_completed(best: Ints, norms: Norms, sizes: Sequence[int]) -> Ints:
    """Complete the lines of each candidate by an order of their own: q in another RoPE layout, k repeated, v not."""
    starts = np.cumsum([0, *sizes])
    label = np.searchsorted(starts, best, side="right") - 1
    times = [_times(np.where(label == number, best, -1)) for number in range(len(sizes))]
    wanted = [size * often for size, often in zip(sizes, times, strict=True)]
    label = _labelled(np.where((best < 0) | (norms < np.median(norms)), -1, label), wanted)
    out: Ints = best.copy()
    repeated = np.zeros(len(best), dtype=bool)
    for number, size in enumerate(sizes):
        mine = np.flatnonzero(label == number)
        inside = (best[mine] >= starts[number]) & (best[mine] < starts[number + 1])
        if inside.any():
            order = completed(np.where(inside, best[mine] - starts[number], -1), norms[mine], size, times[number])
            out[mine] = out[mine] if order is None else order + starts[number]
            repeated[mine] = order is not None and times[number] > 1
    return np.where(repeated, out, _unique(out))


def _labelled(label: Ints, sizes: Sequence[int]) -> Ints:
    """Give lines that belong to no candidate yet to that before or behind them, as many as each has lines."""
    out: Ints = label.copy()
    left = [size - int((label == number).sum()) for number, size in enumerate(sizes)]
    known = np.flatnonzero(label >= 0)
    for line in np.flatnonzero(label < 0):
        at = int(np.searchsorted(known, line))
        before = out[line - 1] if line else -1
        behind = label[known[at]] if at < len(known) else before
        wanted = [int(n) for n in (before, behind) if n >= 0 and left[int(n)] > 0]
        if wanted:
            out[line] = wanted[0]
            left[wanted[0]] -= 1
    return out


def completed(best: Ints, norms: Norms, pool: int, times: int = 1) -> Ints | None:
    """Return all lines by the most economical block order the sure lines follow; None where they follow none.

    Each line is used `times` times. Of weak lines noise makes lines of others: where all together follow none, the
    stronger half decides.
    """
    found = _most_followed(best, norms, pool, times)
    if found is None:
        found = _most_followed(np.where(norms >= np.median(norms), best, -1), norms, pool, times)
    return found


def _most_followed(best: Ints, norms: Norms, pool: int, times: int) -> Ints | None:
    count, sure = len(best), best >= 0
    if not sure.any():
        return None
    found: tuple[float, Ints | None] = _FOLLOWED, None
    sizes = [size for size in range(2, count // 2 + 1) if count % size == 0]
    for size in sorted(sizes, key=lambda size: size + count // size):
        fitted = _fitted(best, size)
        if fitted is None or fitted.min() < 0 or fitted.max() >= pool or not _used(fitted, times):
            continue
        share = float(np.average(fitted[sure] == best[sure], weights=norms[sure] + 1e-30))
        if share > found[0]:
            found = share, fitted
        if share > 1 - 1e-9:
            break
    return found[1]


def _used(lines: Ints, times: int) -> bool:
    return bool((np.unique(lines, return_counts=True)[1] == times).all())


def _fitted(best: Ints, size: int) -> Ints | None:
    """Fit `line = base[block] + order[place]` to the sure lines; None where a block or place has none."""
    table = best.reshape(-1, size)
    known = table >= 0
    if not known.any(axis=1).all() or not known.any(axis=0).all():
        return None
    richest = int(known.sum(axis=1).argmax())
    order = np.where(known[richest], table[richest] - table[richest][known[richest]][0], np.iinfo(np.int64).min)
    base = np.zeros(len(table), dtype=np.int64)
    for _ in range(2):
        placed = order != np.iinfo(np.int64).min
        for block in range(len(table)):
            use = known[block] & placed
            if not use.any():
                return None
            base[block] = _mode(table[block][use] - order[use])
        for place in range(size):
            use = known[:, place]
            order[place] = _mode(table[use, place] - base[use])
    return np.asarray((base[:, None] + order[None, :]).reshape(-1), dtype=np.int64)


def _mode(numbers: Ints) -> int:
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])


def _unique(best: Ints) -> Ints:
    """Keep the first of lines that claim the same line."""
    out = np.full_like(best, -1)
    _, first = np.unique(best, return_index=True)
    out[first] = best[first]
    return out


def _filled(units: Tensor, pool: Tensor, chosen: Ints) -> Ints:
    """Give lines that are still open the nearest free lines: any where just these are left, else only likely ones."""
    open_lines = np.flatnonzero(chosen < 0)
    free = np.setdiff1d(np.arange(len(pool)), chosen)
    if not len(open_lines) or not len(free) or len(open_lines) * len(free) > _CHUNK:
        return chosen
    least = -1.5 if len(open_lines) == len(free) else 0.35
    similar = (units[torch.from_numpy(open_lines)] @ pool[torch.from_numpy(free)].t()).numpy()
    for line in np.argsort(-similar.max(axis=1), kind="stable"):
        place = int(similar[line].argmax())
        if similar[line, place] > least:
            chosen[open_lines[line]] = free[place]
            similar[:, place] = -2.0
    return chosen


def _parts(chosen: Ints, candidates: Sequence[Lines]) -> list[Part]:
    out: list[Part] = []
    start = 0
    for held in candidates:
        at = np.flatnonzero((chosen >= start) & (chosen < start + held.count))
        if len(at):
            out.append(Part(held.sketch.key, held.axis, at.astype(np.int64), chosen[at] - start))
        start += held.count
    return out
