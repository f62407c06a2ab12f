"""What all entries together say: counts, scenario, blocks."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from parity.weights.matching.entries import AMBIGUOUS, DUPLICATE, HIGH, MEDIUM

SCENARIOS = {
    "copied": "the models share the same weights: names and layout alone differ, and a LoRA converts by the key map",
    "transformed": "the weights are related but were changed or trained further: review the layout; a converted LoRA "
                   "works as far as the weights still agree",
    "retrained": "no clear correspondence: the weights were trained anew, and a LoRA needs training on this model",
}  # fmt: skip


def summary_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary of a report; constants and duplicates, which tell nothing, are counted apart.

    A reference tensor no native one holds counts as cosine 0.
    """
    telling = [entry for entry in entries if entry["relation"] not in (AMBIGUOUS, DUPLICATE)]
    cosines = [_cosine(entry) for entry in telling]
    mean = sum(cosines) / len(cosines) if cosines else 0.0
    relations: dict[str, int] = defaultdict(int)
    for entry in entries:
        relations[entry["relation"]] += 1
    scenario = "copied" if mean > HIGH else "transformed" if mean >= MEDIUM else "retrained"
    return {
        "mean_cosine_similarity": mean, "high_similarity_count": sum(cosine > HIGH for cosine in cosines),
        "medium_similarity_count": sum(MEDIUM <= cosine <= HIGH for cosine in cosines),
        "low_similarity_count": sum(cosine < MEDIUM for cosine in cosines), "scenario": scenario,
        "meaning": SCENARIOS[scenario], "relations": dict(sorted(relations.items())),
        "ambiguous_count": relations[AMBIGUOUS],
    }  # fmt: skip


def blocks_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean cosine and number of tensors by block of the reference."""
    held: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        found = re.match(r"(?:.*?\.)?\d+(?=\.)", entry["reference"])
        if found and entry["relation"] not in (AMBIGUOUS, DUPLICATE):
            held[found[0]].append(_cosine(entry))
    return {block: {"mean_cosine": sum(c) / len(c), "tensors": len(c)} for block, c in held.items()}


def _cosine(entry: Mapping[str, Any]) -> float:
    value = entry["cosine"]
    return 0.0 if value is None or math.isnan(value) else float(value)
