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
from torch.utils._python_dispatch import TorchDispatchMode

from parity.execution.decisions import Decisions
from parity.execution.equivalents import Call
from parity.execution.leaks import LeakWatch, caller_line
from parity.execution.rules import Rule, is_draw, rule_of
from parity.execution.storage import BITS, Entry, ShadowTable, geometry, is_float, real_dtype, view_like

NAN = float("nan")
_WIDE = {torch.float64: torch.complex128, torch.float32: torch.complex64}
_WORKSPACE_FROM = 1 << 15
"""Elements from which an upcast root goes to a reused buffer: fresh memory is the main cost of an upcast."""


class Shadow(TorchDispatchMode):
    """Run a forward with shadows.

    Args:
        roots: tensors whose low values are exact: parameters, buffers, attributes and inputs.
        finer: more precise values of some roots (a float32 weight where the model stores its bfloat16 cast).
        dtype: shadow dtype; float32 for GPUs with slow float64. What is float64 in the model stays float64.
        decisions: records what floats decided (routing, masks), or replays another run's.
        exact_above: build mode: outputs above this many elements are taken as exact instead of shadowed.
        memory: shadows that earlier passes gave to what is still alive: tables made in `__init__` or a first call.
        as_stored: take those tables at their stored values instead.

    Attributes:
        events: what made shadows untrusted, with the line of the model and how often.
        kernels: how often each attention op ran.
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
        super().__init__()
        self.table = ShadowTable(dtype)
        self.decisions = decisions or Decisions()
        self.events: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.dtypes: dict[str, Counter[str]] = {}
        self._segment: Counter[str] = self.dtypes.setdefault("", Counter())
        self.ops = 0
        self._roots: dict[int, Tensor] = {}
        self._finer: dict[int, tuple[Tensor, Tensor]] = {}
        self._exact_above = exact_above
        self._memory, self._as_stored = tuple(memory), as_stored
        self._work: list[Tensor] = []
        self._slot = 0
        self._leak: str | None = None
        self._watch = LeakWatch(self)
        self._upcast = {torch.complex64: _WIDE[dtype], torch.complex32: _WIDE[dtype]}
        self.declare(roots, finer)

    # --- public ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Shadow:
        self._watch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._watch.__exit__(*exc)
        self._work.clear()

    def declare(self, roots: Iterable[Tensor], finer: Mapping[int, Tensor] | None = None) -> None:
        """Take tensors as exact: their low values, or the finer ones given by `id` of the tensor."""
        for root in roots:
            if not _shadowable(root):
                continue
            key = root.untyped_storage()._cdata
            self._roots.setdefault(key, root)
            better = finer.get(id(root)) if finer else None
            if better is not None:
                self._finer[key] = (root, better)

    def high(self, tensor: Tensor) -> Tensor:
        """Return the shadow values of a tensor, NaN where they are not trusted. Read only."""
        return self._high(tensor)

    def exact(self, tensor: Tensor) -> None:
        """Take the tensor's values as they are now as the truth (a restart, a declared constant)."""
        self._write(tensor, tensor)

    def assign(self, tensor: Tensor, high: Tensor) -> None:
        """Give the tensor these shadow values."""
        self._write(tensor, high)

    def begin_segment(self, name: str) -> None:
        """Start the segment that ends at the next tap: leaks of the last one no longer count."""
        self._leak = None
        self._segment = self.dtypes.setdefault(name, Counter())
        self.decisions.begin_segment(name)

    def leak(self, what: str) -> None:
        """Note that float values left torch: numbers made of them are not trusted until the next tap."""
        self._leak = f"{what} at {caller_line()}"
        self.events[f"{self._leak}: numbers computed from it are not shadowed"] += 1

    def knows(self, tensor: Tensor) -> bool:
        """Say whether the tensor's storage has a shadow or is a root."""
        key = tensor.untyped_storage()._cdata
        return key in self.table.entries or key in self._roots or any(key in t.entries for t in self._memory)

    def is_exact(self, tensor: Tensor) -> bool:
        """Say whether a tensor's low values are its high values."""
        with torch.utils._python_dispatch._disable_current_modes():
            return not _shadowable(tensor) or bool((self._high(tensor) == tensor).all())

    def constant(self, tensor: Tensor, exact: Tensor | None) -> None:
        """Take a tensor made of Python numbers or arrays as a constant, with its exact values where they are known."""
        with torch.utils._python_dispatch._disable_current_modes():
            same = exact is not None and exact.shape == tensor.shape
            self._write(tensor, exact.to(tensor.device) if same and exact is not None else tensor)

    @property
    def leaked(self) -> str | None:
        """What left torch in this segment, if anything did."""
        return self._leak

    # --- dispatch ----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(t is not Tensor and t is not torch.nn.Parameter for t in types):
            return NotImplemented  # a tensor subclass runs its own ops, which come back here one by one
        rule = rule_of(func)
        if rule.composite:
            with torch._C.DisableTorchFunction(), _Again(self):
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._slot = 0
        if rule.writes:
            return self._mutate(rule, func, args, kwargs)
        if rule.scalar:
            return self._scalar(rule, func, args, kwargs)
        out = func(*args, **kwargs)
        if rule.decides:
            out = self.decisions.take(rule, args, kwargs, out)
        if not rule.view:
            self._shadow_outputs(rule, func, args, kwargs, out)
        return out

    def _shadow_outputs(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs = [out] if isinstance(out, Tensor) else [o for o in _leaves(out) if isinstance(o, Tensor)]
        fresh = [o for o in outs if self._needs_shadow(o)]
        if not fresh:
            if outs and (rule.cast or rule.short == "_int_mm"):
                self._integers(rule, args, kwargs, outs[0])
            return
        if rule.short.startswith("_scaled_dot_product") or rule.opaque:
            self.kernels[rule.name] += 1
        if len(outs) == 1 and rule.cast:
            self._cast(args[0], out)
        elif (why := self._untrusted(rule, func, args, kwargs)) is not None:
            self._distrust(rule, fresh, why)
        elif rule.random and is_draw(rule):
            for o in fresh:
                self._bind(rule, o, o.to(self._high_dtype(o)))
        elif rule.short.startswith("empty") or rule.short == "new_empty":
            self._filled(fresh[0], NAN)
        elif rule.short in _CONSTANTS and self._leak is None:
            self._constant(rule, func, args, kwargs, fresh[0])
        else:
            self._compute(rule, func, args, kwargs, out, outs)

    def _needs_shadow(self, out: Tensor) -> bool:
        if not is_float(out) or not _shadowable(out):
            return False
        if self.knows(out):
            return False  # an alias of something that has one
        return self._exact_above is None or out.numel() <= self._exact_above

    def _untrusted(self, rule: Rule, func: Any, args: Any, kwargs: Any) -> str | None:
        """Say why an op's outputs cannot be shadowed, None where they can."""
        if rule.opaque:
            return f"{rule.name} has no registered high-precision equivalent"
        if rule.random and not is_draw(rule):
            return f"{rule.name} draws inside"
        if _dropout_on(rule, args, kwargs):
            return f"{rule.name} with dropout draws inside the kernel"
        if self._leak is not None and any(isinstance(a, (float, complex)) for a in _leaves((args, kwargs))):
            return f"{rule.name} with a number, after {self._leak}"
        return None

    def _compute(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any, outs: list[Tensor]) -> None:
        self.ops += 1
        self._segment[rule.short + _DTYPE_NAMES.get(outs[0].dtype, " other")] += 1
        try:
            highs = self._high_outputs(rule, func, args, kwargs, out)
        except (RuntimeError, NotImplementedError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            first = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            self._distrust(rule, [o for o in outs if self._needs_shadow(o)], f"{rule.name} does not run in high: {first}")
            return
        for low, high in zip(outs, highs):
            if self._needs_shadow(low):
                if isinstance(high, Tensor) and high.shape == low.shape and is_float(high):
                    self._bind(rule, low, high)
                    if rule.short in _QUANTISERS:
                        self._keep_unrounded(rule, args, low)
                elif high is not None or not rule.short.startswith("_scaled_dot"):
                    self._distrust(rule, [low], f"{rule.name} gives another shape in high")

    def _high_outputs(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Any) -> list[Any]:
        if not any(isinstance(a, Tensor) and (is_float(a) or self._carries(a)) for a in _leaves((args, kwargs))):
            # From integers and numbers alone: torch would compute in its default dtype.
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                return _leaves_list(func(*self._map(args), **self._map_kwargs(kwargs)))
            finally:
                torch.set_default_dtype(before)
        high, named = self._map(args), self._map_kwargs(kwargs)
        if rule.equivalent is not None:
            return list(rule.equivalent(Call(rule.name, args, kwargs, out, high, named)))
        if rule.short == "div" and named.get("rounding_mode") is not None:
            return [out.to(self._high_dtype(out))]
        if rule.short in ("_log_softmax",):
            high = (*high[:2], False)
        return _leaves_list(func(*high, **named))

    def _scalar(self, rule: Rule, func: Any, args: Any, kwargs: Any) -> Any:
        source = args[0]
        if is_float(source) and not self.is_exact(source):
            self.leak("item")
        return func(*args, **kwargs)

    def _keep_unrounded(self, rule: Rule, args: Any, low: Tensor) -> None:
        """Remember what a rounding rounded: a cast to int8 that follows is a down-cast, not a decision."""
        entry, source = self.table.find(low), args[0]
        if entry is None or not isinstance(source, Tensor) or not _shadowable(source):
            return
        if rule.short == "round":
            entry.step = self._high(source).clone()
        elif rule.short in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
            before = self.table.find(source)
            entry.step = before.step if before is not None else None

    # --- writing -----------------------------------------------------------------------------------------------------

    def _mutate(self, rule: Rule, func: Any, args: Any, kwargs: Any) -> Any:
        written = [args[i] for i in rule.writes if isinstance(i, int) and i < len(args)]
        written += [kwargs[k] for k in rule.writes if isinstance(k, str) and k in kwargs]
        targets = [t for t in _leaves(written) if isinstance(t, Tensor) and _shadowable(t)]
        for t in targets:
            if not is_float(t):
                self._reinterpreted(t)
        floats = [t for t in targets if is_float(t)]
        if not floats:
            return func(*args, **kwargs)
        if self._exact_above is not None and any(t.numel() > self._exact_above for t in floats):
            self.declare(floats)
            return func(*args, **kwargs)
        if rule.random or rule.opaque:
            out = func(*args, **kwargs)
            for t in floats:
                if rule.opaque:
                    self._distrust(rule, [t], f"{rule.name} writes without a registered equivalent", written=True)
                else:
                    self._write(t, t)
            return out
        why = self._untrusted(rule, func, args, kwargs)
        views = {id(t): self._writable(t, whole=rule.short in _OVERWRITES) for t in floats}
        try:
            high, named = self._map(args, views), self._map_kwargs(kwargs, views)
            out = func(*args, **kwargs)
            self._mutate_high(rule, func, high, named, floats, views)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "out" not in locals():
                raise
            why = f"{rule.name} does not run in high: {str(error).splitlines()[0][:100]}"
        if why is not None:
            self._distrust(rule, floats, why, written=True)
        outs = [o for o in _leaves(out) if isinstance(o, Tensor) and self._needs_shadow(o)]
        if outs:
            self._distrust(rule, outs, f"{rule.name} writes and returns")
        return out

    def _mutate_high(self, rule: Rule, func: Any, high: Any, named: Any, floats: list[Tensor], views: Any) -> None:
        self.ops += 1
        if rule.short.rstrip("_") in _STEPS or named.get("rounding_mode") is not None:
            for t in floats:
                view = views[id(t)]
                view.copy_(torch.where(view.isnan(), NAN, t.to(view.dtype)))
            return
        func(*high, **named)
        for t in floats:
            self._written(rule, views[id(t)], t)

    def _written(self, rule: Rule, view: Tensor, low: Tensor) -> None:
        """Give a subclass the values an op wrote in place."""

    def _writable(self, tensor: Tensor, whole: bool) -> Tensor:
        entry = self.table.find(tensor)
        if entry is None:
            key = tensor.untyped_storage()._cdata
            root = self._roots.get(key)
            remembered = next((t.entries[key] for t in self._memory if key in t.entries), None)
            entry = self.table.new(tensor)
            if remembered is not None and not self._as_stored:
                low: Any = self._copy_of(remembered)
            elif root is None:
                self._stray(tensor)
                low = None if whole else self._nan
            else:
                low = self._root_flat
        elif entry.source is not None or entry.fill is not None or entry.flat is not None:
            held = self._copy_of(entry)
            low = held
        else:
            low = self._nan
        return self.table.materialise(tensor, entry, low)

    def _copy_of(self, entry: Entry) -> Any:
        snapshot = Entry(entry.low_dtype)
        snapshot.flat, snapshot.fill, snapshot.source = entry.flat, entry.fill, entry.source
        return lambda whole: self.table.read(whole, snapshot)

    @staticmethod
    def _nan(whole: Tensor) -> Tensor:
        return torch.full_like(whole, NAN, dtype=torch.float64)

    def _root_flat(self, whole: Tensor) -> Tensor:
        finer = self._finer.get(whole.untyped_storage()._cdata)
        if finer is None:
            return whole
        flat = whole.to(self.table.high_dtype(whole.dtype))
        flat.as_strided(*geometry(finer[0])).copy_(finer[1])
        return flat

    def _write(self, tensor: Tensor, high: Tensor) -> None:
        if not _shadowable(tensor) or not is_float(tensor):
            return
        if self.table.find(tensor) is None and tensor.untyped_storage()._cdata not in self._roots:
            self.table.new(tensor).fill = NAN
        self._writable(tensor, whole=False).copy_(high)

    def _reinterpreted(self, tensor: Tensor) -> None:
        """An integer view of float memory is written: bits, not values; the floats are no longer trusted."""
        entry = self.table.find(tensor)
        if entry is None:
            return
        if entry.step is not None:
            del self.table.entries[tensor.untyped_storage()._cdata]
        elif entry.low_dtype != real_dtype(tensor.dtype):
            entry.flat, entry.owner, entry.source, entry.fill = None, None, None, NAN
            self.events[f"bits written through {tensor.dtype} at {caller_line()}"] += 1

    # --- reading -----------------------------------------------------------------------------------------------------

    def _high(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        entry = self.table.entries.get(key)
        if entry is not None:
            return self.table.read(tensor, entry)
        for table in self._memory:
            remembered = table.entries.get(key)
            if remembered is not None:
                return self._up(tensor) if self._as_stored else table.read(tensor, remembered).to(self._high_dtype(tensor))
        if key in self._roots:
            return self._root(key, tensor)
        return self._stray(tensor)

    def _root(self, key: int, tensor: Tensor) -> Tensor:
        finer = self._finer.get(key)
        if finer is not None:
            owner, better = finer
            if geometry(owner) == geometry(tensor):
                return self._up(better)
            whole = torch.empty_like(owner, dtype=self._high_dtype(owner)).copy_(better)
            return view_like(whole, tensor) if whole.stride() == owner.stride() else self._up(tensor)
        if real_dtype(self._roots[key].dtype) != real_dtype(tensor.dtype):
            return self._lost(tensor, f"a root read as {tensor.dtype}")
        return self._up(tensor)

    def _up(self, tensor: Tensor) -> Tensor:
        """Upcast a root for one op, into a reused buffer where it is large."""
        dtype = self._high_dtype(tensor)
        if tensor.dtype == dtype:
            return tensor
        if tensor.numel() < _WORKSPACE_FROM or tensor.is_complex():
            return tensor.to(dtype)
        slot, self._slot = self._slot, self._slot + 1
        while len(self._work) <= slot:
            self._work.append(torch.empty(0, dtype=dtype, device=tensor.device))
        if self._work[slot].numel() < tensor.numel() or self._work[slot].dtype != dtype or self._work[slot].device != tensor.device:
            self._work[slot] = torch.empty(tensor.numel(), dtype=dtype, device=tensor.device)
        flat = self._work[slot][: tensor.numel()]
        if tensor.dim() == 2 and tensor.stride(0) == 1 and tensor.stride(1) >= tensor.shape[0]:
            view = flat.view(tensor.shape[1], tensor.shape[0]).t()
        else:
            view = flat.view(tensor.shape)
        return view.copy_(tensor)

    def _stray(self, tensor: Tensor) -> Tensor:
        """A float tensor from nowhere: numpy, another thread, a kernel outside the dispatcher."""
        return self._lost(tensor, "a tensor without a shadow (numpy, another thread, or made before the pass)")

    def _lost(self, tensor: Tensor, why: str) -> Tensor:
        self.events[f"{why} at {caller_line()}"] += 1
        return torch.full_like(tensor, NAN, dtype=self._high_dtype(tensor))

    def _carries(self, tensor: Tensor) -> bool:
        """Say whether an integer tensor is a quantised activation with a shadow."""
        if is_float(tensor) or not _shadowable(tensor):
            return False
        entry = self.table.find(tensor)
        return entry is not None and entry.step is not None and entry.low_dtype == tensor.dtype

    def _high_dtype(self, tensor: Tensor) -> torch.dtype:
        return self.table.high_dtype(tensor.dtype)

    def _map(self, value: Any, views: Mapping[int, Tensor] | None = None) -> Any:
        if isinstance(value, Tensor):
            if views is not None and id(value) in views:
                return views[id(value)]
            if is_float(value) and _shadowable(value):
                return self._high(value)
            return self._high(value) if self._carries(value) else value
        if isinstance(value, torch.dtype):
            return self._map_dtype(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._map(v, views) for v in value)
        return value

    def _map_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.table.high_dtype(dtype) if dtype.is_floating_point or dtype.is_complex else dtype

    def _map_kwargs(self, kwargs: Mapping[str, Any], views: Mapping[int, Tensor] | None = None) -> dict[str, Any]:
        return {k: self._map(v, views) for k, v in kwargs.items()}

    # --- binding -----------------------------------------------------------------------------------------------------

    def _bind(self, rule: Rule, low: Tensor, high: Tensor) -> None:
        self.table.adopt(low, high)

    def _cast(self, source: Tensor, out: Tensor) -> None:
        """A cast changes nothing in the shadow; the cast of a root stays a root."""
        if not is_float(source):
            high = self._high(source).clone() if self._carries(source) else source.to(self._high_dtype(out))
            self.table.adopt(out, high)
            return
        if source.is_complex() and not out.is_complex():
            self.table.adopt(out, self._high(source).real.clone())
            return
        key = source.untyped_storage()._cdata
        entry = self.table.entries.get(key)
        high = self._high(source)
        if entry is not None and not (out.is_complex() and not source.is_complex()):
            self.table.share(out, entry, high)
        elif key in self._roots and key not in self._finer and out.stride() == source.stride() and out.device == source.device:
            fresh = self.table.new(out)
            fresh.source = source if source.storage_offset() == 0 else source.clone()
        else:
            self.table.adopt(out, high.to(self._high_dtype(out)).clone())

    def _integers(self, rule: Rule, args: Any, kwargs: Any, out: Tensor) -> None:
        """Keep the shadow of quantised activations: of what a cast to 8-bit integers rounded, and of their products."""
        source = args[0]
        entry = self.table.find(source) if _shadowable(source) else None
        if entry is None or not _shadowable(out):
            return
        if rule.equivalent is not None and self._carries(source):
            high = rule.equivalent(Call(rule.name, args, kwargs, out, self._map(args), {}))[0]
        elif out.dtype in (torch.int8, torch.uint8) and is_float(source):
            high = entry.step if entry.step is not None else self._high(source)
        else:
            return
        fresh = self.table.new(out)
        self.table.materialise(out, fresh, None).copy_(high)
        fresh.step = high

    def _filled(self, out: Tensor, fill: float) -> None:
        self.table.new(out).fill = fill

    def _constant(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """A constant fill is kept as its number, so that memory written behind the dispatcher's back is noticed."""
        number = _CONSTANTS[rule.short]
        if number is None:
            numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, (int, float)) and not isinstance(a, bool)]
            number = float(numbers[-1]) if numbers and not out.is_complex() else NAN
        if number != number or out.is_complex():
            self.table.adopt(out, out.to(self._high_dtype(out)))
        else:
            self._filled(out, number)

    def _distrust(self, rule: Rule, outs: list[Tensor], why: str, written: bool = False) -> None:
        self.events[f"{why} at {caller_line()}"] += 1
        for out in outs:
            if written:
                self._write(out, torch.full_like(out, NAN, dtype=self._high_dtype(out)))
            else:
                self._filled(out, NAN)


_CONSTANTS: dict[str, float | None] = {
    "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0,
    "full": None, "full_like": None, "new_full": None,
}  # fmt: skip
_STEPS = frozenset({"floor", "ceil", "trunc", "round", "sign", "sgn", "heaviside", "floor_divide"})
_DTYPE_NAMES = {d: f" {str(d).removeprefix('torch.')}" for d in (*BITS, torch.complex64, torch.complex128)}
_QUANTISERS = frozenset({"round", "clamp", "clamp_min", "clamp_max", "hardtanh"})
_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})


class _Again:
    """Push the mode without entering its own context a second time."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._mode)

    def __exit__(self, *exc: Any) -> None:
        TorchDispatchMode.__exit__(self._mode, *exc)


def _dropout_on(rule: Rule, args: Any, kwargs: Any) -> bool:
    if "scaled_dot_product" not in rule.short:
        return False
    position = {"_scaled_dot_product_efficient_attention": 5, "_scaled_dot_product_cudnn_attention": 5}.get(rule.short, 3)
    p = args[position] if len(args) > position else kwargs.get("dropout_p", 0.0)
    return isinstance(p, float) and p > 0.0


def _shadowable(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for v in value for leaf in _leaves(v)]
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    return [value]


def _leaves_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, Tensor) else list(_leaves(value))
