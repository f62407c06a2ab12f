"""What a few rows of every tensor tell: the same tensor elsewhere, or equal parts that were joined or cut.

Letters in shapes: m rows seen of a tensor, n reference tensors of one shape, P rows seen of all references of one
length, K size of a sketch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.lines import SURE, Assignment, Part, is_quantised
from parity.weights.matching.places import Places
from parity.weights.matching.sketch import Sketch

_SAME = 2e-3
_CHUNK = 1 << 24
Offset = tuple[str, int]
"""A reference key, and the native row its first row would be."""


@dataclass(frozen=True)
class _Pool:
    """Rows seen of all references of one length: units [P, K], the tensor and the row of each."""

    units: Tensor
    owners: Sequence[str]
    rows: Sequence[int]


class Samples:
    """Looks tensors up by the few rows that were seen of each.

    Args:
        references: sketches by key.
        places: where tensors stand, which decides between equals.
    """

    def __init__(self, references: Mapping[str, Sketch], places: Places) -> None:
        self._references, self._places = references, places
        self._by_shape: dict[tuple[int, int], list[str]] = defaultdict(list)
        self._by_length: dict[int, list[Sketch]] = defaultdict(list)
        for key, held in references.items():
            if held.values is None and held.telling:
                self._by_shape[held.rows, held.columns].append(key)
                self._by_length[held.columns].append(held)
        self._wholes: dict[tuple[int, int, bool], Tensor] = {}
        self._pools: dict[int, _Pool] = {}

    def whole(self, native: Sketch) -> Assignment | None:
        """Return the reference tensor of the same shape whose rows, in the same order, these are."""
        keys = self._by_shape.get((native.rows, native.columns))
        if not keys:
            return None
        plain = is_quantised(native.dtype)
        scores = self._whole_units(native.rows, native.columns, plain) @ _flat(native, plain)
        best = float(scores.max())
        if best < SURE:
            return None
        equal = [keys[int(number)] for number in (scores > best - _SAME).nonzero().flatten()]
        key = self._places.preferred(native.key, equal)
        if not _no_other(native, self._references[key]):
            return None
        every = np.arange(native.rows)
        return Assignment(0, (Part(key, 0, every, every),), min(best, 1.0), 1.0)

    def _whole_units(self, rows: int, columns: int, plain: bool) -> Tensor:
        """Return a unit vector for each reference of a shape. Shapes: [n, m K]."""
        place = rows, columns, plain
        if place not in self._wholes:
            keys = self._by_shape[rows, columns]
            self._wholes[place] = torch.stack([_flat(self._references[key], plain) for key in keys])
        return self._wholes[place]

    def parts(self, native: Sketch) -> Assignment | None:
        """Return the references whose rows, one after the other, make these; the estimated cosine is left open."""
        votes = self._votes(native)
        taken = np.full(native.rows, -1)
        parts: list[Part] = []
        for key, offset in self._ranked(native.key, votes):
            first, last = max(offset, 0), min(offset + self._references[key].rows, native.rows)
            if first < last and (taken[first:last] < 0).all():
                taken[first:last] = len(parts)
                parts.append(Part(key, 0, np.arange(first, last), np.arange(first, last) - offset))
        if not parts or (taken < 0).any():
            return None
        return Assignment(0, tuple(sorted(_united(parts), key=lambda part: int(part.native[0]))), SURE, 1.0)

    def _votes(self, native: Sketch) -> Counter[Offset]:
        """Count, for each place of each reference, the rows seen that speak for it."""
        pool = self._pool(native.columns)
        votes: Counter[Offset] = Counter()
        if pool is None:
            return votes
        cosines = native.seen_lines[0] @ pool.units.t()
        best = cosines.amax(dim=1, keepdim=True)
        for line, place in ((cosines >= best - _SAME) & (cosines >= SURE)).nonzero().tolist():
            votes[pool.owners[place], int(native.seen[line]) - pool.rows[place]] += 1
        return votes

    def _ranked(self, native: str, votes: Counter[Offset]) -> Iterator[Offset]:
        """Yield places by their votes; of those with as many, the reference whose place fits best first."""
        by_count: dict[int, list[Offset]] = defaultdict(list)
        for offset, count in votes.items():
            by_count[count].append(offset)
        for count in sorted(by_count, reverse=True):
            left = by_count[count]
            while left:
                key = self._places.preferred(native, list(dict.fromkeys(key for key, _ in left)))
                yield from (offset for offset in left if offset[0] == key)
                left = [offset for offset in left if offset[0] != key]

    def among_lines(self, native: Sketch) -> list[str]:
        """Return the references of which several rows seen are lines of a native tensor that is sketched whole."""
        found: list[str] = []
        for axis in (0, 1):
            pool = self._pool(native.length(axis))
            lines = native.lines[axis].float()
            if pool is not None and len(lines):
                near = _greatest(pool.units, lines)
                votes = Counter(pool.owners[n] for n in (near >= SURE).nonzero().flatten().tolist())
                found += [key for key, count in votes.most_common() if count > 1]
        return list(dict.fromkeys(found))

    def _pool(self, length: int) -> _Pool | None:
        if length not in self._pools and self._by_length.get(length):
            held = self._by_length[length]
            units = torch.cat([sketch.seen_lines[0] for sketch in held])
            owners = [sketch.key for sketch in held for _ in sketch.seen]
            self._pools[length] = _Pool(units, owners, [int(row) for sketch in held for row in sketch.seen])
        return self._pools.get(length)


def _united(parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts, those of a reference that is repeated as one."""
    held: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        held[part.key].append(part)
    for key, some in held.items():
        native = np.concatenate([part.native for part in some])
        order = np.argsort(native)
        yield Part(key, 0, native[order], np.concatenate([part.reference for part in some])[order])


def _flat(held: Sketch, plain: bool) -> Tensor:
    """Return the rows seen as one unit vector, each by its norm; `plain` where rows have scales of their own."""
    units, norms = held.seen_lines
    flat = units.reshape(-1) if plain else (units * norms[:, None]).reshape(-1)
    unit: Tensor = flat / flat.norm().clamp_min(1e-30)
    return unit


def _no_other(native: Sketch, reference: Sketch) -> bool:
    """Whether none of the stronger rows seen is plainly another row."""
    cosines = (native.seen_lines[0] * reference.seen_lines[0]).sum(1)
    weight = native.seen_lines[1] * reference.seen_lines[1]
    return bool((cosines[weight >= weight.median()] >= 0.45).all())


def _greatest(rows: Tensor, lines: Tensor) -> Tensor:
    """Return, for each row, its greatest cosine with any line. Shapes: [P, K] and [L, K] to [P]."""
    out = [(part @ lines.t()).amax(dim=1) for part in rows.split(max(_CHUNK // max(len(lines), 1), 1))]
    return torch.cat(out)
