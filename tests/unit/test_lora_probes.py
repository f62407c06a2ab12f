"""Layers of every kind and dtype are asked what a LoRA does to them: magnitudes, tables, kernels, changes in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.tiny import tiny_pair
from parity.loaded import load_side, stored_lora, with_lora
from parity.lora.adapter import FullChange, LoraAdapter, LoraTarget
from parity.lora.apply import applied, merged
from parity.lora_audit import LoraAudit, SideReport
from parity.pair import Build, Side, Source
from parity.session import PairSession

Put = Callable[[nn.Module, LoraAdapter], Any]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Typed(nn.Linear):
    """A linear layer whose caller opens an autocast: it takes its weight's dtype only."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.patch = nn.Embedding(11, 6), nn.Conv3d(3, 6, (1, 2, 2), stride=(1, 2, 2))
        self.padded, self.out = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Linear(6, 7)
        self.grouped, self.bare = nn.Conv2d(6, 8, 3, groups=2), nn.Linear(6, 6, bias=False)
        self.norm, self.modulation = nn.LayerNorm(6), nn.Parameter(torch.randn(1, 6, 6))
        self.time = Typed(6, 6)


def low(out: int, into: int, **more: Any) -> LoraTarget:
    return LoraTarget(drawn(3, into, seed=out), drawn(out, 3, seed=into), 0.5, "header", **more)


LOW = {"words": low(11, 6, embedding=True), "patch": low(6, 12), "padded": low(8, 54), "out": low(7, 6)}
FULL = {
    "norm.weight": FullChange(0.3 * drawn(6)), "norm.bias": FullChange(0.3 * drawn(6, seed=1)),
    "modulation": FullChange(0.3 * drawn(1, 6, 6)), "bare.weight": FullChange(drawn(6, 6)),
    "patch.bias": FullChange(drawn(6)), "grouped.weight": FullChange(drawn(8, 3, 3, 3), replaces=True),
}  # fmt: skip
LENGTHS = {name: replace(one, magnitude=0.5 + torch.rand(6 if one.embedding else one.B.shape[0], generator=
           torch.Generator().manual_seed(5))) for name, one in LOW.items()}  # fmt: skip


def report(targets: dict[str, LoraTarget], put: Put | None = None, dtype: torch.dtype = torch.float32) -> SideReport:
    def build(wanted: Build) -> nn.Module:
        made = Model().to(dtype)
        made.time.float()
        return made

    side = Side("s", Source("x", bundled=True), build, lambda m, i: None, lambda out: out, apply_lora=put)
    held = load_side("native", side, Build())
    adapter = stored_lora(held.model, LoraAdapter("x", targets, FULL))
    audit = LoraAudit(held, adapter, {})
    with with_lora(held, adapter) as kept:
        audit.on(kept)
    audit.after()
    audit.several()
    return audit.report


def edited(targets: Callable[[LoraTarget], LoraTarget] = lambda t: t, changes: Any = dict) -> Put:
    return lambda m, a: applied(
        m, LoraAdapter(a.name, {name: targets(one) for name, one in a.targets.items()}, changes(a.changes))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("put", [None, merged])
@pytest.mark.parametrize("targets", [LOW, LENGTHS])
def test_what_is_as_in_the_file_is_no_finding(targets: dict[str, LoraTarget], put: Put | None, dtype: Any) -> None:
    found = report(targets, put, dtype)
    assert (found.missing, [one for one in found.found if one.severity == "error"]) == ("", [])
    assert found.modules.keys() == {*LOW, "norm.weight", "norm.bias", "modulation", "bare", "grouped.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("put", "code", "words"),
    [
        (edited(lambda t: replace(t, magnitude=None)), "magnitudes", "are not used, B @ A is added alone in 4 layers"),
        (edited(lambda t: replace(t, scaling=0.0)), "magnitudes", "are applied, B @ A is not in 4 layers"),
        (edited(lambda t: replace(t, magnitude=t.magnitude.flip(0) if t.magnitude is not None else None)), "magnitudes",
         "are others than the file's in 3 layers: patch, padded, out"),
        (edited(changes=lambda c: {}), "partly_applied", "not to norm.weight, norm.bias, modulation"),
        (edited(changes=lambda c: {n: o if o.replaces else replace(o, value=2 * o.value) for n, o in c.items()}),
         "scaling", "off by"),
    ],
)  # fmt: skip
def test_what_is_not_is_named(put: Put, code: str, words: str, dtype: torch.dtype) -> None:
    found = {one.code: one.message for one in report(LENGTHS, put, dtype).found}
    assert words in found[code], found


def over_the_old_length(model: nn.Module, adapter: LoraAdapter) -> Any:
    """Divide by the length of the weight without its change."""
    layer, one = model.get_submodule("out"), adapter.targets["out"]
    weight = layer.get_parameter("weight")
    assert one.magnitude is not None
    changed = (weight + one.delta(torch.float32)) * (one.magnitude / weight.norm(dim=1)).unsqueeze(1)
    full = {**adapter.changes, "out.weight": FullChange(changed.detach(), replaces=True)}
    return applied(model, LoraAdapter("x", {n: t for n, t in adapter.targets.items() if n != "out"}, full))


def test_lengths_of_the_weight_without_its_change_are_named() -> None:
    found = report(LENGTHS, over_the_old_length).found
    assert [one.message for one in found] == [
        "magnitudes (DoRA) are over the length of W, not of W + scaling B @ A in 1 layers: out"
    ]


class Picky(nn.Linear):
    """A layer that cannot be called alone."""

    def forward(self, input: Tensor, grid: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input) * grid


def test_a_layer_that_cannot_be_called_alone_costs_no_other_its_verdict() -> None:
    def build(wanted: Build) -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"picky": Picky(6, 7), "out": nn.Linear(6, 7)})

    put = edited(lambda t: replace(t, scaling=t.scaling * 2))
    side = Side("s", Source("x", bundled=True), build, lambda m, i: None, lambda out: out, apply_lora=put)
    held = load_side("native", side, Build())
    audit = LoraAudit(held, adapter := LoraAdapter("x", {"picky": low(7, 6), "out": low(7, 6)}), {})
    with with_lora(held, adapter) as kept:
        audit.on(kept)
    assert "1 of 2 targets cannot be called alone, picky: TypeError" in audit.report.missing
    assert [one.modules for one in audit.report.found] == [("out",)]


@pytest.mark.parametrize("dropped", ["", "blocks.0.ln.weight"])
def test_a_pair_carries_changes_in_full_to_its_port_and_sees_one_that_is_dropped(dropped: str) -> None:
    def lora(build: Build, reference: nn.Module) -> LoraAdapter:
        assert pair.lora is not None
        changes = {"layers.0.norm.weight": FullChange(drawn(16)), "y_in.weight": FullChange(drawn(16, 6), True)}
        return replace(pair.lora(build, reference), changes=changes)

    def put(model: nn.Module, adapter: LoraAdapter) -> Any:
        return applied(model, replace(adapter, changes={n: c for n, c in adapter.changes.items() if n != dropped}))

    pair = tiny_pair()
    session = PairSession(replace(pair, lora=lora, native=replace(pair.native, apply_lora=put)), Build())
    assert set(session.native_adapter.changes) == {"blocks.0.ln.weight", "text_embedding.weight"}
    with session.lora(True):
        pass
    told = {side: [one["modules"] for one in held["findings"]] for side, held in session.lora_found().items()}
    assert told == {"reference": [], "native": [[dropped]] if dropped else []}
