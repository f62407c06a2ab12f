"""Memory that dead shadows left: taken by the next op of its size, never while anyone sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.execution import reuse
from parity.execution.reuse import Spare
from parity.execution.shadow import Shadow

S, C = 1024, 512  # above the size from which memory is kept


def _values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: torch.add(x, y, alpha=3),
    "sub": lambda x, y: x - y,
    "mul by a number": lambda x, y: x * 0.3,
    "div": lambda x, y: x / (y.abs() + 1),
    "pow": lambda x, y: x**2,
    "gelu": lambda x, y: F.gelu(x, approximate="tanh"),
    "silu": lambda x, y: F.silu(x),
    "clone": lambda x, y: (x + y).T.contiguous(),
    "mm": lambda x, y: x @ y[:512].clone(),
    "permuted": lambda x, y: x.unflatten(1, (4, 128)).permute(1, 0, 2) ** 2,
    "promoted": lambda x, y: x * y.float(),
    "integers": lambda x, y: x * torch.arange(512),
    "broadcast": lambda x, y: x * y[0] + y[:, :1],
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_values_are_those_of_fresh_memory(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _values(S, C), _values(S, C, seed=1)

    def run() -> Tensor:
        with torch.no_grad(), Shadow([x, y], dtype=dtype) as shadow:
            for _ in range(3):  # what the first rounds leave, the last one takes
                out = OPS[name](x, y)
            return shadow.high(out).clone()

    reused = run()
    monkeypatch.setattr(Spare, "take", lambda *_: None)
    assert torch.equal(reused, run())


def _kept_and_wanted() -> list[tuple[Tensor, Tensor]]:
    x = _values(S, C)
    with torch.no_grad(), Shadow([x]) as shadow:
        kept = [shadow.high(x * float(n)) for n in range(1, 5)]  # each tensor dies, its shadow is still seen
        for n in range(5, 9):
            (x * float(n)).add(1)
    return [(high, x.double() * n) for n, high in enumerate(kept, 1)]


def test_a_shadow_someone_holds_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(torch.equal(high, wanted) for high, wanted in _kept_and_wanted())
    monkeypatch.setattr(reuse, "_seen_by", lambda _: 1)  # the check can fail
    assert not all(torch.equal(high, wanted) for high, wanted in _kept_and_wanted())
    reuse._LEFT.clear()


def test_a_pass_takes_what_the_one_before_left() -> None:
    model, x = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C)), _values(S, C, dtype=torch.float32)
    reuse._LEFT.clear()
    with torch.no_grad(), Shadow([*model.parameters(), x]):
        model(x)
    left = [piece.data_ptr() for piece in reuse._LEFT]
    assert left
    with torch.no_grad(), Shadow([*model.parameters(), x]) as shadow:
        assert not reuse._LEFT  # a pass inside this one gets none of it
        hidden = model[0](x)
        assert shadow.high(hidden).data_ptr() in left


def test_no_more_is_kept_than_a_chain_needs() -> None:
    x = _values(S, C)
    reuse._LEFT.clear()
    with torch.no_grad(), Shadow([x]):
        for rows in range(520, 720, 10):  # every shadow of a size of its own
            (x[:rows] * 2).add(1)
        held = [x * float(n) for n in range(5)]
        del held
    sizes = [piece.numel() for piece in reuse._LEFT]
    assert len(sizes) <= reuse._SPARES
    assert max(sizes.count(size) for size in sizes) <= reuse._OF_A_SIZE
    reuse._LEFT.clear()
