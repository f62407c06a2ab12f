"""What could be wrong with the ops of a faulty segment: other arguments, other ops, parts exchanged or left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.calls import (
    another,
    exchanged_parts,
    negated,
    only,
    reversed_parts,
    with_argument,
    with_number,
    with_operand,
)  # fmt: skip
from parity.diagnose.segment import Segment, by_line
from parity.execution.changes import Call, Change, OpChange
from parity.execution.op_values import OpValue

aten = torch.ops.aten
_EPS = (1e-6, 1e-5, 1e-8, 1e-12, 1e-3, 1e-4)
_EPS_AT = {"native_layer_norm": 4, "native_group_norm": 7, "_fused_rms_norm": 3}
ACTIVATIONS: dict[str, Call] = {
    "GELU (tanh)": (aten.gelu.default, (), {"approximate": "tanh"}),
    "GELU (erf)": (aten.gelu.default, (), {"approximate": "none"}),
    "SiLU": (aten.silu.default, (), {}),
    "ReLU": (aten.relu.default, (), {}),
    "quick GELU": (lambda x: x * torch.sigmoid(1.702 * x), (), {}),
}
_OTHER = {"cos": ("sin", aten.sin.default), "sin": ("cos", aten.cos.default)}
Make = Callable[..., Change]


GENERIC = frozenset({"operand_extra", "operands_exchanged", "operand_sign", "rope_direction"})
"""Kinds of changes that nearly every op allows: they are tried behind those that few do."""


def op_changes(op: OpValue, segment: Segment, generic: bool) -> Iterator[Change]:
    """List the changes of one op that could be what a port got wrong, the generic ones or all others."""
    return (change for change in _op_changes(op, segment) if (change.bug in GENERIC) is generic)


def _op_changes(op: OpValue, segment: Segment) -> Iterator[Change]:
    name, number, line = op.op.base, op.op.number, segment.line(op)

    def change(bug: str, words: str, call: Callable[[Call], Call] | None = None, result: Any = None) -> Change:
        return Change(f"{words} at {line}", (), {number: OpChange(op.op.name, call, result)}, bug=bug)

    if name in _EPS_AT:
        others = dict.fromkeys((*segment.small_numbers, *_EPS))
        yield from (change("norm_eps", f"eps {eps:g} in `{name}`", with_argument(_EPS_AT[name], eps)) for eps in others)
    elif name in ("gelu", "silu", "relu", "sigmoid"):
        yield from _activation(name, change)
    elif name.startswith("_scaled_dot_product"):
        yield from _attention(name, change)
    elif name in ("bmm", "baddbmm") and segment.softened(op):
        for words, power in (("head_dim^-0.5", -0.5), ("head_dim^0.5", 0.5)):
            yield change("softmax_scale", f"the scores times {words}", _scores_scaled(name, power))
    elif name in ("mul", "add", "sub", "div", "pow"):
        yield from _arithmetic(op, segment, change)
    elif name in _OTHER:
        words, other = _OTHER[name]
        yield change("sinusoid_order", f"`{words}` for `{name}`", another((other, (), {})))
    elif name == "neg":
        yield change(_signed(op, segment), "no `neg`", result=lambda out: -out)
    elif name in ("cat", "stack"):
        yield from _joined(op, segment, change)
    if op.op.rule.moves is False and name not in ("cat", "stack"):
        yield change(_signed(op, segment), f"the result of `{name}` with the other sign", result=negated)


def _activation(name: str, change: Make) -> Iterator[Change]:
    for words, other in ACTIVATIONS.items():
        both_gelu = name == "gelu" and words.startswith("GELU")
        yield change("gelu_form" if both_gelu else "activation_other", f"{words} for `{name}`", another(other))
    yield change("activation_extra", f"no `{name}`", another((aten.clone.default, (), {})))


def _attention(name: str, change: Make) -> Iterator[Change]:
    def scaled(power: float, of: float = 1.0) -> Callable[[Call], Call]:
        return lambda call: (call[0], call[1], {**call[2], "scale": of * call[1][0].shape[-1] ** power})

    for words, power in (("head_dim^-0.5", -0.5), ("1", 0.0), ("head_dim^-1", -1.0)):
        yield change("softmax_scale", f"the softmax scale {words}", scaled(power))
    without: Callable[[Call], Call] = lambda call: (call[0], call[1], {**call[2], "attn_mask": None})  # noqa: E731
    yield change("mask_extra", "no attention mask", without)
    place = 4 if name.endswith("for_cpu") else 5
    for causal in (True, False):
        yield change("causality", f"{'causal' if causal else 'full'} attention", with_argument(place, causal))


def _scores_scaled(name: str, power: float) -> Callable[[Call], Call]:
    """Scale the product of queries and keys; `baddbmm` has its operands behind what it adds to them."""
    return with_operand(int(name == "baddbmm"), lambda t: t * t.shape[-1] ** power)


def _arithmetic(op: OpValue, segment: Segment, change: Make) -> Iterator[Change]:
    name = op.op.base
    if op.scalars:
        yield from _numbers(op, segment, change)
        return
    if name == "mul":
        yield change("scale_one", "`(1 + second)` for the second factor of `mul`", with_operand(1, lambda t: t + 1))
        yield change("scale_one", "`(1 + first)` for the first factor of `mul`", with_operand(0, lambda t: t + 1))
        yield change("scale_one", "the second factor of `mul` less 1", with_operand(1, lambda t: t - 1))
        for i, n in ((0, "second"), (1, "first")):
            yield change("operand_extra", f"{n} factor of `mul` left out", only(i))
    elif name != "pow":
        other = aten.sub.Tensor if name == "add" else aten.add.Tensor
        if name != "div":
            words = f"`{'sub' if name == 'add' else 'add'}` for `{name}`"
            yield change(_signed(op, segment), words, another((other, (), {}), 2))
        bug = "rope_offset" if segment.makes_angles(op) else "operand_extra"
        yield change(bug, f"second operand of `{name}` left out", only(0))
        yield change(bug, f"first operand of `{name}` left out", only(1))
        turned: Callable[[Call], Call] = lambda call: (call[0], (call[1][1], call[1][0]), call[2])  # noqa: E731
        yield change("operands_exchanged", f"the operands of `{name}` exchanged", turned)


def _numbers(op: OpValue, segment: Segment, change: Make) -> Iterator[Change]:
    name, held = op.op.base, op.scalars[0]
    bug = _of_number(op, segment)
    theirs = [n for n in segment.numbers(name) if n != held]
    if name == "pow":
        yield from (change(bug, f"{n:g} for {held:g} in `pow`", _with_scalar(n)) for n in theirs[:4])
        return
    if bug != "norm_eps" and held:
        yield change(bug, f"no {held:g} in `{name}`", only(0))
    if name in ("add", "sub"):
        if 0 < held < 1e-2:
            for eps in (e for e in dict.fromkeys((*segment.small_numbers, *_EPS)) if e != held):
                yield change("norm_eps", f"{eps:g} for {held:g} in `{name}`", with_number(_always(eps)))
        yield from (change(bug, f"{n:g} for {held:g} in `{name}`", with_number(_always(n))) for n in theirs[:4])
        if held:
            yield change(bug, f"{-held:g} for {held:g} in `{name}`", with_number(lambda k: -k))
    else:
        yield from (change(bug, f"{n:g} for {held:g} in `{name}`", with_number(_always(n))) for n in theirs[:6])
        others_of = [f for f in _NUMBERS if f(held) != held]
        yield from (change(bug, f"{f(held):g} for {held:g} in `{name}`", with_number(f)) for f in others_of)


def _of_number(op: OpValue, segment: Segment) -> str:
    """Name what a wrong number in an op is."""
    if op.op.base in ("add", "sub") and 0 < op.scalars[0] < 1e-2:
        return "norm_eps"
    if segment.makes_angles(op) and not segment.attends and _is_narrow(op, segment):
        return "timestep_scale"
    if segment.makes_angles(op):
        return "rope_offset" if op.op.base in ("add", "sub") else "frequencies"
    if segment.scores(op) or (segment.attends and op.op.base in ("mul", "div") and segment.turns(op)):
        return "softmax_scale"
    return "number"


def _is_narrow(op: OpValue, segment: Segment) -> bool:
    """Say whether an op scales what angles are made of, before it is spread over frequencies."""
    waves = [o.value.elements for o in segment.ops if o.op.base in ("cos", "sin") and o.value is not None]
    scales = op.op.base in ("mul", "div") and op.value is not None
    return bool(waves) and scales and op.value is not None and op.value.elements < min(waves)


def _signed(op: OpValue, segment: Segment) -> str:
    """Name what a wrong sign at an op is."""
    return "rope_direction" if segment.turns(op) or segment.makes_angles(op) else "operand_sign"


def _joined(op: OpValue, segment: Segment, change: Make) -> Iterator[Change]:
    name = op.op.name
    bug = "cat_order"
    if segment.attends and (segment.makes_angles(op) or segment.turns(op)):
        bug = "rope_axes" if name == "cat" else "rope_halves"
    elif segment.makes_angles(op) or _of_waves(op, segment):
        bug = "sinusoid_order"
    yield change(bug, f"the parts of `{name}` in the other order", reversed_parts)
    for i, k in itertools.combinations(range(4), 2):
        yield change(bug, f"parts {i} and {k} of `{name}` exchanged", exchanged_parts(i, k))


def _of_waves(op: OpValue, segment: Segment) -> bool:
    """Say whether an op joins sines and cosines themselves."""
    waves = {o.op.number for o in segment.ops if o.op.base in ("cos", "sin")}
    return bool(op.inputs) and all(made in waves for _, made in op.inputs)


def _with_scalar(value: float) -> Callable[[Call], Call]:
    """Call with the first number among the arguments changed."""

    def call(held: Call) -> Call:
        args = list(held[1])
        place = next((i for i, a in enumerate(args) if isinstance(a, (int, float)) and not isinstance(a, bool)), None)
        if place is not None:
            args[place] = value
        return held[0], tuple(args), held[2]

    return call


def _always(value: float) -> Callable[[float], float]:
    return lambda _: value


_NUMBERS: tuple[Callable[[float], float], ...] = (
    lambda k: 1 / k if k else k, lambda k: -k, lambda k: 1000 * k, lambda k: k / 1000, lambda k: 2 * k, lambda k: k / 2,
)  # fmt: skip


def line_changes(ops: Sequence[OpValue], segment: Segment, generic: bool) -> Iterator[Change]:
    """List the changes of all ops of one name on one line together: what is wrong there is wrong in each of them."""
    for together in zip(*(list(op_changes(op, segment, generic)) for op in ops), strict=False):
        if len({change.words for change in together}) == 1:
            ops_changed = {n: c for change in together for n, c in change.ops.items()}
            yield Change(together[0].words, (), ops_changed, bug=together[0].bug)


def bias_changes(op: OpValue, segment: Segment) -> Iterator[Change]:
    """Add the bias that a module has and an op of it does not read, or leave out the one it reads."""
    line, name = segment.line(op), op.op.name
    if name == "addmm" and any(w.endswith("bias") for w in op.weights):
        none = OpChange(name, with_operand(0, torch.zeros_like))
        bias = next(w for w in op.weights if w.endswith("bias"))
        yield Change(f"{bias} left out at {line}", (), {op.op.number: none}, bug="bias_extra")
    for read in op.weights:
        module = read.rpartition(".")[0]
        held = segment.held.get(f"{module}.bias")
        if held is not None and f"{module}.bias" not in op.weights and name in ("mm", "bmm", "convolution"):
            shape = (-1,) if name != "convolution" else (1, -1, *[1] * (segment.held[read].dim() - 2))
            added = OpChange(name, result=_plus(held.view(shape)))
            yield Change(f"{module}.bias added at {line}", (), {op.op.number: added}, bug="bias_missing")


def _plus(bias: Tensor) -> Callable[[Any], Any]:
    return lambda out: out + bias.to(out.dtype)


def _biases_missing(segment: Segment) -> list[Change]:
    """Return the changes that add the biases that modules hold and no op reads: mostly all are left out alike."""
    found = (change for op in segment.region for change in bias_changes(op, segment))
    return [change for change in found if change.bug == "bias_missing"]


def changes_of_ops(segment: Segment, generic: bool) -> Iterable[Change]:
    """List the changes of the ops that differ: of all on one line together, then one by one."""
    if not generic and len(biases := _biases_missing(segment)) > 1:
        ops = {number: one for change in biases for number, one in change.ops.items()}
        yield Change(f"{biases[0].words} and {len(biases) - 1} more biases", (), ops, bug="bias_missing")
    for alike in by_line(segment.suspects):
        yield from line_changes(alike, segment, generic)
        for op in alike:
            yield from op_changes(op, segment, generic) if len(alike) > 1 else ()
            yield from bias_changes(op, segment) if not generic else ()
