"""Shadow execution, case by case: memory written behind the dispatcher's back, as kernels do by pointer."""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, in_double, shadowed, up
from parity.numerics.limits import Limits

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


def raw_copy(target: Tensor, source: Tensor) -> None:
    ctypes.memmove(target.data_ptr(), source.contiguous().data_ptr(), source.numel() * source.element_size())


def kernel_into_empty(x: Tensor, w: Tensor) -> Tensor:
    out = torch.empty_like(x)
    raw_copy(out, F.linear(x, w))
    return out + 1


def kernel_into_zeros(x: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    raw_copy(out, F.linear(x, w))
    return out + 1


def kernel_into_full(x: Tensor, w: Tensor) -> Tensor:
    out = torch.full_like(x, -3.0)
    raw_copy(out, F.linear(x, w))
    return out.reshape(16, 32) + 1


def numpy_into_zeros(x: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(32, 16)
    out.numpy()[:] = 2 * up(F.linear(x, w)).numpy()
    return out + 1


@pytest.mark.parametrize("program", cases(kernel_into_empty, kernel_into_zeros, kernel_into_full, numpy_into_zeros))
def test_memory_written_by_a_raw_kernel_is_not_trusted(program: Program) -> None:
    assert bool(shadowed(program, X, W).high.isnan().all())


def test_a_raw_kernel_taints_only_what_it_wrote() -> None:
    def half(x: Tensor, w: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        raw_copy(out, F.linear(x[:8], w))
        return out + 1

    high = shadowed(half, X, W).high
    assert bool(high[:8].isnan().all())
    assert bool((high[8:] == 1).all())


def over_numpy(x: Tensor, w: Tensor) -> Tensor:
    h = up(F.linear(x, w))
    h.numpy()[:] *= 2
    return h + 1


def in_another_thread(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    worker = threading.Thread(target=lambda: h.mul_(2))
    worker.start()
    worker.join()
    return h + 1


@pytest.mark.parametrize("program", cases(over_numpy, in_another_thread))
def test_a_raw_write_over_computed_values_is_implausible(program: Program) -> None:
    """No mode sees it. What is left is far more than rounding, which every verdict checks against the twins."""
    ran = shadowed(program, X, W)
    rounding = distance(shadowed(lambda x, w: 2 * F.linear(x, w) + 1, X, W).low, in_double(
        lambda x, w: 2 * F.linear(x, w) + 1, X, W))  # fmt: skip
    assert bool(ran.high.isnan().all()) or distance(ran.low, ran.high) > Limits().implausible * rounding
