"""What was found of a kind of tensor in one block, tried in the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.places import Places

_MOST = 4


class Learned:
    """Assignments by the template of the native tensor, moved from block to block."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._held: dict[str, list[tuple[int, Assignment]]] = defaultdict(list)

    def remember(self, native: str, found: Assignment) -> None:
        """Keep what was found of a tensor."""
        self._places.learn(native, [part.key for part in found.parts], certain=True)
        known = self._held[self._places.template(native)]
        if len(known) < _MOST:
            known.append((self._places.block(native) or 0, found))

    def tried(self, native: str) -> Iterator[tuple[int, list[Part]]]:
        """Yield axis and parts, as the same kind of tensor has them in other blocks."""
        block = self._places.block(native)
        if block is None:
            return
        for other, found in self._held[self._places.template(native)]:
            parts = [self._moved(part, block - other) for part in found.parts]
            if all(part is not None for part in parts):
                yield found.axis, [part for part in parts if part is not None]

    def _moved(self, part: Part, blocks: int) -> Part | None:
        template, block = self._places.reference_place(part.key)
        key = self._places.reference_at(template, None if block is None else block + blocks)
        return None if key is None else Part(key, part.axis, part.native, part.reference)
