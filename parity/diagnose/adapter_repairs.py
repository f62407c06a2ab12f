"""What could be wrong with a LoRA that is on: a layer without it, another scale, two layers exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from parity.diagnose.segment import Segment
from parity.execution.changes import Call, Change, OpChange
from parity.execution.op_values import OpValue
from parity.lora.adapter import LoraAdapter, LoraTarget


def adapted(segment: Segment, adapter: LoraAdapter | None) -> Iterator[Change]:
    """Add what an adapter does to layers of the segment: where it is missing, or as often as a wrong scale lacks."""
    if adapter is None:
        return
    found = {path: op for op in segment.ops for path in _paths(op) if path in adapter.targets and _is_matmul(op)}
    if not found:
        return
    alone: list[tuple[str, ...]] = [(path,) for path in found]
    for words, bug, share in _SHARES:
        for paths in (*alone, *([tuple(found)] if len(found) > 1 else [])):
            yield _adapted(segment, found, paths, adapter, words, bug, share)
    for one, other in itertools.combinations(found, 2):
        a, b = adapter.targets[one], adapter.targets[other]
        if (a.A.shape, a.B.shape) == (b.A.shape, b.B.shape):
            yield _exchanged(segment, found, (one, a), (other, b))


Layer = tuple[str, LoraTarget]


def _exchanged(segment: Segment, found: dict[str, OpValue], one: Layer, other: Layer) -> Change:
    """Give two layers each other's LoRA."""
    ops, roots = {}, []
    for (path, own), (_, foreign) in ((one, other), (other, one)):
        mine, theirs = (_stored(segment, path, target) for target in (own, foreign))
        roots += [*mine, *theirs]
        less = _with_delta(*theirs, -foreign.scaling)
        more = _with_delta(*mine, own.scaling)
        ops[found[path].op.number] = OpChange(found[path].op.name, _both(more, less))
    words = f"the LoRA of {one[0]} and of {other[0]} exchanged"
    return Change(words, (), ops, bug="lora_exchanged", roots=tuple(roots))


def _both(one: Callable[[Call], Call], other: Callable[[Call], Call]) -> Callable[[Call], Call]:
    return lambda call: other(one(call))


def _stored(segment: Segment, path: str, target: LoraTarget) -> tuple[Tensor, Tensor]:
    """Return A and B as they are stored when they are applied: in the weight's dtype."""
    weight = segment.held[f"{path}.weight"]
    return target.A.to(weight.device, weight.dtype), target.B.to(weight.device, weight.dtype)


_SHARES: tuple[tuple[str, str, Callable[[LoraTarget], float]], ...] = (
    ("the LoRA applied to {}", "lora_missing", lambda t: 1.0),
    ("the scale of the LoRA on {}, not 1", "lora_scale", lambda t: 1 - 1 / t.scaling if t.scaling else 0.0),
    ("alpha / sqrt(r) for alpha / r in the LoRA on {}", "lora_scale", lambda t: 1 - t.rank**-0.5),
    ("alpha / r for alpha / sqrt(r) in the LoRA on {}", "lora_scale", lambda t: 1 - t.rank**0.5),
    ("the LoRA on {} applied once, not twice", "lora_scale", lambda t: -1.0),
)


def _adapted(
    segment: Segment, found: dict[str, OpValue], paths: Sequence[str], adapter: LoraAdapter, words: str, bug: str,
    share: Callable[[LoraTarget], float],
) -> Change:  # fmt: skip
    ops, roots = {}, []
    for path in paths:
        op, target = found[path], adapter.targets[path]
        A, B = _stored(segment, path, target)
        roots += [A, B]
        ops[op.op.number] = OpChange(op.op.name, _with_delta(A, B, target.scaling * share(target)))
    named = paths[0] if len(paths) == 1 else f"{len(paths)} layers"
    return Change(words.format(named), (), ops, bug=bug, roots=tuple(roots))


def _with_delta(A: Tensor, B: Tensor, scale: float) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        func = held[0]

        def summed(*args: Any, **kwargs: Any) -> Tensor:
            x = args[1] if len(args) > 2 else args[0]
            low = F.linear(F.linear(x.to(A.dtype), A), B) * scale
            out: Tensor = func(*args, **kwargs)
            return out + low.to(out.dtype)

        return summed, held[1], held[2]

    return call


def _paths(op: OpValue) -> list[str]:
    return [w.removesuffix(".weight") for w in op.weights if w.endswith(".weight")]


def _is_matmul(op: OpValue) -> bool:
    return op.op.name in ("addmm", "mm")
