"""What could be wrong with the ops of a faulty segment: other arguments, other ops, parts exchanged or left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.calls import (
    another,
    exchanged,
    exchanged_parts,
    negated,
    only,
    remembered,
    reversed_parts,
    with_argument,
    with_arguments,
    with_factor,
    with_found_factor,
    with_number,
    with_operand,
)  # fmt: skip
from parity.execution.changes import Call, Change, OpChange
from parity.execution.op_values import OpValue

aten = torch.ops.aten
_EPS = (1e-6, 1e-5, 1e-8, 1e-12, 1e-3, 1e-4)
_EPS_AT = {"native_layer_norm": 4, "native_group_norm": 7, "_fused_rms_norm": 3}
_ACTIVATIONS: dict[str, Call] = {
    "GELU (tanh)": (aten.gelu.default, (), {"approximate": "tanh"}),
    "GELU (erf)": (aten.gelu.default, (), {"approximate": "none"}),
    "SiLU": (aten.silu.default, (), {}),
    "ReLU": (aten.relu.default, (), {}),
    "quick GELU": (lambda x: x * torch.sigmoid(1.702 * x), (), {}),
}
_OTHER = {"cos": ("sin", aten.sin.default), "sin": ("cos", aten.cos.default)}


def op_changes(op: OpValue, line: str) -> Iterator[Change]:
    """List the changes of one op that could be what a port got wrong."""
    name, number = op.op.name, op.op.number

    def change(words: str, call: Callable[[Call], Call] | None = None, result: Any = None) -> Change:
        return Change(f"{words} at {line}", (), {number: OpChange(name, call, result)})

    if name in _EPS_AT:
        yield from (change(f"eps {eps:g} in `{name}`", with_argument(_EPS_AT[name], eps)) for eps in _EPS)
    elif name in ("gelu", "silu", "relu", "sigmoid"):
        yield from (change(f"{words} for `{name}`", another(other)) for words, other in _ACTIVATIONS.items())
    elif name.startswith("_scaled_dot_product"):
        yield from _attention(name, change)
    elif name in ("mul", "add", "sub", "div"):
        yield from _arithmetic(name, op.scalars, change)
    elif name in _OTHER:
        words, other = _OTHER[name]
        yield change(f"`{words}` for `{name}`", another((other, (), {})))
    elif name == "neg":
        yield change("no `neg`", result=lambda out: -out)
    elif name in ("cat", "stack"):
        yield change(f"the parts of `{name}` in the other order", reversed_parts)
        yield from (
            change(f"parts {i} and {k} of `{name}` exchanged", exchanged_parts(i, k))
            for i, k in itertools.combinations(range(4), 2)
        )
    if op.op.rule.moves is False and name not in ("cat", "stack"):
        yield change(f"the result of `{name}` with the other sign", result=negated)


def _attention(name: str, change: Callable[..., Change]) -> Iterator[Change]:
    def scaled(power: float, of: float = 1.0) -> Callable[[Call], Call]:
        return lambda call: (call[0], call[1], {**call[2], "scale": of * call[1][0].shape[-1] ** power})

    yield change("the softmax scale head_dim^-0.5", scaled(-0.5))
    yield change("the softmax scale 1", scaled(0.0))
    yield change("the softmax scale head_dim^-1", scaled(-1.0))
    yield change("no attention mask", lambda call: (call[0], call[1], {**call[2], "attn_mask": None}))
    place = 4 if name.endswith("for_cpu") else 5
    for causal in (True, False):
        yield change(f"{'causal' if causal else 'full'} attention", with_argument(place, causal))


def _arithmetic(name: str, scalars: Sequence[float], change: Callable[..., Change]) -> Iterator[Change]:
    if scalars:
        yield from _numbers(name, scalars[0], change)
        return
    if name == "mul":
        yield change("`(1 + second)` for the second factor of `mul`", with_operand(1, lambda t: t + 1))
        yield change("`(1 + first)` for the first factor of `mul`", with_operand(0, lambda t: t + 1))
        yield change("the second factor of `mul` less 1", with_operand(1, lambda t: t - 1))
        yield from (change(f"{n} factor of `mul` left out", only(i)) for i, n in ((0, "second"), (1, "first")))
    else:
        other = aten.sub.Tensor if name == "add" else aten.add.Tensor
        if name != "div":
            yield change(f"`{'sub' if name == 'add' else 'add'}` for `{name}`", another((other, (), {}), 2))
        yield change(f"second operand of `{name}` left out", only(0))
        yield change(f"first operand of `{name}` left out", only(1))
        yield change(f"the operands of `{name}` exchanged", lambda call: (call[0], (call[1][1], call[1][0]), call[2]))


def _numbers(name: str, held: float, change: Callable[..., Change]) -> Iterator[Change]:
    yield change(f"no {held:g} in `{name}`", only(0))
    if name in ("add", "sub"):
        yield change(f"{-held:g} for {held:g} in `{name}`", with_number(lambda k: -k))
        if 0 < held < 1e-2:
            yield from (change(f"{eps:g} for {held:g} in `{name}`", with_number(_always(eps))) for eps in _EPS)
    else:
        others = [f for f in _NUMBERS if f(held) != held]
        yield from (change(f"{f(held):g} for {held:g} in `{name}`", with_number(f)) for f in others)


def _always(value: float) -> Callable[[float], float]:
    return lambda _: value


_NUMBERS: tuple[Callable[[float], float], ...] = (
    lambda k: 1 / k if k else k, lambda k: -k, lambda k: 1000 * k, lambda k: k / 1000, lambda k: 2 * k, lambda k: k / 2,
)  # fmt: skip


def line_changes(ops: Sequence[OpValue], line: str) -> Iterator[Change]:
    """List the changes of all ops of one name on one line together: what is wrong there is wrong in each of them."""
    for together in zip(*(list(op_changes(op, line)) for op in ops), strict=False):
        if len({change.words for change in together}) == 1:
            yield Change(together[0].words, (), {n: c for change in together for n, c in change.ops.items()})


def bias_changes(op: OpValue, held: Mapping[str, Tensor], line: str) -> Iterator[Change]:
    """Add the bias that a module has and an op of it does not read."""
    for name in op.weights:
        module = name.rpartition(".")[0]
        bias = held.get(f"{module}.bias")
        if bias is not None and f"{module}.bias" not in op.weights and op.op.name in ("mm", "bmm", "convolution"):
            shape = (-1,) if op.op.name != "convolution" else (1, -1, *[1] * (held[name].dim() - 2))
            result = _plus(bias.view(shape))
            yield Change(f"{module}.bias added at {line}", (), {op.op.number: OpChange(op.op.name, result=result)})


def _plus(bias: Tensor) -> Callable[[Any], Any]:
    return lambda out: out + bias


def slice_changes(groups: Iterable[Mapping[int, tuple[Any, ...]]]) -> Iterator[Change]:
    """Exchange two slices of one shape of one tensor, in each group of such."""
    for group in groups:
        for (n, one), (m, other) in itertools.combinations(list(group.items())[:6], 2):
            places = [list(group).index(k) for k in (n, m)]
            ops = {k: OpChange("slice", with_arguments(v)) for k, v in ((n, other), (m, one))}
            yield Change(f"parts {places[0]} and {places[1]} of {len(group)} exchanged", (), ops)


def found_factor(op: OpValue, wanted: Tensor, line: str) -> Change:
    """Multiply the second operand of a segment's last addition by the number that brings its sum to what is wanted.

    Args:
        op: the addition.
        wanted: its right value, exact.
        line: of the op.
    """
    found: list[float] = []
    words = f"the second operand of `add` times {{0:.6g}} at {line}"
    return Change(words, (), {op.op.number: OpChange("add", with_found_factor(wanted, found))}, found)


def factor_changes(additions: Sequence[OpValue], groups: Iterable[Mapping[int, Any]]) -> Iterator[Change]:
    """Multiply an operand of an addition by a part of a tensor that was taken apart before: a gate left out."""
    for group, op, place in itertools.product(groups, additions, (1, 0)):
        for position, number in enumerate(list(group)[:6]):
            if number >= op.op.number:
                continue
            held: list[Tensor] = []
            part = OpChange("slice", result=remembered(held))
            words = f"part {position} of {len(group)} times operand {place + 1} of `add` at {op.op.source}"
            yield Change(words, (), {number: part, op.op.number: OpChange("add", with_factor(place, held))})


def split_changes(splits: Mapping[int, tuple[str, int]]) -> Iterator[Change]:
    """List the orders in which the parts of a tensor could have been meant."""
    for number, (name, count) in splits.items():
        for i, k in itertools.combinations(range(min(count, 6)), 2):
            words = f"parts {i} and {k} of {count} exchanged"
            yield Change(words, (), {number: OpChange(name, result=exchanged(i, k))})
