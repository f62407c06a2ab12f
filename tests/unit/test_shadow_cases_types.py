"""Shadow execution, case by case: autocast, bits, 8-bit activations and masked rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, in_double, judged, shadowed, untrusted, up
from parity.execution.shadow import Shadow

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)
FP8 = torch.float8_e4m3fn


# --- autocast ---------------------------------------------------------------------------------------------------------


class _Autocast:
    """Ten layers whose float32 weights autocast rounds to bf16 in every forward."""

    def __init__(self) -> None:
        self.weights = [nn.Parameter(draw(128, 128, seed=i, dtype=torch.float32, scale=0.1)) for i in range(10)]
        self.x = draw(2, 128, dtype=torch.float32)

    def __call__(self, dtype: torch.dtype = torch.float32) -> Tensor:
        h = self.x.to(dtype)
        for weight in [*self.weights, self.weights[0]]:
            h = F.gelu(F.linear(h, weight.to(dtype)))
        return h

    def shadowed(self) -> tuple[Tensor, Shadow, float]:
        """Return the output, the shadow, and its live bytes over those of bf16 copies of the weights."""
        with Shadow(roots=[self.x, *self.weights]) as shadow:
            low = self()
            held = [e.flat for e in shadow.table.entries.values() if e.flat is not None]
        return low, shadow, sum(flat.numel() * 8 for flat in held) / sum(w.numel() * 2 for w in self.weights)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_autocast_is_judged_without_copies_of_the_weights(grad: bool) -> None:
    model = _Autocast()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        low, shadow, copies = model.shadowed()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(low, model())
    assert low.dtype == torch.bfloat16
    assert copies < 0.3, "float64 copies of all weights would be 4"
    exact = model(torch.float64)
    assert distance(shadow.high(low), exact.detach()) < 1e-14
    assert distance(low.detach(), exact.detach()) > 1e-4
    assert not shadow.events


def test_what_autocast_cached_before_the_pass_is_not_lost() -> None:
    model = _Autocast()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model()
        low, shadow, _ = model.shadowed()
    assert distance(shadow.high(low).detach(), model(torch.float64).detach()) < 1e-14


# --- bits -------------------------------------------------------------------------------------------------------------


def masked_bits(x: Tensor, w: Tensor) -> Tensor:
    return (F.linear(x, w).view(torch.int16) & -16).view(torch.bfloat16) * 1


def bits_in_place(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    h.view(torch.int16).bitwise_and_(-16)
    return h * 1


def halves(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w).float().view(torch.bfloat16)[:, 1::2] * 1


def wider(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w).view(torch.float32).nan_to_num(0.0) * 1


def same_width(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w).view(torch.float16).nan_to_num(0.0) * 1


def copied_bytes(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w).to(FP8).view(torch.uint8).clone().view(FP8).to(x.dtype) * 1


def root_bits(x: Tensor, w: Tensor) -> Tensor:
    return x.view(torch.float16).nan_to_num(0.0) * 0.3


@pytest.mark.parametrize(
    "program", cases(masked_bits, bits_in_place, copied_bytes, root_bits, halves, wider, same_width)
)
def test_bits_are_no_values(program: Program) -> None:
    untrusted(program, X, W)


def there_and_back(x: Tensor, w: Tensor) -> Tensor:
    bits = {torch.bfloat16: torch.int16, torch.float64: torch.int64}[x.dtype]
    return F.linear(x, w).view(bits)[:, ::2].view(x.dtype) * 1


def bytes_there_and_back(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return h if x.dtype == torch.float64 else h.to(FP8).view(torch.uint8).view(FP8).to(x.dtype)


@pytest.mark.parametrize("program", cases(there_and_back, bytes_there_and_back))
def test_bits_nobody_wrote_are_the_same_values(program: Program) -> None:
    judged(program, X, W)


def test_mantissa_and_exponent_belong_together() -> None:
    def split(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x.to(torch.bfloat16 if x.dtype == torch.float32 else x.dtype).to(x.dtype))
        return torch.ldexp(mantissa, exponent)

    near_two = torch.tensor([1.999, 3.9995, 1.0, 0.4999])  # bf16 rounds them up to powers of two
    ran = shadowed(split, near_two)
    assert bool(ran.high.isnan().all()) or distance(ran.high, near_two.double()) < 1e-15


# --- masked rows ------------------------------------------------------------------------------------------------------

Q, K, V = draw(1, 2, 12, 8), draw(1, 2, 12, 8, seed=1), draw(1, 2, 12, 8, seed=2)
SEEN = torch.ones(12, 12, dtype=torch.bool).tril()
ROW_3 = SEEN.clone()
ROW_3[3] = False


def added(number: float) -> Callable[[Tensor], Program]:
    def masked(seen: Tensor) -> Program:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = up(q @ k.transpose(-1, -2)) / math.sqrt(8)
            bias = torch.zeros(seen.shape, dtype=scores.dtype).masked_fill_(~seen, number)
            return (scores + bias).softmax(-1).to(q.dtype) @ v

        return attend

    return masked


def filled(number: float) -> Callable[[Tensor], Program]:
    def masked(seen: Tensor) -> Program:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(8)
            return scores.masked_fill(~seen, number).softmax(-1, dtype=up(q).dtype).to(q.dtype) @ v

        return attend

    return masked


def bool_sdpa(seen: Tensor) -> Program:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, seen) * 1


def float_sdpa(seen: Tensor) -> Program:
    return lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -math.inf)) * 1  # fmt: skip


def three_dim_sdpa(seen: Tensor) -> Program:
    return lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0], seen)[None] * 1


MASKS: dict[str, Callable[[Tensor], Program]] = {
    "fill -inf": filled(-math.inf),
    "fill -1e9": filled(-1e9),
    "fill bf16 min": filled(torch.finfo(torch.bfloat16).min),
    "add -inf": added(-math.inf),
    "add -1e9": added(-1e9),
    "add float32 min": added(torch.finfo(torch.float32).min),
    "add -1e4": added(-1.5e4),
    "sdpa bool": bool_sdpa,
    "sdpa float": float_sdpa,
    "sdpa three dims": three_dim_sdpa,
}


@pytest.mark.parametrize("name", MASKS)
def test_masked_rows_are_excluded_and_the_others_exact(name: str) -> None:
    exact = in_double(filled(-math.inf)(SEEN), Q, K, V)
    judged(MASKS[name](SEEN), Q, K, V, exact=lambda q, k, v: exact)
    ran = shadowed(MASKS[name](ROW_3), Q, K, V)
    assert bool(ran.high[:, :, 3].isnan().all())
    others = [i for i in range(12) if i != 3]
    assert distance(ran.high[:, :, others], exact[:, :, others]) < 1e-14
