"""High-precision equivalents of kernels that have none, or whose low values must decide.

One decorated function an entry: it gets the shadow mode's `Call` and returns the high outputs, in the order of the
low ones (None: the output has no shadow). To add one, write a function here or in a pair file:

    @equivalent("my_kernels::fused_rope")
    def fused_rope(call): ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.errors import UsageError


@dataclass
class Call:
    """One op as it ran: its low arguments and outputs, and its arguments' high values.

    `unrounded` gives the high value a quantisation rounded, where the argument carries one.
    """

    name: str
    low: tuple[Any, ...]
    low_kwargs: dict[str, Any]
    out: Any
    high: tuple[Any, ...]
    high_kwargs: dict[str, Any]

    def argument(self, position: int, keyword: str, default: Any = None, *, low: bool = False) -> Any:
        """Return an argument however it was passed."""
        values, named = (self.low, self.low_kwargs) if low else (self.high, self.high_kwargs)
        return values[position] if position < len(values) else named.get(keyword, default)


Equivalent = Callable[[Call], Sequence[Any]]
EQUIVALENTS: dict[str, Equivalent] = {}


def equivalent(*names: str) -> Callable[[Equivalent], Equivalent]:
    """Register the high-precision equivalent of ops by qualified name ("flash_attn::_flash_attn_forward")."""

    def register(function: Equivalent) -> Equivalent:
        for name in names:
            if name in EQUIVALENTS:
                raise UsageError(f"the equivalent of {name!r} is registered twice")
            EQUIVALENTS[name] = function
        return function

    return register


# --- attention -------------------------------------------------------------------------------------------------------

_SCORE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Score elements of one query chunk: what a CPU cache holds, 512 MB on a GPU. 48k tokens squared are 18 GB a head."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Compute softmax(q k^T * scale + bias) v in query chunks.

    Rows whose every key is masked have no defined value: they come out NaN, so that they are excluded and counted.

    Shapes: query [B, N, S, D], key [B, N, L, D], value [B, N, L, E], bias broadcast to [B, N, S, L]; key and value
    may have fewer heads (grouped queries).
    """
    if key.shape[-3] != query.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if bias is None and not causal and query.device.type == "cpu" and not _untrusted(query, key, value):
        key, value = key.contiguous(), value.contiguous()  # read once for every block of queries: dense is faster
        return F.scaled_dot_product_attention(query, key, value, scale=scale)  # no row is masked: the blocked kernel
    elements = _SCORE_ELEMENTS.get(query.device.type, 1 << 24)
    rows = max(1, elements // max(1, query[..., 0, 0].numel() * key.shape[-2]))
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    for start in range(0, query.shape[-2], rows):
        stop = min(start + rows, query.shape[-2])
        scores = (query[..., start:stop, :] @ key.transpose(-1, -2)).mul_(scale)
        if bias is not None:
            scores += bias[..., start:stop, :] if bias.shape[-2] != 1 else bias
        if causal:
            late = torch.ones(stop - start, key.shape[-2], dtype=torch.bool, device=key.device).triu_(start + 1)
            scores.masked_fill_(late, -math.inf)
        if bias is not None or causal:
            scores = undefined_rows(scores)
        out[..., start:stop, :] = torch.softmax(scores, -1) @ value
    return out


def _untrusted(*values: Tensor) -> bool:
    """Say whether there is a NaN, which a blocked kernel may lose in a row maximum."""
    return any(bool(value.sum().isnan()) for value in values)


def undefined_rows(scores: Tensor) -> Tensor:
    """Make rows NaN in which every score is masked (-inf, or so low that float32 keeps nothing but the mask).

    A finite mask of -1e4 or lower swallows the scores it is added to: low precision then gives weights that are an
    accident of absorption (uniform, or 9 % off), which no two implementations owe each other.
    """
    if scores.shape[-1] == 0:
        return scores
    dead = scores.amax(-1, keepdim=True) <= MASKED
    return torch.where(dead, float("nan"), scores) if bool(dead.any()) else scores


MASKED = -1e4
"""A row maximum at or below this is a fully masked row: no score of a working attention is near it."""


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, -math.inf)


