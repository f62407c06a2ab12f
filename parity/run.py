"""One pair, one LoRA state: from inputs to the verdict of every tap. No files, no pytest, no printing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.diagnose.explain import Explanation, native_ops
from parity.diagnose.explained import Explained
from parity.diagnose.side_ops import SideOps
from parity.draws import Draw
from parity.errors import LoraError, ShadowError, TapError
from parity.execution.passes import OUTPUT
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace, same_bits
from parity.felt import settle_impacts
from parity.four import FourComparisons, four_comparisons
from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits, limits_for
from parity.numerics.profile import residual_profile
from parity.numerics.verdict import Judged, TapFacts, judge
from parity.stage import Compiled, DrawOf, JudgedSession, Options


@dataclass
class StateResult:
    """Everything found for one pair in one LoRA state."""

    lora: bool
    judged: dict[str, Judged]
    draws: list[dict[str, Evidence]]
    facts: dict[str, TapFacts]
    drift: dict[str, float]
    observer: list[str]
    events: Counter[str]
    kernels: dict[str, Counter[str]]
    flips: Counter[str]
    unmatched: Counter[str]
    decisions: int
    tokens: int
    seconds: dict[str, float]
    stored: list[str]
    """Native weights that are rounded copies of finer values: a cast checkpoint, a merged LoRA."""
    limits: Limits = field(default_factory=Limits)
    compiled: dict[str, Compiled] = field(default_factory=dict)
    """Per compiled side, its output compiled against eager."""
    dtypes: dict[str, tuple[Mapping[str, int], Mapping[str, int]]] = field(default_factory=dict)
    """Per tap, in which dtypes each side ran the ops of the segment that ends there."""
    explained: Explained = field(default_factory=Explained)
    profiles: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """The shape of the residual at taps that differ, of the first draw."""
    four: FourComparisons | None = None
    """With the LoRA on: both sides without it and with it, and what it does to each."""

    @property
    def first_different(self) -> str | None:
        """The first tap, in execution order, that differs in logic or precision."""
        return next((n for n, j in self.judged.items() if j.different), None)


def run_state(
    session: JudgedSession, lora: bool, options: Options | None = None, inputs: Sequence[Inputs] | None = None
) -> StateResult:
    """Run a pair in one LoRA state and judge every tap.

    Args:
        session: both models.
        lora: the state.
        options: how it is run.
        inputs: one forward's inputs per draw; None: as many as asked for, drawn by the pair from the seed.

    Raises:
        TapError: no tap matched, or shapes cannot be aligned.
        ModelFailed: a side raised.
        LoraError: the LoRA changes nothing.
    """
    options = options or Options()
    with session.variant(options.variant):
        return _run_state(session, lora, options, inputs)


def _run_state(
    session: JudgedSession, lora: bool, options: Options, inputs: Sequence[Inputs] | None
) -> StateResult:
    if not [t for t in session.taps if t.reference and t.native]:
        raise TapError(f"{session.pair.name}: no tap exists on both sides; nothing would be compared")
    limits = limits_for(options.shadow_dtype)
    planned = planned_draws(session, lora, options, inputs)
    without = _without_lora(session, planned[0]) if lora else {}
    with session.lora(lora):
        draws = [Draw(session, draw) for draw in planned]
        _check_lora_shows(without, draws[0], session)
        four = _four(session, without, draws[0]) if lora else None
        facts = [_facts(t, session) for t in session.taps if t.reference and t.native]
        judged = judge(facts, [d.evidence for d in draws], limits)
        stored = session.finer_weights(lora)
        native = native_ops(draws[0], judged) if session.recorded is not None and options.explain else None
        if session.recorded is None:
            explained = _explained(session, judged, facts, draws[0], limits, options)
    if session.recorded is not None:  # the reference's model may be loaded for it, where the native's is now
        explained = _explained(session, judged, facts, draws[0], limits, options, native)
    result = _result(lora, judged, facts, draws, limits, stored)
    result.explained, result.four = explained, four
    result.profiles = _profiles(session, judged, draws[0])
    return result


def _profiles(
    session: JudgedSession, judged: Mapping[str, Judged], draw: Draw
) -> dict[str, dict[str, Any] | None]:
    """Describe the residuals of taps that differ."""
    taps = [t for t in session.taps if t.name in judged and judged[t.name].different]
    return {t.name: residual_profile(draw.measured(t, bare=True), judged[t.name].logic) for t in taps}


def planned_draws(
    session: JudgedSession, lora: bool, options: Options, inputs: Sequence[Inputs] | None = None
) -> list[DrawOf]:
    """Return the draws of a state: as many as asked for, or one for each of the inputs given."""
    if inputs is not None:
        placed = [session.placed(one) for one in inputs]
        return [DrawOf(lora, options.seed + i, options, one, given=True) for i, one in enumerate(placed)]
    seeds = range(options.seed, options.seed + (options.draws or session.pair.draws))
    draws = [DrawOf(lora, seed, options, session.inputs(seed, options.variant)) for seed in seeds]
    return draws if session.recorded is None else [session.recorded.given(draw) for draw in draws]


def _without_lora(session: JudgedSession, draw: DrawOf) -> dict[str, Trace]:
    """Return what each side gives for a draw without the LoRA, free-running."""
    return {
        "reference": session.reference_stage.without_lora(draw), "native": session.native_stage.without_lora(draw),
    }  # fmt: skip


def _four(session: JudgedSession, without: Mapping[str, Trace], draw: Draw) -> FourComparisons:
    reference, native = (without["reference"], draw.free_reference), (without["native"], draw.free_native)
    return four_comparisons(session.taps, reference, native, draw.inputs)


def _check_lora_shows(without: Mapping[str, Trace], draw: Draw, session: JudgedSession) -> None:
    """Check that a LoRA changes something: a side that ignores it, or two, would pass.

    Raises:
        LoraError: a side's output is the same with and without it.
    """
    for side, trace in (("reference", draw.free_reference), ("native", draw.free_native)):
        if side in without and same_bits(without[side].values[OUTPUT].low, trace.values[OUTPUT].low):
            found = [one["message"] for one in session.lora_found().get(side, {}).get("findings", [])[:1]]
            raise LoraError("\n".join([
                f"the LoRA changes no bit of the {side}'s output: it was not applied, or to layers that never run",
                *(f"its layers: {words}" for words in found),
                "look at the side's `apply_lora`, and at the adapter's targets",
            ]))  # fmt: skip


def _facts(tap: Tap, session: JudgedSession) -> TapFacts:
    return TapFacts(tap.name, tap.kind, tap.block, tap.has_attention, session.pair.declared.get(tap.name))


def _explained(
    session: JudgedSession, judged: dict[str, Judged], facts: Sequence[TapFacts], draw: Draw, limits: Limits,
    options: Options, native: SideOps | None = None,
) -> Explained:  # fmt: skip
    """Explain differences, which may decide what was undecided, then settle what is felt.

    The native comes last: where one model at a time is resident, the reference is loaded once for all it is needed for.
    """
    if not options.explain:
        settle_impacts(session, judged, facts, draw, limits, options)
        return Explained()
    second = Explanation(draw, judged, limits, native)
    known = _tried(second.by_reference, draw, second.found)
    settle_impacts(session, judged, facts, draw, limits, options)
    if known:
        _tried(second.by_native, draw, second.found)
    return second.found


def _tried(look: Callable[[], None], draw: Draw, found: Explained) -> bool:
    """Take a second look; one that fails must not cost the verdict, that it failed is said."""
    started = time.perf_counter()
    try:
        look()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        found.missing = f"explaining failed: {type(error).__name__}: {first}"
    draw.seconds["explained"] = draw.seconds.get("explained", 0.0) + time.perf_counter() - started
    return not found.missing.startswith("explaining failed")


def _result(
    lora: bool, judged: dict[str, Judged], facts: Sequence[TapFacts], draws: list[Draw], limits: Limits,
    stored: list[str],
) -> StateResult:  # fmt: skip
    first = draws[0]
    events: Counter[str] = Counter()
    flips: Counter[str] = Counter()
    unmatched: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for d in draws:
        events.update({f"reference: {k}": v for k, v in d.reference.events.items()})
        events.update({f"native: {k}": v for k, v in d.native.events.items()})
        flips.update(d.native.decisions.flips)
        unmatched.update(d.native.decisions.unmatched)
        seconds.update(d.seconds)
    return StateResult(
        lora=lora,
        judged=judged,
        draws=[d.evidence for d in draws],
        facts={f.name: f for f in facts},
        drift=first.drift(),
        observer=[o for d in draws for o in d.observer],
        events=events,
        kernels={"reference": first.reference.kernels, "native": first.native.kernels},
        flips=flips,
        unmatched=unmatched,
        decisions=sum(d.reference.decisions.count for d in draws),
        tokens=_tokens(first, facts),
        seconds=dict(seconds),
        stored=stored,
        limits=limits,
        compiled=first.compiled,
        dtypes={f.name: (first.reference.segment_before(f.name), first.native.segment_before(f.name)) for f in facts},
    )


def _tokens(draw: Draw, facts: Sequence[TapFacts]) -> int:
    """Count the tokens of all samples: the rows of the blocks' taps."""
    names = [f.name for f in facts if f.block] or [f.name for f in facts]
    return max((draw.evidence[n].rows + draw.evidence[n].excluded for n in names), default=0)


def check_contracts(result: StateResult) -> None:
    """Raise where the shadow changed what a model computes.

    Raises:
        ShadowError: low values differ with and without shadow.
    """
    if result.observer:
        raise ShadowError(
            f"observer effect: low values differ with and without shadow, first {result.observer[0]}\n"
            "the model is not deterministic here, or an op reads what the shadow changed; nothing below is certain"
        )


__all__ = ["OUTPUT", "Options", "StateResult", "check_contracts", "run_state"]
