"""Taps that a side never reaches: each fails its own case, all others are judged as if that side had no such tap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from parity.about import About, places_of
from parity.case import absent_taps
from parity.errors import NotReached
from parity.execution.tap import Tap
from parity.numerics.verdict import Judged, TapFacts, VerdictClass
from parity.pair import Build, Lane, ModelPair, in_variant
from parity.run import StateResult

Missing = Mapping[str, str]
"""Names of taps, and which side does not reach each."""


class Unreached:
    """What was found out about each pair, kind of inputs by kind of inputs.

    Args:
        fixed: pairs whose reference is a recording made elsewhere: it goes on from its value at every tap, so that none
            can be left out.
    """

    def __init__(self, fixed: Iterable[str] = ()) -> None:
        self._fixed = frozenset(fixed)
        self._found: dict[str, dict[str, dict[str, str]]] = {}

    def learn(self, pair: str, variant: str, error: NotReached) -> None:
        """Note the taps that a side did not reach.

        Raises:
            NotReached: they are noted already, or no tap of the pair can be left out.
        """
        held = self._found.setdefault(pair, {}).setdefault(error.variant or variant, {})
        if pair in self._fixed or held.keys() >= set(error.taps):
            raise error
        held.update(dict.fromkeys(error.taps, error.side))

    def left_out(self, pair: ModelPair) -> ModelPair:
        """Return the pair as it is run: a side has no tap that it does not reach."""
        for variant, missing in self._found.get(pair.name, {}).items():
            pair = _without(pair, variant, missing)
        return pair

    def told(self, found: About, pair: ModelPair, build: Build) -> About:
        """Return what is told of a pair as it is run with all its taps."""
        record = {**found.record, "absent_taps": absent_taps(pair.taps(build))}
        return replace(found, taps={**places_of(pair, build, []), **found.taps}, record=record)

    def judge(self, found: StateResult, pair: ModelPair, build: Build, variant: str) -> None:
        """Add a verdict of every tap that was left out, each in its place."""
        missing = self._found.get(pair.name, {}).get(variant, {})
        if not missing:
            return
        taps = {tap.name: tap for tap in in_variant(pair, variant).taps(build) if tap.reference and tap.native}
        for name, tap in taps.items():
            if name in missing:
                found.facts[name] = TapFacts(name, tap.kind, tap.block, tap.has_attention)
                found.judged[name] = _judged(tap, missing[name])
        found.judged = {name: found.judged[name] for name in taps if name in found.judged}


def _judged(tap: Tap, side: str) -> Judged:
    point = tap.reference if side == "reference" else tap.native
    assert point is not None
    call = f" (call {point.call})" if isinstance(point.call, int) else ""
    why = "a step it leaves out, another branch, or compiled away"
    text = f"never reached: the {side} never calls {point.path}{call} in this forward: {why}"
    return Judged(tap.name, VerdictClass.FELT, [text], logic=True)


def _without(pair: ModelPair, variant: str, missing: Missing) -> ModelPair:
    """Return the pair with taps absent on a side in one kind of inputs: each other kind becomes a lane with its own."""
    lanes = {**{name: Lane(inputs=draw) for name, draw in pair.variants.items()}, **pair.lanes}
    lanes = {name: replace(lane, taps=lane.taps or pair.taps) for name, lane in lanes.items()}
    if not variant:
        return replace(pair, taps=_taps(pair.taps, missing), variants={}, lanes=lanes)
    of_lane = lanes[variant].taps or pair.taps
    lanes[variant] = replace(lanes[variant], taps=_taps(of_lane, missing))
    return replace(pair, variants={}, lanes=lanes)


def _taps(taps: Callable[[Build], tuple[Tap, ...]], missing: Missing) -> Callable[[Build], tuple[Tap, ...]]:
    def some(build: Build) -> tuple[Tap, ...]:
        return tuple(_absent(tap, missing[tap.name]) if tap.name in missing else tap for tap in taps(build))

    return some


def _absent(tap: Tap, side: str) -> Tap:
    tap = replace(tap, absent=f"the {side} never reaches it")
    return replace(tap, reference=None) if side == "reference" else replace(tap, native=None)
