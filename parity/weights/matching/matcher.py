"""Match two checkpoints by value: look at a few rows of each tensor, find, settle what is left by place, measure.

What is found is measured beside: by the time the last tensor is looked at, the first are done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from parity.weights.matching.confidence import CONSTANT, NAMED, VALUES, confidence_of
from parity.weights.matching.entries import AMBIGUOUS, part_from, placed, relation_of
from parity.weights.matching.finder import Finder, Limits
from parity.weights.matching.leftover import left_over
from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.measuring import Measuring, Metrics, Task, computing_on
from parity.weights.matching.places import Places
from parity.weights.matching.settling import Settler
from parity.weights.matching.sketch import Projections, Sketch, Sketcher
from parity.weights.matching.vectors import Vectors
from parity.weights.packed import packed_in
from parity.weights.source import ElementSource

Entry = dict[str, Any]
Tell = Callable[[str, int], None]
"""Called with the stage and what was done since the last call: tensors while looking and finding, then bytes."""
_METRICS = ("cosine", "pearson", "rel_l2")
_DOUBT, _SPREAD = 0.02, 0.5
"""By how much a measured cosine may stay behind what a sample promised before all lines are looked at: so much, and
this share of the promised distance, since a sample of noisy values is noisy itself."""


@dataclass(frozen=True)
class Options:
    """How to match.

    Args:
        probes: lines of a tensor that are looked up one by one.
        budget: bytes that may be taken: half for columns kept in memory, a third for sketches of all lines.
        most: only the first so many tensors of each side; None for all.
    """

    probes: int = 24
    budget: int = 2 << 30
    most: int | None = None


@dataclass(frozen=True)
class _Found:
    assignment: Assignment
    how: str


@dataclass
class _Part:
    """One entry to be, and where its numbers come from."""

    entry: Entry
    metrics: Metrics | None = None
    task: Task | None = None
    done: bool = False

    def measured(self, measuring: Measuring) -> Metrics:
        if self.metrics is None:
            assert self.task is not None
            self.metrics, self.task = measuring.result(self.task), None
        return self.metrics


class Matcher:
    """Matches a native checkpoint's tensors to a reference's, by value.

    Attributes:
        unmatched_native: native keys no reference tensor was found for, once `entries` is done.
        notes: what was not looked up, for want of memory, likewise.
    """

    def __init__(
        self, reference: ElementSource, native: ElementSource, options: Options, tell: Tell = lambda *_: None
    ) -> None:
        self._options, self._tell = options, tell
        self._sources = reference, native
        projections = Projections()
        self._sketchers = [Sketcher(source, projections) for source in self._sources]
        self.unmatched_native: list[str] = []
        self.notes: list[str] = []
        self._ours: dict[str, Sketch] = {}
        self._theirs: dict[str, Sketch] = {}
        self._found: dict[str, _Found] = {}
        self._parts: dict[str, list[_Part]] = {}

    def entries(self, known: Mapping[str, Entry] | None = None) -> Iterator[Entry]:
        """Yield an entry for each reference tensor and native piece.

        `known` are entries of an earlier run by `identity`: what they found is not searched, what they measured not
        measured again.
        """
        told = partial(self._tell, "measuring")
        with computing_on(1), Measuring(*self._sources, told, self._options.budget // 2) as measuring:
            self._find(measuring, known or {})
            yield from self._measured(measuring)
        used = {part.key for found in self._found.values() for part in found.assignment.parts}
        yield from left_over(self._ours, self._theirs, used, self._sources[0])
        self.notes = list(self._finder.notes())
        self.unmatched_native = [key for key in self._theirs if key not in self._found]

    def pending(self) -> list[Entry]:
        """Return what was found and is not measured yet, for a later run to go on with."""
        empty = {**dict.fromkeys(_METRICS), "confidence": "low", "why": "not measured yet"}
        return [
            {**part.entry, **empty, "estimate": self._found[key].assignment.cosine}
            for key, parts in self._parts.items() for part in parts if not part.done
        ]  # fmt: skip

    def _look(self, side: int) -> Iterator[Sketch]:
        """Look at each tensor of a side when its turn comes, all asked for first, so that a disk reads them at once."""
        sketcher, packed = self._sketchers[side], packed_in(self._sources[side].keys())
        keys = list(self._sources[side].keys())[: self._options.most]
        for key in keys:
            sketcher.expect(key)
        for key in keys:
            sketch = sketcher.first(key)
            opaque = key in packed and sketch.dtype in (torch.uint8, torch.int32)
            held = replace(sketch, packed=packed[key], values=None) if opaque else sketch
            (self._theirs if side else self._ours)[key] = held
            self._tell("looking", 1)
            yield held

    def _find(self, measuring: Measuring, known: Mapping[str, Entry]) -> None:
        """Find tensors of many lines first: what is found there says where the small ones belong."""
        places = Places(*({key: source.info(key).shape for key in list(source.keys())[: self._options.most]}
                          for source in self._sources))  # fmt: skip
        deque(self._look(0), maxlen=0)
        limits = Limits(self._options.probes, self._options.budget // 3)
        self._finder = Finder(self._ours, self._sketchers, places, limits, dict(_assignments(known)))
        for key, found in self._finder.found(self._look(1)):
            if found is not None:
                self._take(key, _Found(found, VALUES), measuring, known)
            self._tell("finding", 1)
        large = {key: found.assignment for key, found in self._found.items()}
        vectors = Vectors(self._ours, places)
        for held in self._theirs.values():
            if held.values is not None and held.telling:
                small = vectors.find(held, large) or self._finder.turned(held)
                if small is not None:
                    self._take(held.key, _Found(small, VALUES), measuring, known)
        every = {key: found.assignment for key, found in self._found.items()}
        for key, found, how in Settler(self._ours, self._theirs, places, large).settled(every):
            self._take(key, _Found(found, how), measuring, known)

    def _take(self, key: str, found: _Found, measuring: Measuring, known: Mapping[str, Entry]) -> None:
        """Keep what was found and have it measured, unless an earlier run has measured it."""
        self._found[key] = found
        self._parts[key] = [_Part(self._described(key, found, part)) for part in found.assignment.parts]
        for held, part in zip(self._parts[key], found.assignment.parts, strict=True):
            before = known.get(identity(held.entry)) if known else None
            if before is not None and before["cosine"] is not None:
                held.metrics = {name: before[name] for name in _METRICS}
            else:
                held.task = measuring.submit(key, found.assignment, part)

    def _measured(self, measuring: Measuring) -> Iterator[Entry]:
        for key in self._theirs:
            if key in self._found:
                self._doubted(key, measuring)
                yield from self._entries(key, measuring)

    def _doubted(self, key: str, measuring: Measuring) -> None:
        """Look at all lines where the values agree less than a sample of them did, and keep what agrees more."""
        found, native = self._found[key], self._theirs[key]
        worst = min((part.measured(measuring)["cosine"] for part in self._parts[key]), default=math.nan)
        promised = found.assignment.cosine
        least = promised - _DOUBT - _SPREAD * (1 - promised)
        if native.values is not None or found.how != VALUES or not worst < least:
            return
        again = self._finder.by_lines(native)
        if again is None or again.covered < found.assignment.covered - 0.05:
            return
        kept = self._parts[key]
        self._take(key, replace(found, assignment=again), measuring, {})
        if min(part.measured(measuring)["cosine"] for part in self._parts[key]) <= worst + _DOUBT / 2:
            self._found[key], self._parts[key] = found, kept

    def _entries(self, key: str, measuring: Measuring) -> Iterator[Entry]:
        for part in self._parts[key]:
            metrics, part.done = part.measured(measuring), True
            yield {**part.entry, **metrics, **confidence_of(self._found[key].how, metrics, self._theirs[key])}

    def _described(self, key: str, found: _Found, part: Part) -> Entry:
        relation = relation_of(self._theirs[key], found.assignment, part, self._ours[part.key])
        constant = found.how in (CONSTANT, NAMED) and self._theirs[key].constant is not None
        return {
            "reference": part.key, "native": key, "relation": AMBIGUOUS if constant else relation,
            **placed(found.assignment, part, self._ours[part.key].shape),
        }  # fmt: skip


def _assignments(known: Mapping[str, Entry]) -> Iterator[tuple[str, Assignment]]:
    """Yield what entries of an earlier run found, by native key."""
    held: dict[str, list[Entry]] = {}
    for entry in known.values():
        held.setdefault(entry["native"], []).append(entry)
    for key, entries in held.items():
        axes, parts, reshaped = zip(*map(part_from, entries), strict=True)
        estimate = max(entry.get("estimate") or 0.0 for entry in entries)
        yield key, Assignment(axes[0], parts, estimate, 1.0, reshaped[0])


def identity(entry: Mapping[str, Any]) -> str:
    """Return what makes two entries the same finding."""
    return repr((entry["reference"], entry["native"], entry["slice"], entry["permutation"]))


__all__ = ["Entry", "Matcher", "Options", "identity"]