@equivalent("aten::_scaled_dot_product_flash_attention_for_cpu")
def _flash_cpu(call: Call) -> Sequence[Any]:
    q, k, v = call.high[:3]
    causal, mask = call.argument(4, "is_causal", False), call.argument(5, "attn_mask")
    return [attention(q, k, v, _additive(mask, q), causal, call.high_kwargs.get("scale")), None]


@equivalent("aten::_scaled_dot_product_flash_attention")
def _flash(call: Call) -> Sequence[Any]:
    q, k, v = call.high[:3]
    return [attention(q, k, v, None, call.argument(4, "is_causal", False), call.high_kwargs.get("scale"))]


@equivalent(
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)
def _biased(call: Call) -> Sequence[Any]:
    q, k, v = call.high[:3]
    bias = call.argument(3, "attn_bias")
    causal = call.argument(5 if call.name.endswith("overrideable") else 6, "is_causal", False)
    return [attention(q, k, v, _additive(bias, q), bool(causal), call.high_kwargs.get("scale"))]


@equivalent("flash_attn::_flash_attn_forward")
def _flash_attn(call: Call) -> Sequence[Any]:
    """flash-attn's fixed-length entry: [B, S, N, D], causal aligned to the bottom right."""
    q, k, v = (t.transpose(1, 2) for t in call.high[:3])
    scale, causal = call.argument(4, "softmax_scale"), call.argument(5, "causal", False)
    if _other_options(call) or call.argument(3, "dropout_p", 0.0):
        raise NotImplementedError("dropout, a window, soft cap or ALiBi slope this equivalent does not know")
    bias = None
    if causal:
        shift = k.shape[-2] - q.shape[-2]
        late = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu_(1 + shift)
        bias = torch.zeros(late.shape, dtype=q.dtype, device=q.device).masked_fill_(late, -math.inf)
    return [attention(q, k, v, bias, False, scale).transpose(1, 2)]


def _other_options(call: Call) -> bool:
    """Say whether flash-attn was given an option beyond scale and causality: windows, soft cap, slopes, key lengths."""
    windows = [call.argument(6, "window_size_left", -1), call.argument(7, "window_size_right", -1)]
    others = [call.argument(8, "softcap", 0.0), call.argument(9, "alibi_slopes")]
    known = {"softmax_scale", "causal", "window_size_left", "window_size_right", "softcap", "alibi_slopes",
             "dropout_p", "return_softmax", "q", "k", "v"}  # fmt: skip
    unknown = [v for k, v in call.low_kwargs.items() if k not in known and v not in (None, False, 0, 0.0)]
    return any(w not in (-1, None) for w in windows) or any(o not in (0, 0.0, None) for o in others) or bool(unknown)


@equivalent("aten::_softmax", "aten::_safe_softmax")
def _softmax(call: Call) -> Sequence[Any]:
    scores, dim = call.high[0], call.high[1]
    moved = undefined_rows(scores.transpose(dim, -1))
    return [torch.softmax(moved, -1).transpose(dim, -1)]


# --- decisions: the low side decides, the values follow ---------------------------------------------------------------


@equivalent("aten::topk", "aten::sort", "aten::msort")
def _ordered(call: Call) -> Sequence[Any]:
    return [call.high[0].gather(_dim_of(call), call.out[1]), None]


def _dim_of(call: Call) -> int:
    """Return the dim of topk(x, k, dim), sort(x, dim) or sort(x, *, stable, dim)."""
    if "dim" in call.low_kwargs:
        return int(call.low_kwargs["dim"])
    position = 2 if call.name.endswith("topk") else 1
    given = call.low[position] if len(call.low) > position else -1
    if isinstance(given, bool) or given is None:  # sort.stable(x, stable, dim)
        given = call.low[position + 1] if len(call.low) > position + 1 else -1
    return int(given)


@equivalent("aten::max", "aten::min", "aten::median", "aten::nanmedian", "aten::mode", "aten::kthvalue")
def _picked(call: Call) -> Sequence[Any]:
    """Take along `dim` what the low side took; without `dim`, or of two tensors, the op is continuous."""
    if isinstance(call.out, Tensor):
        return [_plain(call)]
    start = 2 if call.name.endswith("kthvalue") else 1
    dim = call.argument(start, "dim", -1, low=True)
    keep = call.argument(start + 1, "keepdim", False, low=True)
    index = call.out[1] if keep or call.high[0].dim() == 0 else call.out[1].unsqueeze(dim)
    taken = call.high[0].gather(dim, index)
    return [taken if keep or call.high[0].dim() == 0 else taken.squeeze(dim), None]


