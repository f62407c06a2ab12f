"""An adapter on the model: PEFT's arithmetic, and no trace after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from parity.errors import LoraError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import applied, merged


def target(out: int, into: int, rank: int = 2, scaling: float = 1.0, seed: int = 0) -> LoraTarget:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    return LoraTarget(A, B, scaling, "header")


class Pair(nn.Linear):
    """A linear that returns its bias apart, as tensor-parallel layers do."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return nn.functional.linear(input, self.weight), self.bias


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = Pair(6, 5)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        y, bias = self.second(self.first(input=x))
        out: Tensor = self.norm(y + bias)
        return out


ADAPTER = LoraAdapter("x", {"first": target(6, 4, 2, 0.5), "second": target(5, 6, 3, 0.25)})


def state_of(model: nn.Module) -> dict[str, object]:
    inside = {name: set(module.__dict__) | set(module._buffers) for name, module in model.named_modules()}
    return {"inside": inside, **{key: value.clone() for key, value in model.state_dict().items()}}


def assert_restored(model: nn.Module, before: dict[str, object]) -> None:
    after = state_of(model)
    assert after.pop("inside") == before.pop("inside")
    assert all(torch.equal(value, before[key]) for key, value in after.items())  # type: ignore[arg-type]


def by_hand(model: Model, x: Tensor) -> Tensor:
    one, two = ADAPTER.targets["first"], ADAPTER.targets["second"]
    A, B = (value.to(x.dtype) for value in (one.A, one.B))
    y = model.first(x) + nn.functional.linear(nn.functional.linear(x, A), B) * one.scaling
    A, B = (value.to(x.dtype) for value in (two.A, two.B))
    z = nn.functional.linear(y, model.second.weight) + nn.functional.linear(nn.functional.linear(y, A), B) * two.scaling
    out: Tensor = model.norm(z + model.second.bias)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_applied_is_pefts_arithmetic_and_leaves_no_trace(dtype: torch.dtype) -> None:
    model, x = Model().to(dtype), torch.randn(3, 4).to(dtype)
    before, plain = state_of(model), model(x)
    with applied(model, ADAPTER) as report:
        on = model(x)
        assert model.state_dict().keys() == before.keys() - {"inside"}
    assert torch.equal(on, by_hand(model, x))
    assert not torch.equal(on, plain)
    assert torch.equal(model(x), plain)
    assert_restored(model, before)
    assert {path: one.rank for path, one in report.modules.items()} == {"first": 2, "second": 3}


@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 4)], ids=["out", "out_1", "in"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_magnitudes_give_the_changed_weight_its_lengths(shape: tuple[int, ...], name: str) -> None:
    """By outputs or by inputs, with a bias in the result or beside it; unmerged is merged."""
    model, x = Model().double(), torch.randn(3, 4).double()
    weight = model.get_parameter(f"{name}.weight")
    sizes = {6: weight.shape[0], 4: weight.shape[1], 1: 1}
    m = torch.rand([sizes[size] for size in shape]).double() + 0.5
    one = replace(target(weight.shape[0], weight.shape[1]), magnitude=m)
    whole = weight + one.delta()
    dim = 0 if shape[0] == 1 else 1
    wanted = whole * m.reshape(-1 if dim else 1, 1 if dim else -1) / whole.norm(dim=dim, keepdim=True)
    before = state_of(model)
    with merged(model, LoraAdapter("x", {name: one})):
        torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)
        expected = model(x)
    with applied(model, LoraAdapter("x", {name: one})):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert_restored(model, before)


def test_applied_twice_stacks_and_unstacks() -> None:
    model, x = Model().double(), torch.randn(3, 4).double()
    before = state_of(model)
    with applied(model, ADAPTER):
        once = model(x)
        with applied(model, ADAPTER):
            assert not torch.equal(model(x), once)
        assert torch.equal(model(x), once)
    assert_restored(model, before)


def test_a_forward_of_the_instance_is_put_back() -> None:
    model = Model()
    own = model.first.forward
    model.first.forward = lambda input: own(input) * 2  # type: ignore[method-assign]
    mine = model.first.__dict__["forward"]
    with applied(model, ADAPTER):
        assert model.first.__dict__["forward"] is not mine
    assert model.first.__dict__["forward"] is mine


@pytest.mark.parametrize("way", [applied, merged])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exception_leaves_no_trace(way: Callable[..., object], dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    before = state_of(model)
    context = way(model, ADAPTER)
    with pytest.raises(KeyboardInterrupt), context:  # type: ignore[attr-defined]
        raise KeyboardInterrupt
    assert_restored(model, before)


def test_merged_adds_in_float32_and_puts_the_copy_back() -> None:
    model = Model().bfloat16()
    before, one = state_of(model), ADAPTER.targets["first"]
    weight = model.first.weight.detach().clone()
    with merged(model, ADAPTER) as report:
        assert torch.equal(model.first.weight, (weight.float() + one.delta(torch.float32)).bfloat16())
        assert not torch.equal(model.first.weight, weight)
    assert_restored(model, before)
    wanted = float(one.delta().norm() / weight.double().norm())
    assert report.modules["first"].relative_norm == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("way", [applied, merged])
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"frist": target(6, 4)}, "1 of 1 targets .*\nfirst: 'frist'\nnearest: 'first'"),
        ({"norm": target(5, 5)}, "'norm' is a LayerNorm without a weight"),
        ({"first": target(4, 6)}, r"'first': B @ A is \(4, 6\), the weight is \(6, 4\)"),
        ({"first": target(6, 4), "second": target(5, 5)}, "'second': B @ A"),
        ({"first": LoraTarget(torch.ones(2, 4), torch.zeros(6, 2), 1.0, "t")}, "changes nothing"),
        ({"first": target(6, 4, scaling=0.0)}, "changes nothing"),
    ],
)
def test_an_adapter_that_does_not_fit_touches_nothing(
    way: Callable[..., object], targets: dict[str, LoraTarget], words: str
) -> None:
    model = Model()
    before, context = state_of(model), way(model, LoraAdapter("x", targets))
    with pytest.raises(LoraError, match=words), context:  # type: ignore[attr-defined]
        pytest.fail("entered")
    assert_restored(model, before)
