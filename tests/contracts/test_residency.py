"""However the reference is had - resident, before the native, recorded, both recorded - the verdicts are the same."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.pairs import wan
from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS, native_with
from fixtures.plants_named import two_blocks
from fixtures.residency import Records, Ways, differences
from fixtures.stepped import stepped_pair
from fixtures.tables import NativeTable, table_pair
from fixtures.tiny import down_rounded_twice, edited, gelu_erf, output_of, sinusoid_low, tiny_inputs, tiny_pair
from parity.diagnose.planting import after_load
from parity.diagnose.recorded_ops import as_data, from_data
from parity.diagnose.side_ops import SideOps
from parity.errors import RecordError
from parity.execution.op_values import Fingerprint, OpValue
from parity.execution.ops import Op, SourceLine
from parity.execution.rules import rule_of
from parity.lora.adapter import LoraAdapter
from parity.lora.apply import applied, merged
from parity.pair import ModelPair
from parity.run import Options

LONGCAT = replace(two_blocks(PAIR), inputs=partial(inputs_of, tokens=48))


def alpha_dropped(model: nn.Module, adapter: LoraAdapter) -> Any:
    targets = {path: replace(target, scaling=1.0) for path, target in adapter.targets.items()}
    return applied(model, LoraAdapter(adapter.name, targets))


def lora_put(pair: ModelPair, put: Callable[[nn.Module, LoraAdapter], Any]) -> ModelPair:
    return replace(pair, native=replace(pair.native, apply_lora=put))


def routed(y: Tensor) -> Tensor:
    """Keep the larger half of each row's values; which these are is decided by the value as computed."""
    kept = y.topk(y.shape[-1] // 2, dim=-1).indices
    return torch.zeros_like(y).scatter(-1, kept, y.gather(-1, kept))


def routing_pair() -> ModelPair:
    """Both sides choose; the native's values are another rounding of the reference's, so that it chooses otherwise."""

    def in_reference(model: nn.Module) -> None:
        output_of("layers.1.fc1", routed)(model)

    def in_native(model: nn.Module) -> None:
        up = model.get_submodule("blocks.1.up")
        assert isinstance(up, nn.Linear)
        up.__dict__["forward"] = lambda x: routed(F.linear(x, up.weight) + up.bias)

    return edited(edited(tiny_pair(), in_reference, "reference"), in_native)


def coarser_sinusoid(model: nn.Module) -> None:
    """A lost float32 island: the port hands the sinusoid on in bfloat16."""
    output_of("sinusoid", lambda y: y.bfloat16())(model)


def columns_of_down(model: nn.Module) -> None:
    """Load the two halves of a weight's columns in the other order."""
    weight = model.get_parameter("blocks.1.down.weight")
    weight.copy_(torch.cat(weight.chunk(2, 1)[::-1], 1))


def transposed(model: nn.Module) -> None:
    """Load a square weight as its transpose."""
    weight = model.get_parameter("layers.1.to_out.weight")
    weight.copy_(weight.t().clone())


def bigger(pair: ModelPair) -> ModelPair:
    return replace(pair, inputs=partial(tiny_inputs, size=(2, 16, 16)))


LOW, WIDE = torch.bfloat16, torch.float32
CASES: dict[str, tuple[ModelPair, torch.dtype, str]] = {
    "healthy": (tiny_pair(draws=2), LOW, ""),
    "variant": (tiny_pair(variants={"batch": partial(tiny_inputs, batch=2)}, lora=None), WIDE, ""),
    "logic": (edited(tiny_pair(), gelu_erf), LOW, "block1.act"),
    "less_precise": (bigger(edited(tiny_pair(lora=None), down_rounded_twice)), LOW, "block0.down"),
    "drowned": (edited(tiny_pair(lora=None), sinusoid_low), LOW, "sinusoid"),
    "weights": (after_load(tiny_pair(lora=None), columns_of_down), LOW, "block1.down"),
    "lane": (after_load(stepped_pair(), transposed), WIDE, "block1.self_attn"),
    "other_dtypes": (edited(tiny_pair(), coarser_sinusoid), LOW, "sinusoid"),
    "other_dtypes_float32": (edited(tiny_pair(lora=None), coarser_sinusoid), WIDE, "sinusoid"),
    "lora_alpha": (lora_put(tiny_pair(), alpha_dropped), LOW, ""),
    "lora_merged": (lora_put(tiny_pair(), merged), LOW, ""),
    "routing": (routing_pair(), LOW, ""),
    "tables_not_followed": (table_pair(partial(NativeTable, exact=True)), WIDE, ""),
    "tables_wrong": (table_pair(partial(NativeTable, wrong=True)), WIDE, "final_output"),
    "longcat_logic": (PLANTS["qk_swapped"].apply(LONGCAT), LOW, "block1.self_attn"),
    "longcat_island": (native_with(LONGCAT, adaln_fp32=False, modulate_fp32=False), LOW, "block0.modulation"),
    "wan": (replace(wan.PAIR, sizes=("tiny",)), LOW, ""),
}


EXPLAINED: dict[str, tuple[str, str]] = {
    "logic": ("block1.act", "GELU (tanh) for `gelu`"),
    "weights": ("block1.down", "blocks.1.down.weight with its 2 chunks of columns reversed"),
    "lane": ("block1.self_attn", "layers.1.to_out.weight transposed"),
    "lora_alpha": ("block0.up", "the second operand of `add` times 0.5"),
    "longcat_logic": ("block1.self_attn", "blocks.1.self_attn.to_q and blocks.1.self_attn.to_k exchanged"),
    "less_precise": ("block0.down", "the reference with the bias of `addmm` added in a second op"),
    "longcat_island": ("block0.modulation", "the reference with `addmm` run in bfloat16"),
}
"""Case to a tap and how its repair, or its nearest variant, begins."""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let repairs take their time: which are found must not depend on what else the machine does."""
    monkeypatch.setattr("parity.diagnose.repair.SECONDS", 600.0)


@pytest.fixture(scope="module")
def together() -> Callable[[str], Records]:
    """Return a function from a case to its records with both models resident, judged once."""
    held: dict[str, Records] = {}

    def judged(name: str) -> Records:
        if name not in held:
            held[name] = ways(name, Path()).together()
        return held[name]

    return judged


def ways(name: str, folder: Path) -> Ways:
    pair, dtype, _ = CASES[name]
    states = [(True, "")] if name.startswith("lora") else [(False, "")] if name.startswith(("longcat", "wan")) else []
    # What explains a difference needs the models again: docs/two_environments.md says where it is not to be had.
    others = Options(singles=2, twins=2)
    options = Options(singles=0, twins=1, explain=False) if name == "wan" else others  # its verdicts, as few as need be
    return Ways(pair, folder, dtype, options, states)


@pytest.mark.parametrize("name", CASES)
def test_records_are_those_with_both_models_resident(
    name: str, together: Callable[[str], Records], tmp_path: Path, one_thread: None
) -> None:
    judged = ways(name, tmp_path)
    if name != "wan":  # the most expensive by far, and `compared` reads what the others read
        assert differences(judged.one(), together(name)) == []
        assert differences(judged.recorded(), together(name)) == []
    assert differences(judged.compared(), together(name)) == []


@pytest.mark.parametrize("name", [name for name, (_, _, starts) in CASES.items() if starts])
def test_the_planted_bugs_are_found(name: str, together: Callable[[str], Records], one_thread: None) -> None:
    """Else equal records would prove nothing."""
    cases, states = together(name)
    assert states[0]["first_different"] == CASES[name][2]
    assert any(case["impact"] is not None for case in cases)


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_is_compared_holds_explanations(
    name: str, together: Callable[[str], Records], one_thread: None
) -> None:
    tap, words = EXPLAINED[name]
    case = next(case for case in together(name)[0] if case["tap"] == tap)
    found = case["repair"] or case["nearest"]
    assert found["words"].startswith(words)
    assert case["place"] is not None
    assert together(name)[1][0]["explained_missing"] == ""


def test_decisions_that_flip_are_among_what_is_compared(together: Callable[[str], Records], one_thread: None) -> None:
    (state, _) = together("routing")[1]
    assert state["decisions"] > 0
    assert state["flips"] == {"block1.norm": state["flips"]["block1.norm"]}
    assert state["unmatched_decisions"] == {}


def test_tables_that_cannot_be_followed_are_among_what_is_compared(
    together: Callable[[str], Records], one_thread: None
) -> None:
    assert together("tables_not_followed")[0][-1]["logic_error_of_constants"] > 1e-12


def finer_native(reference: Mapping[str, Tensor], native: nn.Module) -> None:
    """Round back to the reference's bfloat16, and hold more."""
    with torch.no_grad():
        for mine, theirs in zip(native.parameters(), reference.values(), strict=True):
            mine.copy_(theirs.float() * (1 + 2.0**-12))


def test_a_native_stored_more_finely_than_a_recorded_reference_is_told(tmp_path: Path, one_thread: None) -> None:
    pair = replace(table_pair(NativeTable, native_dtype=WIDE), load=finer_native)
    judged = Ways(pair, tmp_path, LOW)
    assert judged.together()[0][0]["logic_error"] < 1e-14
    with pytest.raises(RecordError) as caught:
        judged.one()
    assert "2 weights more finely" in str(caught.value)
    assert "--parity-residency=together" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_one_model_at_a_time_is_in_memory(tmp_path: Path, one_thread: None) -> None:
    """While a difference is explained too, in every LoRA state."""
    alive: list[tuple[str, weakref.ref[nn.Module]]] = []

    def alone(label: str) -> Callable[[nn.Module], None]:
        def built(model: nn.Module) -> None:
            gc.collect()
            assert [(name, label) for name, held in alive if held() is not None] == []
            alive.append((label, weakref.ref(model)))

        return built

    pair = edited(edited(CASES["logic"][0], alone("native")), alone("reference"), "reference")
    assert Ways(pair, tmp_path, LOW).one()[0]
    assert [label for label, _ in alive] == ["reference", "native"] * 3


UNSAID = {
    "logic": ("block1.act", "`gelu` at fixtures/tiny.py:", "--native-python"),
    "less_precise": ("block0.down", "", "--reference-python"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_two_recordings_cannot_explain_is_said(name: str, tmp_path: Path, one_thread: None) -> None:
    """Nothing runs: what would have to be named is told; lines are there all the same."""
    (tap, line, option), judged = UNSAID[name], ways(name, tmp_path)
    reference, native = judged.record()
    folders, natives = {judged.pair.name: reference}, {judged.pair.name: native}
    cases, states = judged.judged(folders=folders, natives=natives)
    case = next(case for case in cases if case["tap"] == tap)
    assert (case["repair"] or case["nearest"]) is None
    assert option in states[0]["explained_missing"]
    assert not line or case["place"]["native"].startswith(line)
    for file in reference.rglob("ops.json"):
        file.unlink()
    cases, states = judged.judged(folders=folders, natives=natives)
    assert not line or "lacks its ops" in states[0]["explained_missing"]


def test_ops_are_read_back_as_they_were_and_foreign_ones_refused() -> None:
    line = SourceLine("/home/somebody/project/blocks.py", 7, "forward")
    op = Op(3, "mul", torch.bfloat16, line, "", 0, rule_of(torch.ops.aten.mul.Tensor), 5)
    value = Fingerprint(4, 1.5, float("1e-17"))
    given = OpValue(op, value, ((None, -1), (value, 2)), True, False, ("w",), (2.0,))
    data = json.loads(json.dumps(as_data(SideOps({3: given, 4: given}, {"block0": 0b1010}, {5: "blocks.0"}, "high"))))
    read = from_data(data)
    assert "somebody" not in str(data)
    assert str(read.step(read.of("block0")[0])) == "`mul` at project/blocks.py:7 in blocks.0"
    assert as_data(read) == data
    foreign: list[dict[str, Any]] = [{**data, "taps": {"block0": [1 << 40]}}, {**data, "ops": [{}]}, {"ops": []}]
    for broken in foreign:
        with pytest.raises((KeyError, ValueError)):
            from_data(broken)


def test_an_impact_without_the_references_interpreter_is_not_judged(tmp_path: Path, one_thread: None) -> None:
    judged = ways("drowned", tmp_path)
    cases, _ = judged.judged(folders={judged.pair.name: judged.record()[0]})
    (case,) = [case for case in cases if case["tap"] == "sinusoid"]
    assert case["impact"] is None
    assert case["outcome"] == "failed"
