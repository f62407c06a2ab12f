"""A difference is placed in the code: the first op that differs on each side, its dtype, the weights it reads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS
from fixtures.plants_named import two_blocks
from fixtures.tiny import edited, sinusoid_low, tiny_pair
from parity.case import ParityCase
from parity.diagnose.planting import after_load
from parity.engine import Engine, Settings
from parity.pair import ModelPair

NATIVE, LAYERS = "models/longcat_native_layers.py:", "models/longcat_reference_layers.py:"
BASE = replace(two_blocks(PAIR), inputs=partial(inputs_of, tokens=32))


@pytest.fixture(autouse=True)
def no_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spend no time on repairs, which have tests of their own."""
    monkeypatch.setattr("parity.diagnose.repair.SECONDS", 0.0)


def record_of(pair: ModelPair, tap: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    engine = Engine({"longcat": pair}, Settings(dtype=dtype))
    return engine.case_record(ParityCase("longcat", tap, "", False))


LOGIC = [
    ("eps_1e_5", "block0.self_attn_in", "`native_layer_norm`", "blocks.0.norm_attn", "`native_layer_norm`"),
    ("gelu_erf", "caption_embed", "`gelu`", "caption_embedder", "`gelu`"),
    ("swiglu_gelu", "block0.ffn", "`gelu`", "blocks.0.ffn", "`silu`"),
    ("softmax_scale", "block0.self_attn", "`_scaled_dot_product", "blocks.0.self_attn", "`_scaled_dot_product"),
    ("gate_omitted", "block1.cross_attn_in", "`add`", "blocks.1", "`mul`"),
    ("bias_dropped", "block1.self_attn", "`mm`", "blocks.1.self_attn.to_out", "`addmm`"),
    ("out_transposed", "block1.self_attn", "`addmm`", "blocks.1.self_attn.to_out", "`addmm`"),
]


@pytest.mark.parametrize(("plant", "tap", "native", "module", "reference"), LOGIC, ids=[c[0] for c in LOGIC])
def test_another_function_is_placed_on_both_sides(
    plant: str, tap: str, native: str, module: str, reference: str
) -> None:
    place = record_of(PLANTS[plant].apply(BASE), tap)["place"]
    assert place["native"].startswith(native)
    assert place["native"].endswith(f"in {module}")
    assert place["reference"].startswith(reference)
    assert LAYERS in place["reference"] or "models/longcat_reference.py:" in place["reference"]


PRECISION = [
    ("gate_low", "block0.cross_attn_in", "`mul`", "bfloat16", "float32"),
    ("rms_gain_fp32", "block0.self_attn", "`mul`", "float32", "bfloat16"),
    ("norm_low", "block0.self_attn_in", "`add`", "bfloat16", "float32"),
]


@pytest.mark.parametrize(("plant", "tap", "op", "native", "reference"), PRECISION, ids=[c[0] for c in PRECISION])
def test_an_op_that_runs_in_another_dtype_is_named_with_both_lines(
    plant: str, tap: str, op: str, native: str, reference: str
) -> None:
    record = record_of(PLANTS[plant].apply(BASE), tap, torch.bfloat16)
    first = record["place"]["dtypes"][0]
    assert first[0].startswith(f"{op} at {NATIVE}")
    assert (first[1], first[3]) == (native, reference)
    assert record["place"]["native"] is None
    assert record["place"]["reference"] is None


def test_values_in_another_order_are_recognised() -> None:
    record = record_of(PLANTS["patch_order"].apply(BASE), "final_output")
    assert record["likely"] == ["the values are the reference's, in another order"]


def test_wrong_weights_are_named_at_the_tap_that_reads_them() -> None:
    """A norm before a module shows at the module's input, whose own weights have no part in it."""

    def edit(model: torch.nn.Module) -> None:
        model.get_parameter("blocks.1.norm_cross.weight").mul_(1.5)
        model.get_parameter("blocks.1.cross_attn.to_k.weight").mul_(1.5)

    engine = Engine({"longcat": after_load(BASE, edit)}, Settings(dtype=torch.float32))
    likely = [engine.case_record(ParityCase("longcat", f"block1.{t}", "", False))["likely"][0]
              for t in ("cross_attn_in", "cross_attn")]  # fmt: skip
    assert likely[0].startswith("weights, not code: blocks.1.norm_cross.weight differs")
    assert likely[1].startswith("weights, not code: blocks.1.cross_attn.to_k.weight differs")


def test_a_float32_value_that_holds_16_bits_is_noted() -> None:
    engine = Engine({"tiny": edited(tiny_pair(), sinusoid_low)}, Settings(dtype=torch.bfloat16))
    place = engine.case_record(ParityCase("tiny", "sinusoid", "", False))["place"]
    assert any("holds 16-bit values only" in note for note in place["notes"])


def test_a_healthy_pair_has_no_place() -> None:
    record = record_of(BASE, "block0.self_attn", torch.bfloat16)
    assert record["place"] is None
    assert record["likely"] == []


def test_a_second_look_that_fails_costs_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no room")

    monkeypatch.setattr("parity.diagnose.explain.side_ops", broken)
    engine = Engine({"tiny": edited(tiny_pair(), sinusoid_low)}, Settings(dtype=torch.bfloat16))
    case = ParityCase("tiny", "sinusoid", "", False)
    assert engine.case_record(case)["precision"] == "less precise"
    assert engine.state_record(case)["explained_missing"] == "explaining failed: RuntimeError: no room"
