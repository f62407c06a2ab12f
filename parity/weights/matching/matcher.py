"""Match two checkpoints by value: sketch both, search, settle what is left by place, measure what was found."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.errors import UsageError
from parity.weights.matching.entries import AMBIGUOUS, DUPLICATE, HIGH, MEDIUM, UNRELATED, placed, relation_of
from parity.weights.matching.exact import Measurer
from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.places import Places
from parity.weights.matching.search import Search
from parity.weights.matching.sketch import FEW_LINES, K, Sketch, Sketcher, matrix_shape
from parity.weights.matching.vectors import Vectors
from parity.weights.source import ElementSource

Entry = dict[str, Any]
Tell = Callable[[str, int], None]
"""Called with the stage and the bytes done since the last call."""


@dataclass(frozen=True)
class Options:
    """How to match.

    Args:
        probes: lines of a tensor that are looked up one by one.
        budget: bytes that buffers may take.
        most: only the first so many tensors of each side; None for all.
    """

    probes: int = 24
    budget: int = 2 << 30
    most: int | None = None


@dataclass
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
        self._sketchers = [Sketcher(source, lambda count: tell("reading", count)) for source in self._sources]
        self.unmatched_native: list[str] = []
        self._ours: dict[str, Sketch] = {}
        self._theirs: dict[str, Sketch] = {}
        self._found: dict[str, _Found] = {}

    def entries(self, known: Mapping[str, Entry] | None = None) -> Iterator[Entry]:
        """Yield an entry for each reference tensor and native piece; `known` ones are not measured again."""
        self._check_budget()
        self._ours, self._theirs = map(self._sketched, self._sketchers, self._sources)
        places = Places({k: s.shape for k, s in self._ours.items()}, {k: s.shape for k, s in self._theirs.items()})
        self._search(places)
        self._settle(places)
        measurer = Measurer(*self._sources, lambda count: self._tell("measuring", count))
        for key, found in self._found.items():
            for part in found.assignment.parts:
                yield self._entry(key, found, part, measurer, known or {})
        yield from self._left_over()
        self.unmatched_native = [key for key in self._theirs if key not in self._found]

    def _check_budget(self) -> None:
        """Refuse what would not fit: sketches of all rows and columns, and two tensors kept whole."""
        largest = lines = 0
        for source in self._sources:
            for key in list(source.keys())[: self._options.most]:
                info = source.info(key)
                rows, columns = matrix_shape(tuple(info.shape))
                largest, lines = max(largest, rows * columns * info.dtype.itemsize), lines + rows + columns
        needed = lines * (2 * K + 8) + 2 * largest
        if needed > self._options.budget:
            size = f"{math.ceil(needed / 1e8) / 10}GB"
            raise UsageError(f"matching these needs {size}: give it by --memory {size}, or look at --max-weights N")

    def _sketched(self, sketcher: Sketcher, source: ElementSource) -> dict[str, Sketch]:
        return {key: sketcher.rows(key) for key in list(source.keys())[: self._options.most]}

    def _search(self, places: Places) -> None:
        """Search tensors of many lines first: what is found there says where the small ones belong."""
        usable = [held for held in self._theirs.values() if held.constant is None and held.finite]
        search = Search(self._ours, places, self._options.probes)
        vectors = Vectors(self._ours, places)
        left = self._look_up(search, [held for held in usable if held.values is None], last=False)
        if left:
            self._look_up(search, self._add_columns(search, left), last=True)
        assigned = {key: found.assignment for key, found in self._found.items()}
        for held in usable:
            if held.values is not None and (small := vectors.find(held, assigned)) is not None:
                self._found[held.key] = _Found(small, "values")
        self._found = {key: self._found[key] for key in self._theirs if key in self._found}

    def _look_up(self, search: Search, natives: Sequence[Sketch], last: bool) -> list[Sketch]:
        """Look tensors up; returns those that were not found."""
        left: list[Sketch] = []
        for held in natives:
            found = search.find(held, last)
            if found is None:
                left.append(held)
            else:
                self._found[held.key] = _Found(found, "values")
        return left

    def _add_columns(self, search: Search, left: Sequence[Sketch]) -> list[Sketch]:
        """Sketch the columns of what was not found by rows, and of every reference they could come from."""
        lengths = {size for held in left for size in (held.rows, held.columns)}
        for key, held in self._ours.items():
            if held.rows in lengths:
                self._ours[key] = self._sketchers[0].with_columns(held)
        search.add(self._ours.values())
        for held in left:
            self._theirs[held.key] = self._sketchers[1].with_columns(held)
        return [self._theirs[held.key] for held in left]

    def _settle(self, places: Places) -> None:
        """Place what values cannot tell (constants, gains drowned in noise) by where others of the kind belong."""
        used = {part.key for found in self._found.values() for part in found.assignment.parts}
        for key, held in self._theirs.items():
            if key in self._found:
                continue
            for other in places.expected(key):
                reference = self._ours[other]
                same_size = math.prod(reference.shape) == math.prod(held.shape)
                how = _how(held, reference) if same_size and held.finite and other not in used else None
                if how is None or (how == "place" and not places.corroborated(key, other)):
                    continue
                self._found[key] = _Found(_whole(held, reference), how)
                used.add(other)
                break

    def _entry(self, key: str, found: _Found, part: Part, measurer: Measurer, known: Mapping[str, Entry]) -> Entry:
        native, reference = self._theirs[key], self._ours[part.key]
        relation = relation_of(native, found.assignment, part, reference)
        entry: Entry = {
            "reference": part.key, "native": key, "relation": AMBIGUOUS if found.how == "constant" else relation,
            **placed(found.assignment, part),
        }  # fmt: skip
        before = known.get(identity(entry))
        names = ("cosine", "pearson", "rel_l2")
        metrics = {n: before[n] for n in names} if before else measurer.measure(key, found.assignment, part)
        return {**entry, **metrics, **_confidence(found.how, metrics["cosine"], metrics["pearson"], native)}

    def _left_over(self) -> Iterator[Entry]:
        used = {part.key for found in self._found.values() for part in found.assignment.parts}
        twins: dict[bytes, list[str]] = defaultdict(list)
        for key in used:
            twins[_digest(self._ours[key])].append(key)
        for key, held in self._ours.items():
            if key not in used:
                yield self._left(key, held, twins.get(_digest(held), []))

    def _left(self, key: str, held: Sketch, twins: Sequence[str]) -> Entry:
        empty = {"native": None, "slice": None, "permutation": None, "cosine": None, "pearson": None, "rel_l2": None}
        if not held.finite:
            why, relation = "holds NaN or inf, or nothing: not matched", UNRELATED
        elif held.constant is not None:
            same = [k for k, other in self._theirs.items() if other.constant == held.constant
                    and math.prod(other.shape) == math.prod(held.shape)]  # fmt: skip
            relation = AMBIGUOUS if same else UNRELATED
            why = f"{held.constant:g} everywhere, as {len(same)} native tensors of its size"
        elif twins:
            why, relation = f"the same values as {twins[0]}, which is placed", DUPLICATE
        else:
            why, relation = "no native tensor holds these values", UNRELATED
        return {"reference": key, "relation": relation, **empty, "confidence": "low", "why": why}


def _how(native: Sketch, reference: Sketch) -> str | None:
    """Return how a tensor can be settled by its place: equal constants, or few values that do not contradict it."""
    if native.constant is not None:
        return "constant" if native.constant == reference.constant else None
    if native.values is None or reference.values is None or reference.constant is not None or not reference.finite:
        return None
    one, other = native.values.reshape(-1).double(), reference.values.reshape(-1).double()
    return "place" if float(one.dot(other)) >= 0.5 * float(one.norm() * other.norm()) else None


def _whole(native: Sketch, reference: Sketch) -> Assignment:
    if native.rows == reference.rows == 1:
        elements = np.arange(native.columns)
        return Assignment(1, (Part(reference.key, 1, elements, elements),), 0.0, 1.0)
    lines = np.arange(native.rows)
    reshape = (native.rows, native.columns) != (reference.rows, reference.columns)
    return Assignment(0, (Part(reference.key, 0, lines, lines),), 0.0, 1.0, reshape)


def _confidence(how: str, cosine: float, pearson: float, native: Sketch) -> dict[str, str]:
    if how == "constant":
        return {"confidence": "low", "why": "the same constant; which of several it is follows from its place alone"}
    if how == "place":
        return {"confidence": "low", "why": "by its place alone: too few values, too far apart, to tell"}
    likeness = pearson if native.rows == 1 and not math.isnan(pearson) else cosine
    level = "high" if likeness > HIGH else "medium" if likeness >= MEDIUM else "low"
    return {"confidence": level, "why": "by value"}


def identity(entry: Mapping[str, Any]) -> str:
    """Return what makes two entries the same finding."""
    return repr((entry["reference"], entry["native"], entry["slice"], entry["permutation"]))


def _digest(held: Sketch) -> bytes:
    if held.values is not None:
        return held.values.numpy().tobytes()
    return held.lines[0].numpy().tobytes() + held.norms[0].numpy().tobytes()


__all__ = ["FEW_LINES", "Entry", "Matcher", "Options", "identity"]
