"""How inputs are changed, and what is made of the responses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.tiny import call_native, call_reference, tiny_inputs, tiny_pair
from fixtures.tiny_space import SPACE, spacious
from parity.execution.tap import Inputs
from parity.pair import Build, ModelPair
from parity.sensitivity import STEP, Response, Sensitivity, base_inputs, changes, named
from parity.session import opened
from parity.space import typical


def only(value: Any) -> Any:
    (ways,) = changes(value).values()
    return ways[0]


@pytest.mark.parametrize(
    ("value", "changed"),
    [(True, False), (4, 5), (2.0, 2.12), (0.0, STEP), ([3, 2], [2, 1]), ((1, 1), (1, 1)), ([1.0, 2.0], [1.06, 2.12])],
)
def test_numbers_are_changed_a_little(value: Any, changed: Any) -> None:
    assert only(value) == pytest.approx(changed)


@pytest.mark.parametrize("value", [None, "x", {}, [], object(), torch.zeros(0), ["a"]])
def test_what_cannot_be_changed_has_no_way(value: Any) -> None:
    assert changes(value) == {}


def test_floats_are_moved_and_zeroed() -> None:
    value = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    moved, zeroed = (ways[0] for ways in changes(value).values())
    assert moved.dtype == value.dtype
    assert bool((moved != value).all())
    assert float((moved - value).norm() / value.norm()) == pytest.approx(STEP, rel=0.1)
    assert not zeroed.any()
    assert list(changes(torch.zeros(3))) == [f"moved by {STEP:.0%}"]


def test_masks_lose_their_last_token_and_gain_their_padding() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    dropped, filled = (ways[0] for ways in changes(mask).values())
    assert dropped.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert bool(filled.all())
    assert changes(mask.bool()).keys() == changes(mask).keys()
    assert list(changes(torch.ones(1, 2).bool())) == ["last valid token dropped"]
    assert only(torch.tensor([3, 4])).tolist() == [4, 5]


def test_names_are_those_of_inputs_that_hold_something() -> None:
    assert named({"a": 1, "b": None, "c": False}) == ["a", "c"]


def test_base_is_a_typical_drawn_input_where_there_are_any() -> None:
    assert base_inputs(tiny_pair(), Build())["latents"].shape[0] == 1
    latents: Tensor = base_inputs(spacious(), Build())["latents"]
    assert latents.shape[0] == typical(SPACE).batch


def responses(pair: ModelPair, name: str) -> list[Response]:
    with opened(pair, Build()) as session:
        return Sensitivity(session).of(name)


def with_calls(reference: Any = call_reference, native: Any = call_native, **more: Any) -> ModelPair:
    p = tiny_pair(lora=None, inputs=lambda build, seed: {**tiny_inputs(build, seed), **more})
    return replace(p, reference=replace(p.reference, call=reference), native=replace(p.native, call=native))


@pytest.mark.parametrize("name", ["latents", "t", "text"])
def test_equal_functions_respond_alike(name: str) -> None:
    for found in responses(tiny_pair(), name):
        assert found.wrong == ""
        assert found.judged
        assert found.apart == pytest.approx(0.0, abs=1e-12)


def test_side_that_ignores_an_input_is_named() -> None:
    fixed = torch.full((1,), 0.5)
    (native, *_) = responses(with_calls(native=lambda m, i: call_native(m, {**i, "t": fixed})), "t")
    (reference, *_) = responses(with_calls(reference=lambda m, i: call_reference(m, {**i, "t": fixed})), "t")
    assert native.wrong == "the native ignores it"
    assert (native.native, native.reference > 0) == (0.0, True)
    assert reference.wrong == "the reference ignores it"


def test_value_only_one_side_refuses() -> None:
    def strict(model: nn.Module, inputs: Inputs) -> Any:
        if inputs["count"] != 2:
            raise ValueError("two")
        return call_native(model, inputs)

    def scaled(model: nn.Module, inputs: Inputs) -> Any:
        return call_reference(model, {**inputs, "t": inputs["t"] * inputs["count"]})

    refused = responses(with_calls(reference=scaled, native=strict, count=2), "count")[0]
    assert "the native refuses it" in refused.wrong

    def never(model: nn.Module, inputs: Inputs) -> Any:
        strict(model, {**inputs, "count": inputs["count"]}) if inputs["count"] != 2 else None
        return call_reference(model, inputs)

    unjudged = responses(with_calls(reference=never, count=2), "count")[0]
    assert (unjudged.judged, unjudged.wrong) == (False, "")


def test_declared_approximation_may_respond_otherwise_but_not_ignore() -> None:
    half = with_calls(native=lambda m, i: call_native(m, {**i, "text": i["text"] * 0.5}))
    assert responses(half, "text")[0].wrong == "the two sides respond differently"
    assert responses(replace(half, declared={"final_output": "sparse"}), "text")[0].wrong == ""


def test_cache_of_an_earlier_call_plays_no_part() -> None:
    def remembering(model: nn.Module, inputs: Inputs) -> Any:
        kept: dict[str, Tensor] = model.__dict__.setdefault("kept", {})
        return call_native(model, {**inputs, "text": kept.setdefault("text", inputs["text"])})

    assert responses(with_calls(native=remembering), "text")[0].wrong == ""
