"""Other calls in the place of an op's, and other results: what the changes of a repair are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from parity.execution.changes import Call

aten = torch.ops.aten


def with_argument(place: int, value: Any) -> Callable[[Call], Call]:
    """Call with another value of one argument."""

    def call(held: Call) -> Call:
        args = [*held[1], *[False] * (place + 1 - len(held[1]))]
        args[place] = value
        return held[0], tuple(args), held[2]

    return call


def with_arguments(values: tuple[Any, ...]) -> Callable[[Call], Call]:
    """Call with other arguments after the first."""
    return lambda held: (held[0], (held[1][0], *values), held[2])


def another(other: Call, arguments: int = 1) -> Callable[[Call], Call]:
    """Call another op, on the first arguments."""
    return lambda call: (other[0], call[1][:arguments], other[2])


def with_operand(place: int, change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    """Call with one operand changed."""

    def call(held: Call) -> Call:
        args = list(held[1])
        args[place] = change(args[place])
        return held[0], tuple(args), held[2]

    return call


def only(place: int) -> Callable[[Call], Call]:
    """Return one operand instead, in the shape of the result."""

    def call(held: Call) -> Call:
        kept, other = held[1][place], held[1][1 - place]
        shape = torch.broadcast_shapes(*(t.shape for t in (kept, other) if isinstance(t, Tensor)))
        if not isinstance(kept, Tensor):
            return held
        return aten.clone.default, (kept.expand(shape),), {}

    return call


def with_number(change: Callable[[float], float]) -> Callable[[Call], Call]:
    """Call with the number that is the second argument changed."""
    return with_operand(1, lambda k: change(float(k)) if isinstance(k, (int, float)) else k)


def reversed_parts(call: Call) -> Call:
    """Call with the list of parts in the other order."""
    return call[0], (list(call[1][0])[::-1], *call[1][1:]), call[2]


def exchanged_parts(i: int, k: int) -> Callable[[Call], Call]:
    """Call with two parts of the list exchanged."""

    def call(held: Call) -> Call:
        parts = list(held[1][0])
        if k < len(parts):
            parts[i], parts[k] = parts[k], parts[i]
        return held[0], (parts, *held[1][1:]), held[2]

    return call


def exchanged(i: int, k: int) -> Callable[[Any], Any]:
    """Exchange two results of one shape."""

    def result(out: Any) -> Any:
        parts = list(out)
        if parts[i].shape == parts[k].shape:
            parts[i], parts[k] = parts[k], parts[i]
        return type(out)(parts)

    return result


def negated(out: Any) -> Any:
    """Return the first result with the other sign."""
    return -out if isinstance(out, Tensor) else type(out)((-out[0], *out[1:]))


def remembered(held: list[Tensor]) -> Callable[[Any], Any]:
    """Keep a result for another op."""

    def result(out: Any) -> Any:
        held[:] = [out]
        return out

    return result


def with_factor(place: int, held: list[Tensor]) -> Callable[[Call], Call]:
    """Call with one operand times a value that was kept, which may hold one row for several of the operand."""

    def call(given: Call) -> Call:
        args = list(given[1])
        operand, factor = args[place], held[-1]
        if factor.dim() == operand.dim() and factor.dim() > 1 and factor.shape[1] and factor.shape != operand.shape:
            times, rest = divmod(operand.shape[1], factor.shape[1])
            factor = factor if rest or times < 1 else factor.repeat_interleave(times, 1)
        args[place] = operand * factor
        return given[0], tuple(args), given[2]

    return call


def with_found_factor(wanted: Tensor, found: list[float]) -> Callable[[Call], Call]:
    """Call an addition with its second operand times the number that comes nearest to what is wanted."""

    def call(given: Call) -> Call:
        first, second, *others = given[1]
        if not found:
            a, b = first.double(), second.double()
            missing = wanted.reshape(torch.broadcast_shapes(a.shape, b.shape)) - a
            factor = float((missing * b).sum() / (b * b.expand_as(missing)).sum())
            # What was computed is rounded; a scale is mostly a ratio of small numbers, as alpha / rank is.
            ratio = Fraction(factor).limit_denominator(64) if math.isfinite(factor) else Fraction(1)
            found.append(float(ratio) if abs(float(ratio) - factor) <= 2e-3 * abs(factor) else factor)
        return given[0], (first, second * found[0], *others), given[2]

    return call
