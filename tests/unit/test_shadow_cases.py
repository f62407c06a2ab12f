"""Shadow execution, case by case: values written in place, by the dispatcher and behind its back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, judged, up
from parity.execution.shadow import Shadow

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


# --- slice writes, index_put_, KV buffers -----------------------------------------------------------------------------


def zeros_by_slices(x: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(32, 32)
    out[:, :16] = up(F.linear(x, w))
    out[:, 16:] = up(x @ w)
    return out * 1


def zeros_of_dtype(x: Tensor, w: Tensor) -> Tensor:
    out = x.new_zeros(32, 20)
    out[:, 2:18] = F.linear(x, w)
    return out * 1


def empty_by_slices(x: Tensor, w: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:20], out[20:] = F.linear(x[:20], w), F.linear(x[20:], w)
    return out * 1


def empty_strided_by_rows(x: Tensor, w: Tensor) -> Tensor:
    out = torch.empty_strided((32, 16), (1, 32), dtype=x.dtype)
    for i, row in enumerate(F.linear(x, w).unbind(0)):
        out[i].copy_(row)
    return out * 1


def index_put(x: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out.index_put_((torch.arange(31, -1, -1),), F.linear(x, w))
    out[torch.tensor([0, 3, 3])] += F.linear(x[:3], w)
    return out * 1


def index_put_accumulated(x: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    return out.index_put_((torch.arange(32) % 4,), F.linear(x, w), accumulate=True) * 1


def scattered(x: Tensor, w: Tensor) -> Tensor:
    rows, out = torch.arange(32)[:, None].expand(32, 16), x.new_zeros(32, 16)
    out.scatter_(0, rows.flip(0), F.linear(x, w))
    out.index_add_(0, torch.arange(4), F.linear(x[:4], w))
    out.index_copy_(0, torch.arange(8, 12), F.linear(x[:4], w))
    return out.masked_scatter_(rows == 20, F.linear(x[:1], w)) * 1


def transposed_buffer(x: Tensor, w: Tensor) -> Tensor:
    out = x.new_full((16, 32), 0.3)
    out.t().copy_(F.linear(x, w))
    out.as_strided((4,), (33,), 1).add_(0.1)
    return out * 1


def chunks_in_place(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    a, b = h.chunk(2, -1)
    a.mul_(2)
    b.add_(a)
    h.view(4, 8, 16)[:, 0].neg_()
    return h


def out_argument(x: Tensor, w: Tensor) -> Tensor:
    sized, empty = torch.empty_like(x), torch.empty(0, dtype=x.dtype)
    torch.mul(F.linear(x, w), 0.3, out=sized)
    torch.add(sized, x, alpha=0.7, out=empty)
    torch.mm(empty, w, out=sized[:])
    return torch.cat([sized, empty])


def foreach(x: Tensor, w: Tensor) -> Tensor:
    a, b = F.linear(x, w), x * 0.3
    torch._foreach_add_([a, b], [b, x])
    c, d = torch._foreach_mul([a, b], 0.7)
    return c + d


def narrow_and_fill(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    h.narrow(1, 3, 2).zero_()
    h[4].fill_(0.1)
    return h.squeeze().unsqueeze_(0).squeeze_(0)


WRITES = cases(
    zeros_by_slices, zeros_of_dtype, empty_by_slices, empty_strided_by_rows, index_put, index_put_accumulated,
    scattered, transposed_buffer, chunks_in_place, out_argument, foreach, narrow_and_fill,
)  # fmt: skip


@pytest.mark.parametrize("program", WRITES)
def test_what_is_written_in_place_keeps_its_shadow(program: Program) -> None:
    judged(program, X, W)


def number_by_mask(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    h[x > 0] = 0.1
    return h * 1


def number_by_slice(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    h[:, 0] = 0.1
    return h * 1


@pytest.mark.parametrize(
    "program", cases(number_by_mask, number_by_slice)
)
def test_a_number_assigned_by_index_is_a_constant(program: Program) -> None:
    judged(program, X, W, exact=lambda x, w: torch.where(
        x > 0 if program is number_by_mask else torch.arange(16) == 0, 0.1, F.linear(x, w)))  # fmt: skip


def cast_before(x: Tensor, w: Tensor) -> Tensor:
    wide = x.to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype, copy=True)
    x.add_(1)
    return F.linear(wide.to(w.dtype), w)


def cast_of_a_view_before(x: Tensor, w: Tensor) -> Tensor:
    wide = x[:8].to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype, copy=True)
    x[4:].mul_(2)
    return F.linear(wide.to(w.dtype), w) + F.linear(x[:8], w)


@pytest.mark.parametrize(
    "program", cases(cast_before, cast_of_a_view_before)
)
def test_the_cast_of_a_buffer_stays_what_it_was(program: Program) -> None:
    judged(program, X, W)


def cast_written(x: Tensor, w: Tensor) -> Tensor:
    wide = x.to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype, copy=True)
    half = (wide * 0.3).to(x.dtype, copy=True)
    wide.add_(1)
    half.mul_(2)
    return F.linear(x, w) + wide.to(x.dtype) + half


def shared_cast_written(x: Tensor, w: Tensor) -> Tensor:
    h = F.linear(x, w)
    wide = h.to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype, copy=True)
    third = wide.to(x.dtype, copy=True)
    h.add_(1)
    wide.mul_(2)
    return h + wide.to(x.dtype) + third


@pytest.mark.parametrize("program", cases(cast_written, shared_cast_written))
def test_a_cast_and_what_it_was_cast_from_are_written_apart(program: Program) -> None:
    judged(program, X, W)


def test_a_kv_buffer_is_first_written_by_slices() -> None:
    def attend(x: Tensor, w: Tensor, keys: Tensor) -> Tensor:
        keys[:8].copy_(F.linear(x[:8], w))
        early = keys[4:12] * 1
        keys[8:24] = F.linear(x[8:24], w)
        return torch.cat([early, keys])

    ran = judged(attend, X, W, draw(32, 16, seed=2))
    assert torch.equal(ran.high[4:8], ran.low[4:8].double()), "rows nobody wrote are the buffer's own, exactly"


def test_what_nobody_wrote_of_fresh_memory_is_not_trusted() -> None:
    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        out = X.new_empty(32, 16)
        out[:8] = F.linear(X[:8], W)
    high = shadow.high(out)
    assert distance(high[:8], X[:8].double() @ W.double().T) < 1e-14
    assert bool(high[8:].isnan().all())


FRESH: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.empty(64, 64),
    "empty_like": lambda: torch.empty_like(X),
    "empty_strided": lambda: torch.empty_strided((64, 64), (1, 64)),
    "empty_permuted": lambda: torch.empty_permuted((2, 3, 4), (0, 2, 1)),
    "new_empty": lambda: X.new_empty(64, 64),
    "new_empty_strided": lambda: X.new_empty_strided((64, 64), (64, 1)),
}


@pytest.mark.parametrize("name", [
    *(n for n in FRESH if n != "new_empty_strided"),
    "new_empty_strided",
])  # fmt: skip
def test_uninitialised_memory_has_no_values(name: str) -> None:
    with torch.no_grad(), Shadow(roots=[X]) as shadow:
        ones = torch.ones(64, 64, dtype=torch.float64)
        del ones  # what the allocator hands out next
        fresh = FRESH[name]()
    assert bool(shadow.high(fresh).isnan().all())
