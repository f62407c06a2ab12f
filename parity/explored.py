"""One pair and LoRA state over drawn inputs: the smallest that fails, and what all of them say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parity.errors import UsageError
from parity.examples import Example, Examples
from parity.numerics.verdict import Judged, VerdictClass
from parity.session import PairSession
from parity.space import Drawn, outside
from parity.stage import Options
from parity.strategies import Profile, Seen, explore


@dataclass
class Explored:
    """What drawn inputs showed.

    Args:
        examples: every input that was run. failing: the smallest that fails, None where none does.
        imprecise: taps that differ in precision over all inputs, those that are felt first.
        blind: taps whose function was judged in no input.
        native_paths: where the native computes a tap.
    """

    examples: list[Example]
    failing: Example | None = None
    imprecise: list[Judged] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)
    native_paths: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> int:
        """How many inputs were compared."""
        return sum(e.judged for e in self.examples)

    @property
    def felt(self) -> bool:
        """Whether lost precision is felt at the output."""
        return any(j.cls is VerdictClass.FELT for j in self.imprecise)


def explored(
    session: PairSession, lora: bool, options: Options, profile: Profile, only: Sequence[Drawn] = ()
) -> Explored:
    """Draw inputs and judge them, or judge given ones only.

    Args:
        session: both models.
        lora: the LoRA state.
        options: how an input is run; one twin each is enough, as inputs are pooled. Without any, logic alone is judged.
        profile: how many, and how they are chosen.
        only: these, and nothing drawn.

    Raises:
        UsageError: a given input is not in the pair's space.
    """
    assert session.pair.space is not None
    space = session.pair.space(session.build)
    examples = Examples(session, lora, replace(options, twins=min(options.twins, 1)))
    if only:
        for drawn in only:
            if (problem := outside(space, drawn)) is not None:
                raise UsageError(f"{session.pair.name}: not among its inputs: {problem}")
        smallest = next((drawn for drawn in only if examples.judge(drawn).wrong), None)
    else:
        smallest = explore(space, lambda drawn, again: _seen(examples, drawn, again), profile, lora)
    return _told(session, examples, smallest)


def _seen(examples: Examples, drawn: Drawn, again: bool) -> Seen:
    example = examples.judge(drawn, twins=0 if again else None)
    targets = {"logic error": math.log10(example.logic_error + 1e-20), "rounding excess": math.log(example.rounding)}
    return Seen(bool(example.wrong), {k: v for k, v in targets.items() if math.isfinite(v)})


def _told(session: PairSession, examples: Examples, smallest: Drawn | None) -> Explored:
    run = list(examples.found.values())
    paths = {t.name: t.native.path for t in session.taps if t.native}
    if smallest is not None:
        return Explored(run, examples.found[smallest], native_paths=paths)
    judged = examples.pooled()
    imprecise = sorted((j for j in judged.values() if j.different), key=lambda j: j.cls is not VerdictClass.FELT)
    seen = {name for e in run for name, found in e.evidence.items() if found.rows}
    reached = {name for e in run for name in e.evidence}
    return Explored(run, None, imprecise, sorted(reached - seen), paths)
