"""What a side makes of a LoRA is told layer by layer, before any forward: each planted fault by its own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity.loaded import load_side, with_lora
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import applied, merged
from parity.lora.factors import reason_for
from parity.lora_audit import LoraAudit, SideReport
from parity.pair import Build, Side, Source

WIDTH = 16
Put = Callable[[nn.Module, LoraAdapter], Any]
Targets = dict[str, LoraTarget]


class Returns(nn.Linear):
    """A linear layer that returns its bias apart."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return nn.functional.linear(input, self.weight), self.bias


class Noisy(nn.Linear):
    """A linear layer that never answers the same twice."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        Noisy.calls += 1
        return nn.functional.linear(input, self.weight) * (1 + Noisy.calls)


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "head")}
    return nn.ModuleDict({**layers, "out": Returns(WIDTH, WIDTH), "noisy": Noisy(WIDTH, WIDTH)})


def adapter(size: float = 0.3) -> LoraAdapter:
    g = torch.Generator().manual_seed(1)
    targets = {
        name: LoraTarget(size * torch.randn(2, WIDTH, generator=g), torch.randn(WIDTH, 2, generator=g), 0.25, "header")
        for name in ("q", "k", "v", "out")
    }
    return LoraAdapter("drawn", targets)


def report(put: Put | None, size: float = 0.3, dtype: torch.dtype = torch.float32) -> SideReport:
    side = Side("s", Source("x", bundled=True), lambda build: model().to(dtype), lambda m, i: None, lambda out: out,
                apply_lora=put)  # fmt: skip
    held, given = load_side("native", side, Build()), adapter(size)
    audit = LoraAudit(held, given, {})
    with with_lora(held, given) as kept:
        audit.on(kept)
    audit.after()
    audit.several()
    return audit.report


def edited(edit: Callable[[Targets], Targets], put: Put = applied) -> Put:
    return lambda m, a: put(m, LoraAdapter(a.name, edit(dict(a.targets))))


def _scaled(factor: float) -> Put:
    return edited(lambda targets: {k: replace(t, scaling=t.scaling * factor) for k, t in targets.items()})


def _swapped(targets: Targets) -> Targets:
    return {**targets, "q": targets["k"], "k": targets["q"]} if {"q", "k"} <= set(targets) else targets


def _turned(targets: Targets) -> Targets:
    return {name: replace(t, A=t.B.t().contiguous(), B=t.A.t().contiguous()) for name, t in targets.items()}


@contextmanager
def _nothing(m: nn.Module, a: LoraAdapter) -> Iterator[None]:
    yield


@contextmanager
def _stays(m: nn.Module, a: LoraAdapter) -> Iterator[None]:
    """Merge, and forget to take it off."""
    for name, target in a.targets.items():
        m.get_parameter(f"{name}.weight").data.add_(target.delta(torch.float32))
    yield


class OneSlot:
    """Keeps what the last switch merged in layers the new adapter lacks."""

    several = False

    def __call__(self, m: nn.Module, a: LoraAdapter) -> Any:
        return merged(m, a)

    @contextmanager
    def switch(self, m: nn.Module, a: LoraAdapter) -> Iterator[None]:
        with merged(m, a):
            yield


class Mixed:
    """Adds the factors of two adapters instead of their products."""

    def __init__(self) -> None:
        self.on: list[LoraAdapter] = []

    @contextmanager
    def __call__(self, m: nn.Module, a: LoraAdapter) -> Iterator[None]:
        if not self.on:
            self.on.append(a)
            with applied(m, a):
                yield
            self.on.clear()
            return
        first, cross = self.on[0], {}
        for name in a.targets.keys() & first.targets.keys():
            one, two = first.targets[name], a.targets[name]
            cross[name] = LoraTarget(torch.cat([one.A, two.A]), torch.cat([two.B, one.B], 1), one.scaling, "mixed")
        with applied(m, a), applied(m, LoraAdapter("cross", cross)):
            yield


FAULTS: dict[str, tuple[Put, str, str]] = {
    "ignored": (_nothing, "not_applied", "none of its 4 layers"),
    "in_part": (edited(lambda t: {k: v for k, v in t.items() if k != "v"}), "partly_applied", "3 of 4 layers"),
    "doubled": (_scaled(2), "scaling", "exactly 2 x in 4 of 4 layers"),
    "alpha_dropped": (_scaled(4), "scaling", "alpha dropped: scaling 1"),
    "other_sign": (_scaled(-1), "scaling", "another sign"),
    "transposed": (edited(_turned), "transposed", "in 4 layers"),
    "exchanged": (edited(_swapped), "wrong_module", "q has what is meant for k"),
    "strayed": (edited(lambda t: {**t, "head": t["q"]} if "q" in t else t), "wrong_module", "head has what is"),
    "other": (edited(lambda t: {k: replace(v, A=v.A.flip(1)) for k, v in t.items()}), "otherwise", "in 4 layers"),
    "stays": (_stays, "left_behind", "in 4 layers"),
    "old": (OneSlot(), "old_adapter", "still merged in 2 layers"),
    "mixed": (Mixed(), "added_wrongly", "% off in"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_code(name: str) -> None:
    put, code, words = FAULTS[name]
    found = report(put)
    assert [one.code for one in found.found] == [code], (found.found, found.missing)
    assert words in found.found[0].message
    assert found.found[0].severity == "error"


def _held(dtype: torch.dtype, *factors: str) -> Put:
    def edit(targets: Targets) -> Targets:
        low = {k: {f: getattr(t, f).to(dtype).to(t.A.dtype) for f in factors} for k, t in targets.items()}
        return {k: replace(t, **low[k]) for k, t in targets.items()}

    return edited(edit)


ROUNDED = {
    "A rounded to float8_e4m3fn": (torch.float32, _held(torch.float8_e4m3fn, "A")),
    "A and B rounded to float8_e5m2": (torch.bfloat16, _held(torch.float8_e5m2, "A", "B")),
    "B rounded to float8_e4m3fn": (torch.bfloat16, _held(torch.float8_e4m3fn, "B")),
    "A and B rounded to bfloat16": (torch.float32, _held(torch.bfloat16, "A", "B")),
    "B rounded to float16": (torch.float32, _held(torch.float16, "B")),
}


@pytest.mark.parametrize("words", ROUNDED)
def test_rounded_factors_are_no_scaling(words: str) -> None:
    dtype, put = ROUNDED[words]
    (found,) = report(put, dtype=dtype).found
    assert (found.code, found.severity) == ("rounded", "warning"), found
    assert found.message.startswith(f"{words} in 4 of 4 layers")


@pytest.mark.parametrize("put", [None, merged], ids=["unmerged", "merged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_healthy_side_has_no_finding(put: Put | None, dtype: torch.dtype) -> None:
    found = report(put, dtype=dtype)
    assert (found.found, found.missing) == ([], "")
    assert all(abs(effect.ratio - 1) < 0.01 for effect in found.modules.values())


def test_a_change_far_below_the_rounding_of_the_output_is_seen() -> None:
    """A tolerance relative to the output passes here with the LoRA deleted, and with twice of it."""
    found = report(_scaled(2), size=3e-5, dtype=torch.bfloat16)
    assert [one.code for one in found.found] == ["scaling"]


@pytest.mark.filterwarnings("ignore:stored-weight rounding")
def test_what_bfloat16_swallows_is_stored_weight_rounding_with_the_effect_kept() -> None:
    found = report(merged, size=2e-4, dtype=torch.bfloat16)
    assert [(one.code, one.severity) for one in found.found] == [("swallowed", "warning")]
    assert "stored-weight rounding" in found.found[0].message
    assert max(effect.kept for effect in found.modules.values()) < 0.9
    assert all(effect.ratio == pytest.approx(1, abs=0.01) for effect in found.modules.values())


def test_a_merge_by_the_wrong_factor_is_no_rounding() -> None:
    """Two units in the last place hide a factor where the change is one of a hundredth."""
    double = edited(lambda t: {k: replace(v, scaling=2 * v.scaling) for k, v in t.items()}, merged)
    assert {one.code for one in report(double, size=0.02, dtype=torch.bfloat16).found} == {"scaling"}


def test_usual_factors_are_named() -> None:
    target = LoraTarget(torch.ones(4, 3), torch.ones(3, 4), 0.1875, "tensor")
    assert reason_for(16 / 3, [target]) == "alpha dropped: scaling 1"
    assert reason_for(4.0, [target]) == "alpha not divided by r"
    assert reason_for(0.77, [target]) == ""
