"""What the shadow mode leaves alone, and that nothing untrusted becomes a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor

from fixtures.shadowed import Program, cases, draw, judged, shadowed, untrusted, up

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


# --- tensors it leaves alone ------------------------------------------------------------------------------------------


class Named(torch.Tensor):
    pass


class Wrapped(torch.Tensor):
    """A tensor that holds another one and unwraps it in every op."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype)
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None: ...

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        bare = [a.held if isinstance(a, Wrapped) else a for a in args]
        out = func(*bare, **(kwargs or {}))
        return cls(out) if isinstance(out, Tensor) else out


def wrapper(x: Tensor, w: Tensor) -> Tensor:
    held = Wrapped(F.linear(x, w)) * 0.3
    assert isinstance(held, Wrapped)
    return held.held * 1


def two_tensor(x: Tensor, w: Tensor) -> Tensor:
    held: Any = TwoTensor(F.linear(x, w), x) * 0.3
    return cast("Tensor", held.a * held.b)


def plain_subclass(x: Tensor, w: Tensor) -> Tensor:
    held = F.linear(x, w).as_subclass(Named) * 0.3
    assert isinstance(held, Named)
    return held.as_subclass(torch.Tensor) * 1


def beside_meta(x: Tensor, w: Tensor) -> Tensor:
    shape = (torch.empty(32, 16, device="meta") * 2).mul_(3).sum(0).shape
    return F.linear(x, w)[:, : shape[0]] * 0.3


@pytest.mark.parametrize("program", cases(wrapper, two_tensor, plain_subclass, beside_meta))
def test_subclasses_and_meta_tensors_pass_through(program: Program) -> None:
    judged(program, X, W)


def sparse_product(x: Tensor, w: Tensor) -> Tensor:
    return cast("Tensor", torch.sparse.mm(up(F.linear(x, w)).to_sparse(), up(w)) * 1)


def sparse_round_trip(x: Tensor, w: Tensor) -> Tensor:
    return up(F.linear(x, w)).to_sparse().to_dense() * 1


@pytest.mark.parametrize("program", cases(sparse_product, sparse_round_trip))
def test_sparse_tensors_have_no_shadow(program: Program) -> None:
    untrusted(program, X, W)


# --- what is not trusted stays NaN ------------------------------------------------------------------------------------

KEYS = draw(1, 8, 6, 4, dtype=torch.float32)
attend = F.scaled_dot_product_attention
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, name) for name in (
        "relu", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "hardswish", "hardsigmoid", "hardtanh",
        "relu6", "softshrink", "hardshrink", "softplus", "glu", "tanhshrink")},
    **{name: getattr(torch, name) for name in (
        "tanh", "sigmoid", "floor", "ceil", "trunc", "round", "frac", "sign", "sgn", "abs", "square", "rsqrt", "exp",
        "nan_to_num", "nansum", "nanmean", "nanmedian", "amax", "amin", "sum", "prod", "msort", "erf", "sinc")},
    "clamp": lambda t: t.clamp(-1, 1),
    "clamp_": lambda t: t.clamp_(-1, 1),
    "nan_to_num_": lambda t: t.nan_to_num_(),
    "round_": lambda t: t.round_(),
    "floor_divide": lambda t: t // 0.3,
    "remainder_": lambda t: t.remainder_(0.3),
    "div_ floor": lambda t: t.div_(0.3, rounding_mode="floor"),
    "fmod": lambda t: torch.fmod(t, 0.3),
    "fmax": lambda t: torch.fmax(t, torch.zeros(())),
    "fmin": lambda t: torch.fmin(torch.zeros(()), t),
    "maximum": lambda t: torch.maximum(t, torch.zeros(())),
    "copysign": lambda t: torch.copysign(torch.ones(()), t),
    "heaviside": lambda t: torch.heaviside(t, torch.ones(())),
    "where own sign": lambda t: torch.where(t > 0, t, -t),
    "threshold": lambda t: F.threshold(t, 0.1, 0.0),
    "sort": lambda t: t.sort().values,
    "topk": lambda t: t.topk(2).values,
    "max": lambda t: t.max(1).values,
    "kthvalue": lambda t: t.kthvalue(2, 1).values,
    "cummax": lambda t: t.cummax(1).values,
    "quantile": lambda t: t.quantile(0.5, dim=1),
    "softmax": lambda t: t.softmax(1),
    "log_softmax": lambda t: t.log_softmax(1),
    "logsumexp": lambda t: t.logsumexp(1),
    "vector_norm inf": lambda t: torch.linalg.vector_norm(t, ord=math.inf, dim=1),
    "max_pool1d": lambda t: F.max_pool1d(t, 2),
    "attention, query": lambda t: attend(t.view(1, 8, 16, 4), KEYS, KEYS),
    "attention, keys": lambda t: attend(KEYS, t.view(1, 8, 16, 4)[:, :, :6], KEYS),
    "attention, values": lambda t: attend(KEYS, KEYS, t.view(1, 8, 16, 4)[:, :, :6]),
    "attention, many keys": lambda t: attend(KEYS, t.view(1, 8, 16, 4), t.view(1, 8, 16, 4)),
    "causal attention": lambda t: attend(t.view(1, 8, 16, 4), KEYS, KEYS, is_causal=True),
    "layer_norm": lambda t: F.layer_norm(t, (16,)),
    "dropout": lambda t: F.dropout(t, 0.1, True),
    "copy_": lambda t: torch.zeros(32, 16).copy_(t),
    "fp8": lambda t: t.to(torch.float8_e4m3fn).float(),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_no_op_turns_an_untrusted_value_into_a_number(name: str, dtype: torch.dtype) -> None:
    def launder(x: Tensor, w: Tensor) -> Tensor:
        return UNARY[name](torch.from_numpy(up(F.linear(x, w)).numpy() * 1))

    untrusted(launder, X, W, dtype=dtype, roots=[KEYS])


def test_nan_to_num_replaces_by_numbers_of_the_low_dtype() -> None:
    infinite = X.clone()
    infinite[0] = math.inf
    ran = shadowed(lambda x: x.nan_to_num() * 0.3, infinite)
    assert torch.equal(ran.high[0], torch.full((16,), torch.finfo(torch.bfloat16).max * 0.3, dtype=torch.float64))
