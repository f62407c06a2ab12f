"""Place what values cannot tell, constants and gains drowned in noise, by where others of the kind belong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from parity.weights.matching.confidence import BESIDE, CONSTANT, NAMED, PLACE
from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.places import Places
from parity.weights.matching.sketch import Sketch


class Settler:
    """Places tensors by the evidence of their place.

    Args:
        references, natives: sketches by key.
        places: where tensors stand.
        large: assignments found by value of tensors of many lines, which vouch for their siblings.
    """

    def __init__(
        self, references: Mapping[str, Sketch], natives: Mapping[str, Sketch], places: Places,
        large: Mapping[str, Assignment],
    ) -> None:  # fmt: skip
        self._ours, self._theirs, self._places, self._large = references, natives, places, large

    def settled(self, found: Mapping[str, Assignment]) -> Iterator[tuple[str, Assignment, str]]:
        """Yield native key, assignment and how it was settled, of each tensor that is not found and can be."""
        used = {part.key for held in found.values() for part in held.parts}
        for key, held in self._theirs.items():
            if key in found:
                continue
            for other in self._beside(key) + self._places.expected(key):
                how = self._how(held, other) if other not in used else None
                if how is not None:
                    used.add(other)
                    yield key, _whole(held, self._ours[other]), how
                    break

    def _how(self, native: Sketch, key: str) -> str | None:
        """Return how a tensor can be settled by its place: equal constants, or few values that do not contradict it."""
        reference = self._ours[key]
        if math.prod(reference.shape) != math.prod(native.shape) or not native.finite:
            return None
        vouched = self._vouched(native, key)
        if native.constant is not None:
            return None if native.constant != reference.constant else NAMED if vouched else CONSTANT
        if native.values is None or reference.values is None or not reference.telling:
            return None
        one, other = native.values.reshape(-1).double(), reference.values.reshape(-1).double()
        alike = float(one.dot(other)) >= 0.5 * float(one.norm() * other.norm())
        if not alike or not (vouched or self._places.corroborated(native.key, key)):
            return None
        return BESIDE if vouched else PLACE

    def _beside(self, native: str) -> list[str]:
        """Return the tensor of the same name beside the reference its module's other tensor was found whole in."""
        module, _, name = native.rpartition(".")
        out = []
        for sibling, held in self._large.items():
            if sibling.rpartition(".")[0] == module and len(held.parts) == 1 and _in_order(held.parts[0]):
                key = f"{held.parts[0].key.rpartition('.')[0]}.{name}"
                out += [key] if key in self._ours else []
        return out

    def _vouched(self, native: Sketch, key: str) -> bool:
        """Whether siblings leave no choice: of its own module, or no other tensor of the block could be meant."""
        if key in self._beside(native.key):
            return True
        template, block = self._places.reference_place(key)
        if block is None or not self._places.corroborated(native.key, key):
            return False
        alike = [held for held in self._ours.values() if self._places.reference_place(held.key)[1] == block
                 and held.shape == self._ours[key].shape and held.constant == native.constant]  # fmt: skip
        return len(alike) == 1


def _in_order(part: Part) -> bool:
    return bool((np.diff(part.reference) == 1).all() and (np.diff(part.native) == 1).all())


def _whole(native: Sketch, reference: Sketch) -> Assignment:
    if native.rows == reference.rows == 1:
        elements = np.arange(native.columns)
        return Assignment(1, (Part(reference.key, 1, elements, elements),), 0.0, 1.0)
    lines = np.arange(native.rows)
    reshape = (native.rows, native.columns) != (reference.rows, reference.columns)
    return Assignment(0, (Part(reference.key, 0, lines, lines),), 0.0, 1.0, reshape)
