"""Find, for every native tensor of many lines, the reference lines it is made of.

First as a whole (the same lines in the same order, on either axis), then line by line: a few strong lines are looked up
among all reference lines of their length, and vote for the tensors the native one is made of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.assigning import assign
from parity.weights.matching.lines import SURE, Assignment, Lines, Part, consistent, judged
from parity.weights.matching.places import Places
from parity.weights.matching.sketch import K, Sketch

_SIGNS = 8
_SAME = 2e-3
FAINT = 0.35
"""Estimated cosine below which a tensor in its own order is no relation at all."""


class Search:
    """Looks native tensors up among the reference's.

    Args:
        places: where tensors stand, which decides between equals.
        probes: lines of a tensor that are looked up one by one.
    """

    def __init__(self, places: Places, probes: int = 24) -> None:
        self._references: dict[str, Sketch] = {}
        self._places, self._probes = places, probes
        self._by_form: dict[tuple[int, int], list[tuple[Lines, Tensor]]] = defaultdict(list)
        self._by_length: dict[int, list[Lines]] = defaultdict(list)
        self._pools: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def has(self, key: str) -> bool:
        """Whether a reference was taken in."""
        return key in self._references

    def add(self, references: Iterable[Sketch]) -> None:
        """Take in the rows and columns of references that are sketched whole."""
        for held in references:
            self._references[held.key] = held
            for axis in (0, 1):
                lines = Lines(held, axis)
                self._pools.pop(lines.length, None)
                self._by_form[lines.count, lines.length].append((lines, _signature(lines)))
                self._by_length[lines.length].append(lines)

    def find(self, native: Sketch, last: bool = True) -> Assignment | None:
        """Return where a tensor's lines come from, among the references taken in; None where nothing fits.

        `last`: take a faint likeness too, since no more references will be taken in.
        """
        found = self._whole(native)
        if found is None or found.cosine < SURE:
            found = self._by_lines(native) or found
        return None if found is None or found.cosine < (FAINT if last else SURE) else found

    def _consistent(self, native: Lines, parts: Iterable[Part]) -> bool:
        return all(consistent(native, part, Lines(self._references[part.key], part.axis)) for part in parts)

    def _whole(self, native: Sketch) -> Assignment | None:
        """Try every tensor with the same lines in the same order, rows to rows first, then rows to columns."""
        lines = Lines(native, 0)
        held = self._by_form.get((lines.count, lines.length), [])
        if not held:
            return None
        signature = _signature(lines)
        scores = torch.stack([other for _, other in held]) @ signature
        best = float(scores.max())
        equal = [held[int(n)][0] for n in (scores > best - _SAME).nonzero().flatten()]
        chosen = self._choose(native.key, equal)
        everything = np.arange(lines.count)
        part = Part(chosen.sketch.key, chosen.axis, everything, everything)
        found = judged(lines, [part], self._references)
        if found.cosine >= SURE and not self._consistent(lines, [part]):
            better = self._by_lines(native)
            return better if better is not None and better.cosine > found.cosine else found
        return found if found.cosine >= FAINT else None

    def _choose(self, native: str, equal: list[Lines]) -> Lines:
        """Choose between tensors of the same values: rows before columns, then by place."""
        same_axis = [lines for lines in equal if lines.axis == 0] or equal
        by_key = {lines.sketch.key: lines for lines in reversed(same_axis)}
        return by_key[self._places.preferred(native, list(by_key))]

    def _by_lines(self, native: Sketch) -> Assignment | None:
        """Look strong lines up one by one, on both axes; the axis that explains more wins."""
        along = [self._along(Lines(native, axis)) for axis in (0, 1) if len(native.lines[axis])]
        return max(filter(None, along), key=lambda found: round(found.cosine * found.covered, 2), default=None)

    def _along(self, native: Lines) -> Assignment | None:
        candidates: list[Lines] = []
        open_lines = np.arange(native.count)
        for _ in range(4):
            voted = [held for held in self._voted(native, open_lines) if held not in candidates]
            if not voted:
                break
            candidates += voted
            parts = assign(native, candidates)
            open_lines = self._open(native, parts)
            if not len(open_lines):
                break
        if not candidates:
            return None
        found = judged(native, self._worth(native, assign(native, candidates)), self._references)
        return found if found.cosine >= SURE and found.covered > 0.05 else None

    def _worth(self, native: Lines, parts: list[Part]) -> list[Part]:
        """Drop candidates that only took a few stray lines."""
        judged_parts = [(part, judged(native, [part], self._references)) for part in parts]
        return [part for part, found in judged_parts if found.cosine >= 0.5] or parts

    def _open(self, native: Lines, parts: list[Part]) -> np.ndarray:
        """Return the lines no part explains: weak ones too, since one fused tensor may be weaker than the others."""
        explained = np.zeros(native.count, dtype=bool)
        for part in parts:
            units = self._references[part.key].lines[part.axis][torch.from_numpy(part.reference)].float()
            cosines = (native.units[torch.from_numpy(part.native)].float() * units).sum(1).numpy()
            explained[part.native[cosines >= 0.5]] = True
        return np.flatnonzero(~explained & (native.norms.numpy() > 0))

    def _voted(self, native: Lines, among: np.ndarray) -> list[Lines]:
        """Return the reference tensors that the strongest of some lines are found in, one of each set of equals."""
        held = self._by_length.get(native.length, [])
        if not held or not len(among):
            return []
        groups = np.array_split(among, min(self._probes, len(among)))
        norms = native.norms.numpy()
        probes = torch.tensor([int(group[norms[group].argmax()]) for group in groups])
        found = self._nearest(native.length, native.units[probes].float())
        votes = Counter(place for cosine, place in found if cosine >= SURE)
        wanted = [held[number] for number, count in votes.most_common() if count >= 2 or len(groups) < 4]
        return list({id(c): c for c in (self._representative(native.sketch.key, w, held) for w in wanted)}.values())

    def _representative(self, native: str, lines: Lines, held: list[Lines]) -> Lines:
        equal = [h for h in held if h.axis == lines.axis and h.count == lines.count and _equal(h, lines)]
        return self._choose(native, equal)

    def _nearest(self, length: int, probes: Tensor) -> list[tuple[float, int]]:
        """Return, for each probe, the cosine of the nearest reference line and the number of its tensor.

        Cosines are taken after what all lines of a length share is damped, tensor by tensor: nothing is copied whole.
        """
        whitening, norms = self._whitened(length)
        ours = _normal(probes @ whitening) @ whitening
        best, owner = torch.full((len(probes),), -2.0), torch.full((len(probes),), -1)
        for number, lines in enumerate(self._by_length[length]):
            cosines = (ours @ lines.units.float().t() / norms[number]).amax(dim=1)
            owner[cosines > best] = number
            best = torch.maximum(best, cosines)
        return list(zip(best.tolist(), owner.tolist(), strict=True))

    def _whitened(self, length: int) -> tuple[Tensor, list[Tensor]]:
        """Return the matrix that damps what lines of a length share, and the norms of all lines under it."""
        if length not in self._pools:
            held = self._by_length[length]
            spread = torch.zeros(K, K)
            for lines in held:
                spread.addmm_(lines.units.float().t(), lines.units.float())
            spread /= sum(lines.count for lines in held)
            values, vectors = torch.linalg.eigh(spread.double())
            scale = (values + values.mean()).clamp_min(1e-12).rsqrt()
            whitening = (vectors * scale @ vectors.t()).float()
            norms = [(lines.units.float() @ whitening).norm(dim=1).clamp_min(1e-12) for lines in held]
            self._pools[length] = whitening, norms
        return self._pools[length]


def _normal(units: Tensor) -> Tensor:
    scaled: Tensor = units / units.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return scaled


def _equal(one: Lines, other: Lines) -> bool:
    return one.units is other.units or bool(torch.equal(one.units, other.units))


def _signature(lines: Lines) -> Tensor:
    """Return a unit vector of the lines in their order, by which tensors of one form are compared.

    Shapes: [_SIGNS * K].
    """
    generator = torch.Generator().manual_seed(lines.count)
    signs = torch.randint(0, 2, (_SIGNS, lines.count), generator=generator).float().mul_(2).sub_(1)
    mixed = signs @ (lines.units.float() * lines.norms[:, None])
    flat = mixed.reshape(_SIGNS * K)
    unit: Tensor = flat / flat.norm().clamp_min(1e-30)
    return unit
