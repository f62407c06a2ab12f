"""Stored weights, merged LoRA and tables: what is rounding of a stored value is never called another function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.pairs.longcat import PAIR
from fixtures.plants_named import two_blocks
from fixtures.tables import NativeTable, ReferenceTable, table_pair
from parity.errors import ParityError
from parity.execution.shadow import Shadow
from parity.lora.adapter import LoraAdapter
from parity.lora.apply import merged
from parity.pair import Build, ModelPair
from parity.run import Options, StateResult, run_state
from parity.session import PairSession, opened
from parity.weights.keymap import KeyMap, rename

SMALL = two_blocks(PAIR)


def run(pair: ModelPair, lora: bool = False, dtype: torch.dtype = torch.bfloat16) -> StateResult:
    with opened(pair, Build(size=pair.sizes[0], dtype=dtype)) as session:
        return run_state(session, lora, Options(singles=0, explain=False))


def test_lora_merged_in_bfloat16_is_the_same_function_as_unmerged() -> None:
    result = run(replace(SMALL, native=replace(SMALL.native, apply_lora=merged)), lora=True)
    assert max(e.logic_error for e in result.draws[0].values()) < 1e-12


def test_an_adapter_finer_than_the_weights_is_the_same_function_merged_and_unmerged() -> None:
    def finer(build: Build, reference: nn.Module) -> LoraAdapter:
        assert SMALL.lora is not None
        made = SMALL.lora(build, reference)
        targets = {k: replace(t, A=t.A.float() * 1.0001, B=t.B.float() * 1.0001) for k, t in made.targets.items()}
        return LoraAdapter(made.name, targets)

    result = run(replace(SMALL, lora=finer, native=replace(SMALL.native, apply_lora=merged)), lora=True)
    assert max(e.logic_error for e in result.draws[0].values()) < 1e-12


def test_merging_at_half_strength_is_another_function() -> None:
    def half(model: nn.Module, adapter: LoraAdapter) -> Any:
        targets = {k: replace(t, scaling=t.scaling / 2) for k, t in adapter.targets.items()}
        return merged(model, LoraAdapter(adapter.name, targets))

    result = run(replace(SMALL, native=replace(SMALL.native, apply_lora=half)), lora=True)
    assert result.judged["block0.modulation"].logic


def test_weights_are_put_back_and_forgotten_after_a_merge() -> None:
    pair = replace(SMALL, native=replace(SMALL.native, apply_lora=merged))
    with opened(pair, Build(size="two")) as session:
        before = {k: v.clone() for k, v in session.native.model.state_dict().items()}
        with session.lora(True):
            assert session.native.finer
        assert session.native.finer == {}
        after = session.native.model.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_keep_their_exact_values(dtype: torch.dtype) -> None:
    evidence = run(table_pair(NativeTable), dtype=dtype).draws[0]["final_output"]
    assert evidence.logic_error < 1e-14
    assert evidence.stored_constants is None


def test_a_table_that_cannot_be_followed_is_compared_as_stored() -> None:
    evidence = run(table_pair(partial(NativeTable, exact=True)), dtype=torch.float32).draws[0]["final_output"]
    assert evidence.stored_constants is not None
    assert 1e-12 < evidence.stored_constants < 1e-6
    assert evidence.logic_error < 1e-12


def test_a_wrong_table_is_another_function() -> None:
    judged = run(table_pair(partial(NativeTable, wrong=True)), dtype=torch.float32).judged["final_output"]
    assert judged.logic
    assert judged.fails


def test_a_reference_stored_more_finely_is_the_same_function() -> None:
    pair = table_pair(NativeTable, native_dtype=torch.bfloat16)
    evidence = run(pair, dtype=torch.float32).draws[0]["proj"]
    assert evidence.logic_error < 1e-14


def test_a_native_stored_more_finely_is_the_same_function() -> None:
    def load(reference: Mapping[str, Tensor], native: nn.Module) -> None:
        with torch.no_grad():
            for mine, theirs in zip(native.parameters(), reference.values(), strict=True):
                mine.copy_(theirs.float() * (1 + 2.0**-12))  # rounds back to the reference's bfloat16

    pair = replace(table_pair(NativeTable, native_dtype=torch.float32), load=load)
    assert run(pair, dtype=torch.bfloat16).draws[0]["proj"].logic_error < 1e-14


def test_a_weight_changed_after_loading_is_named() -> None:
    def load(reference: Mapping[str, Tensor], native: nn.Module) -> None:
        native.load_state_dict({f"linear.{k.split('.')[1]}": v for k, v in reference.items()})
        with torch.no_grad():
            native.get_parameter("linear.bias")[3] += 1.0

    with opened(replace(table_pair(NativeTable), load=load), Build()) as session:
        assert [k for k, w in session.weights.items() if w.differs] == ["linear.bias"]
        assert run_state(session, False).judged["proj"].logic


def test_both_sides_of_one_class_are_refused() -> None:
    pair = table_pair(ReferenceTable)
    with pytest.raises(ParityError, match="same class"):
        PairSession(replace(pair, key_map=lambda b: KeyMap((rename(r"(.+)", r"\1"),))), Build())


def test_compiled_side_is_judged_eagerly_and_compared_with_compiled() -> None:
    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        return lambda *args: tuple(o * (1 + 2.0**-10) for o in graph(*args))  # as inductor: slightly other values

    def build() -> nn.Module:
        model = NativeTable()
        model.compile(backend=backend)
        return model

    result = run(table_pair(build), dtype=torch.float32)
    assert result.draws[0]["final_output"].logic_error < 1e-14
    assert set(result.compiled) == {"native"}
    assert result.compiled["native"].metrics.rel_l2 == pytest.approx(2.0**-10, rel=1e-2, abs=0)
    assert result.observer == []


def test_float32_shadow_has_limits_of_its_own() -> None:
    with opened(SMALL, Build(size="two")) as session:
        result = run_state(session, False, Options(singles=0, shadow_dtype=torch.float32))
    assert result.limits.logic_error == 1e-5
    assert not [n for n, j in result.judged.items() if j.different]
    assert isinstance(Shadow(dtype=torch.float32).table.dtype, torch.dtype)
