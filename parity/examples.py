"""Drawn inputs, judged one by one and pooled: each is run as a fresh process would meet it.

One input shows another function, a side that raises, or a state that a call leaves behind. Lost precision rarely shows
in the few tokens of one input, so it is judged from the evidence of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from parity.draws import Draw, Options
from parity.errors import ModelFailed, ParityError
from parity.execution.module_state import ModuleState
from parity.execution.passes import OUTPUT
from parity.execution.tap import Inputs
from parity.execution.trace import same_bits
from parity.fresh import fresh
from parity.impact import Impact, Nudge
from parity.lora.varied import varied
from parity.numerics.evidence import Evidence
from parity.numerics.limits import limits_for
from parity.numerics.verdict import Judged, TapFacts, judge, settle
from parity.session import LoadedSide, PairSession
from parity.space import Drawn


@dataclass
class Example:
    """What one drawn input gave.

    Args:
        drawn: the input. wrong: what is wrong, "" where both sides agree.
        tap: where it shows first, "" where it has no place.
        refused: why it could not be judged: the reference does not take such an input.
        evidence: at every tap, empty where the input was not run to its end.
    """

    drawn: Drawn
    wrong: str = ""
    tap: str = ""
    refused: str = ""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)

    @property
    def logic_error(self) -> float:
        """The largest relative distance of the two shadows at any tap."""
        return max((e.logic_error for e in self.evidence.values() if e.rows), default=0.0)

    @property
    def rounding(self) -> float:
        """The largest ratio of total rounding, native over reference, at any tap whose reference rounds."""
        ratios = [e.excesses["identity"].up for e in self.evidence.values() if "identity" in e.excesses and e.noise]
        return math.exp(min(max(ratios, default=0.0), 50.0))

    @property
    def judged(self) -> bool:
        """Whether both outputs were compared."""
        return bool(self.wrong) or (OUTPUT in self.evidence and self.evidence[OUTPUT].rows > 0)


class Examples:
    """Judges drawn inputs of one pair in one LoRA state, each once.

    Args:
        session: both models.
        lora: the state.
        options: how each input is run; `twins` of 0 leaves precision out.
    """

    def __init__(self, session: PairSession, lora: bool, options: Options) -> None:
        assert session.pair.drawn is not None
        self.session, self.lora, self.options = session, lora, options
        self.found: dict[Drawn, Example] = {}
        declared = session.pair.declared
        self._facts = [
            TapFacts(t.name, t.kind, t.block, t.has_attention, declared.get(t.name))
            for t in session.taps
            if t.reference and t.native
        ]
        self._limits = limits_for(options.shadow_dtype)

    def judge(self, drawn: Drawn, twins: int | None = None) -> Example:
        """Run one input through both sides and say what is wrong.

        Args:
            drawn: the input.
            twins: of this input alone, where precision does not matter any more.
        """
        if drawn not in self.found:
            options = self.options if twins is None else replace(self.options, twins=twins)
            self.found[drawn] = self._judged(drawn, options)
        return self.found[drawn]

    def _judged(self, drawn: Drawn, options: Options) -> Example:
        with self._ready(drawn) as ready:
            if ready.problem is not None:
                return ready.problem
            try:
                draw = Draw(self.session, self.lora, drawn.seed, options, ready.inputs)
            except ParityError as error:
                return Example(drawn, str(error).splitlines()[0])
            wrong = _kept_state(draw, ready.outputs)
        example = Example(drawn, wrong, evidence=draw.evidence)
        judged = judge(self._facts, [draw.evidence], self._limits)
        first = next((j for j in judged.values() if j.logic), None)
        if first is not None and not wrong:
            example.wrong, example.tap = f"{first.reasons[0]}", first.name
        return example

    @contextmanager
    def _ready(self, drawn: Drawn) -> Iterator[_Ready]:
        """Make the inputs, and bring both models to where the judged call finds them."""
        make, build = self.session.pair.drawn, self.session.build
        assert make is not None
        calls = [self.session.placed(make(build, one)) for one in (*drawn.before, drawn)]
        with fresh(self.session), self._with_lora(drawn):
            ready = _Ready(calls[-1])
            kept = [self._called(side, drawn, calls, ready) for side in (self.session.reference, self.session.native)]
            if ready.problem is None and any(kept):
                for given in calls:
                    self.session._learned = False
                    self.session.learn_constants(given)
            yield ready

    def _called(self, side: LoadedSide, drawn: Drawn, calls: list[dict[str, Any]], ready: _Ready) -> bool:
        """Call a side plainly; say whether it keeps something from one call to the next."""
        state = ModuleState(side.model)
        try:
            for given in calls:
                ready.outputs[side.label] = side.runner(()).run(given).values[OUTPUT].low
        except ModelFailed as error:
            first = str(error).splitlines()[0]
            refused = side is self.session.reference
            ready.problem = ready.problem or Example(drawn, "" if refused else first, refused=first if refused else "")
        kept = state.changed
        state.put_back()
        return kept

    @contextmanager
    def _with_lora(self, drawn: Drawn) -> Iterator[None]:
        adapter = self.session.adapter if self.lora else None
        other = varied(adapter, drawn.ranks, drawn.alpha, drawn.seed) if adapter and drawn.ranks else None
        with self.session.lora(self.lora, other):
            yield

    def pooled(self) -> dict[str, Judged]:
        """Judge every tap from the evidence of all inputs that were right, with the impact of what differs."""
        right = [e for e in self.found.values() if e.evidence and not e.wrong and _has_twins(e)]
        judged = judge(self._facts, [e.evidence for e in right], self._limits)
        known = self.session.pair.known(self.session.build)
        kinds = {f.name: f.kind for f in self._facts}
        for name in [n for n, j in judged.items() if j.different and (n in known or kinds[n] in known)]:
            del judged[name]
        different = [j for j in judged.values() if j.different]
        if different:
            self._settle(different, max(right, key=lambda e: e.evidence[different[0].name].rows).drawn)
        return judged

    def _settle(self, different: list[Judged], drawn: Drawn) -> None:
        """Decide felt or drowned on the largest of the inputs."""
        taps = {t.name: t for t in self.session.taps}
        with self._ready(drawn) as ready:
            draw = Draw(self.session, self.lora, drawn.seed, replace(self.options, twins=0), ready.inputs)
            impact = Impact(self.session, ready.inputs)
            for one in different:
                tap = taps[one.name]
                able = tap.replace or tap.name == OUTPUT
                settle(one, impact.of([Nudge(tap, draw.delta(tap))]) if able else None, self._limits)


@dataclass
class _Ready:
    """Inputs of the judged call, what each side plainly gives for them, and what already went wrong."""

    inputs: Inputs
    outputs: dict[str, Tensor] = field(default_factory=dict)
    problem: Example | None = None


def _kept_state(draw: Draw, outputs: Mapping[str, Tensor]) -> str:
    """Say whether a repeated call gives something else: a side that keeps what it should not, or draws."""
    for side, trace in (("native", draw.free_native), ("reference", draw.free_reference)):
        if not same_bits(outputs[side], trace.values[OUTPUT].low):
            return f"the {side} gives another output when the same call is repeated: a call leaves something behind"
    if draw.observer:
        return f"low values differ between two calls on one input, first {draw.observer[0]}"
    return ""


def _has_twins(example: Example) -> bool:
    return any(x.twins for e in example.evidence.values() for x in e.excesses.values())
