"""Precision edits: one op of a forward rounds where it did not, or does not where it did; nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from parity.execution.ops import OpNumbers, OpTracer, memory_of
from parity.execution.rules import Rule, rule_of
from parity.execution.storage import bits, is_float

Kind = Literal["round", "low", "keep", "split", "tf32", "given"]
"""round: the output is rounded. low: the op runs in the lower dtype. keep: its output is not rounded before the next op
reads it. split: a bias is added in a second op. tf32: a product rounds its float32 operands to 10 bits. given: what the
model is given is rounded before the op reads it."""

KINDS: tuple[Kind, ...] = ("low", "round", "keep", "split", "tf32")
"""Those that are of an op alone, whatever the model is given."""
_OF_NUMBERS = frozenset({"mul", "div", "add", "sub", "neg", "pow"})
PRODUCTS = frozenset({"addmm", "mm", "bmm", "baddbmm", "convolution"})
_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
_BIASED = frozenset({"addmm", "convolution"})
_WHOLE_KERNELS = ("_scaled_dot_product", "_flash_attention", "_efficient_attention")


@dataclass(frozen=True)
class Edit:
    """One edit of one op.

    Args:
        op: its number in the forward. kind: what is changed. dtype: what `round`, `low` and `given` round to.
        memory: of the input that `given` rounds.
    """

    op: int
    kind: Kind
    dtype: torch.dtype = torch.bfloat16
    memory: int = -1


@dataclass(frozen=True)
class Given:
    """One tensor that a model is given: its name among the inputs, and the memory it lies in."""

    name: str
    memory: int


def given(inputs: Mapping[str, Any]) -> dict[int, Given]:
    """Return what a model is given, by the memory that each tensor lies in."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return {memory_of(value): Given(name, memory_of(value)) for name, value in tensors.items()}


