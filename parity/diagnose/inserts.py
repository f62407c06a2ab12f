"""What a native could have left out: a norm, an activation, an order of channels, a mask."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.diagnose.calls import with_operand
from parity.diagnose.repairs import ACTIVATIONS
from parity.diagnose.segment import Segment, by_line
from parity.execution.changes import Call, Change, OpChange
from parity.execution.op_values import OpValue

_MOST = 8
Result = Callable[[Any], Any]
_FORMS: dict[str, dict[str, Call]] = {
    "tanh": {"`tanh`": (torch.tanh, (), {})},
    "sigmoid": {"`sigmoid`": (torch.sigmoid, (), {})},
    "silu": {"SiLU": ACTIVATIONS["SiLU"]},
    "relu": {"ReLU": ACTIVATIONS["ReLU"]},
    "gelu": {words: call for words, call in ACTIVATIONS.items() if words.startswith("GELU")},
}
_OF_NORMS = frozenset({"rsqrt", "mean", "native_layer_norm", "_fused_rms_norm", "var"})
_OF_ACTIVATIONS = frozenset({"gelu", "silu", "relu", "sigmoid", "tanh", "erf"})


def never_run(segment: Segment) -> Iterator[Change]:
    """List the norms that the native has and never runs, behind the last values both sides have."""
    for words, norm in _own_norms(segment):
        for op in segment.boundary[-_MOST:]:
            yield _behind([op], segment, "norm_missing", words, norm)


def inserted(segment: Segment) -> Iterator[Change]:
    """List the steps without parameters that could be missing behind the last values both sides have."""
    theirs = {op.op.base for op in segment.their_region}
    steps = [("norm_missing", *norm) for norm in _plain_norms(segment)] if theirs & _OF_NORMS else []
    if theirs & _OF_ACTIVATIONS:
        steps += [("activation_missing", words, _calling(*call)) for words, call in ACTIVATIONS.items()]
        told = {words for _, words, _ in steps}
        steps += [("activation_missing", *one) for one in _their_activations(segment) if one[0] not in told]
    for bug, words, step in steps:
        for op in segment.boundary[-_MOST:]:
            yield _behind([op], segment, bug, words, step)
        yield from _before(segment, bug, words, step)


def factors(segment: Segment) -> Iterator[Change]:
    """List the activations of the reference that a factor could lack: a gate that is not squashed before it counts."""
    steps = list(_their_activations(segment))
    products = [op for op in segment.region if op.op.base == "mul" and not op.scalars]
    lines = [ops for ops in by_line(products) if len(ops) > 1]
    for ops in (*lines[:_MOST], *([op] for op in products[:_MOST])):
        for (words, step), place in itertools.product(steps, (1, 0)):
            said = f"{words} of the {('first', 'second')[place]} factor of `mul` at {segment.line(ops[0])}"
            changes = {op.op.number: OpChange(op.op.name, with_operand(place, step)) for op in ops}
            yield Change(said, (), changes, bug="activation_missing")


def _their_activations(segment: Segment) -> Iterator[tuple[str, Result]]:
    """Yield the activations that the reference's ops call more often than the native's."""
    ours, theirs = (Counter(op.op.base for op in ops) for ops in (segment.ops, segment.theirs))
    for name in sorted(n for n in _OF_ACTIVATIONS if theirs[n] > ours[n]):
        for words, forms in _FORMS.get(name, {}).items():
            yield words, _calling(*forms)


def _before(segment: Segment, bug: str, words: str, step: Result) -> Iterator[Change]:
    """Do a step on what an op reads that no op of the segment gave: a tap stands there."""
    for op in segment.region[:_MOST]:
        for place in (p for p, (_, made) in zip(op.places, op.inputs, strict=True) if made < 0):
            said = f"{words} before `{op.op.name}` at {segment.line(op)}"
            yield Change(said, (), {op.op.number: OpChange(op.op.name, with_operand(place, step))}, bug=bug)


def _calling(func: Any, args: Any, kwargs: Any) -> Result:
    return lambda out: func(out, *args, **kwargs)


def _behind(ops: Sequence[OpValue], segment: Segment, bug: str, words: str, result: Result) -> Change:
    changes = {op.op.number: OpChange(op.op.name, result=result) for op in ops}
    return Change(f"{words} behind `{ops[0].op.name}` at {segment.line(ops[0])}", (), changes, bug=bug)


def _own_norms(segment: Segment) -> Iterator[tuple[str, Result]]:
    modules = dict(segment.model.named_modules())
    blocks = {_block(name) for name in segment.read}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in segment.unread):
        module = modules.get(path)
        if module is not None and _block(path + ".") in blocks and all(p.dim() == 1 for p in module.parameters()):
            yield path, _by_module(module)


def _plain_norms(segment: Segment) -> Iterator[tuple[str, Result]]:
    for eps in segment.small_numbers or [1e-6]:
        yield f"an RMS norm with eps {eps:g}", _rms(eps)
        yield f"a layer norm with eps {eps:g}", _layer_norm(eps)


def _rms(eps: float) -> Result:
    return lambda out: out * (out.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def _layer_norm(eps: float) -> Result:
    return lambda out: F.layer_norm(out, out.shape[-1:], eps=eps)


def _by_module(module: nn.Module) -> Result:
    """Run a norm on a value whose last dim it is for, or is several of."""
    width = next(iter(module.parameters())).numel()

    def result(out: Tensor) -> Tensor:
        if out.shape[-1] % width:
            raise RuntimeError("the norm is for another width")
        parts = out.unflatten(-1, (-1, width))
        made = type(module).forward(module, parts if out.shape[-1] != width else out)
        made = made[0] if isinstance(made, tuple) else made
        whole: Tensor = made.reshape(out.shape).to(out.dtype)
        return whole

    return result


def _block(name: str) -> str:
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return f"{head}.{number}" if number.isdigit() else head


# --- the order of channels that a rotation takes ----------------------------------------------------------------------


def turned(segment: Segment) -> Iterator[Change]:
    """List other pairings of the channels that a rotation turns: halves for neighbours, neighbours for halves."""
    if not segment.attends:
        return
    groups = by_line(segment.boundary)
    same = [[*a, *b] for a, b in itertools.combinations(groups[:6], 2) if _alike(a[0], b[0])]
    for ops in [*(g for g in groups if len(g) > 1), *same, *(g for g in groups if len(g) == 1)]:
        for words, order in (("halves", _to_halves), ("neighbours", _to_neighbours)):
            said = f"the channels of each head paired as {'neighbours' if words == 'halves' else 'halves'}"
            yield _behind(ops, segment, "rope_halves", said, _per_head(order, segment.tap.heads))


def _alike(one: OpValue, other: OpValue) -> bool:
    return one.value is not None and other.value is not None and one.value.elements == other.value.elements


def _to_halves(x: Tensor) -> Tensor:
    return torch.unflatten(x, -1, (-1, 2)).transpose(-2, -1).flatten(-2)


def _to_neighbours(x: Tensor) -> Tensor:
    return torch.unflatten(x, -1, (2, -1)).transpose(-2, -1).flatten(-2)


def _per_head(order: Callable[[Tensor], Tensor], heads: int) -> Result:
    def result(out: Tensor) -> Tensor:
        if heads > 1 and out.dim() < 4 and out.shape[-1] % (2 * heads) == 0:
            return order(out.unflatten(-1, (heads, -1))).flatten(-2).contiguous()
        return order(out).contiguous()

    return result


# --- masks among the inputs -------------------------------------------------------------------------------------------


def masked(segment: Segment) -> Iterator[Change]:
    """List the masks among the inputs that attention could have been meant to take, and text be zeroed by."""
    masks = {n: v for n, v in segment.inputs.items() if isinstance(v, Tensor) and _is_mask(v)}
    kernels = [op for op in segment.ops if op.op.name.startswith(("_scaled_dot_product", "_softmax", "_safe_softmax"))]
    for name, mask in masks.items():
        for op, (which, first) in itertools.product(kernels, (("the", None), ("the first", True), ("the last", False))):
            fused = op.op.name.startswith("_scaled")
            call = _attending(mask, first) if fused else _scoring(mask, first)
            words = f"the mask `{name}` on {which} keys of `{op.op.name}` at {segment.line(op)}"
            yield Change(words, (), {op.op.number: OpChange(op.op.name, call)}, bug="mask_ignored", roots=(mask,))
    for name, mask in masks.items():
        ops = [op for op in (*segment.boundary, *segment.region) if op.value is not None]
        for op in ops[:_MOST]:
            words = f"what `{name}` leaves out set to 0"
            yield _behind([op], segment, "padding_kept", words, _zeroed(mask))


def _is_mask(value: Tensor) -> bool:
    if value.dim() not in (2, 3) or not value.numel() or value.is_complex():
        return False
    return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())


def _rows(mask: Tensor, batch: int, length: int, first: bool | None) -> Tensor:
    """Return a mask as [B, L], bool; a mask of one row or of fewer samples than the batch is repeated.

    `first`: it is for the first keys or the last, since text is joined with video; None: for all of them.
    """
    rows = mask.reshape(-1, mask.shape[-1]).bool()
    if first is not None and (others := length - rows.shape[-1]) > 0:
        rows = F.pad(rows, (0, others) if first else (others, 0), value=True)
    elif first is not None:
        raise RuntimeError("the mask is for all keys")
    if rows.shape[-1] != length or batch % len(rows) or not bool(rows.any(-1).all()) or bool(rows.all()):
        raise RuntimeError("the mask is for other keys")
    return rows.repeat(batch // len(rows), 1)


def _attending(mask: Tensor, first: bool | None) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        q, k = held[1][0], held[1][1]
        keep = _rows(mask, q.shape[0], k.shape[-2], first)[:, None, None, :]
        bias = torch.zeros(keep.shape, dtype=q.dtype, device=q.device).masked_fill_(~keep, -math.inf)
        # A CPU kernel wants the mask as a keyword, the others as the argument behind the values.
        return held[0], held[1], {**held[2], "attn_mask": bias.expand(*q.shape[:-1], k.shape[-2])}

    return call


def _scoring(mask: Tensor, first: bool | None) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        scores = held[1][0]
        rows = _rows(mask, scores.shape[0], scores.shape[-1], first)
        keep = rows.view(-1, *[1] * (scores.dim() - 2), scores.shape[-1])
        least = torch.finfo(scores.dtype).min
        return held[0], (scores.masked_fill(~keep, least), *held[1][1:]), held[2]

    return call


def _zeroed(mask: Tensor) -> Result:
    def result(out: Tensor) -> Tensor:
        keep = mask.bool().reshape(-1, mask.shape[-1])
        flat = keep.reshape(-1)
        if out.dim() >= 3 and out.shape[:2] == keep.shape:
            return out.masked_fill(~keep.view(*keep.shape, *[1] * (out.dim() - 2)), 0.0)
        if out.dim() == 2 and len(out) == len(flat):
            return out.masked_fill(~flat[:, None], 0.0)
        raise RuntimeError("the mask is for another value")

    return result


# --- parameters that are not read -------------------------------------------------------------------------------------


def instead(segment: Segment) -> Iterator[Change]:
    """Read a parameter that no op reads in the place of one of its shape: one norm used for two."""
    for op in segment.region:
        for read in op.weights:
            others = [u for u in segment.unread if _block(u) == _block(read)]
            for other in (o for o in others if segment.held[o].shape == segment.held[read].shape):
                call = _reading(segment.held[read], segment.held[other])
                words = f"{other} read instead of {read} at {segment.line(op)}"
                yield Change(words, (), {op.op.number: OpChange(op.op.name, call)}, bug="parameter_shared")


def _reading(old: Tensor, new: Tensor) -> Callable[[Call], Call]:
    def swap(held: Any) -> Any:
        same = isinstance(held, Tensor) and held.data_ptr() == old.data_ptr() and held.numel() == old.numel()
        return new.reshape(held.shape).to(held.dtype) if same else held

    return lambda call: (call[0], tuple(swap(a) for a in call[1]), {k: swap(v) for k, v in call[2].items()})
