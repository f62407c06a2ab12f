"""Changes in full: added to weights, biases and tables or put in their place, carried over, judged, and taken off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.errors import LoraError
from parity.lora.adapter import FullChange, LoraAdapter, LoraTarget
from parity.lora.apply import applied, merged
from parity.lora.mapping import map_adapter
from parity.lora.switching import Adapters
from parity.weights.keymap import KeyMap, rename
from parity.weights.rule import fuse


def drawn(*shape: int, seed: int = 0, size: float = 0.3) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """A patch embedding, a norm, a table, linear layers with a bias and without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.norm = nn.Conv3d(2, 6, (1, 2, 2), stride=(1, 2, 2)), nn.LayerNorm(6)
        self.modulation, self.words = nn.Parameter(torch.randn(1, 2, 6)), nn.Embedding(5, 6)
        self.out, self.bare = nn.Linear(6, 4), nn.Linear(6, 4, bias=False)

    def forward(self, video: Tensor, ids: Tensor) -> Tensor:
        """Run it. Shapes: video [B, 2, F, H, W], ids [B, L]; result [B, 4]."""
        x = self.norm(self.patch(video).flatten(2).mean(-1)) * self.modulation[:, 0] + self.modulation[:, 1]
        x = x + self.words(ids).mean(1)
        out: Tensor = self.out(x) + self.bare(x)
        return out


INPUTS = (drawn(3, 2, 2, 4, 4, size=1.0), torch.tensor([[0, 1], [2, 3], [4, 4]]))
CHANGES = {
    "patch.weight": FullChange(drawn(6, 2, 1, 2, 2)), "patch.bias": FullChange(drawn(6)),
    "norm.weight": FullChange(drawn(6, seed=1)), "norm.bias": FullChange(drawn(6, seed=2)),
    "modulation": FullChange(drawn(1, 2, 6)), "words.weight": FullChange(drawn(5, 6)),
    "out.weight": FullChange(drawn(4, 6), replaces=True), "out.bias": FullChange(drawn(4), replaces=True),
    "bare.weight": FullChange(drawn(4, 6, seed=3)),
}  # fmt: skip
ADAPTER = LoraAdapter("full", {}, CHANGES)


def state_of(model: nn.Module) -> dict[str, Any]:
    inside = {name: set(module.__dict__) | set(module._buffers) for name, module in model.named_modules()}
    return {"inside": inside, **{key: value.clone() for key, value in model.state_dict().items()}}


