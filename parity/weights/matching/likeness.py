"""How alike two names are across checkpoints: by what tensors of names like theirs were found to be."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property

from parity.weights.names import projections_of, role_of

_STEM = 3


class Likeness:
    """Tells how likely a native template is a reference template, from pairs found by value.

    Where `add_q_proj` was found in `txt_attn.qkv`, `norm_added_q` rather is `txt_attn.query_norm` than
    `img_attn.query_norm`.

    Args:
        pairs: native and reference templates that belong together.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = [(_words(native), _words(reference)) for native, reference in dict.fromkeys(pairs)]
        self._known: dict[tuple[str, str], float] = {}

    def score(self, native: str, reference: str) -> float:
        """Return a number that is the greater the likelier both are the same tensor."""
        if (native, reference) not in self._known:
            spelled = difflib.SequenceMatcher(None, role_of(native), role_of(reference)).ratio()
            letters = difflib.SequenceMatcher(None, native, reference).ratio()
            self._known[native, reference] = self._analogy(native, reference) + 0.25 * (spelled + letters) \
                + _projection(native, reference)  # fmt: skip
        return self._known[native, reference]

    def _analogy(self, native: str, reference: str) -> float:
        ours, theirs = _words(native), _words(reference)
        weights = [_shared(ours, other, self._rare[0]) ** 2 for other, _ in self._pairs]
        alike = [weight * _shared(theirs, other, self._rare[1])
                 for weight, (_, other) in zip(weights, self._pairs, strict=True) if weight]  # fmt: skip
        return sum(alike) / sum(weights) if alike else 0.0

    @cached_property
    def _rare(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """How much each word tells, on both sides: nothing where all templates have it."""
        sides = []
        for side in (0, 1):
            counts = Counter(word for pair in self._pairs for word in pair[side])
            sides.append({word: math.log((1 + len(self._pairs)) / count) for word, count in counts.items()})
        return sides[0], sides[1]


def _projection(native: str, reference: str) -> float:
    """Return what it tells that both name q, k or v, the same or another."""
    ours, theirs = projections_of(native), projections_of(reference)
    return 0.0 if not ours or not theirs else 0.5 if ours == theirs else -0.5


def _words(template: str) -> frozenset[str]:
    return frozenset(word for word in re.split(r"[^a-zA-Z0-9]+", template.lower()) if word)


def _shared(one: frozenset[str], other: frozenset[str], rare: Mapping[str, float]) -> float:
    """Return the share of what both say that they say alike; a word counts as its longer form."""
    most = max(rare.values(), default=1.0)
    alike = {word for word in one if any(_same(word, also) for also in other)}
    left = {word for word in other if not any(_same(word, also) for also in one)}
    total = sum(rare.get(word, most) for word in one | left)
    return sum(rare.get(word, most) for word in alike) / total if total else 0.0


def _same(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return short == long or (len(short) >= _STEM and not short[-1].isdigit() and long.startswith(short))
