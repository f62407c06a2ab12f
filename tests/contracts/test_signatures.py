"""Every signature recognises its own plant before all others, in a pair, and none sees one where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.pairs.longcat import PAIR
from fixtures.plants import native_with
from fixtures.plants_named import small
from fixtures.tiny import edited, gelu_erf, tiny_pair
from parity.diagnose.planting import planted
from parity.diagnose.signature import Seen, discovered, recognised
from parity.pair import Build, ModelPair
from parity.run import Options, StateResult, run_state
from parity.session import PairSession

SIGNATURES = discovered()
BY_VALUE = [name for name, s in SIGNATURES.items() if callable(s.plant) and s.on == "logic"]
TAP = "block1"


def ran(name: str | None, dtype: torch.dtype = torch.float32) -> StateResult:
    pair = tiny_pair() if name is None else planted(tiny_pair(), name, ["blocks.1"]).pair
    return run_state(PairSession(pair, Build(dtype=dtype)), False, Options(singles=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", BY_VALUE)
def test_its_own_plant_is_named_first(name: str, dtype: torch.dtype) -> None:
    result = ran(name, dtype)
    assert result.judged[TAP].logic
    found = result.explained.signatures[TAP]
    assert found[0][0] == name, found
    assert found[0][1]


def in_small(name: str, module: str = "blocks.0", pair: ModelPair = PAIR) -> StateResult:
    plant = planted(small(pair), name, [module])
    result = run_state(
        PairSession(plant.pair, Build(size="mini", dtype=torch.float32)),
        SIGNATURES[name].category == "lora",
        Options(singles=0),
    )
    assert plant.expressible
    return result


EDITS = [
    ("norm_low", "blocks.0"), ("rope_low", "blocks.0"), ("autocast_one_side", "blocks.0"), ("matmul_tf32", "blocks.0"),
    ("parameter_shared", "blocks.0"), ("causality", "blocks.0"), ("rope_offset", "blocks.0"),
    ("activation_extra", "blocks.0"), ("lora_exchanged", "blocks.0"), ("timestep_scale", "time_embedder"),
    ("weights_quantised", "blocks.0"), ("weights_not_loaded", "blocks.0"),
]  # fmt: skip
"""Of each kind and category one; the detection benchmark plants them all."""


@pytest.mark.parametrize(("name", "module"), EDITS, ids=[e[0] for e in EDITS])
def test_an_edit_of_the_native_is_named_first(name: str, module: str) -> None:
    result = in_small(name, module)
    assert result.first_different is not None
    assert result.explained.signatures[result.first_different][0][0] == name


def test_the_order_of_a_fused_projection_is_named() -> None:
    result = in_small("parts_order", pair=native_with(PAIR, fused_qkv=True))
    assert result.explained.signatures["block0.self_attn"][0][0] == "parts_order"


def test_a_value_that_is_rounded_once_more_is_named() -> None:
    found = ran("rounded").explained.signatures[TAP]
    assert found[0] == ("rounded", "the value is the reference's, rounded to bfloat16")


def test_a_plant_that_has_nothing_to_change_says_so() -> None:
    plant = planted(tiny_pair(), "causality", ["blocks.0"])
    run_state(PairSession(plant.pair, Build()), False, Options(singles=0))
    assert not plant.expressible


def test_a_healthy_pair_has_none() -> None:
    assert ran(None).explained.signatures == {}


def values(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 24, 16), (1, 7, 5), (40, 3), (6,), (1, 1, 8)])
def test_unrelated_values_have_none(shape: tuple[int, ...]) -> None:
    seen = Seen(values(0, *shape), values(1, *shape), {"before": values(2, *shape)})
    assert recognised(seen) == []


def test_equal_values_have_none() -> None:
    value = values(0, 2, 24, 16)
    assert recognised(Seen(value + 1e-15, value, {"before": value.clone()})) == []


def test_another_function_is_named_by_its_repair() -> None:
    session = PairSession(edited(tiny_pair(), gelu_erf), Build(dtype=torch.float32))
    result = run_state(session, False, Options(singles=0))
    assert result.explained.signatures["block1.act"][0][0] == "gelu_form"


def test_undefined_values_have_none() -> None:
    value = values(0, 2, 24, 16)
    assert recognised(Seen(value * float("nan"), value)) == []


EXAMPLES: list[tuple[str, Any, str]] = [
    ("factor", lambda v: v * 1000, "1000"),
    ("rolled", lambda v: v.roll(-2, 0), "-2 along axis 0"),
    ("rolled", lambda v: v.roll(1, 1), "1 along axis 1"),
    ("chunks", lambda v: torch.cat([v.chunk(4, -1)[i] for i in (2, 0, 1, 3)], -1), "[2, 0, 1, 3]"),
    ("some_tokens", lambda v: torch.cat((v[:3], v[3:4].exp(), v[4:])), "6 to 7"),
    ("some_channels", lambda v: torch.cat((v[..., :8], v[..., 8:12].exp(), v[..., 12:]), -1), "8 to 11"),
    ("shifted", lambda v: torch.cat((torch.zeros_like(v[:1]), v[:-1])), "1 later along axis 0"),
]


@pytest.mark.parametrize(("name", "make", "words"), EXAMPLES, ids=[f"{e[0]}{n}" for n, e in enumerate(EXAMPLES)])
def test_other_examples_than_the_plant(name: str, make: Any, words: str) -> None:
    value = values(3, 8, 2, 16) if name == "some_tokens" else values(3, 9, 5, 16)
    found = recognised(Seen(make(value), value))
    assert found, name
    assert found[0][0] == name
    assert words in found[0][1]
