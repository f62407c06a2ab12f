"""The nearest reference variant: which roundings, added to the reference or taken from it, make it the native.

Rounding is deterministic: the right edit of the reference's segment is near the native as a whole vector, often bit for
bit, so a handful of tokens is enough. Candidates are the roundings the segment has and the wide ops it could round,
grouped by line of code, by function and whole; a greedy search finds sets of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.diagnose.candidates import Candidate, Target, about, by_line, candidates
from parity.diagnose.forwards import Forwards
from parity.diagnose.variant import EXPLAINED, Nearest
from parity.errors import ModelFailed
from parity.execution.edits import Edit
from parity.execution.ops import Op

_HELPS, _STEP, _STEPS, _AS_WELL = 0.02, 0.9, 6, 1.25


def nearest_variants(forwards: Forwards, targets: Sequence[Target], low: torch.dtype) -> dict[str, Nearest]:
    """Search the nearest variant of the reference for each target.

    Args:
        forwards: the reference's, in lockstep, of the draw the targets are from.
        targets: what to explain; segments without influence on each other share forwards.
        low: the 16-bit dtype of the build, or of the native.
    """
    searches = [s for s in (_Search(t, forwards.base.values[t.name].low) for t in targets) if s.differs]
    if not searches:
        return {}
    trace = forwards.traced(low)
    for search in searches:
        search.cone = trace.trace.cones.get(search.target.name, 0)
        search.ops = trace.trace.of(search.target.name)
        search.pool = list(candidates(search.target, trace, search.relative))
    first = list({s.target.kind or s.target.name: s for s in reversed(searches)}.values())[::-1]
    _greedy(forwards, first)
    others = [s for s in searches if s not in first]
    _follow(forwards, first, others)
    _greedy(forwards, [s for s in others if not s.chosen])
    return {s.target.name: s.result() for s in searches}


def _greedy(forwards: Forwards, searches: Sequence[_Search]) -> None:
    """Add to each search what helps most, as long as it does, and drop what does nothing."""
    _evaluate(forwards, [(s, (c,)) for s in searches for c in s.pool])
    for search in searches:
        search.take_best()
    for _ in range(_STEPS):
        jobs = [(s, (*s.chosen, c)) for s in searches if s.goes_on for c in s.helpful()]
        if not jobs:
            break
        _evaluate(forwards, jobs)
        for search in searches:
            search.take_best()
    _prune(forwards, searches)


def _follow(forwards: Forwards, first: Sequence[_Search], others: Sequence[_Search]) -> None:
    """Try in other blocks what was found in the first one of a kind; keep it where it does as well there."""
    leaders = {s.target.kind: s for s in first if s.chosen}
    jobs = []
    for search in others:
        leader = leaders.get(search.target.kind)
        alike = [search.like(c) for c in leader.chosen] if leader is not None else []
        if alike and all(c is not None for c in alike):
            jobs.append((search, tuple(c for c in alike if c is not None)))
    _evaluate(forwards, jobs)
    for search, chosen in jobs:
        found, search.found = search.found, []
        if found and found[0][0] <= _AS_WELL * leaders[search.target.kind].ratio:
            search.ratio, search.chosen, search.goes_on = found[0][0], chosen, False


Chosen = tuple[Candidate, ...]


@dataclass
class _Search:
    """The search for one target."""

    target: Target
    reference: Tensor
    cone: int = 0
    ops: list[Op] = field(default_factory=list)
    pool: list[Candidate] = field(default_factory=list)
    chosen: Chosen = ()
    ratio: float = 1.0
    found: list[tuple[float, Chosen]] = field(default_factory=list)
    alone: dict[int, float] = field(default_factory=dict)
    goes_on: bool = True

    def __post_init__(self) -> None:
        own, native = self._rows(self.reference), self._rows(self.target.native)
        self._native, self._own = native, own
        self._finite = own.isfinite() & native.isfinite()
        self.elements = int(((own != native) & self._finite).sum())
        self._distance = self._norm(native - own)
        size = self._norm(own)
        self.relative = self._distance / size if size else math.inf
        self.differs = self.elements > 0 and self._distance > 0

    def _rows(self, value: Tensor) -> Tensor:
        kept = value if self.target.valid is None else value[self.target.valid.expand(value.shape)]
        wide = torch.view_as_real(kept.resolve_conj()) if kept.is_complex() else kept
        return wide.double().flatten()

    def _norm(self, difference: Tensor) -> float:
        return float(torch.where(self._finite, difference, 0.0).norm())

    @property
    def is_exact(self) -> bool:
        """Whether a set seen in this round has every bit of the native: narrow sets are tried first."""
        return any(ratio == 0.0 for ratio, _ in self.found)

    def see(self, chosen: Chosen, value: Tensor) -> None:
        """Take the value the tap has with edits."""
        ratio = self._norm(self._native - self._rows(value)) / self._distance
        ratio = ratio if ratio == ratio else math.inf
        if len(chosen) == 1:
            self.alone[id(chosen[0])] = ratio
        self.found.append((ratio, chosen))

    def take_best(self) -> None:
        """Go on from the best set seen; of sets that do the same, from the one that edits least."""
        found, self.found = self.found, []
        if not found or not self.goes_on:
            return
        least = min(ratio for ratio, _ in found)
        near = [(_edited(chosen), ratio, chosen) for ratio, chosen in found if ratio <= least * 1.0001 + 1e-12]
        _, ratio, chosen = min(near, key=lambda f: f[:2])
        self.goes_on = ratio <= _STEP * self.ratio
        if self.goes_on:
            self.ratio, self.chosen = ratio, chosen
        self.goes_on &= self.ratio > 0.0

    def helpful(self) -> list[Candidate]:
        """Return what brought the reference nearer alone, by a share of what is left now, and is not edited yet."""
        held = set().union(*(c.edits for c in self.chosen))
        least = _HELPS * self.ratio**2
        return [c for c in self.pool if 1.0 - self.alone.get(id(c), 1.0) ** 2 > least and not set(c.edits) <= held]

    def like(self, other: Candidate) -> Candidate | None:
        """Return the candidate here that edits the same lines, None where there is none."""
        return next((c for c in self.pool if c.place == other.place), None)

    def result(self) -> Nearest:
        """Return what was found."""
        first = self.chosen[0] if self.chosen else None
        alike = [o for c in self.chosen if first is not None and c.kind == first.kind for o in c.ops]
        computing = [o for o in alike if not o.rule.cast]
        angles, turns = about(self.ops, computing or alike)
        return Nearest(
            edits=tuple(c.words() for c in self.chosen),
            ratio=self.ratio,
            bit_exact=self.ratio == 0.0,
            direction=self.chosen[0].direction if self.chosen else 0,
            elements=self.elements,
            kernel=bool(self.chosen) and all(c.kernel for c in self.chosen),
            kind="" if first is None else first.kind,
            ops=frozenset(o.name for o in computing),
            angles=angles,
            turns=turns,
            to_single=bool(alike) and all(o.dtype == torch.float32 for o in alike),
        )


def _edited(chosen: Chosen) -> tuple[int, int]:
    """Rank sets that do the same: few ops, and an op run low before its output rounded."""
    return len(_union(chosen)), sum(c.kind == "round" for c in chosen)


def _union(chosen: Chosen) -> dict[int, Edit]:
    edits: dict[int, Edit] = {}
    for candidate in chosen:
        edits.update(candidate.edits)
    return edits


def _evaluate(forwards: Forwards, jobs: Sequence[tuple[_Search, Chosen]]) -> None:
    """Run every job; jobs of segments that do not influence each other share a forward."""
    left = list(jobs)
    while left := [job for job in left if not job[0].is_exact]:
        batch: list[tuple[_Search, Chosen]] = []
        for job in left:
            if all(_apart(job, other) for other in batch):
                batch.append(job)
        taken = {id(job) for job in batch}
        left = [job for job in left if id(job) not in taken]
        edits: dict[int, Edit] = {}
        for _, chosen in batch:
            edits.update(_union(chosen))
        try:
            values = forwards.edited(edits, [s.target.name for s, _ in batch])
        except ModelFailed:  # an op that does not run in that dtype: the variant does not exist
            if len(batch) > 1:
                for job in batch:
                    _evaluate(forwards, [job])
            continue
        for search, chosen in batch:
            search.see(chosen, values[search.target.name])


def _apart(one: tuple[_Search, Chosen], other: tuple[_Search, Chosen]) -> bool:
    """Say whether two jobs can share a forward: neither edits what the other's tap is made of."""
    if one[0] is other[0]:
        return False
    mine, theirs = (sum(1 << n for n in _union(job[1])) for job in (one, other))
    return not (mine & other[0].cone or theirs & one[0].cone)


def _prune(forwards: Forwards, searches: Sequence[_Search]) -> None:
    """Drop edits that do nothing: by line of code, as long as the ratio stays."""
    for search in searches:
        search.chosen = tuple(part for c in search.chosen for part in by_line(c))
        search.goes_on = True
    for position in range(max((len(s.chosen) for s in searches), default=0) - 1, -1, -1):
        jobs = [
            (s, s.chosen[:position] + s.chosen[position + 1 :])
            for s in searches if position < len(s.chosen) and len(s.chosen) > 1
        ]  # fmt: skip
        _evaluate(forwards, jobs)
        for search in searches:
            found, search.found = search.found, []
            if found and found[0][0] <= search.ratio * 1.05:
                search.ratio, search.chosen = found[0]


__all__ = ["EXPLAINED", "Candidate", "Nearest", "Target", "nearest_variants"]
