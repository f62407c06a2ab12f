"""Shadow execution, case by case: fp8 and int8 activations are down-casts, which the shadow does not see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, broken, cases, distance, draw, in_double, judged, shadowed, untrusted, up
from parity.execution.equivalents import EQUIVALENTS, Call

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)
FP8 = torch.float8_e4m3fn


def fp8_linear(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w).to(FP8)
    return F.linear(torch.cat([h[:16], h[16:]]).clone().to(x.dtype), w)


def without_fp8(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(F.linear(x, w), w)


def test_a_cast_to_fp8_is_a_down_cast() -> None:
    judged(fp8_linear, X, W, exact=without_fp8)


def scaled_tensors(x: Tensor, w: Tensor, scales: Tensor) -> Tensor:
    return torch._scaled_mm((x * 0.3).to(FP8), w.t(), scales[0, 0], scales[1, 0], out_dtype=torch.bfloat16)


def scaled_rows(x: Tensor, w: Tensor, scales: Tensor) -> Tensor:
    return torch._scaled_mm((x * 0.3).to(FP8), w.t(), scales[:1].reshape(16, 1), scales[1:], out_dtype=torch.bfloat16)


@pytest.mark.parametrize("program", cases(scaled_tensors, scaled_rows))
def test_fp8_products_are_judged(program: Program) -> None:
    x, w, scales = draw(16, 16), W.to(FP8), draw(2, 16, dtype=torch.float32).abs() + 0.5

    def exact(x: Tensor, w: Tensor, scales: Tensor) -> Tensor:
        left, right = (scales[:1].t(), scales[1:]) if program is scaled_rows else (scales[0, 0], scales[1, 0])
        return (x * 0.3 * left) @ (w.t() * right)

    judged(program, x, w, scales, exact=exact)
    arguments = tuple(t.double() for t in (x * 0.3, w.t(), scales[0, 0], scales[1, 0], x))
    direct = EQUIVALENTS["aten::_scaled_mm"](Call("aten::_scaled_mm", arguments, {}, None, arguments, {}))[0]
    assert distance(direct, (arguments[0] * scales[0, 0]) @ (arguments[1] * scales[1, 0]) + x.double()) < 1e-14


Q8 = Callable[[Tensor], Tensor]
SCALE = W.float().abs().amax(1) / 127
W8 = (W.float() / SCALE[:, None]).round().to(torch.int8)


def int8_product(product: Callable[[Tensor, Tensor], Tensor]) -> Program:
    """W8A8 with a scale per token and per output channel; in float64, the product of what the integers stand for."""

    def program(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        h = up(F.linear(x, x[:16]))
        unit = h.abs().amax(1, keepdim=True) / 127
        if x.dtype == torch.float64:
            return h @ (w.double() * scale[:, None]).t()
        quantised = (h / unit).round().clamp(-127, 127).to(torch.int8)
        return product(quantised, w).float() * unit * scale

    program.__name__ = product.__name__
    return program


def plain(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(q, w.t())


def sliced(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(q.view(16, 32).view(32, 16)[:], w.t())


def cloned(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(q.clone(), w.t())


def laid_out_anew(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(q.t().contiguous().t(), w.t())


def joined(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(torch.cat([q[:16], q[16:]]), w.t())


def on_the_right(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(torch.cat([w, w]), q.t())[:16].t()


def in_two_halves(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(q[:, :8], w[:, :8].t()) + torch._int_mm(q[:, 8:], w[:, 8:].t())


def accumulated(q: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(q[:, :8], w[:, :8].t()).add_(torch._int_mm(q[:, 8:], w[:, 8:].t()))


def as_floats(q: Tensor, w: Tensor) -> Tensor:
    return q.float() @ w.t().float()


LOST = "what is made of quantised activations forgets what they stand for"


@pytest.mark.parametrize("product", [
    *cases(plain, sliced, as_floats),
    *cases(cloned, laid_out_anew, joined, on_the_right),
    *(broken(p, LOST) for p in (in_two_halves, accumulated)),
])  # fmt: skip
def test_int8_products_are_judged_or_not_trusted(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = int8_product(product)
    ran = shadowed(program, X, W8, SCALE)
    truth = in_double(program, X, W8, SCALE)
    assert distance(ran.low, truth) > 1e-3
    assert distance(ran.high, truth) < 1e-14 or (product is accumulated and bool(ran.high.isnan().all()))


def round_trip(quantise: Callable[[Tensor], Tensor]) -> Program:
    def program(x: Tensor, w: Tensor) -> Tensor:
        h = up(F.linear(x, w)) * 20
        return h if x.dtype == torch.float64 else quantise(h)

    program.__name__ = quantise.__name__
    return program


def rounded_and_cut(h: Tensor) -> Tensor:
    return h.round().clamp(-127, 127).to(torch.int8).float()


def cast_only(h: Tensor) -> Tensor:
    return h.to(torch.int8).float()


def in_place(h: Tensor) -> Tensor:
    return (h + 0.0).round_().clamp_(-127, 127).to(torch.int8).float()


def with_a_zero_point(h: Tensor) -> Tensor:
    return (h.round() + 128).clamp(0, 255).to(torch.uint8).float() - 128


def into_a_buffer(h: Tensor) -> Tensor:
    buffer = torch.zeros(h.shape, dtype=torch.int8)
    buffer[:20].copy_(h[:20].round())
    buffer[20:] = h[20:].round().to(torch.int8)
    return buffer.float()


def through_a_quantised_tensor(h: Tensor) -> Tensor:
    return torch.quantize_per_tensor(h, 1.0, 0, torch.qint8).dequantize() * 1


def fake(h: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(h, 1.0, 0, -128, 127) * 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("quantise", [
    *cases(rounded_and_cut, cast_only),
    *cases(with_a_zero_point),
    *(broken(q, LOST) for q in (in_place, into_a_buffer, through_a_quantised_tensor, fake)),
])  # fmt: skip
def test_quantising_is_a_down_cast_or_not_trusted(quantise: Callable[[Tensor], Tensor]) -> None:
    program = round_trip(quantise)
    ran = shadowed(program, X, W)
    truth = in_double(program, X, W)
    assert distance(ran.low, truth) > 1e-3
    lost_allowed = quantise is through_a_quantised_tensor
    assert distance(ran.high, truth) < 1e-14 or (lost_allowed and bool(ran.high.isnan().all()))


def test_quantising_does_not_launder_what_is_not_trusted() -> None:
    def launder(x: Tensor, w: Tensor) -> Tensor:
        return (torch.from_numpy(up(F.linear(x, w)).numpy() * 20)).to(torch.int8).float()

    untrusted(launder, X, W)


def test_int8_runs_in_a_float32_shadow() -> None:
    program = int8_product(plain)
    ran = shadowed(program, X, W8, SCALE, dtype=torch.float32)
    assert distance(ran.high, in_double(program, X, W8, SCALE)) < 1e-6
