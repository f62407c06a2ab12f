"""Ops every video transformer is made of, in float64 and in float32 shadows."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fixtures.shadowed import Program, cases, distance, draw, in_double, judged, shadowed, up

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


def inference(x: Tensor, w: Tensor) -> Tensor:
    with torch.inference_mode():
        h = F.layer_norm(F.linear(x, w).unflatten(-1, (4, 4)).flatten(1), (16,))
        h = F.gelu(F.dropout(h, 0.5, False)).chunk(2, -1)[0]
        h.mul_(0.3)
        return torch.cat([h, F.silu(h)], -1).reshape(16, 32)


def data_attribute(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    h.data.mul_(0.3)
    h.detach().add_(0.1)
    return h.data * 1


def einsums(x: Tensor, w: Tensor) -> Tensor:
    heads = x.view(2, 16, 4, 4)
    scores = torch.einsum("bihd,bjhd->bhij", heads, heads)
    return torch.einsum("bhij,bjhd->bihd", scores * 0.1, heads).flatten(2) @ w


def batched(x: Tensor, w: Tensor) -> Tensor:
    a = x.view(4, 8, 16)
    out = torch.baddbmm(torch.zeros(4, 8, 16, dtype=x.dtype), a, w.expand(4, 16, 16), alpha=0.3)
    return torch.addmm(out[0], a[1], w, beta=0.7) + torch.addcmul(out[2], a[2], a[3], value=0.1)


def norms(x: Tensor, w: Tensor) -> Tensor:
    h = F.rms_norm(F.linear(x, w), (16,), w[0], 1e-6) + F.group_norm(x, 4)
    return F.normalize(up(h), dim=-1).to(x.dtype) + F.instance_norm(x[None])[0]


def default_eps(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(up(F.linear(x, w)), (16,), eps=None if x.dtype == torch.bfloat16 else 2.0**-23)


def convolutions(x: Tensor, w: Tensor) -> Tensor:
    video = x.view(1, 2, 2, 8, 16)
    h = F.conv3d(video, w.view(4, 2, 2, 4, 4), stride=(1, 2, 2))
    h = F.interpolate(h, scale_factor=2, mode="nearest") + 0.1
    return F.pixel_shuffle(F.pad(h[:, :, 0], (1, 1, 1, 1)), 2)


def views_and_moves(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w).unfold(0, 4, 4).movedim(-1, 0).flip(0).roll(1, 1)
    h = torch.stack(h.unbind(0), 1).repeat_interleave(2, 1).tril()
    return h.index_select(0, torch.tensor([3, 1])).gather(1, torch.zeros(2, 3, 16, dtype=torch.long)).expand(2, 3, 16)


def reductions(x: Tensor, w: Tensor) -> Tensor:
    h = up(F.linear(x, w))
    logs = h.log_softmax(-1) + h.logsumexp(-1, keepdim=True) + h.cumsum(-1)
    norm: Tensor = torch.linalg.vector_norm(h, dim=-1)
    return logs + h.var(-1, keepdim=True, unbiased=False) + h.std(0) + norm[:, None]


def steps(x: Tensor, w: Tensor) -> Tensor:
    h = up(F.linear(x, w)) * 0.3
    return h.remainder(7.0) + torch.fmod(h, 5.0) + torch.atan2(h, h + 2) ** 3 + h.frac()


def steps_in_place(x: Tensor, w: Tensor) -> Tensor:
    h = up(F.linear(x, w)) * 0.3
    parts = [h.clone().remainder_(7.0), h.clone().fmod_(5.0), h.clone().frac_(), h.clone().clamp_(-0.33, 0.77)]
    return torch.cat([*parts, h.clone().nan_to_num_(), h.clone().addcmul_(h, h, value=0.1).lerp_(h, 0.3)])


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 0.3


def wrapped_calls(x: Tensor, w: Tensor) -> Tensor:
    h = cast("Tensor", checkpoint(F.linear, x, w, use_reentrant=False))
    h = torch.vmap(lambda row: row * 0.1 + row.sum())(h)
    return cast("Tensor", Scaled.apply(h))  # type: ignore[no-untyped-call]


EVERYDAY = cases(
    inference, data_attribute, einsums, batched, norms, default_eps, convolutions, views_and_moves, reductions, steps,
    wrapped_calls,
)  # fmt: skip
IN_PLACE = pytest.param(steps_in_place, id="steps_in_place")


@pytest.mark.parametrize("program", [*EVERYDAY, IN_PLACE])
def test_everyday_ops_are_judged(program: Program) -> None:
    judged(program, X, W)


@pytest.mark.parametrize("program", [*EVERYDAY, IN_PLACE])
def test_a_float32_shadow_is_as_good_as_float32(program: Program) -> None:
    ran = shadowed(program, X, W, dtype=torch.float32)
    assert ran.high.dtype == torch.float32
    assert distance(ran.high, in_double(program, X, W)) < 1e-5
    assert not ran.events


def test_large_roots_of_one_op_do_not_share_their_upcast() -> None:
    a, b = draw(256, 200), draw(256, 200, seed=1)
    judged(lambda a, b: torch.addmm(a[:, :1].float().to(a.dtype), a, b.t()), a, b)
    judged(lambda a, b: torch.stack([a, b, a]) * 0.3, a, b)
