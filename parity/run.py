"""One pair, one LoRA state: from inputs to the verdict of every tap. No files, no pytest, no printing."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.draws import Draw, Options
from parity.errors import LoraError, ShadowError, TapError
from parity.execution.passes import OUTPUT
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import same_bits
from parity.impact import Impact, Nudge
from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits, limits_for
from parity.numerics.metrics import ClassicMetrics
from parity.numerics.verdict import Judged, TapFacts, judge, settle
from parity.session import PairSession


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
    peak_memory: int
    """Bytes: of the GPU's allocator in this state, of the process elsewhere."""
    limits: Limits = field(default_factory=Limits)
    compiled: dict[str, ClassicMetrics] = field(default_factory=dict)
    """Per compiled side, its output compiled against eager."""
    dtypes: dict[str, tuple[Mapping[str, int], Mapping[str, int]]] = field(default_factory=dict)
    """Per tap, in which dtypes each side ran the ops of the segment that ends there."""

    @property
    def first_different(self) -> str | None:
        """The first tap, in execution order, that differs in logic or precision."""
        return next((n for n, j in self.judged.items() if j.different), None)


def run_state(
    session: PairSession, lora: bool, options: Options | None = None, inputs: Sequence[Inputs] | None = None
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
    if not [t for t in session.taps if t.reference and t.native]:
        raise TapError(f"{session.pair.name}: no tap exists on both sides; nothing would be compared")
    limits = limits_for(options.shadow_dtype)
    given = [None] * (options.draws or session.pair.draws) if inputs is None else list(inputs)
    without = _outputs(session, options, given[0]) if lora else {}
    with session.lora(lora):
        draws = [Draw(session, lora, options.seed + i, options, one) for i, one in enumerate(given)]
        _check_lora_shows(without, draws[0])
        facts = [_facts(t, session) for t in session.taps if t.reference and t.native]
        judged = judge(facts, [d.evidence for d in draws], limits)
        _settle_impacts(session, judged, facts, draws[0], limits, options)
        named = session.native.model.named_parameters()
        stored = [name for name, p in named if id(p) in session.native.finer]
    return _result(lora, judged, facts, draws, limits, stored)


def _outputs(session: PairSession, options: Options, given: Inputs | None) -> dict[str, Tensor]:
    """Return what each side gives for the first draw, free-running and without taps."""
    inputs = session.inputs(options.seed, options.variant) if given is None else session.placed(given)
    sides = (session.reference, session.native)
    return {side.label: side.runner(()).run(inputs).values[OUTPUT].low for side in sides}


def _check_lora_shows(without: Mapping[str, Tensor], draw: Draw) -> None:
    """Check that a LoRA changes something: a side that ignores it, or two, would pass.

    Raises:
        LoraError: a side's output is the same with and without it.
    """
    for side, trace in (("reference", draw.free_reference), ("native", draw.free_native)):
        if side in without and same_bits(without[side], trace.values[OUTPUT].low):
            raise LoraError(
                f"the LoRA changes no bit of the {side}'s output: it was not applied, or to layers that never run\n"
                "look at the side's `apply_lora`, and at the adapter's targets"
            )


def _facts(tap: Tap, session: PairSession) -> TapFacts:
    return TapFacts(tap.name, tap.kind, tap.block, tap.has_attention, session.pair.declared.get(tap.name))


def _settle_impacts(
    session: PairSession, judged: dict[str, Judged], facts: Sequence[TapFacts], draw: Draw, limits: Limits,
    options: Options,
) -> None:  # fmt: skip
    """Compute impacts jointly per kind of tap, and alone for the first few, and settle felt or drowned."""
    different = [f for f in facts if judged[f.name].different]
    if not different:
        return
    impact: Impact = draw.shared("impact", lambda: Impact(session, draw.inputs))
    taps = {t.name: t for t in session.taps}
    for kind in dict.fromkeys(f.kind for f in different):
        members = [f.name for f in different if f.kind == kind]
        if not all(taps[n].replace or n == OUTPUT for n in members):
            for name in members:
                settle(judged[name], None, limits)
            continue
        joint = impact.of([Nudge(taps[n], draw.delta(taps[n])) for n in members])
        for number, name in enumerate(members):
            alone = joint
            if len(members) > 1 and number < options.singles:
                alone = impact.of([Nudge(taps[name], draw.delta(taps[name]))])
            how = f"; {joint:.2g} jointly over {len(members)} taps of its kind" if len(members) > 1 else ""
            settle(judged[name], max(alone, joint), limits, how)


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
        peak_memory=_peak_memory(),
        limits=limits,
        compiled=first.compiled,
        dtypes={f.name: (first.reference.segment_before(f.name), first.native.segment_before(f.name)) for f in facts},
    )


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
