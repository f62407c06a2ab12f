"""Tables that a cached function holds outlive a session: the next one, and the other side, still know what they are."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.tiny import edited, output_of, tiny_inputs, tiny_pair
from parity.examples import Examples
from parity.execution.outside import keep_outside, outside
from parity.execution.shadow import Shadow
from parity.numerics.evidence import Evidence
from parity.pair import Build, ModelPair
from parity.run import Options, run_state
from parity.session import PairSession
from parity.space import Drawn

TAP = "block0.norm"


def table(tokens: int, width: int) -> Tensor:
    """Make what turns features by their position. Shapes: result [tokens, width]."""
    inverse = 1.0 / (10000.0 ** (torch.arange(width).float() / width))
    return torch.outer(torch.arange(tokens).float(), inverse).cos()


cached_table = cache(table)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    cached_table.cache_clear()
    gc.collect()
    before = set(outside().entries)
    yield
    cached_table.cache_clear()
    gc.collect()
    assert set(outside().entries) <= before, "what is kept goes with its table"


def turning(reference: Callable[..., Tensor], native: Callable[..., Tensor], **changes: Any) -> ModelPair:
    """Return a pair that turns features by their position, in another order of operations on its two sides."""
    few = lambda build, seed: tiny_inputs(build, seed, size=(1, 2, 3))  # noqa: E731
    pair = tiny_pair("turning", depth=1, lora=None, inputs=few)
    pair = edited(pair, output_of("layers.0.norm", lambda y: y * reference(*y.shape[1:])), "reference")
    pair = edited(pair, output_of("blocks.0.ln", lambda y: (3 * y) * native(*y.shape[1:]) / 3))
    return replace(pair, **changes)


def evidence(pair: ModelPair) -> Evidence:
    session = PairSession(pair, Build(size=pair.sizes[0], dtype=torch.float32))
    return run_state(session, False, Options(singles=0, explain=False)).draws[0][TAP]


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "native": (table, cached_table),
    "reference": (cached_table, table),
    "both": (cached_table, cached_table),
}


@pytest.mark.parametrize("cached", CASES)
def test_every_session_knows_the_table(cached: str) -> None:
    for _ in range(2):
        found = evidence(turning(*CASES[cached]))
        assert not found.bit_exact
        assert found.rows
        assert 0 < found.logic_error < 1e-12


def test_a_table_written_since_is_as_it_is_stored() -> None:
    pair = turning(table, cached_table)
    evidence(pair)
    cached_table(6, 16).mul_(1 + 1e-5)
    found = evidence(pair)
    assert not found.rows, "nobody knows its exact values now"


def test_drawn_inputs_of_other_shapes_are_judged() -> None:
    """Calls that only ask whether a side takes an input make its tables; they are kept, too."""

    def inputs_of(build: Build, drawn: Drawn) -> dict[str, Any]:
        return tiny_inputs(build, drawn.seed, size=(drawn.frames, 2, 3))

    pair = turning(table, cached_table, drawn=inputs_of)
    session = PairSession(pair, Build(size=pair.sizes[0], dtype=torch.float32))
    examples = Examples(session, False, Options(twins=0))
    for frames in (1, 2, 3):
        one = Drawn(batch=1, frames=frames, height=2, width=3, text_lengths=(5,), timesteps=((500.5,),),
                    conditioning=0, guidance=1.0, scale=1.0)  # fmt: skip
        example = examples.judge(one)
        assert not example.wrong, example.wrong
        assert example.evidence[TAP].rows
        assert example.evidence[TAP].logic_error < 1e-12


def test_what_a_model_holds_is_not_kept() -> None:
    model = torch.nn.Linear(2, 2)
    with Shadow() as shadow:
        held, free = torch.ones(3) / 3, torch.ones(3) / 7
        untrusted = torch.ones(3)
        untrusted.numpy()[:] = 0.1
        untrusted.mul_(0.5)
    model.__dict__["table"] = held
    assert keep_outside(shadow.table, model)
    assert free.untyped_storage()._cdata in outside().entries
    assert held.untyped_storage()._cdata not in outside().entries
    assert untrusted.untyped_storage()._cdata not in outside().entries
    key = free.untyped_storage()._cdata
    del free
    assert key not in outside().entries