def _plain(call: Call) -> Any:
    return getattr(torch, call.name.split("::")[1])(*call.high, **call.high_kwargs)


@equivalent(
    "aten::floor", "aten::ceil", "aten::trunc", "aten::round", "aten::sign", "aten::sgn", "aten::heaviside",
    "aten::floor_divide",
)  # fmt: skip
def _step(call: Call) -> Sequence[Any]:
    """A step function decides: its value is the low side's, exactly; what was not trusted before stays so."""
    high = call.out.to(call.high[0].dtype if isinstance(call.high[0], Tensor) else torch.float64)
    lost = [a.isnan() for a in call.high if isinstance(a, Tensor) and a.is_floating_point()]
    for mask in lost:
        high = torch.where(mask & ~call.out.isnan(), float("nan"), high)
    return [high]


@equivalent("aten::remainder", "aten::fmod", "aten::frac")
def _modulo(call: Call) -> Sequence[Any]:
    """X - k y with the k the low side took."""
    x, y = call.high[0], call.high[1] if len(call.high) > 1 else 1.0
    low_x = call.low[0].double() if isinstance(call.low[0], Tensor) else call.low[0]
    low_y = call.low[1].double() if len(call.low) > 1 and isinstance(call.low[1], Tensor) else y
    turns = torch.round((low_x - call.out.double()) / low_y)
    return [x - turns.to(torch.float64) * y]


@equivalent("aten::nan_to_num")
def _nan_to_num(call: Call) -> Sequence[Any]:
    """Keep what is not trusted as it is: only a NaN of the low side is a number to be replaced."""
    high, low = call.high[0], call.low[0]
    if not low.is_floating_point():
        return [high]
    limits = torch.finfo(low.dtype)
    given = [call.argument(i, n) for i, n in ((1, "nan"), (2, "posinf"), (3, "neginf"))]
    up, down = (limits.max if given[1] is None else given[1]), (limits.min if given[2] is None else given[2])
    cleaned = torch.nan_to_num(high, 0.0 if given[0] is None else given[0], up, down)
    return [torch.where(high.isnan() & ~call.low[0].isnan(), float("nan"), cleaned)]


@equivalent("aten::nansum", "aten::nanmean", "aten::fmax", "aten::fmin", "aten::copysign")
def _blind_to_nan(call: Call) -> Sequence[Any]:
    """These skip NaN, or read only its sign: what is not trusted must not come out as a number."""
    out = getattr(torch, call.name.split("::")[1])(*call.high, **call.high_kwargs)
    pairs = [(h, low) for h, low in zip(call.high, call.low, strict=True) if isinstance(h, Tensor)]
    lost = any(bool((h.isnan() & ~low.isnan()).any()) for h, low in pairs)
    return [torch.full_like(out, float("nan")) if lost else out]


# --- random ops: drawn once, both sides share mask or value -----------------------------------------------------------


@equivalent("aten::native_dropout")
def _dropout(call: Call) -> Sequence[Any]:
    p, train = call.low[1], call.low[2]
    if train is False or p == 0:
        return [call.high[0].clone(), None]
    return [call.high[0] * call.out[1] / (1.0 - p) if p < 1 else torch.zeros_like(call.high[0]), None]


# --- quantised activations: a cast to fp8 or int8 is a down-cast, the shadow does not see it --------------------------


@equivalent("aten::_int_mm")
def _int_mm(call: Call) -> Sequence[Any]:
    wide = next((t.dtype for t in call.high[:2] if t.is_floating_point()), torch.float64)
    left, right = (t.to(wide) for t in call.high[:2])
    return [left @ right]


@equivalent("aten::_scaled_mm")
def _scaled_mm(call: Call) -> Sequence[Any]:
    left, right, scale_left, scale_right = call.high[:4]
    out = (left * scale_left) @ (right * scale_right)
    bias = call.argument(4, "bias")
    return [out if bias is None else out + bias]