def assert_as_before(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert after["inside"] == before["inside"]
    assert all(torch.equal(value, before[key]) for key, value in after.items() if key != "inside")


def by_hand(weight: float = 1.0) -> Tensor:
    model = Model()
    with torch.no_grad():
        for name, change in CHANGES.items():
            value = model.get_parameter(name)
            value.copy_(change.value if change.replaces else value + weight * change.value)
    out: Tensor = model(*INPUTS)
    return out


@pytest.mark.parametrize("way", [applied, merged])
@pytest.mark.parametrize("name", ["all", *CHANGES])
def test_each_is_where_it_belongs_and_leaves_no_trace(way: Callable[..., Any], name: str) -> None:
    model, adapter = Model(), ADAPTER if name == "all" else LoraAdapter("one", {}, {name: CHANGES[name]})
    before, plain = state_of(model), model(*INPUTS)
    with way(model, adapter) as report:
        on = model(*INPUTS)
    assert not torch.allclose(on, plain)
    assert name != "all" or torch.allclose(on, by_hand(), rtol=1e-5, atol=1e-6)
    assert set(report.modules) == set(adapter.changes)
    assert torch.equal(model(*INPUTS), plain)
    assert_as_before(model, before)


def test_the_strength_multiplies_what_is_added_not_what_replaces() -> None:
    model = Model()
    before, plain = state_of(model), model(*INPUTS)
    with Adapters(model) as adapters:
        adapters.add_adapter(ADAPTER)
        adapters.add_adapter(LoraAdapter("other", {"bare": LoraTarget(drawn(2, 6), drawn(4, 2), 1.0, "x")}))
        adapters.set_adapters({"full": 0.5})
        torch.testing.assert_close(model(*INPUTS), by_hand(0.5))
        adapters.set_adapters({"full": 1.0, "other": 1.0})
        adapters.set_adapters({"full": 0.25})
        torch.testing.assert_close(model(*INPUTS), by_hand(0.25))
        adapters.disable_adapters()
        assert torch.equal(model(*INPUTS), plain)
    assert_as_before(model, before)


def test_a_bias_for_a_layer_without_one_is_told() -> None:
    model, adapter = Model(), LoraAdapter("x", {}, {"bare.bias": FullChange(torch.ones(4))})
    plain = model(*INPUTS)
    with pytest.warns(UserWarning, match=r"1 layers that have none: bare"), applied(model, adapter):
        torch.testing.assert_close(model(*INPUTS), plain + 1)
    with pytest.raises(LoraError, match="has no bias"), merged(model, adapter):
        pytest.fail("merged")


class Quantised(nn.Module):
    """A linear layer of int8 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.register_buffer("weight", torch.randint(-9, 9, (4, 6), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        assert isinstance(self.weight, Tensor)
        return F.linear(x, self.weight.to(x.dtype) / 8)


def test_on_a_quantised_layer_it_stands_beside_the_weight() -> None:
    model, x = nn.ModuleDict({"q": Quantised()}), drawn(3, 6)
    plain = model["q"](x)
    adapter = LoraAdapter("x", {"q": LoraTarget(drawn(2, 6), drawn(4, 2), 0.5, "x")},
                          {"q.weight": FullChange(drawn(4, 6))})  # fmt: skip
    with applied(model, adapter):
        wanted = plain + F.linear(x, drawn(4, 6)) + F.linear(x, adapter.targets["q"].delta(torch.float32))
        torch.testing.assert_close(model["q"](x), wanted)
    assert torch.equal(model["q"](x), plain)
    for way, change in ((merged, FullChange(drawn(4, 6))), (applied, FullChange(drawn(4, 6), replaces=True))):
        with pytest.raises(LoraError, match="quantised"), way(model, LoraAdapter("x", {}, {"q.weight": change})):
            pytest.fail("applied")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [("nrom.weight", FullChange(drawn(6)), "nearest: 'norm.weight'"),
     ("modulation", FullChange(drawn(2, 6)), r"is \[2, 6\], the tensor \[1, 2, 6\]"),
     ("out.weight", FullChange(drawn(6, 4)), r"is \[6, 4\], the tensor \[4, 6\]"),
     ("norm.weight", FullChange(torch.zeros(6)), "changes nothing")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, change: FullChange, words: str) -> None:
    with pytest.raises(LoraError, match=words), applied(Model(), LoraAdapter("x", {}, {name: change})):
        pytest.fail("applied")


def test_a_weight_too_coarse_for_the_change_is_told() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(64)}).to(torch.bfloat16)
    adapter = LoraAdapter("x", {}, {"norm.weight": FullChange(torch.full((64,), 1e-4))})
    with pytest.warns(UserWarning, match="keeps less than 90%"), applied(model, adapter) as report:
        assert report.modules["norm.weight"].kept == 0


MAP = KeyMap((
    rename(r"norm\.(.+)", r"ln.\1"), rename("table", "shift"), fuse((r"q\.weight", r"k\.weight"), "qk.weight"),
))  # fmt: skip
SIZES = ({"norm.weight": (4,), "table": (1, 2, 4), "q.weight": (3, 4), "k.weight": (3, 4)},
         {"ln.weight": (4,), "shift": (1, 2, 4), "qk.weight": (6, 4)})  # fmt: skip


def mapped(changes: dict[str, FullChange]) -> LoraAdapter:
    shapes = [{key: torch.Size(size) for key, size in side.items()} for side in SIZES]
    return map_adapter(LoraAdapter("x", {}, changes), MAP, *shapes)


def test_changes_in_full_go_through_a_key_map() -> None:
    found = mapped({name: FullChange(drawn(*SIZES[0][name])) for name in ("norm.weight", "table", "k.weight")})
    assert torch.equal(found.changes["ln.weight"].value, drawn(4))
    assert torch.equal(found.changes["shift"].value, drawn(1, 2, 4))
    assert torch.equal(found.changes["qk.weight"].value, torch.cat([torch.zeros(3, 4), drawn(3, 4)]))
    with pytest.raises(LoraError, match="only some are replaced"):
        mapped({"q.weight": FullChange(drawn(3, 4), replaces=True)})
    with pytest.raises(LoraError, match="nearest: 'table'"):
        mapped({"tabel": FullChange(drawn(1, 2, 4))})


def test_magnitudes_and_a_change_in_full_of_one_weight_are_refused() -> None:
    one = replace(LoraTarget(drawn(2, 6), drawn(4, 2), 1.0, "x"), magnitude=torch.ones(4))
    both = LoraAdapter("x", {"out": one}, {"out.weight": FullChange(drawn(4, 6))})
    with pytest.raises(LoraError, match="no loader says what that means"), applied(Model(), both):
        pytest.fail("applied")
