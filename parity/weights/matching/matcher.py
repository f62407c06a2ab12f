"""Match two checkpoints by value: look at a few rows of each tensor, find, settle what is left by place, measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from parity.errors import UsageError
from parity.weights.matching.confidence import CONSTANT, NAMED, VALUES, confidence_of
from parity.weights.matching.entries import AMBIGUOUS, part_from, placed, relation_of
from parity.weights.matching.finder import Finder, Side
from parity.weights.matching.leftover import left_over
from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.measuring import THREADS, Metrics, measured
from parity.weights.matching.places import Places
from parity.weights.matching.rows import CHUNK, matrix_shape
from parity.weights.matching.settling import Settler
from parity.weights.matching.sketch import LINE_BYTES, Sketch, Sketcher
from parity.weights.matching.vectors import Vectors
from parity.weights.source import ElementSource

Entry = dict[str, Any]
Tell = Callable[[str, int], None]
"""Called with the stage and what was done since the last call: tensors while looking and finding, then bytes."""
_METRICS = ("cosine", "pearson", "rel_l2")
_DOUBT = 0.02
"""By how much a measured cosine may stay behind what a sample promised before all lines are looked at."""


@dataclass(frozen=True)
class Options:
    """How to match.

    Args:
        probes: lines of a tensor that are looked up one by one.
        budget: bytes that may be taken.
        most: only the first so many tensors of each side; None for all.
    """

    probes: int = 24
    budget: int = 2 << 30
    most: int | None = None


@dataclass(frozen=True)
class _Found:
    assignment: Assignment
    how: str


class Matcher:
    """Matches a native checkpoint's tensors to a reference's, by value.

    Attributes:
        unmatched_native: native keys no reference tensor was found for, once `entries` is done.
    """

    def __init__(
        self, reference: ElementSource, native: ElementSource, options: Options, tell: Tell = lambda *_: None
    ) -> None:
        self._options, self._tell = options, tell
        self._sources = reference, native
        self._sketchers = [Sketcher(source, lambda _: None) for source in self._sources]
        self.unmatched_native: list[str] = []
        self._ours: dict[str, Sketch] = {}
        self._theirs: dict[str, Sketch] = {}
        self._found: dict[str, _Found] = {}
        self._done: dict[tuple[str, int], Entry] = {}

    def entries(self, known: Mapping[str, Entry] | None = None) -> Iterator[Entry]:
        """Yield an entry for each reference tensor and native piece.

        `known` are entries of an earlier run by `identity`: what they found is not searched, what they measured not
        measured again.
        """
        self._check_budget()
        self._look()
        self._find(dict(_assignments(known or {})))
        yield from self._measured(known or {})
        used = {part.key for found in self._found.values() for part in found.assignment.parts}
        yield from left_over(self._ours, self._theirs, used, self._sources[0])
        self.unmatched_native = [key for key in self._theirs if key not in self._found]

    def pending(self) -> list[Entry]:
        """Return what was found and is not measured yet, for a later run to go on with."""
        return [
            {**self._described(key, found, part), **dict.fromkeys(_METRICS), "confidence": "low", "why": "not measured yet"}
            for key, found in self._found.items()
            for number, part in enumerate(found.assignment.parts)
            if (key, number) not in self._done
        ]  # fmt: skip

    def _check_budget(self) -> None:
        """Refuse what would not fit: sketches of all lines, tensors whose lines are out of order kept whole."""
        largest, lines = 0, [0, 0]
        for side, source in enumerate(self._sources):
            for key in list(source.keys())[: self._options.most]:
                info = source.info(key)
                rows, columns = matrix_shape(tuple(info.shape))
                largest = max(largest, rows * columns * info.dtype.itemsize)
                lines[side] = lines[side] + rows + columns if not side else max(lines[side], rows + columns)
        needed = sum(lines) * LINE_BYTES + 2 * THREADS * largest + 64 * CHUNK
        if needed > self._options.budget:
            size = f"{math.ceil(needed / 1e8) / 10}GB"
            raise UsageError(f"matching these needs {size}: give it by --memory {size}, or look at --max-weights N")

    def _look(self) -> None:
        """Look at both sides at once, each with buffers of its own."""
        with ThreadPoolExecutor(2) as pool:
            self._ours, self._theirs = pool.map(self._first, self._sketchers, self._sources)

    def _first(self, sketcher: Sketcher, source: ElementSource) -> dict[str, Sketch]:
        out: dict[str, Sketch] = {}
        for key in list(source.keys())[: self._options.most]:
            out[key] = sketcher.first(key)
            self._tell("looking", 1)
        return out

    def _find(self, known: Mapping[str, Assignment]) -> None:
        """Find tensors of many lines first: what is found there says where the small ones belong."""
        places = Places({k: s.shape for k, s in self._ours.items()}, {k: s.shape for k, s in self._theirs.items()})
        sides = [Side(held, sketcher) for held, sketcher in zip((self._ours, self._theirs), self._sketchers, strict=True)]
        self._finder = Finder(sides[0], sides[1], places, self._options.probes, known)
        for key, found in self._finder.found():
            self._tell("finding", 1)
            if found is not None:
                self._found[key] = _Found(found, VALUES)
        self._find_small(places)
        self._found = {key: self._found[key] for key in self._theirs if key in self._found}

    def _find_small(self, places: Places) -> None:
        vectors, large = Vectors(self._ours, places), {key: found.assignment for key, found in self._found.items()}
        for held in self._theirs.values():
            if held.values is not None and held.telling and (small := vectors.find(held, large)) is not None:
                self._found[held.key] = _Found(small, VALUES)
        for key, found, how in Settler(self._ours, self._theirs, places, large).settled(
            {key: held.assignment for key, held in self._found.items()}
        ):
            self._found[key] = _Found(found, how)

    def _measured(self, known: Mapping[str, Entry]) -> Iterator[Entry]:
        before: dict[tuple[str, int], Metrics] = {}
        for key, found in self._found.items():
            for number, part in enumerate(found.assignment.parts):
                entry = known.get(identity(self._described(key, found, part)))
                if entry is not None and entry["cosine"] is not None:
                    before[key, number] = {name: entry[name] for name in _METRICS}
        jobs = [(key, found.assignment, part) for key, found in self._found.items()
                for number, part in enumerate(found.assignment.parts) if (key, number) not in before]  # fmt: skip
        fresh = measured(*self._sources, jobs, lambda count: self._tell("measuring", count))
        for key, found in list(self._found.items()):
            metrics = [before[key, number] if (key, number) in before else next(fresh)[1]
                       for number in range(len(found.assignment.parts))]  # fmt: skip
            yield from self._entries(key, *self._doubted(key, found, metrics))

    def _doubted(self, key: str, found: _Found, metrics: list[Metrics]) -> tuple[_Found, list[Metrics]]:
        """Look at all lines where the values agree less than a sample of them did, and keep what agrees more."""
        worst = min((m["cosine"] for m in metrics), default=math.nan)
        native = self._theirs[key]
        if native.values is not None or found.how != VALUES or not worst < found.assignment.cosine - _DOUBT:
            return found, metrics
        again = self._finder.by_lines(native)
        if again is None or again.covered < found.assignment.covered - 0.05:
            return found, metrics
        jobs = [(key, again, part) for part in again.parts]
        other = [m for _, m in measured(*self._sources, jobs, lambda _: None)]
        if min(m["cosine"] for m in other) <= worst + _DOUBT / 2:
            return found, metrics
        self._found[key] = replace(found, assignment=again)
        return self._found[key], other

    def _entries(self, key: str, found: _Found, metrics: list[Metrics]) -> Iterator[Entry]:
        for number, (part, held) in enumerate(zip(found.assignment.parts, metrics, strict=True)):
            how = confidence_of(found.how, held, self._theirs[key])
            entry = {**self._described(key, found, part), **held, **how}
            self._done[key, number] = entry
            yield entry

    def _described(self, key: str, found: _Found, part: Part) -> Entry:
        relation = relation_of(self._theirs[key], found.assignment, part, self._ours[part.key])
        constant = found.how in (CONSTANT, NAMED) and self._theirs[key].constant is not None
        return {
            "reference": part.key, "native": key, "relation": AMBIGUOUS if constant else relation,
            **placed(found.assignment, part),
        }  # fmt: skip


def _assignments(known: Mapping[str, Entry]) -> Iterator[tuple[str, Assignment]]:
    """Yield what entries of an earlier run found, by native key."""
    held: dict[str, list[Entry]] = {}
    for entry in known.values():
        held.setdefault(entry["native"], []).append(entry)
    for key, entries in held.items():
        axes, parts, reshaped = zip(*map(part_from, entries), strict=True)
        yield key, Assignment(axes[0], parts, 0.0, 1.0, reshaped[0])


def identity(entry: Mapping[str, Any]) -> str:
    """Return what makes two entries the same finding."""
    return repr((entry["reference"], entry["native"], entry["slice"], entry["permutation"]))


__all__ = ["Entry", "Matcher", "Options", "identity"]
