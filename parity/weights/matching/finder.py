"""Find every native tensor of many lines, the cheapest way first.

1. The few rows seen of every tensor: the same tensor under another name, parts joined or cut.
2. What was found of the same kind of tensor in another block, checked on a tile.
3. All lines of the tensor, against those of the references that could make it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parity.weights.matching.checking import Checker
from parity.weights.matching.learned import Learned
from parity.weights.matching.lines import SURE, Assignment
from parity.weights.matching.measuring import THREADS, computing_on
from parity.weights.matching.places import Places
from parity.weights.matching.samples import Samples
from parity.weights.matching.search import Search
from parity.weights.matching.sketch import Sketch, Sketcher
from parity.weights.matching.turning import Turner

_CUT_OFF = 4
"""A native tensor with less than this share of a reference's rows may lie between the rows seen of it."""


@dataclass(frozen=True)
class Limits:
    """How much to look at: lines of a tensor that are looked up one by one, and bytes of sketches of all lines."""

    probes: int
    sketches: int


class Finder:
    """Finds assignments for the native tensors of many lines.

    Args:
        reference: sketches by key, every tensor looked at first.
        sketchers: what makes more of them, of both sides.
        places: where tensors stand.
        limits: how much to look at.
        known: what is known before, by native key.
    """

    def __init__(
        self, reference: Mapping[str, Sketch], sketchers: Sequence[Sketcher], places: Places, limits: Limits,
        known: Mapping[str, Assignment],
    ) -> None:  # fmt: skip
        self._ours, self._sketchers, self._places, self._known = reference, sketchers, places, known
        self._samples = Samples(reference, places)
        self._checker = Checker(reference, sketchers[0].rows, sketchers[1].rows)
        self._turner = Turner(reference, places, sketchers[0].rows, sketchers[1].rows)
        self._learned = Learned(places)
        self._search = Search(places, limits.probes)
        self._room = self._most = limits.sketches
        self._lacking = self._open = 0
        self._claimed: set[str] = set()

    def found(self, natives: Iterable[Sketch]) -> Iterator[tuple[str, Assignment | None]]:
        """Yield every native tensor of many lines with where it comes from; those that take more come last."""
        left: list[Sketch] = []
        for native in natives:
            if native.values is None and native.telling:
                found = self._known.get(native.key) or self._cheaply(native)
                if found is None:
                    left.append(native)
                else:
                    yield native.key, self._taken(native.key, found)
        for native in left:
            found = self._as_elsewhere(native) or self.turned(native) or self.by_lines(native)
            yield native.key, None if found is None else self._taken(native.key, found)

    def _taken(self, key: str, found: Assignment) -> Assignment:
        self._claimed |= {part.key for part in found.parts}
        if found.cosine >= SURE:
            self._learned.remember(key, found)
        return found

    def _cheaply(self, native: Sketch) -> Assignment | None:
        found = self._samples.whole(native) or self._as_elsewhere(native)
        if found is None and (parts := self._samples.parts(native)) is not None:
            return self._checker.checked(native, 0, parts.parts)
        return found

    def _as_elsewhere(self, native: Sketch) -> Assignment | None:
        for axis, parts in self._learned.tried(native.key):
            if (found := self._checker.checked(native, axis, parts)) is not None:
                return found
        return None

    def turned(self, native: Sketch) -> Assignment | None:
        """Look for a convolution's dims in another order."""
        return self._turner.find(native)

    def by_lines(self, native: Sketch) -> Assignment | None:
        """Sketch the tensor whole, and references until they explain it, or memory for sketches is used up."""
        if native.full_bytes > self._room:
            self._open, self._lacking = self._open + 1, max(self._lacking, native.full_bytes - self._room)
            return None
        whole = self._sketchers[1].full(native)
        groups, lacking = list(self._candidates(whole)), 0
        for number, group in enumerate(groups, 1):
            with computing_on(THREADS):
                took, lacking = self._take_in(group)
                if not took and 1 < number < len(groups):
                    continue
                found = self._search.find(whole, last=number == len(groups))
            if found is not None and (found.covered > 0.95 or number == len(groups)):
                return found
        self._open, self._lacking = self._open + bool(lacking), max(self._lacking, lacking)
        return None

    def _take_in(self, group: Iterable[Sketch]) -> tuple[bool, int]:
        """Sketch what is new of a group, while there is room; return whether anything was, and the bytes lacking."""
        new = [held for held in group if not self._search.has(held.key)]
        taken: list[Sketch] = []
        for held in new:
            if held.full_bytes <= self._room:
                self._room -= held.full_bytes
                taken.append(held)
        self._search.add(self._sketchers[0].full(held) for held in taken)
        return bool(taken), sum(held.full_bytes for held in new) - sum(held.full_bytes for held in taken)

    def notes(self) -> Iterator[str]:
        """Say what was left open for want of memory."""
        if self._open:
            size = f"{math.ceil(3 * (self._most + self._lacking) / 1e8) / 10}GB"
            yield f"{self._open} native tensors were not looked for everywhere: that needs --memory {size}"

    def _candidates(self, native: Sketch) -> Iterator[list[Sketch]]:
        """Yield groups of references to try: by the rows seen of them, of the same block, all that fit."""
        ours = self._ours
        yield [ours[key] for key in self._samples.among_lines(native)]
        fitting = [held for held in ours.values() if self._could_make(native, held)]
        block = self._places.block(native.key)
        yield [held for held in fitting if self._places.reference_place(held.key)[1] == block]
        yield fitting

    def _could_make(self, native: Sketch, held: Sketch) -> bool:
        lengths = {native.rows, native.columns} & {held.rows, held.columns}
        if held.values is not None or not held.telling or not lengths:
            return False
        cut_off = held.rows > _CUT_OFF * native.rows or held.rows > _CUT_OFF * native.columns
        return held.key not in self._claimed or cut_off
