"""Where a tensor stands: its template and block, what is known of its kind from other blocks, likeness of names."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from parity.weights.names import role_of, stacks_of, templated
from parity.weights.proposal import proposed


class Places:
    """Templates of both sides, and which reference templates native ones were found to come from."""

    def __init__(self, reference: Mapping[str, Sequence[int]], native: Mapping[str, Sequence[int]]) -> None:
        shapes = [{key: torch.Size(shape) for key, shape in side.items()} for side in (reference, native)]
        stacks = [stacks_of(side) for side in shapes]
        self._ours = {key: templated(key, stacks[0]) for key in reference}
        self._theirs = {key: templated(key, stacks[1]) for key in native}
        self._keys = {place: key for key, place in self._ours.items()}
        self._named: dict[str, list[str]] = defaultdict(list)
        for proposal in proposed(shapes[0], shapes[1]):
            self._named[proposal.piece.native].append(proposal.piece.reference)
        self._blocks: set[tuple[int | None, int | None]] = set()
        self._seen: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)

    def learn(self, native: str, references: Iterable[str], certain: bool = False) -> None:
        """Note that a native tensor was found, by value, to come from these; `certain` ones tell block from block."""
        template, block = self._theirs[native]
        for key in references:
            other, number = self._ours[key]
            self._blocks |= {(block, number)} if certain else set()
            self._seen[template][other, (number or 0) - (block or 0)] += 1

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield native and reference templates that were found to belong together."""
        for template, others in self._seen.items():
            yield from ((template, other) for other, _ in others)

    def corroborated(self, native: str, reference: str) -> bool:
        """Whether tensors of many lines showed that the block of one comes from the block of the other."""
        return (self._theirs[native][1], self._ours[reference][1]) in self._blocks

    def template(self, native: str) -> str:
        """Return the native tensor's template."""
        return self._theirs[native][0]

    def block(self, native: str) -> int | None:
        """Return the native tensor's block."""
        return self._theirs[native][1]

    def reference_place(self, key: str) -> tuple[str, int | None]:
        """Return template and block of a reference tensor."""
        return self._ours[key]

    def reference_at(self, template: str, block: int | None) -> str | None:
        """Return the reference tensor of a template and block."""
        return self._keys.get((template, block))

    def expected(self, native: str) -> list[str]:
        """Return the references a tensor has by its place: as its kind has in other blocks, then by name."""
        template, block = self._theirs[native]
        found = []
        for (other, delta), _ in self._seen[template].most_common():
            key = self.reference_at(other, None if block is None else block + delta)
            found += [key] if key is not None else []
        return list(dict.fromkeys([*found, *self._named[native]]))

    def preferred(self, native: str, candidates: Sequence[str]) -> str:
        """Return the one of equally good references whose place fits best."""
        if len(candidates) == 1:
            return candidates[0]
        expected = self.expected(native)

        def order(key: str) -> tuple[int, bool, float]:
            rank = expected.index(key) if key in expected else len(expected)
            alike = difflib.SequenceMatcher(None, role_of(key), role_of(native)).ratio()
            return rank, self._ours[key][1] != self._theirs[native][1], -alike

        return min(candidates, key=order)
