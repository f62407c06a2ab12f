"""Taps: the points two models of one architecture share.

Letters in shapes: B batch, F latent frames, H W latent height and width, S tokens, N heads, D head dim, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Inputs = Mapping[str, Any]
"""What a pair feeds to both sides: names to tensors or plain values."""


@dataclass(frozen=True)
class Layout:
    """A map from the native's layout of a value to the reference's, and back.

    `forward(value, shape)` gets a native value and the reference's shape; `backward(value, shape)` gets a
    reference value and the native's shape. `backward` None: the value is judged but not replaced in lockstep.
    `settle`: from a reference value to the nearest one that the native can have too, where it has fewer numbers (one a
    sample, not one a token): the reference goes on from that, since its own copies may differ by a rounding.
    """

    name: str
    forward: Callable[[Tensor, torch.Size], Tensor]
    backward: Callable[[Tensor, torch.Size], Tensor] | None
    settle: Callable[[Tensor], Tensor] | None = None


def reshaped(name: str = "reshape") -> Layout:
    """Return the layout for values that differ by flattening only ([B, F, H, W, C] against [B, S, C])."""
    return Layout(name, lambda v, s: v.reshape(s), lambda v, s: v.reshape(s))


def permuted(*dims: int) -> Layout:
    """Return the layout whose forward is `value.permute(dims)` ([B, S, N, D] against [B, N, S, D])."""
    inverse = [dims.index(i) for i in range(len(dims))]
    return Layout(f"permute{dims}", lambda v, s: v.permute(dims), lambda v, s: v.permute(inverse))


def per_frame() -> Layout:
    """Return the layout where one side counts frames as samples: a convolution of images over a video.

    Shapes: [B F, C, H, W] against [B, C, F, H, W] or tokens [B, S, C], either way.
    """
    return Layout("per frame", _per_frame, _per_frame)


def _per_frame(v: Tensor, s: torch.Size) -> Tensor:
    if v.dim() == 3:
        return v.reshape(s[0], -1, s[1]).mT.reshape(s)
    if len(s) == 3:
        return v.flatten(2).mT.reshape(s)
    return v.transpose(1, 2).reshape(s) if v.dim() == 5 else v.reshape(s[0], s[2], s[1], *s[3:]).transpose(1, 2)


SAME = Layout("same", lambda v, s: v, lambda v, s: v)


@dataclass(frozen=True)
class Point:
    """Where one side computes a tap's value.

    Args:
        module: dotted module path; "" is the model itself. Exclusive with `function`.
        at: the module's "output" or its "input".
        element: path into the call's result (or arguments, for "input"): a number for a tuple or list, a name for
            an attribute, mapping key or keyword argument, joined by dots ("0", "sample", "0.sample").
            For "input" the default is the first positional argument.
        call: which call of the module in one forward: "only" (a second call is an error), "all" (values of all calls
            concatenated along dim 0), or the number of the call.
        function: "package.module:qualified.name" of a function whose result is the value, where there is no module.
    """

    module: str | None = None
    at: Literal["output", "input"] = "output"
    element: str | None = None
    call: int | Literal["only", "all"] = "only"
    function: str | None = None

    @property
    def path(self) -> str:
        """The place in words: `blocks.7.attn`, `blocks.7.attn[0]`, `blocks.7 (input)`."""
        where = self.function or self.module or "model"
        return where + (f"[{self.element}]" if self.element else "") + (" (input)" if self.at == "input" else "")


_BLOCK = re.compile(r"^([a-z_]*?)(\d+)(?:\.(.+))?$")


@dataclass(frozen=True)
class Tap:
    """A point both models have.

    Args:
        name: `patch_embed`, `block07.self_attn`, `block07`, `final_output`; block numbers zero-padded.
        reference, native: where each side computes it; None with `absent` where a side has no such point.
        layout: from the native's layout to the reference's and back.
        valid: from the inputs to a bool mask that broadcasts against the reference value without its last dim
            (True: judged and replaced; False: padding, keeps the native's own value).
        replace: False records and judges the value without replacing it in lockstep.
        tokens: which dims of the reference value, besides the last (channels), are tokens; all of them by default.
        channel_dim: the channel dim of the reference value (1 for [B, C, F, H, W]).
        absent: why a side lacks the tap; reported, never ignored.
        attention: whether the segment that ends here contains an attention kernel (its margin is wider).
            Default: the name says so.
        heads: number of heads where channels are N*D, for the per-head projection; 0 for none.
    """

    name: str
    reference: Point | None
    native: Point | None
    layout: Layout = SAME
    valid: Callable[[Inputs], Tensor] | None = None
    replace: bool = True
    channel_dim: int = -1
    absent: str | None = None
    attention: bool | None = None
    heads: int = 0
    slopes: tuple[str, ...] = field(default=())
    """Names of upstream taps whose value the residual's slope is taken against; default: all taps of the block."""

    @property
    def restarts(self) -> bool:
        """Whether lockstep goes on from the reference's value here: only where the native can."""
        return self.replace and self.layout.backward is not None

    @property
    def block(self) -> str:
        """`block07` for `block07.self_attn`, "" outside blocks."""
        return block_of(self.name)

    @property
    def layer(self) -> str:
        """`self_attn` for `block07.self_attn`, "" for the block's own output, the whole name outside blocks."""
        found = _BLOCK.match(self.name)
        return (found[3] or "") if found else self.name

    @property
    def kind(self) -> str:
        """What taps are pooled over blocks: `block.self_attn`, `block`, `time_embed`."""
        found = _BLOCK.match(self.name)
        return (found[1] + (f".{found[3]}" if found[3] else "")) if found else self.name

    @property
    def has_attention(self) -> bool:
        """Whether the wider margin of attention kernels applies."""
        return self.attention if self.attention is not None else "attn" in self.name


def block_of(name: str) -> str:
    """Return the block a tap's name names, "" outside blocks.

    >>> block_of("block07.self_attn"), block_of("time_embed")
    ('block07', '')
    """
    found = _BLOCK.match(name)
    return f"{found[1]}{found[2]}" if found else ""


def by_call(taps: Sequence[Tap], calls: int) -> tuple[Tap, ...]:
    """Return taps for a forward in which the model is called several times, each call a tap of its own.

    `block0.self_attn` becomes `block0.self_attn_call0`, `block0.self_attn_call1`; calls need not have one shape (a
    cached call has fewer tokens). The output stays one tap.
    """
    outputs = [tap for tap in taps if tap.name == "final_output"]
    inner = [tap for tap in taps if tap.name != "final_output"]
    return (*(_at_call(tap, k) for k in range(calls) for tap in inner), *outputs)


def all_calls(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Return taps whose values of all calls are one value, along dim 0: one call on two samples, or two on one."""
    return tuple(tap if tap.name == "final_output" else _with_call(tap, tap.name, "all") for tap in taps)


def _at_call(tap: Tap, number: int) -> Tap:
    return _with_call(tap, f"{tap.name}{'_' if tap.layer else '.'}call{number}", number)


def _with_call(tap: Tap, name: str, call: int | Literal["all"]) -> Tap:
    sides = (point if point is None else replace(point, call=call) for point in (tap.reference, tap.native))
    reference, native = sides
    return replace(tap, name=name, reference=reference, native=native)


def block_name(index: int, blocks: int) -> str:
    """Zero-pad to the width of the last block, so that `-k block10` never takes `block100`.

    >>> block_name(7, 48), block_name(3, 4)
    ('block07', 'block3')
    """
    return f"block{index:0{len(str(max(blocks - 1, 0)))}d}"
