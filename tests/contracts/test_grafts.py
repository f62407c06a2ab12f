"""Faults that no known change undoes are placed by values of the reference, and named by how the values are related."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fixtures.mutations import ANATOMIES, MUTATIONS, Spot
from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants_named import two_blocks
from parity.diagnose.repaired import Repair
from parity.diagnose.signature import Found, Seen, discovered
from parity.pair import Build, ModelPair
from parity.run import Options, run_state
from parity.session import PairSession
from parity.space import Drawn

BASE = replace(two_blocks(PAIR), inputs=partial(inputs_of, tokens=32))
AT = ANATOMIES["longcat"]


def repaired(pair: ModelPair, dtype: torch.dtype = torch.float32) -> Repair:
    result = run_state(PairSession(pair, Build(size=pair.sizes[0], dtype=dtype)), False, Options(singles=0))
    assert result.first_different is not None
    return result.explained.repairs[result.first_different]


POSITIONS = {
    "start anew every 16": lambda t: t[torch.arange(32) % 16],
    "end at 20": lambda t: t[torch.arange(32).clamp(max=20)],
    "rolled by 2": lambda t: t[(torch.arange(32) - 2) % 32],
    "run backwards": lambda t: t[31 - torch.arange(32)],
}


@pytest.mark.parametrize("words", POSITIONS)
def test_other_positions_of_rope_are_named(words: str) -> None:
    """The positions are read off the values that are turned, not off the op that spoilt them."""
    before = torch.randn(1, 32, 4, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = torch.outer(torch.arange(32).double(), torch.logspace(0, -3, 16).double())
    tables = [torch.polar(torch.ones_like(angles), a) for a in (POSITIONS[words](angles), angles)]
    turned = [torch.view_as_real(torch.view_as_complex(before) * t[:, None]).flatten(-2) for t in tables]
    seen = Seen(turned[0], turned[1], {"q": before.flatten(-2)}, None, Found())
    said = discovered()["rope_positions"].detect(seen)
    assert said is not None
    assert words in said


CASES: dict[str, tuple[str, ...]] = {
    "norm_uncentred": ("the reference's `native_layer_norm`", "`rsqrt`"),
    "rope_missing": ("the step that is missing before `_scaled_dot_product", "RotaryPositionalEmbedding"),
    "last_keys_dropped": ("no cut to [:",),
    "zero_keys_unmasked": ("no `constant_pad_nd`",),
    "kv_heads_rolled": ("no `roll`",),
    "q_norm_sharded": ("second factor of `mul` left out",),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_done_is_told(name: str) -> None:
    found = repaired(MUTATIONS[name].apply(BASE, AT, Spot((0,), 1)))
    assert all(words in found.words for words in CASES[name]), found.words
    assert found.after < 1e-12 < found.before


def test_a_native_in_two_calls_is_explained_as_one_in_one() -> None:
    """Guidance: the reference runs both halves of a batch at once, the native one after the other."""
    drawn = Drawn(
        batch=1, frames=2, height=4, width=4, text_lengths=(5,), timesteps=((500.5,),), conditioning=0, guidance=4.5,
        scale=1.0,
    )  # fmt: skip

    def guided(build: Build, seed: int) -> dict[str, Any]:
        assert BASE.drawn is not None
        return dict(BASE.drawn(build, replace(drawn, seed=seed)))

    pair = replace(BASE, inputs=guided, variants={}, lanes={})
    found = repaired(MUTATIONS["ffn_gelu_erf"].apply(pair, AT, Spot((0,), 0)))
    assert found.words.startswith("SiLU for `gelu`")


def test_what_an_op_gives_restores_a_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing that the ops read can be paired, what they give is set."""
    monkeypatch.setattr("parity.diagnose.grafts.Pairs.of_operands", lambda self, outputs: [])
    monkeypatch.setattr("parity.diagnose.repair.left_out", lambda segment: [])
    found = repaired(MUTATIONS["kv_heads_rolled"].apply(BASE, AT, Spot((0,), 1)))
    assert "in blocks.0.attn for `_scaled_dot_product" in found.words
    assert found.after < 1e-12 < found.before
