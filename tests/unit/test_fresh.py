"""A view of a session as loaded: earlier calls are made in each pass, unseen, and leave nothing behind."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.tiny import call_native, tiny_inputs
from fixtures.tiny_space import spacious
from parity.examples import Examples
from parity.execution.passes import OUTPUT
from parity.execution.shadow import Shadow
from parity.execution.tap import Inputs
from parity.fresh import fresh
from parity.lora.varied import varied
from parity.pair import Build
from parity.session import PairSession, opened
from parity.space import Drawn
from parity.stage import Options

LATER, EARLIER = (tiny_inputs(Build(), seed) for seed in (0, 1))


def remembering(model: nn.Module, inputs: Inputs) -> Any:
    """Keep the first text as it was embedded, as a cache of prompts does."""
    kept: dict[str, Tensor] = model.__dict__.setdefault("kept", {})
    return call_native(model, {**inputs, "text": kept.setdefault("text", inputs["text"] * 1.1)})


def session_of(call: Any = remembering) -> PairSession:
    p = spacious()
    return PairSession(replace(p, native=replace(p.native, call=call)), Build())


def output(session: PairSession, inputs: Inputs) -> Tensor:
    return session.native.runner(()).run(inputs).values[OUTPUT].low


def test_each_pass_makes_the_earlier_calls() -> None:
    session = session_of()
    with fresh(session) as view:
        alone = output(view, LATER)
        assert torch.equal(alone, output(view, LATER))
    with fresh(session, earlier=[EARLIER]) as view:
        after = output(view, LATER)
    assert not torch.equal(alone, after)
    assert "kept" not in vars(session.native.model)


def test_session_keeps_what_it_had() -> None:
    session = session_of()
    output(session, EARLIER)
    stale = output(session, LATER)
    with fresh(session) as view:
        assert not torch.equal(output(view, LATER), stale)
    assert torch.equal(output(session, LATER), stale)
    assert session.native.earlier is None


def test_taps_see_the_judged_call_alone() -> None:
    session = session_of(call_native)
    with fresh(session, earlier=[EARLIER, EARLIER]) as view:
        trace = view.native.runner(view.taps).run(LATER)
    assert all(len(value.parts) == 1 for value in trace.values.values())


def test_what_an_earlier_call_keeps_has_its_shadow() -> None:
    session = session_of()
    with fresh(session, earlier=[EARLIER]) as view:
        value = view.native.runner(()).run(LATER, None, view.native.shadow(Shadow, LATER)).values[OUTPUT]
    assert value.high is not None
    assert not bool(value.high.isnan().any())


@pytest.mark.parametrize("lora", [False, True])
def test_lora_is_on_in_every_pass_and_off_afterwards(lora: bool) -> None:
    session = session_of(call_native)
    plain = output(session, LATER)
    with fresh(session, lora, [EARLIER]) as view:
        assert torch.equal(output(view, LATER), plain) is not lora
        assert torch.equal(output(view, LATER), output(view, LATER))
    assert torch.equal(output(session, LATER), plain)


def test_another_adapter_is_carried_to_the_native() -> None:
    session = session_of(call_native)
    assert session.adapter is not None
    other = varied(session.adapter, (1, 3), 6.0, seed=2)
    assert [t.rank for t in other.targets.values()] == [1, 3]
    assert [t.scaling for t in other.targets.values()] == [6.0, 2.0]
    for path, target in other.targets.items():
        change, own = target.delta(), session.adapter.targets[path].delta()
        # The session holds A and B in the weights' bfloat16, the varied one is drawn in float32.
        assert float(change.norm()) == pytest.approx(float(own.norm()), rel=4e-3)
        assert not torch.allclose(change, own)
    with fresh(session, True, adapter=other) as view:
        assert [t.rank for t in view.native_adapter.targets.values()] == [1, 3]
    assert session.adapter is not other


def test_cache_of_activations_is_no_other_function() -> None:
    """A native that keeps what it embedded in an earlier call is right if the text is the same."""

    def prompt_kept(model: nn.Module, inputs: Inputs) -> Any:
        embed = model.get_submodule("text_embedding")
        cache: OrderedDict[Any, Tensor] = model.__dict__.setdefault("cache", OrderedDict())
        key = float(inputs["text"].float().sum())
        own = embed.forward
        embed.__dict__["forward"] = lambda text: cache[key] if key in cache else cache.setdefault(key, own(text))
        try:
            return call_native(model, inputs)
        finally:
            del embed.__dict__["forward"]

    with opened(replace(spacious(), native=replace(spacious().native, call=prompt_kept)), Build()) as session:
        drawn = Drawn(height=2, width=3, timesteps=((0.5,),), seed=4)
        again = replace(drawn, before=(replace(drawn, timesteps=((0.9,),)),))
        for one in (drawn, again):
            example = Examples(session, False, Options(twins=1)).judge(one)
            assert (example.wrong, example.judged) == ("", True)
            assert example.logic_error < 1e-12
