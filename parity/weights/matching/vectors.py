"""Match tensors of few lines (biases, gains, tables) by their values: whole, like their weight, or as windows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.few import reordered
from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.places import Places
from parity.weights.matching.rows import Ints
from parity.weights.matching.sketch import FEW_LINES, Sketch
from parity.weights.names import sibling
from parity.weights.orders import repeated

_SAME = 1e-5
_LEAST = 0.7
_CHANCE = 1e-9
_ALONE = 0.99


def needed(count: int) -> float:
    """Return the correlation of so many values that chance does not give among thousands of tensors.

    The chance that so many independent values correlate by r is about `(1 - r^2) ** ((n - 2) / 2)`.

    >>> needed(4096), round(needed(16), 2)
    (0.7, 0.97)
    """
    return max(_LEAST, math.sqrt(1 - _CHANCE ** (2 / max(count - 2, 1))))


class Vectors:
    """Looks native tensors of few lines up among the reference's.

    Args:
        references: sketches by key; those kept whole, neither constant nor with NaN, are looked at.
        places: where tensors stand, which decides between equals.
    """

    def __init__(self, references: Mapping[str, Sketch], places: Places) -> None:
        self._references, self._places = references, places
        self._by_size: dict[int, list[str]] = defaultdict(list)
        self._units: dict[int, Tensor] = {}
        for key, held in references.items():
            if held.values is not None and held.constant is None and held.finite:
                self._by_size[held.values.numel()].append(key)

    def find(self, native: Sketch, weights: Mapping[str, Assignment]) -> Assignment | None:
        """Return where the values come from; `weights` are the assignments found so far, by native key."""
        found = self._whole(native) or self._beside(native, weights) or self._repeated(native) \
            or self._reordered(native) or self._windows(native)  # fmt: skip
        if found is not None:
            self._places.learn(native.key, [part.key for part in found.parts])
        return found

    def _whole(self, native: Sketch) -> Assignment | None:
        assert native.values is not None
        keys = self._by_size.get(native.values.numel(), [])
        if not keys:
            return None
        for values in (native.values, native.values.t()) if native.rows > 1 else (native.values,):
            scores = self._unit_rows(native.values.numel()) @ _unit(values.reshape(1, -1))[0]
            likely = (scores >= _LEAST).nonzero().flatten().tolist()
            good = {number: float(scores[number]) for number in likely}
            good = {number: score for number, score in good.items() if score >= self._enough(native, keys[number])}
            if good:
                best = max(good.values())
                key = self._places.preferred(native.key, [keys[n] for n, score in good.items() if score > best - _SAME])
                return _as_a_whole(native, self._references[key], best, values is not native.values)
        return None

    def _enough(self, native: Sketch, reference: str) -> float:
        """Return the correlation that proves a match.

        Gains and biases of neighbouring blocks of a trained model correlate by 0.9: where large tensors did not show
        that the blocks belong together, only near equality counts, but for tensors outside of blocks.
        """
        least = needed(self._references[reference].rows * self._references[reference].columns)
        blocks = self._places.block(native.key), self._places.reference_place(reference)[1]
        sure = blocks == (None, None) or self._places.corroborated(native.key, reference)
        return least if sure else max(least, _ALONE)

    def _unit_rows(self, size: int) -> Tensor:
        if size not in self._units:
            rows = [self._references[key].values for key in self._by_size[size]]
            self._units[size] = _unit(torch.stack([row.reshape(-1) for row in rows if row is not None]))
        return self._units[size]

    def _beside(self, native: Sketch, weights: Mapping[str, Assignment]) -> Assignment | None:
        """Try what was found for the weight of the same module: its rows are the bias's elements."""
        weight = weights.get(native.key.removesuffix("bias") + "weight")
        if native.rows != 1 or weight is None or weight.axis != 0:
            return None
        parts = [self._bias(part) for part in weight.parts]
        if any(part is None for part in parts):
            return None
        return self._judged(native, [part for part in parts if part is not None])

    def _bias(self, part: Part) -> Part | None:
        held = self._references.get(sibling(part.key, "bias"))
        if part.axis != 0 or held is None or held.rows != 1 or held.columns <= part.reference.max():
            return None
        return Part(held.key, 1, part.native, part.reference)

    def _judged(self, native: Sketch, parts: Sequence[Part]) -> Assignment | None:
        assert native.values is not None
        at = np.concatenate([part.native for part in parts])
        if at.max() >= native.columns:
            return None
        values = [self._references[part.key].values for part in parts]
        there = torch.cat([v[0, torch.from_numpy(p.reference)] for v, p in zip(values, parts, strict=True)])  # type: ignore[index]
        cosine = float(_unit(native.values[:1, torch.from_numpy(at)])[0] @ _unit(there[None])[0])
        covered = len(at) / native.columns
        return Assignment(1, tuple(parts), cosine, covered) if cosine >= needed(len(at)) else None

    def _repeated(self, native: Sketch) -> Assignment | None:
        """Try the tensor as repetitions of another: of it whole, or of blocks of it, as heads that share keys do."""
        assert native.values is not None
        count = native.columns
        best = Assignment(1, (), 0.0, 0.0)
        for length in [n for n in self._by_size if native.rows == 1 and FEW_LINES // 2 <= n < count and count % n == 0]:
            for block in (n for n in range(1, length + 1) if length % n == 0):
                copies = _unit(native.values.view(-1)[None])[0].view(length // block, count // length, block)
                once = copies.mean(1)
                if float(once.square().sum()) * (count // length) < 0.5:
                    continue
                scores = self._unit_rows(length) @ _unit(once.reshape(1, -1))[0]
                score = float(scores.max())
                equal = [self._by_size[length][int(n)] for n in (scores > score - _SAME).nonzero().flatten()]
                key = self._places.preferred(native.key, equal)
                if self._references[key].rows == 1 and score >= max(self._enough(native, key), best.cosine):
                    part = Part(key, 1, np.arange(count), repeated(count, count // length, block))
                    best = Assignment(1, (part,), score, 1.0)
        return best if best.parts else None

    def _reordered(self, native: Sketch) -> Assignment | None:
        """Try tensors of as many values whose rows or columns these are in another order."""
        assert native.values is not None
        keys = self._by_size.get(native.values.numel(), []) if native.rows > 1 else []
        tried = [found for key in keys if self._references[key].rows > 1
                 and (found := reordered(native, self._references[key])) is not None
                 and found.cosine >= self._enough(native, key)]  # fmt: skip
        if not tried:
            return None
        best = max(found.cosine for found in tried)
        equal = {found.parts[0].key: found for found in tried if found.cosine > best - _SAME}
        return equal[self._places.preferred(native.key, list(equal))]

    def _windows(self, native: Sketch) -> Assignment | None:
        """Try runs of the tensor as other tensors, and the tensor as a run of another."""
        if native.rows != 1:
            return None
        runs = sorted(self._runs(native), key=lambda run: -run[0])
        parts: list[Part] = []
        taken = np.zeros(native.columns, dtype=bool)
        for _, part in runs:
            if not taken[part.native].any():
                taken[part.native] = True
                parts.append(part)
        if not parts or taken.mean() < 0.3:
            return None
        return self._judged(native, sorted(parts, key=lambda part: int(part.native[0])))

    def _runs(self, native: Sketch) -> Iterator[tuple[float, Part]]:
        assert native.values is not None
        for size, keys in self._by_size.items():
            vectors = [key for key in keys if self._references[key].rows == 1]
            if not vectors or size == native.columns or min(size, native.columns) < 8:
                continue
            inner, outer = min(size, native.columns), max(size, native.columns)
            step = math.gcd(inner, outer)
            starts = list(range(0, outer - inner + 1, step))
            for key in vectors:
                values = self._references[key].values
                assert values is not None
                longer, shorter = (native.values[0], values) if size < native.columns else (values[0], native.values)
                windows = _unit(longer.unfold(0, inner, step))
                scores = windows @ _unit(shorter[:1])[0]
                place = int(scores.argmax())
                if float(scores[place]) >= max(needed(inner), self._enough(native, key)):
                    yield float(scores[place]), _run(key, starts[place], inner, size < native.columns)


def _run(key: str, start: int, count: int, in_native: bool) -> Part:
    plain, moved = np.arange(count), np.arange(start, start + count)
    return Part(key, 1, moved, plain) if in_native else Part(key, 1, plain, moved)


def _as_a_whole(native: Sketch, reference: Sketch, cosine: float, turned: bool) -> Assignment:
    if native.rows == reference.rows == 1:
        elements: Ints = np.arange(native.columns)
        return Assignment(1, (Part(reference.key, 1, elements, elements),), cosine, 1.0)
    lines: Ints = np.arange(native.rows)
    same = (native.rows, native.columns) == (reference.rows, reference.columns)
    if turned and (native.columns, native.rows) == (reference.rows, reference.columns):
        return Assignment(0, (Part(reference.key, 1, lines, lines),), cosine, 1.0)
    return Assignment(0, (Part(reference.key, 0, lines, lines),), cosine, 1.0, reshape=not same)


def _unit(rows: Tensor) -> Tensor:
    """Centre and normalise rows. Shapes: [n, L]."""
    centred = rows.float() - rows.float().mean(1, keepdim=True)
    unit: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return unit
