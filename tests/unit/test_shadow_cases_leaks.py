"""Shadow execution, case by case: floats that leave torch, numbers that come in, and decisions made of floats."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, judged, untrusted, up
from parity.execution.shadow import Shadow

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


# --- values that leave torch ------------------------------------------------------------------------------------------


def by_item(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return h / h.abs().amax().item()


def by_float(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return h.clamp(-float(h[0, 0].abs()), 0.7)


def by_full(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return torch.full_like(h, h.mean().item())


def by_list(x: Tensor, w: Tensor) -> Tensor:
    return x.new_tensor(F.linear(x, w).tolist()) * 1


def by_literal(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return x * torch.tensor([h[0, 0].item(), h[0, 1].item()]).mean().to(x.dtype)


def by_numpy(x: Tensor, w: Tensor) -> Tensor:
    return torch.from_numpy(up(F.linear(x, w)).numpy() * 1) + 0


def by_array(x: Tensor, w: Tensor) -> Tensor:
    return torch.as_tensor(np.sqrt(np.abs(np.asarray(up(F.linear(x, w)))))) * 1


def by_dlpack(x: Tensor, w: Tensor) -> Tensor:
    return torch.utils.dlpack.from_dlpack(up(F.linear(x, w))) * 1


def by_stacked_items(x: Tensor, w: Tensor) -> Tensor:
    return torch.tensor([float(v) for v in up(F.linear(x, w))[0]]) + 1


def by_another_thread(x: Tensor, w: Tensor) -> Tensor:
    held: list[Tensor] = []

    def work() -> None:
        with torch.no_grad():
            held.append(F.linear(x, w))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return held[0] * 1


def by_unknown_global(x: Tensor, w: Tensor) -> Tensor:
    return x * STRAY.to(x.dtype)


def by_a_number_of_another_thread(x: Tensor, w: Tensor) -> Tensor:
    held: list[Tensor] = []

    def work() -> None:
        with torch.no_grad():
            held.append(F.linear(x, w).abs().max())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return x * held[0]


STRAY = draw(16, seed=9, dtype=torch.float32)
LEAKS = cases(
    by_item, by_float, by_full, by_list, by_literal, by_numpy, by_array, by_dlpack, by_stacked_items, by_another_thread,
    by_unknown_global,
)  # fmt: skip
THREAD = pytest.param(by_a_number_of_another_thread, id="by_a_number_of_another_thread")


@pytest.mark.parametrize("program", [*LEAKS, THREAD])
def test_what_left_torch_is_not_trusted(program: Program) -> None:
    untrusted(program, X, W, because="unit/test_shadow_cases_leaks.py:")


def test_only_numbers_are_tainted_by_a_leak_and_only_until_the_next_tap() -> None:
    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        h = F.linear(X, W)
        scale = h.abs().amax().item()
        same, scaled = h + h, h * scale
        shadow.begin_segment("next")
        later = h * 0.3
    assert distance(shadow.high(same), 2 * X.double() @ W.double().T) < 1e-14
    assert bool(shadow.high(scaled).isnan().all())
    assert distance(shadow.high(later), 0.3 * X.double() @ W.double().T) < 1e-14


def exact_item(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w) * x.max().item() * (w > 0).sum().item()


def branch(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    return h * 0.3 if bool((h.abs().amax() > 1e-3).item()) else h


def shapes_from_numbers(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w)[: int(x.abs().max()) + 4] * 0.3


def literals(x: Tensor, w: Tensor) -> Tensor:
    h = up(F.linear(x, w)) * torch.tensor(0.1) + torch.tensor([0.3])
    h = h * h.new_tensor([0.7] * 16) + torch.as_tensor(0.2) - torch.scalar_tensor(0.6)
    return h * torch.from_numpy(np.arange(16.0) / 16).to(h.dtype)


def integer_tables(x: Tensor, w: Tensor) -> Tensor:
    positions = torch.arange(32)[:, None] / 32.3 + torch.linspace(0, 1, 16) + torch.arange(0, 1.6, 0.1)[:16]
    return up(F.linear(x, w)) * positions * (10000 ** -(torch.arange(16) / 16))


def scalars(x: Tensor, w: Tensor) -> Tensor:
    h = 1 - F.linear(x, w) * 0.1
    h = torch.where(x > 0, h, 0.3).masked_fill(x < -1, 0.7) ** 2 + 2.0 ** (h * 0.1)
    return torch.lerp(torch.add(h, x, alpha=0.3), x, 0.2).clamp(-0.77, 3.3).clamp_min(-0.3)


def whole_numbers_written(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w) * 0.3
    h[:, :1] = 0
    h[1, 2:4] = 3
    h[0, 5] = True
    return h * 0.7


INGOING = cases(exact_item, branch, shapes_from_numbers, literals, integer_tables, scalars, whole_numbers_written)


@pytest.mark.parametrize("program", INGOING)
def test_numbers_that_come_in_are_exact(program: Program) -> None:
    judged(program, X, W)
