"""The ops of a side as plain data, so that a recording can keep them: numbers and words; and their values, apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.side_ops import SideOps
from parity.diagnose.steps import text_of
from parity.errors import RecordError
from parity.execution.op_values import Fingerprint, OpValue
from parity.execution.ops import Op, SourceLine, numbers
from parity.execution.rules import Rule


def as_data(ops: SideOps) -> dict[str, Any]:
    """Return ops as JSON holds them: those some tap is made of."""
    wanted = 0
    for cone in ops.cones.values():
        wanted |= cone
    kept = [ops.given[n] for n in numbers(wanted) if n in ops.given]
    return {
        "matmul": ops.matmul,
        "taps": {tap: list(numbers(cone)) for tap, cone in ops.cones.items()},
        "ops": [_of_op(op, ops.modules) for op in kept],
        "code": {str(op.op.source): text_of(op.op.source) for op in kept},
    }


def from_data(held: Mapping[str, Any]) -> SideOps:
    """Return the ops that JSON holds.

    Raises:
        KeyError, TypeError, ValueError, RecordError: it does not hold what `as_data` gives.
    """
    paths = list(dict.fromkeys(str(op["module"]) for op in held["ops"]))
    places = {path: number for number, path in enumerate(paths)}
    ops = (_to_op(op, places) for op in held["ops"])
    code = {str(line): str(text)[:200] for line, text in held.get("code", {}).items()}
    cones = {str(tap): sum(1 << _count(n) for n in set(made)) for tap, made in held["taps"].items()}
    return SideOps({op.op.number: op for op in ops}, cones, dict(enumerate(paths)), str(held["matmul"]), code=code)


def values_as_tensors(ops: SideOps) -> dict[str, Tensor]:
    """Return the values of ops by name: `number`, and `number.place` for an operand."""
    outputs = {str(number): value for number, value in ops.values.items()}
    operands = {f"{number}.{place}": value for (number, place), value in ops.operands.items()}
    return {**outputs, **operands}


def with_values(ops: SideOps, held: Mapping[str, Tensor]) -> SideOps:
    """Return ops with values that were handed over.

    Raises:
        ValueError: a name is not one that `values_as_tensors` gives.
    """
    names = {name: name.split(".") for name in held}
    values = {_count(parts[0]): held[name] for name, parts in names.items() if len(parts) == 1}
    operands = {(_count(p[0]), _count(p[1])): held[name] for name, p in names.items() if len(p) == 2}
    return replace(ops, values=values, operands=operands)


def _of_op(op: OpValue, modules: Mapping[int, str]) -> dict[str, Any]:
    source, rule = op.op.source, op.op.rule
    return {
        "number": op.op.number, "name": op.op.name, "dtype": str(op.op.dtype).removeprefix("torch."),
        "line": ["/".join(PurePath(source.file).parts[-2:]), source.line, source.function],
        "module": modules.get(op.op.module, ""), "cast": rule.cast, "moves": rule.moves,
        "value": _of_value(op.value), "inputs": [[_of_value(value), made] for value, made in op.inputs],
        "holds_low": op.holds_low, "autocast": op.autocast, "weights": list(op.weights), "scalars": list(op.scalars),
    }  # fmt: skip


def _to_op(held: Mapping[str, Any], places: Mapping[str, int]) -> OpValue:
    name, (file, line, function) = str(held["name"]), held["line"]
    cast, moves = bool(held["cast"]), bool(held["moves"])
    rule = Rule(name, name, False, frozenset(), False, False, False, cast, moves, False, False, False, None)
    source = SourceLine(str(file), int(line), str(function))
    op = Op(_count(held["number"]), name, _dtype(held["dtype"]), source, "", 0, rule, places[str(held["module"])])
    return OpValue(
        op=op,
        value=_to_value(held["value"]),
        inputs=tuple((_to_value(value), int(made)) for value, made in held["inputs"]),
        holds_low=bool(held["holds_low"]),
        autocast=bool(held["autocast"]),
        weights=tuple(str(name) for name in held["weights"]),
        scalars=tuple(float(number) for number in held["scalars"]),
    )


def _of_value(value: Fingerprint | None) -> list[float] | None:
    return None if value is None else [value.elements, value.norm, value.total, *(x for row in value.rows for x in row)]


def _to_value(held: Sequence[float] | None) -> Fingerprint | None:
    if held is None:
        return None
    elements, norm, total, *rows = held
    pieces = tuple((float(n), float(t)) for n, t in zip(rows[::2], rows[1::2], strict=True))
    return Fingerprint(int(elements), float(norm), float(total), pieces)


_MOST = 1 << 20
"""Ops of one forward: a number beyond that is no number of an op, and a set that holds it would fill the memory."""


def _count(number: Any) -> int:
    if not 0 <= int(number) < _MOST:
        raise ValueError(f"op number {number}")
    return int(number)


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise RecordError(f"a recording names the dtype {str(name)[:40]!r}, which torch {torch.__version__} lacks")
    return found
