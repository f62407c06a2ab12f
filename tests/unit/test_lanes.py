"""Lanes beyond one eager forward: cached steps, guidance in one batch against two calls, compiled against eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.stepped import NativeBlock, native_steps, stepped_pair
from fixtures.tiny import call_native, call_reference, edited, tiny_inputs, tiny_pair
from parity.case import cases_of
from parity.engine import Engine, Settings
from parity.execution.tap import Inputs, all_calls, by_call
from parity.pair import Build, Lane, ModelPair
from parity.references import ReferenceSources
from parity.run import Options, StateResult, run_state
from parity.session import PairSession, opened

pytestmark = pytest.mark.usefixtures("one_thread")
F32 = Build(dtype=torch.float32)


def run(pair: ModelPair, lane: str, build: Build = F32) -> StateResult:
    with opened(pair, build) as session:
        return run_state(session, False, Options(variant=lane, singles=0))


def failing(result: StateResult) -> list[str]:
    return [name for name, judged in result.judged.items() if judged.fails]


# --- steps with a cache -----------------------------------------------------------------------------------------------


def test_cached_steps_of_a_healthy_pair_agree() -> None:
    result = run(stepped_pair(), "cached")
    assert failing(result) == []
    assert max(e.logic_error for e in result.draws[0].values()) < 1e-14
    assert {"block0.self_attn_call0", "block0.self_attn_call1", "block1.call1", "final_output"} <= set(result.judged)


def test_the_default_run_of_a_pair_with_lanes_is_one_call() -> None:
    assert "block0.self_attn_call1" not in run(stepped_pair(), "").judged


def planted(block: Callable[[NativeBlock, Tensor, int], Tensor], only_call: int) -> ModelPair:
    """Return the pair whose native's blocks give something else in one of the two calls."""

    class Broken(NativeBlock):
        def forward(self, hidden: Tensor, start: int) -> Tensor:
            if (start > 0) == bool(only_call):
                return block(self, hidden, start)
            return super().forward(hidden, start)

    def edit(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, NativeBlock):
                module.__class__ = Broken

    return edited(stepped_pair(), edit)


def forgets(self: NativeBlock, hidden: Tensor, start: int) -> Tensor:
    return NativeBlock.forward(self, hidden, 0)


def test_a_cache_that_is_not_used_fails_at_the_cached_call_only() -> None:
    result = run(planted(forgets, 1), "cached")
    assert failing(result)[0] == "block0.self_attn_call1"
    assert not any(name.endswith("call0") for name in failing(result))
    assert failing(run(planted(forgets, 1), "")) == []


def test_a_cache_one_token_off_fails() -> None:
    pair = stepped_pair()
    lane = replace(pair.lanes["cached"], native=partial(native_steps, start=11))
    assert failing(run(replace(pair, lanes={"cached": lane}), "cached"))[0] == "block0.self_attn_call1"


def test_cases_of_a_lane_have_ids_of_their_own() -> None:
    ids = [case.id for case in cases_of(stepped_pair(), F32)]
    assert "stepped-block0-self_attn_call1-lora_off-cached" in ids
    assert "stepped-block0-self_attn-lora_off" in ids


def test_lanes_run_with_one_model_resident(tmp_path: Path) -> None:
    pair = stepped_pair()
    found = []
    for sources in (ReferenceSources(), ReferenceSources(one_resident=True, cache=tmp_path)):
        engine = Engine({pair.name: pair}, Settings(dtype=torch.float32, sources=sources))
        found.append([engine.case_record(case) for case in cases_of(pair, F32)])
        engine.close()
    assert found[0] == found[1]


# --- guidance: one batch against two calls ----------------------------------------------------------------------------


def guided(order: tuple[int, int] = (0, 1)) -> ModelPair:
    """Return the pair whose reference takes both branches in one batch, the native one after the other."""

    def two_calls(model: nn.Module, inputs: Inputs) -> Any:
        rows = [{name: value[i : i + 1] for name, value in inputs.items()} for i in order]
        return torch.cat([call_native(model, row) for row in rows])

    pair = tiny_pair()
    lane = Lane(
        inputs=partial(tiny_inputs, batch=2), reference=call_reference, native=two_calls,
        taps=lambda build: all_calls(pair.taps(build)),
    )  # fmt: skip
    return replace(pair, lanes={"cfg": lane})


def test_guidance_in_one_batch_agrees_with_two_calls() -> None:
    result = run(guided(), "cfg")
    assert failing(result) == []
    assert max(e.logic_error for e in result.draws[0].values()) < 1e-14


def test_branches_in_the_other_order_fail_from_the_first_tap() -> None:
    assert failing(run(guided((1, 0)), "cfg"))[:2] == ["patch_embed", "sinusoid"]


def test_taps_by_call_keep_kind_and_block() -> None:
    taps = by_call(tiny_pair().taps(F32), 2)
    assert {t.kind for t in taps if t.name.startswith("block1.up")} == {"block.up_call0", "block.up_call1"}
    assert [t.name for t in taps][-1] == "final_output"


# --- compiled against eager -------------------------------------------------------------------------------------------


def compiled_pair(factor: float) -> ModelPair:
    """Return the pair whose native is deployed compiled, by a compiler that scales what it computes."""

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        return lambda *args: tuple(o * factor for o in graph(*args))

    pair = tiny_pair(lora=None)
    return replace(pair, native=replace(pair.native, compile=lambda model: model.compile(backend=backend)))


@pytest.mark.parametrize(("factor", "apart"), [(1.0, 0), (1 + 2.0**-10, 1)])
def test_a_compiled_side_must_be_as_near_as_eager(factor: float, apart: int) -> None:
    pair = compiled_pair(factor)
    engine = Engine({pair.name: pair}, Settings(dtype=torch.float32))
    record = engine.state_record(next(cases_of(pair, F32)))
    assert len(record["compiled_apart"]) == apart
    assert set(record["compiled"]) == {"native"}
    session = engine.session(pair.name)
    assert isinstance(session, PairSession)
    assert not any(m._compiled_call_impl for m in session.native.model.modules())
