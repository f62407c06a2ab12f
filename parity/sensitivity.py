"""Sensitivity parity: what each input does to the output of either side.

An input that moves one side and not the other is accepted and ignored (a mask, a hard-coded frame rate), even where
both agree on the inputs one happens to have. Responses are compared between shadows, so rounding plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from parity.errors import ModelFailed, ParityError
from parity.execution.passes import OUTPUT
from parity.execution.shadow import Shadow
from parity.execution.tap import Inputs
from parity.fresh import fresh_side
from parity.loaded import LoadedSide
from parity.pair import Build, ModelPair
from parity.session import PairSession
from parity.space import typical
from parity.stage import DrawOf, Options

STEP = 0.06
"""Relative size of a change: several bfloat16 roundings, so that no cast on the way can swallow it."""
APART = 0.1
"""Relative distance of the two responses that counts; where the functions are one it is about 1e-14."""


@dataclass(frozen=True)
class Response:
    """What changing one input does.

    Args:
        name: of the input. change: what was done to it, in words.
        reference, native: relative change of each side's output.
        apart: distance of the two changes, relative to the reference's; None where one of them is zero.
        wrong: what is wrong, "" where both sides respond alike. judged: whether anything could be compared.
    """

    name: str
    change: str
    reference: float = 0.0
    native: float = 0.0
    apart: float | None = None
    wrong: str = ""
    judged: bool = True


def base_inputs(pair: ModelPair, build: Build) -> dict[str, Any]:
    """Return the inputs that are changed one by one: a typical drawn one, or the pair's default.

    Raises:
        ParityError: the pair cannot make them.
    """
    try:
        if pair.space is not None and pair.drawn is not None:
            return pair.drawn(build, typical(pair.space(build)))
        return pair.inputs(build, 0)
    except Exception as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise ParityError(f"{pair.name}: its inputs cannot be made: {what}") from error


@dataclass(frozen=True)
class Given:
    """What a side's output is: computed as deployed, and exact, both in float64.

    Args:
        low: as computed. high: its shadow. value: which of several values of the input it took.
    """

    low: Tensor
    high: Tensor
    value: int = 0

    @property
    def is_trusted(self) -> bool:
        """Whether all of the shadow is known."""
        return not bool(self.high.isnan().any())


class Sensitivity:
    """Compares how both sides of a pair respond, each call in models as they were loaded.

    With one model resident at a time the reference answers for all inputs when the first is asked for.

    Args:
        session: the pair, for which `is_possible`.
        shadow_dtype: of the shadows.
    """

    def __init__(self, session: PairSession, shadow_dtype: torch.dtype = torch.float64) -> None:
        self._session, self._dtype = session, shadow_dtype
        self._inputs = session.placed(base_inputs(session.pair, session.build))
        self._reference: dict[str, dict[str, Given]] = {}
        recorded = session.recorded
        if recorded is not None:
            draw = DrawOf(False, 0, Options(shadow_dtype=shadow_dtype), self._inputs, given=True)
            recorded.at_work(draw, lambda live: self._all_of_reference(live.side))
        else:
            self._base = self._output(session.reference, self._inputs)
        self._native_base = self._output(session.native, self._inputs)

    @staticmethod
    def is_possible(session: object) -> TypeGuard[PairSession]:
        """Say whether both models can be called, if one after the other."""
        return isinstance(session, PairSession) and (session.recorded is None or session.recorded.is_loaded_again)

    def of(self, name: str) -> list[Response]:
        """Change one input in every way that fits its kind.

        Raises:
            ModelFailed: a side does not take the unchanged inputs.
        """
        ways = changes(self._inputs[name])
        if not ways:
            kind = type(self._inputs[name]).__name__
            return [Response(name, f"a {kind} cannot be changed a little", judged=False)]
        if name not in self._reference:
            self._reference[name] = self._of_reference(self._session.reference, name)
        return [self._response(name, change, values) for change, values in ways.items()]

    def _all_of_reference(self, side: LoadedSide) -> bool:
        self._base = self._output(side, self._inputs)
        self._reference = {name: self._of_reference(side, name) for name in named(self._inputs)}
        return True

    def _of_reference(self, side: LoadedSide, name: str) -> dict[str, Given]:
        """Return by change what the reference gives, for the first of its values that it takes."""
        found: dict[str, Given] = {}
        for change, values in changes(self._inputs[name]).items():
            for number, value in enumerate(values):
                with suppress(ModelFailed):
                    found[change] = self._output(side, {**self._inputs, name: value}, number)
                    break
        return found

    def _response(self, name: str, change: str, values: list[Any]) -> Response:
        reference = self._reference[name].get(change)
        if reference is None:
            return Response(name, f"{change}: the reference refuses it", judged=False)
        try:
            native = self._output(self._session.native, {**self._inputs, name: values[reference.value]})
        except ModelFailed as error:
            return Response(name, change, wrong=f"the native refuses it: {str(error).splitlines()[0][:160]}")
        return self._compared(name, change, reference, native)

    def _compared(self, name: str, change: str, reference: Given, native: Given) -> Response:
        """Compare what both sides make of a change: exactly, or as computed where some of it is not known exactly."""
        held = (reference, self._base, native, self._native_base)
        trusted = all(given.is_trusted for given in held)
        values = [(given.high if trusted else given.low).nan_to_num(0.0) for given in held]
        r, n = values[0] - values[1], values[2] - values[3]
        size = float(values[1].norm()) or 1.0
        moved_r, moved_n = float(r.norm()) / size, float(n.norm()) / size
        if not moved_r and not moved_n:
            return Response(name, f"{change}: no side reads it", judged=False)
        if not moved_r or not moved_n:
            side = "native" if moved_r else "reference"
            return Response(name, change, moved_r, moved_n, wrong=f"the {side} ignores it")
        apart = float((n - r).norm()) / float(r.norm())
        strict = trusted and not self._session.pair.declared
        wrong = "the two sides respond differently" if strict and apart > APART else ""
        return Response(name, change, moved_r, moved_n, apart, wrong)

    def _output(self, side: LoadedSide, inputs: Inputs, number: int = 0) -> Given:
        with fresh_side(side) as held:
            shadow = held.shadow(Shadow, inputs, dtype=self._dtype)
            value = held.runner(()).run(inputs, None, shadow).values[OUTPUT]
        assert value.high is not None
        return Given(value.low.double(), value.high.double(), number)


def changes(value: Any) -> dict[str, list[Any]]:
    """Return small changes of an input, by what they are; for each the values to try in turn.

    >>> changes(2)
    {'one more': [3, 1]}
    >>> changes([5, 1])
    {'one less each': [[4, 1], [6, 2]]}
    """
    if isinstance(value, Tensor):
        return _changes_of_tensor(value)
    if isinstance(value, bool):
        return {"the other way": [not value]}
    if isinstance(value, int):
        return {"one more": [value + 1, value - 1]}
    if isinstance(value, float):
        return {f"moved by {STEP:.0%}": [value * (1 + STEP) if value else STEP]}
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        make: Callable[..., Any] = type(value)
        return {"one less each": [make(max(v - 1, 1) for v in value), make(v + 1 for v in value)]}
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (float, Tensor)) for v in value):
        return _changes_of_parts(value)
    return {}


def _changes_of_parts(value: Any) -> dict[str, list[Any]]:
    each = [changes(part) for part in value]
    shared = [change for change in each[0] if all(change in ways for ways in each)]
    return {change: [type(value)(ways[change][0] for ways in each)] for change in shared}


def _changes_of_tensor(value: Tensor) -> dict[str, list[Any]]:
    if not value.numel():
        return {}
    if value.is_floating_point() or value.is_complex():
        return dict(_changes_of_floats(value))
    if value.dtype == torch.bool or (value.dim() > 1 and bool(((value == 0) | (value == 1)).all())):
        return dict(_changes_of_mask(value))
    return {"one more": [value + 1, value - 1]}


def _changes_of_floats(value: Tensor) -> Iterator[tuple[str, list[Any]]]:
    size = float(value.abs().double().square().mean().sqrt()) or 1.0
    sign = torch.randint(0, 2, value.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    yield f"moved by {STEP:.0%}", [value + (STEP * size * sign.to(value.device)).to(value.dtype)]
    if bool(value.any()):
        yield "zeroed", [torch.zeros_like(value)]


def _changes_of_mask(mask: Tensor) -> Iterator[tuple[str, list[Any]]]:
    """Drop the last valid token of each row, and make the padding valid."""
    valid = mask.bool()
    if bool(valid.any()):
        last = valid & (valid.flip(-1).cumsum(-1).flip(-1) == 1)
        yield "last valid token dropped", [mask.masked_fill(last, 0)]
    if not bool(valid.all()):
        yield "padding made valid", [torch.ones_like(mask)]


def named(inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of inputs that hold something."""
    return [name for name, value in inputs.items() if value is not None]
