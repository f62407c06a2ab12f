"""Drawn inputs, judged one by one and pooled: each is run as a fresh process would meet it.

One input shows another function, a side that raises, or a state that a call leaves behind. Lost precision rarely shows
in the few tokens of one input, so it is judged from the evidence of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from parity.draws import Draw
from parity.errors import ModelFailed, ParityError
from parity.execution.passes import OUTPUT
from parity.execution.tap import Inputs
from parity.execution.trace import same_bits
from parity.fresh import fresh
from parity.lora.varied import varied
from parity.numerics.evidence import Evidence
from parity.numerics.limits import limits_for
from parity.numerics.verdict import Judged, TapFacts, judge, settle
from parity.pair import ModelPair, known_now
from parity.session import PairSession
from parity.space import Drawn
from parity.stage import DrawOf, Nudge, Options


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
        earlier, inputs = self._inputs(drawn)
        with self._view(drawn, earlier) as view:
            problem = _problem(view, drawn, [*earlier, inputs])
            if problem is not None:
                return problem
            try:
                draw = Draw(view, DrawOf(self.lora, drawn.seed, options, inputs, given=True))
            except ParityError as error:
                return Example(drawn, str(error).splitlines()[0])
        wrong = f"low values differ between two calls on one input, first {draw.observer[0]}" if draw.observer else ""
        example = Example(drawn, wrong, evidence=draw.evidence)
        judged = judge(self._facts, [draw.evidence], self._limits)
        first = next((j for j in judged.values() if j.logic), None)
        if first is not None and not wrong:
            example.wrong, example.tap = first.reasons[0], first.name
        return example

    def _inputs(self, drawn: Drawn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Make the inputs of the earlier calls and of the judged one."""
        make, build = self.session.pair.drawn, self.session.build
        assert make is not None
        try:
            *earlier, inputs = [self.session.placed(make(build, one)) for one in (*drawn.before, drawn)]
        except Exception as error:
            raise _unmade(self.session.pair, drawn, error) from error
        return earlier, inputs

    def _view(self, drawn: Drawn, earlier: Sequence[Inputs]) -> AbstractContextManager[PairSession]:
        adapter = self.session.adapter if self.lora else None
        other = varied(adapter, drawn.ranks, drawn.alpha, drawn.seed) if adapter and drawn.ranks else None
        return fresh(self.session, self.lora, earlier, other)

    def pooled(self) -> dict[str, Judged]:
        """Judge every tap from the evidence of all inputs that were right, with the impact of what differs."""
        right = [e for e in self.found.values() if e.evidence and not e.wrong and _has_twins(e)]
        judged = judge(self._facts, [e.evidence for e in right], self._limits)
        known = known_now(self.session.pair, self.session.build)
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
        earlier, inputs = self._inputs(drawn)
        with self._view(drawn, earlier) as view:
            options = replace(self.options, twins=0)
            draw = Draw(view, DrawOf(self.lora, drawn.seed, options, inputs, given=True))
            for one in different:
                tap = taps[one.name]
                nudges = [[Nudge(tap, draw.delta(tap))]] if tap.replace or tap.name == OUTPUT else []
                found = view.reference_stage.impacts(draw.of, nudges)
                settle(one, found[0] if found else None, self._limits)


def _unmade(pair: ModelPair, drawn: Drawn, error: Exception) -> ParityError:
    return ParityError(
        f"{pair.name}: its `drawn` raised {type(error).__name__}: {str(error)[:200]}\n"
        f"on {drawn!r}\nmend it, or leave such inputs out of the pair's `space`"
    )


def _problem(view: PairSession, drawn: Drawn, calls: Sequence[Inputs]) -> Example | None:
    """Call both sides plainly: one may not take the input, or give something else when it is called again.

    Where no call leaves anything behind, later passes need not start from the beginning.
    """
    repeats, kept = [], False
    for side in (view.reference, view.native):
        assert side.unused is not None
        try:
            outputs = [side.output(given) for given in (*calls, calls[-1])]
        except ModelFailed as error:
            first = str(error).splitlines()[0]
            return Example(drawn, refused=first) if side.label == "reference" else Example(drawn, first)
        finally:
            kept |= side.unused.changed
            side.unused.put_back()
        repeats.append(same_bits(*outputs[-2:]))
    if repeats == [True, False]:
        text = "the native gives another output when the same call is repeated: a call leaves something behind"
        return Example(drawn, text)
    for side in (view.reference, view.native) if not kept else ():
        side.unused, side.earlier = None, ()
    return None


def _has_twins(example: Example) -> bool:
    return any(x.twins for e in example.evidence.values() for x in e.excesses.values())
