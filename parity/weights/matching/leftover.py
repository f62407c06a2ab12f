"""Entries of reference tensors that no native tensor was found to hold: why."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from parity.weights.matching.entries import AMBIGUOUS, DUPLICATE, UNRELATED
from parity.weights.matching.moments import same_bytes
from parity.weights.matching.rows import Rows
from parity.weights.matching.sketch import Sketch
from parity.weights.packed import UNPACK
from parity.weights.source import ElementSource

_EMPTY = dict.fromkeys(("native", "slice", "permutation", "cosine", "pearson", "rel_l2"))


def left_over(
    references: Mapping[str, Sketch], natives: Mapping[str, Sketch], used: Collection[str], source: ElementSource
) -> Iterator[dict[str, Any]]:
    """Yield an entry for each reference that is not used."""
    twins: dict[bytes, list[str]] = defaultdict(list)
    for key in references:
        if key in used:
            twins[_digest(references[key])].append(key)
    for key, held in references.items():
        if key not in used:
            same = [other for other in twins.get(_digest(held), ()) if _equal(source, held, references[other])]
            why, relation = _why(held, natives, same)
            yield {"reference": key, "relation": relation, **_EMPTY, "confidence": "low", "why": why}


def _why(held: Sketch, natives: Mapping[str, Sketch], twins: Sequence[str]) -> tuple[str, str]:
    if held.packed is not None:
        return f"packed as {held.packed}: {UNPACK}", UNRELATED
    if not held.finite:
        return "holds NaN or inf, or nothing: not matched", UNRELATED
    if held.constant is not None:
        same = [other for other in natives.values() if other.constant == held.constant
                and math.prod(other.shape) == math.prod(held.shape)]  # fmt: skip
        why = f"{held.constant:g} everywhere, as {len(same)} native tensors of its size"
        return why, AMBIGUOUS if same else UNRELATED
    if twins:
        return f"the same values as {twins[0]}, which is placed", DUPLICATE
    return "no native tensor holds these values", UNRELATED


def _digest(held: Sketch) -> bytes:
    """Return what equal tensors share: all values, or the rows that were seen."""
    values = held.values if held.values is not None else held.seen_lines[0]
    return repr((held.shape, held.dtype)).encode() + values.numpy().tobytes()


def _equal(source: ElementSource, one: Sketch, other: Sketch) -> bool:
    rows = Rows(source), Rows(source)
    step = max((1 << 18) // max(one.columns, 1), 1)
    spans = ((start, min(start + step, one.rows), one.columns) for start in range(0, one.rows, step))
    return all(same_bytes(rows[0].stored(one.key, *span), rows[1].stored(other.key, *span)) for span in spans)
