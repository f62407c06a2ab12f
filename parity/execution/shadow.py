"""Shadow execution: every op of a forward runs as written, and in high precision on the shadows of its inputs.

NSan's shadow values (arXiv 2102.12782) for torch: one pass through an unmodified model gives, at every point, what the
model computed and what exact arithmetic would have given. Two contracts, tested and checked on every run: the low
values are those of the plain forward, bit for bit; and a shadow that cannot be trusted is NaN, never a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parity.execution.binding import CONSTANTS, ShadowBinder
from parity.execution.decisions import Decisions
from parity.execution.equivalents import EQUIVALENTS, Call
from parity.execution.leaks import LeakWatch, caller_line
from parity.execution.memory import NAN, leaves, shadowable
from parity.execution.modes import Mode
from parity.execution.reuse import writes_into
from parity.execution.rules import Rule, dropout_on, is_draw, rule_of
from parity.execution.storage import BITS, ShadowTable, is_float

_STEPS = frozenset({"floor", "ceil", "trunc", "round", "sign", "sgn", "heaviside", "floor_divide"})
_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})
_SPLIT = frozenset({"frexp", "modf"})
_DTYPE_NAMES = {d: f" {str(d).removeprefix('torch.')}" for d in (*BITS, torch.complex64, torch.complex128)}


class Shadow(ShadowBinder, Mode):
    """Run a forward with shadows.

    Args:
        roots: tensors whose low values are exact: parameters, buffers, attributes and inputs.
        finer: more precise values of some roots by `id` (a float32 weight where the model stores its bfloat16 cast).
        dtype: shadow dtype; float32 for GPUs with slow float64. What is float64 in the model stays float64.
        decisions: records what floats decided (routing, masks), or replays another run's.
        exact_above: build mode: outputs above this many elements are taken as exact instead of shadowed.
        memory: shadows that earlier passes gave to what is still alive: tables made in `__init__` or a first call.
        as_stored: take those tables at their stored values instead.

    Attributes:
        events: what made shadows untrusted, with the line of the model and how often.
        kernels: how often each attention or custom op ran.
        dtypes: per segment, named by the tap it starts at, how often each op ran in which dtype ("addmm float32").
        ops: how many ops were shadowed.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        roots: Iterable[Tensor] = (),
        finer: Mapping[int, Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        decisions: Decisions | None = None,
        exact_above: int | None = None,
        memory: Sequence[ShadowTable] = (),
        as_stored: bool = False,
    ) -> None:
        Mode.__init__(self)  # type: ignore[no-untyped-call]
        ShadowBinder.__init__(self, roots, finer, dtype, memory, as_stored)
        self.decisions = decisions or Decisions()
        self.kernels: Counter[str] = Counter()
        self.dtypes: dict[str, Counter[str]] = {}
        self._segment: Counter[str] = self.dtypes.setdefault("", Counter())
        self.ops = 0
        self.exact_above = exact_above
        self.autocast = False
        self._watch = LeakWatch(self)

    def __enter__(self) -> Shadow:
        torch.clear_autocast_cache()  # weights it rounded before the pass have no shadow
        self._watch.__enter__()
        self._take_workspace()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._watch.__exit__(*exc)
        self._leave_workspace()

    def begin_segment(self, name: str) -> None:
        """Start the segment that ends at the next tap: leaks of the last one no longer count."""
        self._leak = None
        self._segment = self.dtypes.setdefault(name, Counter())
        self.decisions.begin_segment(name)

    def leak(self, what: str) -> None:
        """Note that float values left torch: numbers made of them are not trusted until the next tap."""
        self._leak = f"{what} at {caller_line()}"
        self.events[f"{self._leak}: numbers computed from it are not shadowed"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types and any(t is not Tensor and t is not torch.nn.Parameter for t in types):
            return NotImplemented  # a tensor subclass runs its own ops, which come back here one by one
        rule = rule_of(func)
        if rule.composite:
            with torch._C.DisableTorchFunction(), _Again(self):
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._slot = 0
        if rule.writes and (targets := self._targets(rule, args, kwargs)):
            return self._mutate(rule, func, args, kwargs, targets)
        if rule.scalar:
            return self._scalar(rule, func, args, kwargs)
        out = func(*args, **kwargs)
        if rule.decides:
            out = self.decisions.take(rule, args, kwargs, out)
        if not rule.view:
            self._shadow_outputs(rule, func, args, kwargs, out)
        return out

    def _shadow_outputs(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs = [out] if isinstance(out, Tensor) else [o for o in leaves(out) if isinstance(o, Tensor)]
        fresh = [o for o in outs if self._needs_shadow(o)]
        if not fresh:
            if outs and (rule.cast or self.quantised):
                self._integers(rule, func, args, kwargs, outs[0])
            return
        if rule.opaque or rule.short.startswith("_scaled_dot_product"):
            self.kernels[rule.name] += 1
        given = leaves((args, kwargs) if kwargs else args)
        if len(outs) == 1 and rule.cast:
            self._cast(args[0], out)
        elif (why := self._untrusted(rule, args, kwargs, given)) is not None:
            self._distrust(rule, fresh, why)
        elif rule.random and is_draw(rule):
            for o in fresh:
                self._bind(rule, o, o.to(self._high_dtype(o)))
        elif rule.short.startswith(("empty", "new_empty")):
            self._filled(fresh[0], NAN)
        elif rule.short in CONSTANTS and self._leak is None:
            self._constant(rule, func, args, kwargs, fresh[0])
        else:
            self._compute(rule, func, args, kwargs, out, outs, given)

    def _untrusted(self, rule: Rule, args: Any, kwargs: Any, given: list[Any]) -> str | None:
        """Say why the outputs of an op, given these leaves, cannot be shadowed, None where they can."""
        if rule.opaque:
            return f"{rule.name} has no registered high-precision equivalent"
        if rule.short in _SPLIT:
            return f"{rule.name} splits a value into parts that belong together"
        if any(isinstance(a, Tensor) and is_float(a) and not shadowable(a) for a in given):
            return f"{rule.name} reads a tensor that has no strided memory"
        if rule.random and not is_draw(rule):
            return f"{rule.name} draws inside"
        if dropout_on(rule, args, kwargs):
            return f"{rule.name} with dropout draws inside the kernel"
        if self._leak is not None and any(isinstance(a, (float, complex)) for a in given):
            return f"{rule.name} with a number, after {self._leak}"
        return None

    def _compute(
        self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any, outs: list[Tensor], given: list[Any]
    ) -> None:
        self.ops += 1
        self._segment[rule.short + _DTYPE_NAMES.get(outs[0].dtype, " other")] += 1
        try:
            highs = self._high_outputs(rule, func, args, kwargs, out, given)
        except (RuntimeError, NotImplementedError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            first = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            lost = [o for o in outs if self._needs_shadow(o)]
            self._distrust(rule, lost, f"{rule.name} does not run in high: {first}")
            return
        for low, high in zip(outs, highs, strict=False):
            if len(outs) == 1 or self._needs_shadow(low):
                if isinstance(high, Tensor) and high.shape == low.shape and is_float(high):
                    self._bind(rule, low, high)
                    if rule.short == "round" or self.quantised:
                        self._keep_unrounded(rule, func, args, kwargs, low)
                elif high is not None or not rule.short.startswith("_scaled_dot"):
                    self._distrust(rule, [low], f"{rule.name} gives another shape in high")

    def _high_outputs(
        self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any, given: list[Any]
    ) -> list[Any]:
        if not any(isinstance(a, Tensor) and (is_float(a) or self._carries(a)) for a in given):
            # From integers and numbers alone: torch would compute in its default dtype.
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                return _tensors(func(*self._map(args), **self._map_kwargs(kwargs)))
            finally:
                torch.set_default_dtype(before)
        high, named = self._map(args), self._map_kwargs(kwargs)
        if rule.equivalent is not None:
            return list(rule.equivalent(Call(rule.name, args, kwargs, out, high, named)))
        if rule.short == "div" and named.get("rounding_mode") is not None:
            return [out.to(self._high_dtype(out))]
        if rule.short in ("_log_softmax",):
            high = (*high[:2], False)
        into = writes_into(func, out)
        if into is not None and (spare := self.table.spare.take(out, self._high_dtype(out))) is not None:
            return [into(*high, **named, out=spare)]
        return _tensors(func(*high, **named))

    def _scalar(self, rule: Rule, func: Any, args: Any, kwargs: Any) -> Any:
        source = args[0]
        if is_float(source) and not self.is_exact(source):
            self.leak("item")
        return func(*args, **kwargs)

    def _targets(self, rule: Rule, args: Any, kwargs: Any) -> list[Tensor]:
        """List the tensors an op writes."""
        written = [args[i] for i in rule.writes if isinstance(i, int) and i < len(args)]
        written += [kwargs[k] for k in rule.writes if isinstance(k, str) and k in kwargs]
        return [t for t in leaves(written) if isinstance(t, Tensor) and shadowable(t)]

    def _mutate(self, rule: Rule, func: Any, args: Any, kwargs: Any, targets: list[Tensor]) -> Any:
        for t in targets:
            if not is_float(t):
                self._reinterpreted(t)
        floats = [t for t in targets if is_float(t)]
        if not floats:
            return func(*args, **kwargs)
        if self.exact_above is not None and any(t.numel() > self.exact_above for t in floats):
            self.declare(floats)
            return func(*args, **kwargs)
        if rule.random or rule.opaque:
            out = func(*args, **kwargs)
            for t in floats:
                if rule.opaque or not is_draw(rule):
                    cause = "writes without a registered equivalent" if rule.opaque else "draws inside"
                    self._distrust(rule, [t], f"{rule.name} {cause}", written=True)
                else:
                    self._write(t, t)
            return out
        why = self._untrusted(rule, args, kwargs, leaves((args, kwargs)))
        views = {id(t): self._writable(t, whole=rule.short in _OVERWRITES) for t in floats}
        views.update({id(t): t.clone() for t in targets if not is_float(t)})  # indices stay the low side's
        decides = rule.equivalent is not None or rule.name[:-1] in EQUIVALENTS
        before = tuple(a.clone() if decides and isinstance(a, Tensor) and id(a) in views else a for a in args)
        try:
            high, named = self._map(args, views), self._map_kwargs(kwargs, views)
            out = func(*args, **kwargs)
            call = Call(rule.name, before, kwargs, out, high, named)
            self._mutate_high(rule, func, call, floats, views)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "out" not in locals():
                raise
            why = f"{rule.name} does not run in high: {str(error).splitlines()[0][:100]}"
        if why is not None:
            self._distrust(rule, floats, why, written=True)
        outs = [o for o in leaves(out) if isinstance(o, Tensor) and self._needs_shadow(o)]
        if outs:
            self._distrust(rule, outs, f"{rule.name} writes and returns")
        return out

    def _mutate_high(self, rule: Rule, func: Any, call: Call, floats: list[Tensor], views: Any) -> None:
        self.ops += 1
        high, named = call.high, call.high_kwargs
        same = rule.equivalent or (EQUIVALENTS.get(rule.name[:-1]) if rule.name.endswith("_") else None)
        if same is not None and rule.short.rstrip("_") not in _STEPS:
            values = [v for v in same(call) if isinstance(v, Tensor) and is_float(v)]
            for t, value in zip(floats, values, strict=True):
                views[id(t)].copy_(value)
                self._written(rule, views[id(t)], t, call.low)
            return
        if rule.short.rstrip("_") in _STEPS or named.get("rounding_mode") is not None:
            for t in floats:
                view = views[id(t)]
                view.copy_(torch.where(view.isnan(), NAN, t.to(view.dtype)))
            return
        func(*high, **named)
        for t in floats:
            self._written(rule, views[id(t)], t, call.low)

    def _written(self, rule: Rule, view: Tensor, low: Tensor, args: Any) -> None:
        """Give a subclass the values an op wrote in place."""


class _Again:
    """Push the mode without entering its own context a second time."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        Mode.__enter__(self._mode)  # type: ignore[no-untyped-call]

    def __exit__(self, *exc: Any) -> None:
        Mode.__exit__(self._mode, *exc)  # type: ignore[no-untyped-call]


def _tensors(value: Any) -> list[Any]:
    return [value] if isinstance(value, Tensor) else list(leaves(value))
