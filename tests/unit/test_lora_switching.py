"""Several adapters on one model, quantised or not: they add, and the base comes back bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.errors import LoraError, UsageError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import applied, merged
from parity.lora.switching import Adapters, weighted

OUT, IN = 6, 8


def target(seed: int, out: int = OUT, into: int = IN) -> LoraTarget:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator)
    return LoraTarget(A, B, 0.5, "tensor")


ONE = LoraAdapter("one", {"a": target(1), "b": target(2, OUT, OUT)})
TWO = LoraAdapter("two", {"b": target(3, OUT, OUT)})


class Int8Rows(nn.Module):
    """A linear layer with int8 rows, a scale each; returns its bias apart."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def real(self) -> Tensor:
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        return weight.float() * scale

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return F.linear(x, self.real().to(x.dtype)), None


class Fp8(Int8Rows):
    """A linear layer with an eight-bit float weight and one scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        scale = linear.weight.detach().abs().amax() / 448
        self.weight = (linear.weight.detach() / scale).to(torch.float8_e4m3fn)
        self.scale = scale


NF4 = torch.erfinv(torch.linspace(-0.95, 0.95, 16)) / torch.erfinv(torch.tensor(0.95))
"""Sixteen quantiles of a normal distribution, the outermost at -1 and 1."""


class Nf4(Int8Rows):
    """A linear layer of four-bit normal floats: blocks with a scale each, two codes a byte, shaped like no weight."""

    def __init__(self, linear: nn.Linear, block: int = 4) -> None:
        super().__init__(linear)
        values = linear.weight.detach().reshape(-1, block)
        self.scale = values.abs().amax(1, keepdim=True)
        codes = ((values / self.scale).unsqueeze(-1) - NF4).abs().argmin(-1).flatten()
        self.weight = (codes[::2] * 16 + codes[1::2]).to(torch.uint8).unsqueeze(1)

    def real(self) -> Tensor:
        codes = self.get_buffer("weight").to(torch.int64)
        both, scale = torch.cat([codes // 16, codes % 16], 1).flatten(), self.get_buffer("scale")
        return (NF4[both].reshape(len(scale), -1) * scale).reshape(self.out_features, self.in_features)


class Model(nn.Module):
    def __init__(self, quantise: Callable[[nn.Linear], nn.Module] = lambda linear: linear) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = quantise(nn.Linear(IN, OUT, bias=False)), quantise(nn.Linear(OUT, OUT, bias=False))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            found = layer(x)
            x = found[0] if isinstance(found, tuple) else found
        return x


def weights(model: Model) -> dict[str, Tensor]:
    layers = {"a": model.a, "b": model.b}
    return {
        name: (layer.real() if isinstance(layer, Int8Rows) else layer.get_parameter("weight")).double()
        for name, layer in layers.items()
    }


def as_bytes(value: Tensor) -> Tensor:
    return value.reshape(-1).view(torch.uint8)


def by_hand(model: Model, x: Tensor, *adapters: tuple[LoraAdapter, float]) -> Tensor:
    """The two layers with the sum of the changes in their weights, in float64."""
    out = x.double()
    for name, weight in weights(model).items():
        changes = [factor * one.targets[name].delta() for one, factor in adapters if name in one.targets]
        out = F.linear(out, weight + sum(changes, torch.zeros_like(weight)))
    return out


BASES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "float32": lambda linear: linear, "int8": Int8Rows, "fp8": Fp8, "nf4": Nf4,
}  # fmt: skip
X = torch.randn(3, IN, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("base", BASES)
def test_changes_of_several_adapters_add(base: str) -> None:
    model = Model(BASES[base])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(X)
    with Adapters(model) as adapters:
        adapters.add_adapter(ONE)
        adapters.add_adapter(TWO)
        assert torch.equal(model(X), plain), "known is not yet active"
        for chosen in ({"one": 1.0}, {"two": 1.0}, {"one": 0.5, "two": -2.0}, {"one": 1.0}):
            adapters.set_adapters(chosen)
            known = [(ONE if name == "one" else TWO, weight) for name, weight in chosen.items()]
            torch.testing.assert_close(model(X).double(), by_hand(model, X, *known), rtol=1e-5, atol=1e-5)
        adapters.disable_adapters()
        assert torch.equal(model(X), plain)
        adapters.set_adapters({"two": 1.0})
    assert torch.equal(model(X), plain)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(as_bytes(after[name]), as_bytes(before[name])) for name in before)
    assert "forward" not in model.a.__dict__


@pytest.mark.parametrize("base", BASES)
def test_switching_leaves_nothing_of_the_old_adapter(base: str) -> None:
    """The layer `a` is one's alone: two's output must be that of a model that never saw one."""
    fresh, model = Model(BASES[base]), Model(BASES[base])
    with applied(fresh, TWO):
        wanted = fresh(X)
    with Adapters(model) as adapters:
        adapters.add_adapter(ONE)
        adapters.add_adapter(TWO)
        adapters.set_adapters({"one": 1.0})
        adapters.set_adapters({"two": 1.0})
        assert torch.equal(model(X), wanted)
        assert adapters.active == {"two": 1.0}


@pytest.mark.parametrize("base", BASES)
def test_an_adapter_is_deleted_and_the_others_stay(base: str) -> None:
    model = Model(BASES[base])
    with Adapters(model) as adapters:
        adapters.add_adapter(ONE)
        adapters.add_adapter(TWO)
        adapters.set_adapters({"one": 1.0, "two": 1.0})
        adapters.delete_adapter("one")
        torch.testing.assert_close(model(X).double(), by_hand(model, X, (TWO, 1.0)), rtol=1e-5, atol=1e-5)
        adapters.add_adapter(ONE)
        with pytest.raises(LoraError, match="already"):
            adapters.add_adapter(ONE)
        with pytest.raises(UsageError, match="unknown adapter 'three'"):
            adapters.set_adapters({"three": 1.0})
        assert adapters.active == {"two": 1.0}


def test_an_adapter_that_does_not_fit_is_refused_when_it_is_added() -> None:
    model = Model()
    with Adapters(model) as adapters, pytest.raises(LoraError, match="'a': B @ A"):
        adapters.add_adapter(LoraAdapter("wide", {"a": target(1, OUT, IN + 1)}))


@pytest.mark.parametrize("base", BASES)
def test_biases_are_added_weighted_and_taken_off(base: str) -> None:
    model, bias = Model(BASES[base]), torch.arange(float(OUT))
    plain = model(X)
    zero = LoraTarget(torch.zeros(1, OUT), torch.zeros(OUT, 1), 1.0, "tensor", bias=bias)
    with applied(model, weighted(LoraAdapter("bias", {"b": zero}), 0.5)):
        torch.testing.assert_close(model(X), plain + 0.5 * bias)
    assert torch.equal(model(X), plain)


@pytest.mark.parametrize("base", ["int8", "fp8", "nf4"])
def test_merging_into_a_quantised_weight_is_refused(base: str) -> None:
    model = Model(BASES[base])
    with pytest.raises(LoraError, match="quantised"), merged(model, ONE):
        pytest.fail("entered")


def _small(size: float) -> tuple[nn.Linear, LoraAdapter]:
    """A layer of 256 by 256 and an adapter whose change is `size` times the weight."""
    generator = torch.Generator().manual_seed(4)
    layer = nn.Linear(256, 256, bias=False)
    layer.weight = nn.Parameter(torch.randn(256, 256, generator=generator) / 16, requires_grad=False)
    A, B = torch.randn(8, 256, generator=generator), torch.randn(256, 8, generator=generator)
    factor = size * float(layer.weight.norm() / (B @ A).norm())
    return layer, LoraAdapter("small", {"0": LoraTarget(A, B, factor, "tensor")})


@pytest.mark.parametrize(("size", "low", "high"), [(1e-1, 0.97, 1.03), (1e-3, 0.35, 0.7), (1e-4, -0.05, 0.2)])
def test_bfloat16_swallows_small_changes_and_says_so(size: float, low: float, high: float) -> None:
    layer, adapter = _small(size)
    model = nn.Sequential(layer).bfloat16()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with merged(model, adapter) as report:
            assert low < report.modules["0"].kept < high
    assert bool([w for w in told if "stored-weight rounding" in str(w.message)]) == (high < 0.9)


def test_float32_keeps_what_bfloat16_swallows() -> None:
    layer, adapter = _small(1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with merged(nn.Sequential(layer), adapter) as report:
            assert report.modules["0"].kept == pytest.approx(1, abs=1e-3)


def test_merged_and_unmerged_agree_and_bfloat16_keeps_its_dtype() -> None:
    model = Model()
    with merged(model, ONE):
        one = model(X)
    with applied(model, ONE):
        torch.testing.assert_close(model(X), one)
    low = Model().bfloat16()
    with applied(low, weighted(ONE, 2.0)):
        assert low(X.bfloat16()).dtype == torch.bfloat16
