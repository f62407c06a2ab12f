"""Shadow execution, case by case: weights one side stores more precisely, and LoRA merged or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, judged, shadowed
from parity.execution.shadow import Shadow

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


FINE = draw(16, 16, seed=1, dtype=torch.float64, scale=0.25)


def linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w) * 0.3


def transposed(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


def in_rows(x: Tensor, w: Tensor) -> Tensor:
    a, b = w.chunk(2, 0)
    return torch.cat([F.linear(x, a), F.linear(x, b)], -1)


def in_columns(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x[:, 4:], w[:, 4:]) + F.linear(x[:, :4], w[:, :4])


def by_view(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("sc,nmc->snm", x, w.view(4, 4, 16)).flatten(1)


def cast_up(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x.to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype), w.to(torch.float32).to(x.dtype).to(
        torch.float32) if x.dtype == torch.bfloat16 else w)  # fmt: skip


def written(x: Tensor, w: Tensor) -> Tensor:
    w[3:5].mul_(0.5)
    return F.linear(x, w)


@pytest.mark.parametrize("program", cases(linear, transposed, in_rows, in_columns, by_view, cast_up, written))
def test_both_shadows_use_the_finer_stored_weight(program: Program) -> None:
    stored = FINE.bfloat16()

    def run_with(finer: Tensor | None) -> Tensor:
        own = [X.clone(), stored.clone()]
        with torch.no_grad(), Shadow(own, {} if finer is None else {id(own[1]): finer}) as shadow:
            out = program(*own)
        return shadow.high(out)

    exact = program(X.double(), FINE.clone())
    assert distance(run_with(FINE), exact) < 1e-14
    assert distance(run_with(FINE.float()), exact) < 1e-6
    assert distance(run_with(None), exact) > 1e-4


def as_complex(wide: Tensor) -> Tensor:
    return torch.view_as_complex(wide.view(16, 8, 2)).abs()


def as_conjugate(wide: Tensor) -> Tensor:
    turned = torch.view_as_complex(wide.view(16, 8, 2))
    return (turned.conj() * turned * turned.conj()).imag


def as_rows(wide: Tensor) -> Tensor:
    return wide[3:].t() * 0.3


def as_one_line(wide: Tensor) -> Tensor:
    return wide.view(-1)[5::3] * 0.3


@pytest.mark.parametrize("see", [as_rows, as_one_line, as_complex, as_conjugate], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["contiguous", "transposed", "a view"])
def test_the_cast_of_a_parameter_may_be_seen_in_any_way(
    see: Callable[[Tensor], Tensor], kind: str
) -> None:
    """Casts of parameters need no memory of their own, which must not show."""
    stored = FINE.bfloat16()
    if kind == "transposed":
        stored = stored.t().contiguous().t()
    elif kind == "a view":
        stored = torch.cat([W, stored])[16:]
    weight = nn.Parameter(stored, requires_grad=False)
    with torch.no_grad(), Shadow([weight]) as shadow:
        wide = weight.float().contiguous() if kind == "transposed" else weight.float()
        out = see(wide)
    assert distance(shadow.high(out), see(stored.double().contiguous())) < 1e-14
    assert distance(out, see(stored.double().contiguous())) > 1e-9
    assert not shadow.events


@pytest.mark.parametrize("layout", ["flat", "transposed"])
def test_finer_weights_may_share_memory_or_be_transposed(layout: str) -> None:
    fine = [draw(16, 16, seed=s, dtype=torch.float64) for s in (1, 2)]
    if layout == "flat":
        memory = torch.cat([f.flatten() for f in fine]).bfloat16()
        stored = [memory[:256].view(16, 16), memory[256:].view(16, 16)]
    else:
        stored = [f.t().contiguous().bfloat16().t() for f in fine]
    finer = {id(s): f for s, f in zip(stored, fine, strict=True)}
    with torch.no_grad(), Shadow([X, *stored], finer) as shadow:
        outs = [F.linear(X, s) for s in stored] + [F.linear(X, s[:8]) for s in stored]
    for out, f in zip(outs, [*fine, *(f[:8] for f in fine)], strict=True):
        assert distance(shadow.high(out), F.linear(X.double(), f)) < 1e-14


def test_a_merged_lora_is_judged_against_the_unmerged_one() -> None:
    a, b = draw(4, 16, seed=6, scale=0.25), draw(16, 4, seed=7, scale=0.05)
    unmerged = judged(lambda x, w, a, b: F.linear(x, w) + F.linear(F.linear(x, a), b), X, W, a, b)
    merged = W.double() + b.double() @ a.double()
    stored = merged.bfloat16()
    for finer, close in (({id(stored): merged}, True), ({}, False)):
        with torch.no_grad(), Shadow([X, stored], finer) as shadow:
            out = F.linear(X, stored)
        assert (distance(shadow.high(out), unmerged.high) < 1e-14) == close
    assert distance(shadowed(F.linear, X, W).high, unmerged.high) > 1e-2, "a missing LoRA shows"