class EditedForward(OpNumbers):
    """Run a forward with some ops edited. Values keep their dtypes and strides: what a model asks of them stays true.

    Args:
        edits: by op number.
    """

    def __init__(self, edits: Mapping[int, Edit]) -> None:
        super().__init__()
        self._edits = edits
        self._kept = WeakTensorKeyDictionary()

    def op(self, number: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one op, edited or on unrounded inputs where there are such."""
        edit = self._edits.get(number)
        if edit is None and not self._kept:
            return func(*args, **kwargs)
        rule = rule_of(func)
        if edit is not None and edit.kind == "given":
            args, kwargs, edit = (*_rounded_given((args, kwargs), edit), None)
        from_kept = bool(self._kept) and any(t in self._kept for t in _tensors((args, kwargs)))
        before = args[0].clone() if edit is not None and rule.writes and isinstance(args[0], Tensor) else None
        out = func(*args, **kwargs)
        high = self._carry(rule, func, args, kwargs, out) if from_kept and not rule.writes else None
        if edit is not None:
            self._edit(edit, rule, func, args if before is None else (before, *args[1:]), kwargs, out, high)
        return out

    def _carry(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any) -> Tensor | None:
        """Compute an op from the unrounded values of its inputs: moving them hands them on, all else rounds."""
        moves = rule.view or (rule.moves and not rule.cast)
        high = _tensors(_run(func, self._lifted(args, rule.view), self._lifted(kwargs, rule.view), rule))
        for o, h in zip(_tensors(out), high, strict=False):
            if moves and h.dtype != o.dtype:
                self._kept[o] = h
            if not rule.view and is_float(o) and h.shape == o.shape:
                o.copy_(h)
        return high[0] if high else None

    def _lifted(self, held: Any, exact: bool) -> Any:
        """Replace kept tensors by their unrounded values; for computing, all others get a wide dtype too."""
        wide = max((v.dtype for v in self._kept.values()), key=bits)

        def lift(t: Any) -> Any:
            if not isinstance(t, Tensor) or not is_float(t) or t.is_complex():
                return t
            kept = self._kept.get(t)
            if exact:
                return t if kept is None else kept
            return (t if kept is None else kept).to(torch.promote_types(t.dtype, wide))

        return _pytree.tree_map(lift, held)

    def _edit(self, edit: Edit, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any, high: Tensor | None) -> None:
        target = next((t for t in _tensors(out) if is_float(t)), None)
        if target is None:
            return
        if edit.kind == "round":
            target.copy_(target.to(edit.dtype))
        elif edit.kind == "keep":
            high = unrounded(rule, func, args, kwargs) if high is None else high
            if high is not None and not rule.writes:
                self._kept[target] = high
        elif edit.kind == "low":
            target.copy_(_first(_run(func, to_dtype(args, edit.dtype), to_dtype(kwargs, edit.dtype), rule)))
        elif edit.kind == "tf32":
            target.copy_(_first(func(*_pytree.tree_map(_to_tf32, args), **kwargs)))
        else:
            target.copy_(split_bias(rule, args, kwargs, func))


def _rounded_given(held: tuple[Any, Any], edit: Edit) -> tuple[Any, Any]:
    def rounded(t: Any) -> Any:
        return t.to(edit.dtype).to(t.dtype) if isinstance(t, Tensor) and memory_of(t) == edit.memory else t

    found: tuple[Any, Any] = _pytree.tree_map(rounded, held)
    return found


def to_tf32(value: Tensor) -> Tensor:
    """Round float32 to the 10 explicit bits that TF32 keeps, to nearest.

    By a split that leaves a wider shadow as it is.
    """
    scaled = value * 8193.0
    return scaled - (scaled - value)


def _to_tf32(held: Any) -> Any:
    """Round a matrix; a bias is added in float32."""
    matrix = isinstance(held, Tensor) and held.dtype == torch.float32 and held.dim() > 1
    return to_tf32(held) if matrix else held


def _tensors(held: Any) -> list[Tensor]:
    return [t for t in _pytree.tree_leaves(held) if isinstance(t, Tensor)]


def _first(held: Any) -> Tensor:
    return next(iter(_tensors(held)))


def _run(func: Any, args: Any, kwargs: Any, rule: Rule) -> Any:
    """Run an op on operands of another dtype; a dtype it was told to give is that of its operands."""
    told = kwargs.get("dtype")
    if told is not None and told.is_floating_point and not rule.cast:
        wide = next((t.dtype for t in _tensors(args) if is_float(t)), told)
        kwargs = {**kwargs, "dtype": wide}
    return func(*args, **kwargs)


def to_dtype(held: Any, dtype: torch.dtype) -> Any:
    """Cast every real float tensor to a dtype."""

    def cast(t: Any) -> Any:
        return t.to(dtype) if isinstance(t, Tensor) and is_float(t) and not t.is_complex() else t

    return _pytree.tree_map(cast, held)


def unrounded(rule: Rule, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Return what an op gives before it rounds to its output's dtype; None where that cannot be told."""
    if rule.cast:
        source: Tensor = args[0]
        return source
    tensors = [t for t in _tensors((args, kwargs)) if is_float(t)]
    if not tensors or any(t.is_complex() for t in tensors):
        return None
    wide = _WIDER.get(max((t.dtype for t in tensors), key=bits))
    return None if wide is None else _first(_run(func, to_dtype(args, wide), to_dtype(kwargs, wide), rule))


def split_bias(rule: Rule, args: Any, kwargs: Any, func: Any) -> Tensor:
    """Compute a matmul or convolution and add its bias in a second op."""
    if rule.short == "addmm":
        return torch.add(torch.mm(args[1], args[2]), args[0])
    plain: Tensor = func(args[0], args[1], None, *args[3:], **kwargs)
    return torch.add(plain, args[2].view(1, -1, *[1] * (plain.dim() - 2)))


class EditTracer(OpTracer):
    """Trace a forward and note which edits of each op would change anything.

    Args:
        low: the dtype that wide values may be rounded to.
        inputs: what the model is given, by memory.

    Attributes:
        possible: op number to the kinds of edits that change its output's bits.
        reads: op number to what the model is given that it reads, and that would change if it were rounded.
    """

    def __init__(self, low: torch.dtype, inputs: Mapping[int, Given] | None = None) -> None:
        super().__init__()
        self.low, self._given = low, inputs or {}
        self.reads: dict[int, list[Given]] = {}
        self.possible: dict[int, frozenset[Kind]] = {}
        self._keepable = 0

    def look(self, number: int, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Note what could be edited at an op."""
        if self._given and not rule.writes:
            self._look_at_given(number, rule, args, kwargs)
        if rule.opaque or rule.random or out.is_complex() or (rule.moves and not rule.cast):
            return
        kinds: set[Kind] = set()
        if bits(out.dtype) > bits(self.low) and not rule.cast:
            if _changed(out, out.to(self.low)):
                kinds |= {"round", "low"}
            elif any(_changed(t, t.to(self.low)) for t in _tensors((args, kwargs)) if is_float(t)):
                kinds.add("low")
        if rule.writes:
            kinds &= {"round"}
        elif not rule.short.startswith(_WHOLE_KERNELS):
            # Behind what could be kept an op rounds, whether or not it rounds what it is given now.
            if self._rounds(rule, func, args, kwargs, out) or (self.trace.ops[number].inputs & self._keepable):
                kinds.add("keep")
                self._keepable |= 1 << number
            if rule.short in PRODUCTS and out.dtype == torch.float32:
                kinds.add("tf32")
            if rule.short in _BIASED and bits(out.dtype) <= bits(self.low) and _bias_of(rule, args) is not None:
                kinds.add("split")
        self.possible[number] = frozenset(kinds)

    def _look_at_given(self, number: int, rule: Rule, args: Any, kwargs: Any) -> None:
        """Note what the op reads of what the model is given; whole numbers only where they are computed with."""
        for t in _tensors((args, kwargs)):
            held = self._given.get(memory_of(t))
            numeric = is_float(t) or (t.dtype.is_signed and (rule.cast or rule.short in _OF_NUMBERS))
            if held is not None and numeric and not t.is_complex() and _changed(t, t.to(self.low)):
                self.reads.setdefault(number, []).append(held)

    def _rounds(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> bool:
        if rule.cast and (not is_float(args[0]) or bits(args[0].dtype) <= bits(out.dtype)):
            return False
        try:
            high = unrounded(rule, func, args, kwargs)
        except (RuntimeError, NotImplementedError, TypeError):
            return False
        return high is not None and high.shape == out.shape and _changed(high, out)


def _bias_of(rule: Rule, args: Any) -> Tensor | None:
    held = args[0] if rule.short == "addmm" else args[2]
    return held if isinstance(held, Tensor) and held.dim() == 1 else None


def _changed(value: Tensor, rounded: Tensor) -> bool:
    return not torch.equal(value, rounded.to(value.dtype))
