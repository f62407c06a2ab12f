"""The nearest reference variant names planted roundings with 32 tokens, and no benign change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS
from fixtures.tiny import down_rounded_twice, edited, sinusoid_low, tiny_inputs, tiny_pair
from parity.case import ParityCase
from parity.engine import Engine, Settings
from parity.execution.tap import Inputs
from parity.loaded import LoadedSide
from parity.pair import Build, ModelPair
from parity.references import ReferenceSources
from parity.report.wording import failure_text
from parity.run import Options, StateResult, run_state
from parity.session import PairSession

LAYERS, MODEL = "models/longcat_reference_layers.py", "models/longcat_reference.py"
BASE = replace(PAIR, inputs=partial(inputs_of, tokens=32))

Run = Callable[..., StateResult]


@pytest.fixture(scope="module")
def run() -> Run:
    """Return a function that runs plants on one reference."""
    reference: list[LoadedSide] = []
    traces: dict[Any, Any] = {}

    def run_plants(*names: str, seed: int = 0) -> StateResult:
        pair = BASE
        for name in names:
            pair = PLANTS[name].apply(pair)
        session = PairSession(pair, Build(), reference[0] if reference else None)
        reference[:] = [session.reference]
        session.traces = traces
        return run_state(session, False, Options(singles=0, seed=seed))

    return run_plants


NAMED = [
    ("adaln_low", "block0.modulation", "`addmm` run in bfloat16", LAYERS),
    ("gate_low", "block0.cross_attn_in", "`mul` run in bfloat16", MODEL),
    ("rms_gain_fp32", "block0.self_attn", "the cast to bfloat16 skipped", LAYERS),
    ("swiglu_fp32", "block0.ffn", "the rounding of `silu` to bfloat16 skipped", LAYERS),
    ("bias_rounded", "caption_embed", "the bias of `addmm` added in a second op", LAYERS),
    ("timestep_unrounded", "timestep", "the cast to bfloat16 skipped", MODEL),
    ("sinusoid_fp64", "time_sinusoid", "to float32 skipped", LAYERS),
]


@pytest.mark.parametrize(("plant", "tap", "words", "file"), NAMED, ids=[n[0] for n in NAMED])
def test_a_rounding_is_named_bit_for_bit(run: Run, plant: str, tap: str, words: str, file: str) -> None:
    result = run(plant)
    assert result.judged[tap].different
    assert not result.judged[tap].logic
    found = result.explained.nearest[tap]
    assert found.bit_exact
    assert words in found.words()
    assert f"{file}:" in found.words()


@pytest.mark.parametrize(("plant", "direction"), [("rope_low", 1), ("rms_gain_fp32", -1)])
def test_another_attention_kernel_does_not_hide_it(run: Run, plant: str, direction: int) -> None:
    result = run(plant, "attention_flash")
    found = result.explained.nearest["block2.self_attn"]
    assert found.explains
    assert result.judged["block2.self_attn"].direction == direction


def test_several_roundings_in_one_segment_are_all_named(run: Run) -> None:
    result = run("rms_low", "rope_low")
    found = result.explained.nearest["block1.self_attn"]
    assert found.bit_exact
    assert any("`pow`, `mean`" in e for e in found.edits)
    assert any("longcat_reference_layers.py:131" in e for e in found.edits)


@pytest.mark.parametrize("names", [("flash_split_k",), ("attention_math_low",), ("attention_math", "row_chunks")])
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_benign_is_explained(run: Run, names: tuple[str, ...], seed: int) -> None:
    result = run(*names, seed=seed)
    assert result.explained.nearest, "nothing was searched: this case proves nothing"
    assert {n: f.words() for n, f in result.explained.nearest.items() if f.explains} == {}
    assert [n for n, j in result.judged.items() if j.different] == []


def _in_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend in the dtype of the operands, one rounding a step."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    out: Tensor = scores.softmax(-1) @ v
    return out


def test_a_kernel_that_rounds_less_inside_is_named_and_no_fault(run: Run) -> None:
    @contextmanager
    def around(model: nn.Module, inputs: Inputs) -> Iterator[None]:
        kept = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = _in_steps  # type: ignore[assignment]
        try:
            yield
        finally:
            torch.nn.functional.scaled_dot_product_attention = kept

    pair = replace(BASE, reference=replace(BASE.reference, around_call=around))
    result = run_state(PairSession(pair, Build()), False, Options(singles=0))
    found = result.explained.nearest["block0.self_attn"]
    assert found.explains
    assert found.kernel
    assert not found.proves


def tiny_case(pair: ModelPair, tap: str, **sources: Any) -> tuple[dict[str, Any], Engine]:
    engine = Engine({"tiny": pair}, Settings(dtype=torch.bfloat16, sources=ReferenceSources(**sources)))
    return engine.case_record(ParityCase("tiny", tap, "", False)), engine


def test_the_failure_text_says_what_to_change() -> None:
    record, _ = tiny_case(edited(tiny_pair(), down_rounded_twice), "block1.down")
    text = failure_text(record, "pytest x")
    line = next(line for line in text.splitlines() if line.startswith("  likely: "))
    assert "the bias of `addmm` added in a second op (fixtures/tiny.py:" in line
    assert "bit-exact" in line
    assert len(text.splitlines()) <= 5
    assert record["nearest"]["bit_exact"]
    assert record["nearest"]["ratio"] == 0.0


def test_a_recorded_reference_is_loaded_again_for_it(tmp_path: Path) -> None:
    pair = edited(tiny_pair(), down_rounded_twice)
    record, _ = tiny_case(pair, "block1.down", one_resident=True, cache=tmp_path)
    assert record["nearest"]["bit_exact"]
    assert record["precision"] == "less precise"


def test_a_reference_that_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    pair = edited(tiny_pair(), sinusoid_low)
    tiny_case(pair, "sinusoid", one_resident=True, cache=tmp_path)
    folder = next(p.parent for p in tmp_path.rglob("manifest.json"))
    record, engine = tiny_case(pair, "sinusoid", folders={"tiny": folder})
    assert record["nearest"] is None
    state = engine.state_record(ParityCase("tiny", "sinusoid", "", False))
    assert "not to be had" in state["explained_missing"]


@pytest.mark.parametrize("times", [1.0, 1000.0])
def test_an_input_that_is_rounded_is_named(times: float) -> None:
    """A timestep of 0.437 or of 437: the port takes it in its own dtype."""

    def scaled(build: Build, seed: int) -> dict[str, Any]:
        held = tiny_inputs(build, seed, batch=4)
        return {**held, "t": (held["t"] * times).round(decimals=3)}

    def rounded(model: nn.Module) -> None:
        module = model.get_submodule("sinusoid")
        forward = module.forward
        module.__dict__["forward"] = lambda t: forward(t.bfloat16())

    record, _ = tiny_case(replace(edited(tiny_pair(lora=None), rounded), inputs=scaled), "sinusoid")
    assert record["nearest"]["bit_exact"], record["nearest"]
    assert record["nearest"]["edits"][0].startswith("the input `t` rounded to bfloat16 before `mul` (fixtures/tiny.py:")
    assert record["precision"] == "less precise"
    assert "the input `t` rounded to bfloat16" in failure_text(record, "pytest x")
