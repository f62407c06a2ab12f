"""Bugs that default inputs cannot show are found on drawn ones, and lost precision where one input is too small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.pairs.longcat import PAIR, inputs
from fixtures.plants import PLANTS
from fixtures.plants_drawn import EXPOSED, Exposed
from fixtures.plants_named import two_blocks
from parity.examples import Examples
from parity.execution.passes import OUTPUT
from parity.explored import Explored, explored
from parity.loaded import LoadedSide
from parity.numerics.verdict import VerdictClass
from parity.pair import Build, ModelPair
from parity.session import PairSession
from parity.space import Drawn, InputSpace, Span
from parity.stage import Options
from parity.strategies import Profile

TWO = two_blocks(PAIR)
PROFILE = Profile(examples=30, name="ci", shrinks=0)
LOGIC_ONLY = Options(twins=0)
Open = Callable[[ModelPair], PairSession]
LARGE = InputSpace(
    frames=Span(2, 4), height=Span(4, 8, 2), width=Span(6, 12, 2), text=Span(4, 12), batch=Span(1, 2),
    scale=(1.0, 1.0), calls=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def opened_pair() -> Open:
    """Return a function that opens a pair; the reference of a size is loaded once."""
    held: dict[str, LoadedSide] = {}

    def opened(pair: ModelPair) -> PairSession:
        size = pair.sizes[0]
        session = PairSession(pair, Build(size=size), held.get(size))
        held[size] = session.reference
        return session

    return opened


def default_output(session: PairSession, lora: bool) -> Tensor:
    with session.lora(lora):
        return session.native.runner(()).run(inputs(session.build, 0)).values[OUTPUT].low


@pytest.mark.parametrize("plant", EXPOSED.values(), ids=lambda plant: plant.name)
def test_default_inputs_cannot_show_it(opened_pair: Open, plant: Exposed) -> None:
    healthy, planted = opened_pair(TWO), opened_pair(plant.apply(TWO))
    assert torch.equal(default_output(planted, plant.lora), default_output(healthy, plant.lora))


@pytest.mark.parametrize("plant", EXPOSED.values(), ids=lambda plant: plant.name)
def test_drawn_inputs_show_it(opened_pair: Open, plant: Exposed) -> None:
    found = explored(opened_pair(plant.apply(TWO)), plant.lora, LOGIC_ONLY, PROFILE)
    assert found.failing is not None
    assert plant.needs(found.failing.drawn)


def test_at_least_ten_of_different_bugs() -> None:
    assert len(EXPOSED) >= 10
    assert len({plant.like for plant in EXPOSED.values()}) >= 10


@pytest.mark.parametrize("lora", [False, True], ids=["lora_off", "lora_on"])
def test_healthy_pair_is_right_on_the_same_inputs(opened_pair: Open, lora: bool) -> None:
    found = explored(opened_pair(TWO), lora, Options(), replace(PROFILE, examples=6))
    assert right(found) == len(found.examples) >= 5
    assert found.imprecise == []
    assert found.blind == []


def right(found: Explored) -> int:
    return sum(not e.wrong and e.judged for e in found.examples)


def test_failing_input_shrinks_to_the_smallest_latent(opened_pair: Open) -> None:
    profile = replace(PROFILE, shrinks=60)
    found = explored(opened_pair(EXPOSED["clean_timestep"].apply(TWO)), False, LOGIC_ONLY, profile)
    assert found.failing is not None
    smallest = found.failing.drawn
    assert (smallest.batch, smallest.frames, smallest.height, smallest.width) == (1, 2, 2, 2)
    assert smallest.conditioning == 1
    assert (smallest.guidance, smallest.scale, smallest.outliers, smallest.before) == (None, 1.0, (), ())


def test_precision_is_judged_over_all_inputs_together(opened_pair: Open) -> None:
    pair = replace(PLANTS["rms_low"].apply(PAIR), space=lambda build: LARGE)
    found = explored(opened_pair(pair), False, Options(), replace(PROFILE, examples=6))
    assert found.failing is None
    assert {j.name.split(".")[-1] for j in found.imprecise} == {"self_attn"}
    assert found.felt
    assert all(j.direction == 1 for j in found.imprecise)
    assert alone(opened_pair(pair), found.examples[0].drawn) == set(), "one input is too small to show it"


def alone(session: PairSession, drawn: Drawn) -> set[VerdictClass]:
    """What one input says by itself, of the taps that differ."""
    examples = Examples(session, False, Options(twins=1))
    examples.judge(drawn)
    return {j.cls for j in examples.pooled().values() if j.different}


def test_known_precision_is_accepted(opened_pair: Open) -> None:
    known: dict[str, Any] = {"space": lambda build: LARGE, "known": lambda build: {"block.self_attn": "as it is"}}
    pair = replace(PLANTS["rms_low"].apply(PAIR), **known)
    assert explored(opened_pair(pair), False, Options(), replace(PROFILE, examples=6)).imprecise == []


def test_input_the_reference_refuses_proves_nothing(opened_pair: Open) -> None:
    def refuses(model: Any, given: Any) -> Any:
        raise ValueError("only whole frames")

    examples = Examples(opened_pair(replace(PAIR, native=replace(PAIR.native, call=refuses))), False, LOGIC_ONLY)
    example = examples.judge(Drawn(text_lengths=(1,)))
    assert "the native raised" in example.wrong
    pair = replace(PAIR, reference=replace(PAIR.reference, call=refuses))
    example = Examples(PairSession(pair, Build()), False, LOGIC_ONLY).judge(Drawn(text_lengths=(1,)))
    assert not example.judged
    assert "only whole frames" in example.refused
