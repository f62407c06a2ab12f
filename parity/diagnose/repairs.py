"""What could be wrong at a faulty tap: changes of the native's ops and of the parameters its segment reads."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
        yield from (change(f"eps {eps:g} in `{name}`", _argument(_EPS_AT[name], eps)) for eps in _EPS)
    elif name in ("gelu", "silu", "relu", "sigmoid"):
        yield from (change(f"{words} for `{name}`", _other(other)) for words, other in _ACTIVATIONS.items())
    elif name.startswith("_scaled_dot_product"):
        yield from _attention(name, change)
    elif name in ("mul", "add", "sub", "div"):
        yield from _arithmetic(name, change)
    elif name in _OTHER:
        words, other = _OTHER[name]
        yield change(f"`{words}` for `{name}`", _other((other, (), {})))
    elif name == "neg":
        yield change("no `neg`", result=lambda out: -out)
    elif name in ("cat", "stack"):
        yield change(f"the parts of `{name}` in the other order", _reversed_parts)
        yield from (
            change(f"parts {i} and {k} of `{name}` exchanged", _exchanged_parts(i, k))
            for i, k in itertools.combinations(range(4), 2)
        )
    if op.op.rule.moves is False and name not in ("cat", "stack"):
        yield change(f"the result of `{name}` with the other sign", result=_negated)


def _attention(name: str, change: Callable[..., Change]) -> Iterator[Change]:
    def scaled(power: float, of: float = 1.0) -> Callable[[Call], Call]:
        return lambda call: (call[0], call[1], {**call[2], "scale": of * call[1][0].shape[-1] ** power})

    yield change("the softmax scale head_dim^-0.5", scaled(-0.5))
    yield change("the softmax scale 1", scaled(0.0))
    yield change("the softmax scale head_dim^-1", scaled(-1.0))
    yield change("no attention mask", lambda call: (call[0], call[1], {**call[2], "attn_mask": None}))
    place = 4 if name.endswith("for_cpu") else 5
    for causal in (True, False):
        yield change(f"{'causal' if causal else 'full'} attention", _argument(place, causal))


def _arithmetic(name: str, change: Callable[..., Change]) -> Iterator[Change]:
    yield change(f"without the small number of `{name}`, or another", _other_eps(1e-6))
    yield from (change(f"{eps:g} added by `{name}`", _other_eps(eps)) for eps in _EPS)
    if name == "mul":
        yield change("`(1 + second)` for the second factor of `mul`", _operand(1, lambda t: t + 1))
        yield change("`(1 + first)` for the first factor of `mul`", _operand(0, lambda t: t + 1))
        yield change("the second factor of `mul` less 1", _operand(1, lambda t: t - 1))
        yield from (change(f"{n} factor of `mul` left out", _only(i)) for i, n in ((0, "second"), (1, "first")))
        yield from (change(f"the number of `mul` {w}", _number(f)) for w, f in _NUMBERS.items())
    else:
        other = aten.sub.Tensor if name == "add" else aten.add.Tensor
        if name != "div":
            yield change(f"`{'sub' if name == 'add' else 'add'}` for `{name}`", _other((other, (), {}), 2))
        yield change(f"second operand of `{name}` left out", _only(0))
        yield change(f"first operand of `{name}` left out", _only(1))
        yield change(f"the operands of `{name}` exchanged", lambda call: (call[0], (call[1][1], call[1][0]), call[2]))


_NUMBERS: dict[str, Callable[[float], float]] = {
    "inverted": lambda k: 1 / k if k else k,
    "times 1000": lambda k: 1000 * k,
    "divided by 1000": lambda k: k / 1000,
    "doubled": lambda k: 2 * k,
    "halved": lambda k: k / 2,
}


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


def split_changes(splits: Mapping[int, tuple[str, int]]) -> Iterator[Change]:
    """List the orders in which the parts of a tensor could have been meant."""
    for number, (name, count) in splits.items():
        for i, k in itertools.combinations(range(min(count, 6)), 2):
            words = f"parts {i} and {k} of {count} exchanged"
            yield Change(words, (), {number: OpChange(name, result=_exchanged(i, k))})


def parameter_changes(names: Sequence[str], held: Mapping[str, Tensor], heads: int = 0) -> Iterator[Change]:
    """List what could be wrong with the parameters a segment reads: another's, in another order, scaled.

    Args:
        names: what the segment reads.
        held: all of the model's.
        heads: of attention, 0 where unknown.
    """
    yield from _swapped(names, held)
    for name in names:
        p = held[name]
        for words, new in _forms(p, heads):
            yield Change(f"{name} {words}", ((p, new),))


def _swapped(names: Sequence[str], held: Mapping[str, Tensor]) -> Iterator[Change]:
    modules = list(dict.fromkeys(n.rpartition(".")[0] for n in names))
    own = {m: {n.rpartition(".")[2]: p for n, p in held.items() if n.rpartition(".")[0] == m} for m in modules}
    done: set[frozenset[str]] = set()
    for one, other in ((m, o) for m in modules for o in _same_block(m, held)):
        mine, theirs = own[one], {n.rpartition(".")[2]: p for n, p in held.items() if n.rpartition(".")[0] == other}
        if frozenset((one, other)) in done or not _alike(mine, theirs):
            continue
        done.add(frozenset((one, other)))
        pairs = [(mine[k], theirs[k]) for k in mine]
        instead = [(a, b.detach().clone()) for a, b in (*pairs, *((b, a) for a, b in pairs))]
        yield Change(f"{one} and {other} exchanged", tuple(instead))


def _same_block(module: str, held: Mapping[str, Tensor]) -> list[str]:
    found = re.match(r"(.*?\.\d+)\.", module + ".")
    prefix = f"{found[1]}." if found else ""
    others = dict.fromkeys(n.rpartition(".")[0] for n in held if n.startswith(prefix))
    return [o for o in others if o != module and (prefix or not re.search(r"\.\d+\.", o))]


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return bool(one) and {k: (p.shape, p.dtype) for k, p in one.items()} == {
        k: (p.shape, p.dtype) for k, p in other.items()
    }


def _forms(p: Tensor, heads: int) -> Iterator[tuple[str, Tensor]]:
    """List other forms of a parameter, each in its shape."""
    p = p.detach()
    if p.dim() == 2 and p.shape[0] == p.shape[1]:
        yield "transposed", p.t().contiguous()
    if p.dim() == 1:
        yield "plus 1", p + 1
        yield "less 1", p - 1
    for dim in range(min(p.dim(), 2)):
        size, axis = p.shape[dim], ("rows" if p.dim() > 1 else "values", "columns")[dim]
        for parts in (2, 3, 6):
            if size % parts == 0 and size > parts:
                yield f"with its {parts} chunks of {axis} reversed", torch.cat(p.chunk(parts, dim)[::-1], dim)
        if size % 2 == 0 and size > 2:
            pairs = p.unflatten(dim, (2, size // 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)
            yield f"with its halves of {axis} interleaved", pairs
            halves = p.unflatten(dim, (size // 2, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)
            yield f"with its pairs of {axis} taken apart into halves", halves
        if heads > 1 and size % heads == 0:
            each = size // heads
            yield from ((f"rolled by {s} heads of {axis}", p.roll(s * each, dim)) for s in (1, -1))
            within = p.unflatten(dim, (each, heads)).transpose(dim, dim + 1).flatten(dim, dim + 1)
            yield f"with {axis} ordered by head first", within
    yield from ((f"times {c:g}", p * c) for c in (-1.0, 2.0, 0.5))


# --- calls ------------------------------------------------------------------------------------------------------------


def _argument(place: int, value: Any) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        args = [*held[1], *[False] * (place + 1 - len(held[1]))]
        args[place] = value
        return held[0], tuple(args), held[2]

    return call


def _other(other: Call, arguments: int = 1) -> Callable[[Call], Call]:
    return lambda call: (other[0], call[1][:arguments], other[2])


def _operand(place: int, change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        args = list(held[1])
        args[place] = change(args[place])
        return held[0], tuple(args), held[2]

    return call


def _only(place: int) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        kept, other = held[1][place], held[1][1 - place]
        shape = torch.broadcast_shapes(*(t.shape for t in (kept, other) if isinstance(t, Tensor)))
        if not isinstance(kept, Tensor):
            return held
        return aten.clone.default, (kept.expand(shape),), {}

    return call


def _other_eps(eps: float) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        small = isinstance(held[1][1], float) and 0 < held[1][1] < 1e-2
        return (held[0], (held[1][0], eps, *held[1][2:]), held[2]) if small else held

    return call


def _number(change: Callable[[float], float]) -> Callable[[Call], Call]:
    return _operand(1, lambda k: change(float(k)) if isinstance(k, (int, float)) else k)


def _reversed_parts(call: Call) -> Call:
    return call[0], (list(call[1][0])[::-1], *call[1][1:]), call[2]


def _exchanged_parts(i: int, k: int) -> Callable[[Call], Call]:
    def call(held: Call) -> Call:
        parts = list(held[1][0])
        if k < len(parts):
            parts[i], parts[k] = parts[k], parts[i]
        return held[0], (parts, *held[1][1:]), held[2]

    return call


def _exchanged(i: int, k: int) -> Callable[[Any], Any]:
    def result(out: Any) -> Any:
        parts = list(out)
        if parts[i].shape == parts[k].shape:
            parts[i], parts[k] = parts[k], parts[i]
        return type(out)(parts)

    return result


def _negated(out: Any) -> Any:
    return -out if isinstance(out, Tensor) else type(out)((-out[0], *out[1:]))
