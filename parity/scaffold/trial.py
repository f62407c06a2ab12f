"""Run both sides on one input, with the weights a proposal carries over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import KeyMapError
from parity.execution.passes import OUTPUT, FromTrace, Runner
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace
from parity.scaffold.layouts import distance
from parity.scaffold.names import sort_of
from parity.scaffold.outputs import Picked, output_of
from parity.scaffold.proposal import KeyProposal
from parity.scaffold.record import Recording, Seen, record
from parity.scaffold.stacks import Group
from parity.weights.load import load_native, tensors_of

Call = Callable[[nn.Module, Inputs], Any]


@dataclass
class Trial:
    """Both models, an input for them and how they are called.

    Args:
        reference, native: the models, in float32.
        calls: how each is called.
        inputs: what both get.
        loaded: both sides hold their values already, nothing is carried over.
    """

    reference: nn.Module
    native: nn.Module
    calls: tuple[Call, Call]
    inputs: Inputs
    loaded: bool = False

    def __post_init__(self) -> None:
        self._seen: Recording | None = None
        self._own = {key: value.clone() for key, value in tensors_of(self.native).items()}

    def carry(self, keys: KeyProposal) -> None:
        """Give the native the reference's weights as a proposal says; what it leaves open keeps the native's own."""
        if not self.loaded:
            for key, value in tensors_of(self.native).items():
                value.copy_(self._own[key])
            load_native(self.native, self.reference, keys.key_map(trial=True))

    def reference_seen(self) -> Recording:
        """Run the reference once and keep what was seen."""
        if self._seen is None:
            self._seen = record(self.reference, lambda: self.calls[0](self.reference, self.inputs))
        return self._seen

    def native_seen(self) -> Recording:
        """Run the native with the weights it holds now."""
        return record(self.native, lambda: self.calls[1](self.native, self.inputs))

    def score(self, keys: KeyProposal) -> int:
        """Count the native's values that the reference has too, with a proposal's weights; -1 where it cannot be."""
        try:
            self.carry(keys)
        except KeyMapError:
            return -1
        return _in_common(self.reference_seen().points, self.native_seen().points)

    def differing_layers(self) -> set[str]:
        """Return the native's modules that are given what the reference has and return what it has nowhere."""
        mine, theirs = self.reference_seen().points, self.native_seen().points
        found: dict[str, list[set[str]]] = {"input": [set(), set()], "output": [set(), set()]}
        for seen in theirs:
            found[seen.point.at][_in_common(mine, [seen])].add(seen.module)
        return found["input"][1] & (found["output"][0] - found["output"][1])

    def idle(self, keys: KeyProposal) -> frozenset[Group]:
        """Return tensors without a proposal whose layer no forward here calls."""
        sides = (keys.reference_blank, self.reference_seen()), (keys.native_blank, self.native_seen())
        out: set[Group] = set()
        for blank, seen in sides:
            called = {point.module for point in seen.points}
            out |= {g for g in blank if sort_of(g.leaf) and not called & {key.rpartition(".")[0] for key in g.keys}}
        return frozenset(out)

    def outputs(self) -> tuple[Picked, Picked] | None:
        """Return how the output is picked from what each side returns; None where a side returns no tensor."""
        picked = [output_of(seen.returned) for seen in (self.reference_seen(), self.native_seen())]
        return None if picked[0] is None or picked[1] is None else (picked[0], picked[1])

    def output_distance(self, picked: tuple[Picked, Picked]) -> float:
        """Return the distance of the outputs of a free run."""
        runs = self.reference_seen(), self.native_seen()
        there, here = (pick(seen.returned).float() for (_, pick), seen in zip(picked, runs, strict=True))
        return distance(here, there)

    def distances(self, taps: Sequence[Tap], picked: tuple[Picked, Picked]) -> tuple[dict[str, float], float]:
        """Run the native in lockstep with the reference, and freely.

        Returns:
            The distance at each tap, made since the one before, and the distance of the free outputs.

        Raises:
            ParityError: a tap is not reached, or its layout does not fit.
        """
        runners = [
            Runner(side, model, call, pick, taps)
            for side, model, call, (_, pick) in zip(
                ("reference", "native"), (self.reference, self.native), self.calls, picked, strict=True
            )
        ]
        expected, free = runners[0].run(self.inputs), runners[1].run(self.inputs)
        values = {t.name: expected.values[t.name].low for t in taps if t.restarts}
        shapes = {name: (v.low.shape, v.parts) for name, v in free.values.items()}
        actual = runners[1].run(self.inputs, FromTrace(values, shapes, self.inputs))
        apart = {tap.name: _apart(tap, expected, actual, self.inputs) for tap in taps}
        return apart, distance(free.values[OUTPUT].low.float(), expected.values[OUTPUT].low.float())


def _apart(tap: Tap, expected: Trace, actual: Trace, inputs: Inputs) -> float:
    there, here = (trace.values[tap.name].low.float() for trace in (expected, actual))
    laid = here if tap.name == OUTPUT else tap.layout.forward(here, there.shape)
    if tap.valid is None or laid.shape != there.shape:
        return distance(laid, there)
    keep = tap.valid(inputs).expand(there.shape[:-1])
    return distance(laid[keep], there[keep])


def _in_common(reference: Sequence[Seen], native: Sequence[Seen]) -> int:
    """Count native values whose size, mean and mean square a value of the reference has."""
    if not reference or not native:
        return 0
    r, n = _prints(reference), _prints(native)
    close = ((n[:, None, 1:] - r[None, :, 1:]).abs() <= 1e-3 * r[None, :, 2:].abs() + 1e-9).all(-1)
    return int((close & (n[:, None, 0] == r[None, :, 0])).any(-1).sum())


def _prints(points: Sequence[Seen]) -> Tensor:
    """Return number of elements, mean and root mean square of each value. Shapes: result [P, 3]."""
    rows = [(p.fingerprint[0], p.fingerprint[1], math.sqrt(p.fingerprint[2])) for p in points]
    return torch.tensor(rows, dtype=torch.float64)


def attempted(trial: Trial) -> str | None:
    """Run both sides once; return what goes wrong in words, None where nothing does."""
    for side, run in (("reference", trial.reference_seen), ("native", trial.native_seen)):
        if (wrong := failing(run)) is not None:
            return f"the {side} does not run on the inputs: {wrong}"
    return None


def failing(run: Callable[[], object]) -> str | None:
    """Run something; return its error in words, None where there is none."""
    try:
        with torch.no_grad():
            run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None
