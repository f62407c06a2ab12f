"""Place what values cannot tell, constants and gains drowned in noise, by where others of the kind belong."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from parity.weights.matching.confidence import BESIDE, CONSTANT, IN_BLOCK, NAMED, PLACE
from parity.weights.matching.likeness import Likeness
from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.places import Places
from parity.weights.matching.sketch import Sketch
from parity.weights.names import sibling

_BEYOND, _AHEAD = 4.0, 3.0
"""Standard deviations of chance by which a correlation counts, and by which it has to lead."""
_BESIDE, _EXPECTED, _TELLING = 10.0, 0.05, 0.25
"""What a tensor beside one that was found counts, the first one expected, and each standard deviation of values,
against names (0 to 2)."""


_Choice = tuple[float, str, str]
"""How good it is, the reference, and how a tensor is settled by it."""


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
        left = {key: held for key, held in self._theirs.items() if key not in found}
        for native in list(left.values()):
            if (placed := self._like_weight(native)) is not None:
                used |= {part.key for part in placed.parts}
                yield left.pop(native.key).key, placed, NAMED
        for native in list(left.values()):
            if (key := self._in_block(native, used)) is not None:
                used.add(key)
                yield left.pop(native.key).key, _whole(native, self._ours[key]), IN_BLOCK
        groups: dict[tuple[int | None, int], dict[str, list[_Choice]]] = defaultdict(lambda: defaultdict(list))
        for native_key, choice in self._by_place(left.values(), used):
            group = self._places.block(native_key), math.prod(left[native_key].shape)
            groups[group][native_key].append(choice)
        for choices in groups.values():
            for native_key, key, how in _chosen(choices, used):
                yield native_key, _whole(left[native_key], self._ours[key]), how

    def _like_weight(self, native: Sketch) -> Assignment | None:
        """Return a constant bias as its weight is made: joined, cut, repeated or permuted."""
        weight = self._large.get(native.key.removesuffix("bias") + "weight")
        if native.constant is None or native.rows != 1 or weight is None or weight.axis != 0 or weight.reshape:
            return None
        parts = [Part(sibling(part.key, "bias"), 1, part.native, part.reference)
                 for part in weight.parts if part.axis == 0]  # fmt: skip
        same = [part.key in self._ours and self._ours[part.key].constant == native.constant
                and self._ours[part.key].rows == 1 and self._ours[part.key].columns > part.reference.max()
                for part in parts]  # fmt: skip
        covered = sum(len(part.native) for part in parts) == native.columns
        return Assignment(1, tuple(parts), 0.0, 1.0) if covered and all(same) else None

    def _in_block(self, native: Sketch, used: Collection[str]) -> str | None:
        """Return the one tensor of the block that resembles this one beyond chance, and plainly more than others."""
        if native.values is None or not native.telling:
            return None
        alike = [held for held in self._of_block(native) if held.key not in used]
        scores = sorted(((_strength(native, held), held.key) for held in alike), reverse=True)
        if not scores:
            return None
        behind = scores[1][0] if len(scores) > 1 else 0.0
        sure = scores[0][0] > _BEYOND and scores[0][0] - max(behind, 0.0) > _AHEAD
        return scores[0][1] if sure else None

    def _of_block(self, native: Sketch) -> Iterator[Sketch]:
        """Yield references of few lines and this size in the blocks that this one's siblings come from."""
        assert native.values is not None
        for key, held in self._ours.items():
            if held.values is not None and held.telling and held.values.numel() == native.values.numel() \
                    and self._places.corroborated(native.key, key):  # fmt: skip
                yield held

    def _by_place(
        self, natives: Iterable[Sketch], used: Collection[str]
    ) -> Iterator[tuple[str, _Choice]]:
        """Yield native key, and score, reference key and how, of each pair that its place allows."""
        likeness = Likeness(self._places.pairs())
        by_size: dict[int, list[str]] = defaultdict(list)
        for key in self._ours.keys() - set(used):
            by_size[math.prod(self._ours[key].shape)].append(key)
        for native in natives:
            beside, expected = self._beside(native.key), self._places.expected(native.key)
            near = [key for key in sorted(by_size[math.prod(native.shape)]) if self._near(native.key, key)]
            for key in dict.fromkeys([*beside, *expected, *near]):
                if key not in used and (how := self._how(native, key)) is not None:
                    score = _BESIDE * (key in beside) + _EXPECTED * (key in expected[:1])
                    score += self._alike(native, key, likeness)
                    yield native.key, (score + (0.0 if key in near else -1.0), key, how)

    def _near(self, native: str, key: str) -> bool:
        """Whether both are in blocks that belong together, or both in none."""
        blocks = self._places.block(native), self._places.reference_place(key)[1]
        return blocks == (None, None) or self._places.corroborated(native, key)

    def _alike(self, native: Sketch, key: str, likeness: Likeness) -> float:
        """Return how alike names and, where there are any, values are."""
        named = likeness.score(self._places.template(native.key), self._places.reference_place(key)[0])
        reference = self._ours[key]
        told = native.telling and reference.telling and native.values is not None and reference.values is not None
        return named + (_TELLING * max(min(_strength(native, reference), 6.0), 0.0) if told else 0.0)

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
        for other, held in self._large.items():
            if other.rpartition(".")[0] == module and len(held.parts) == 1 and _in_order(held.parts[0]):
                key = f"{held.parts[0].key.rpartition('.')[0]}.{name}"
                out += [key] if key in self._ours else []
        return out

    def _vouched(self, native: Sketch, key: str) -> bool:
        """Whether siblings leave no choice: of its own module, or no other tensor of the block could be meant."""
        if key in self._beside(native.key):
            return True
        block = self._places.reference_place(key)[1]
        if block is None or not self._places.corroborated(native.key, key):
            return False
        alike = [held for held in self._ours.values() if self._places.reference_place(held.key)[1] == block
                 and held.shape == self._ours[key].shape and held.constant == native.constant]  # fmt: skip
        return len(alike) == 1


def _chosen(choices: dict[str, list[_Choice]], used: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield native key, reference key and how; first the tensor whose second best choice is the worst for it."""
    left = {native: sorted(held, reverse=True) for native, held in choices.items()}
    while left:
        left = {native: free for native, held in left.items() if (free := [c for c in held if c[1] not in used])}
        if not left:
            return
        native = max(left, key=lambda name: left[name][0][0] - (left[name][1][0] if len(left[name]) > 1 else -_BESIDE))
        _, key, how = left.pop(native)[0]
        used.add(key)
        yield native, key, how


def _strength(one: Sketch, other: Sketch) -> float:
    """Return by how many standard deviations of chance the values correlate (Fisher's z)."""
    assert one.values is not None
    assert other.values is not None
    a, b = (values.reshape(-1).double() for values in (one.values, other.values))
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    correlation = min(max(float(a.dot(b)) / size if size else 0.0, -0.999999), 0.999999)
    return math.atanh(correlation) * math.sqrt(max(len(a) - 3, 1))


def _in_order(part: Part) -> bool:
    return bool((np.diff(part.reference) == 1).all() and (np.diff(part.native) == 1).all())


def _whole(native: Sketch, reference: Sketch) -> Assignment:
    if native.rows == reference.rows == 1:
        elements = np.arange(native.columns)
        return Assignment(1, (Part(reference.key, 1, elements, elements),), 0.0, 1.0)
    lines = np.arange(native.rows)
    reshape = (native.rows, native.columns) != (reference.rows, reference.columns)
    return Assignment(0, (Part(reference.key, 0, lines, lines),), 0.0, 1.0, reshape)
