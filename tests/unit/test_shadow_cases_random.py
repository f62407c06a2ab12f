"""Shadow execution, case by case: draws, dropout and RoPE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, in_double, judged, shadowed, up

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


def dropped(x: Tensor, w: Tensor) -> Tensor:
    return F.dropout(F.linear(x, w), 0.3, True) * 1


def dropped_in_place(x: Tensor, w: Tensor) -> Tensor:
    return F.dropout(F.linear(x, w), 0.5, True, inplace=True) * 1


def dropped_natively(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.native_dropout(F.linear(x, w), 0.3, True)[0]
    return out * 1


def with_noise(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return h + torch.randn_like(x, dtype=torch.bfloat16).to(h.dtype) + torch.empty(32, 16).uniform_().to(h.dtype)


def _kept(p: float) -> Tensor:
    torch.manual_seed(1)
    return F.dropout(torch.ones(32, 16, dtype=torch.bfloat16), p, True) != 0


def _kept_natively(p: float) -> Tensor:
    torch.manual_seed(1)
    kept: Tensor = torch.ops.aten.native_dropout(torch.ones(32, 16, dtype=torch.bfloat16), p, True)[1]
    return kept


def _noise() -> Tensor:
    torch.manual_seed(1)
    noise = torch.randn(32, 16, dtype=torch.bfloat16).double()
    return noise + torch.empty(32, 16, dtype=torch.float32).uniform_()


def test_both_sides_share_the_mask_or_the_noise() -> None:
    judged(dropped, X, W, exact=lambda x, w: F.linear(x, w) * _kept(0.3) / 0.7)
    judged(dropped_natively, X, W, exact=lambda x, w: F.linear(x, w) * _kept_natively(0.3) / 0.7)
    judged(dropped_in_place, X, W, exact=lambda x, w: F.linear(x, w) * _kept(0.5) / 0.5)
    judged(with_noise, X, W, exact=lambda x, w: F.linear(x, w) + _noise())
    judged(lambda x, w: F.dropout(F.linear(x, w), 0.3, False, inplace=True) * 1, X, W)


def drop_off_in_inference(x: Tensor, w: Tensor) -> Tensor:
    with torch.inference_mode():
        return F.dropout(F.linear(x, w), 0.3, False, inplace=True) * 1


def noise_around_a_mean(x: Tensor, w: Tensor) -> Tensor:
    return torch.normal(up(F.linear(x, w)), 0.0)


@pytest.mark.parametrize("program", cases(drop_off_in_inference, noise_around_a_mean))
def test_a_random_op_does_not_turn_its_input_into_the_truth(program: Program) -> None:
    ran = shadowed(program, X, W)
    assert bool(ran.high.isnan().all()) or distance(ran.high, in_double(program, X, W)) < 1e-14


ANGLES = torch.outer(torch.arange(32.0), 100.0 ** -(torch.arange(8.0) / 8))


def complex_rope(x: Tensor, angles: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(x).reshape(32, 8, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(1).to(x.dtype)


def real_rope(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin, a, b = angles.cos(), angles.sin(), up(x)[:, 0::2], up(x)[:, 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(1).to(x.dtype)


def conjugated_rope(x: Tensor, angles: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(x).reshape(32, 8, 2)).conj() * torch.polar(torch.ones_like(angles), -angles)
    return torch.view_as_real(turned.conj().resolve_conj()).flatten(1).to(x.dtype)


@pytest.mark.parametrize("program", cases(complex_rope, real_rope, conjugated_rope))
def test_rope_in_complex_and_in_real_numbers_is_one_function(program: Program) -> None:
    judged(lambda x, angles: program(x * 0.3, angles), X, ANGLES, exact=lambda x, angles: real_rope(x * 0.3, angles))


def cast_seen_as_complex(x: Tensor, angles: Tensor) -> Tensor:
    return complex_rope(x, angles)


def complex_cast_seen_as_real(x: Tensor, turns: Tensor) -> Tensor:
    wide = turns.to(torch.complex128)
    return torch.view_as_real(wide).flatten(1) * x


def complex_cast_conjugated(x: Tensor, turns: Tensor) -> Tensor:
    return torch.view_as_real((turns.to(torch.complex128).conj() * 0.3).resolve_conj()).flatten(1) * x


@pytest.mark.parametrize(
    "program", cases(cast_seen_as_complex, complex_cast_seen_as_real, complex_cast_conjugated)
)
def test_a_cast_of_a_root_may_be_seen_in_other_components(program: Program) -> None:
    second = ANGLES if program is cast_seen_as_complex else torch.polar(torch.ones_like(ANGLES), ANGLES)
    judged(program, X, second, limit=1e-15, rounds=program is cast_seen_as_complex)


def conjugate_written(x: Tensor, w: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(F.linear(x, w)).reshape(32, 8, 2)) * 1
    turned.conj().mul_(0.5 + 1j)
    return torch.view_as_real(turned).flatten(1)


def imaginary_part_written(x: Tensor, w: Tensor) -> Tensor:
    turned = torch.view_as_complex(up(F.linear(x, w)).reshape(32, 8, 2)) * 1
    turned.conj().imag.add_(1)
    return torch.view_as_real(turned).flatten(1)


@pytest.mark.parametrize("program", cases(conjugate_written, imaginary_part_written))
def test_a_write_through_a_conjugate_view(program: Program) -> None:
    judged(program, X, W)
