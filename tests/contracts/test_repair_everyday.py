"""Repairs of what ports are made of every day: ops in place, masked scores, joint attention, fused projections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.tiny import built_from
from parity.diagnose.likely import _precision
from parity.execution.tap import Point, Tap
from parity.pair import Build, ModelPair, Side, Source
from parity.run import Options, StateResult, run_state
from parity.session import PairSession
from parity.weights.keymap import KeyMap, rename

WIDTH, HEADS, TEXT = 16, 2, 5
Attend = Callable[["Joint", Tensor, Tensor], Tensor]


class Joint(nn.Module):
    """Text and video in one attention, queries normalised; `edit` says what a port does otherwise.

    Shapes: x [B, S, C], text [B, L, C], keep [B, L].
    """

    def __init__(self, edit: str = "") -> None:
        super().__init__()
        self.edit = edit
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm = nn.RMSNorm(WIDTH // HEADS, eps=1e-5 if edit == "eps" else 1e-6)
        self.k_norm = nn.RMSNorm(WIDTH // HEADS, eps=1e-6)

    def attended(self, x: Tensor, keep: Tensor) -> Tensor:
        cut = (HEADS, 3, -1) if self.edit == "head layout" else (3, HEADS, -1)
        parts = self.qkv(x).unflatten(-1, cut).unbind(-2 if self.edit == "head layout" else -3)
        q, k, v = (z.transpose(1, 2) for z in parts)
        q, k = self.q_norm(q), self.k_norm(k)
        every = F.pad(keep, (0, x.shape[1] - keep.shape[1]), value=True)[:, None, None]
        if not self.edit.startswith("manual"):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=None if self.edit == "mask" else every)
        scores = q @ k.mT * (1.0 if self.edit == "manual scale" else q.shape[-1] ** -0.5)
        out: Tensor = scores.masked_fill(~every, torch.finfo(x.dtype).min).softmax(-1) @ v
        return out

    def forward(self, x: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        joined = torch.cat([text, x], 1)
        normed = F.layer_norm(joined, (WIDTH,))
        middle = joined + F.silu(normed)
        branch = self.out(self.attended(middle, keep).transpose(1, 2).flatten(2))
        out: Tensor = (normed if self.edit == "residual" else middle) + branch
        return out


class Model(nn.Module):
    """The attention and a head."""

    def __init__(self, edit: str = "") -> None:
        super().__init__()
        self.edit = edit
        self.joint, self.head = Joint(edit), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, text: Tensor, keep: Tensor) -> Tensor:
        made = self.joint(x, text, keep)[:, text.shape[1] :]
        out: Tensor = self.head(made if self.edit == "silu" else F.silu(made)).mT.unflatten(2, (2, 2, 3))
        return out


class Port(Model):
    """The same under another class."""


def pair(edit: str) -> ModelPair:
    def inputs(build: Build, seed: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(seed)
        x, text = torch.randn(2, 12, WIDTH, generator=g), torch.randn(2, TEXT, WIDTH, generator=g)
        keep = torch.arange(TEXT)[None] < torch.tensor([[3], [5]])
        return {"x": x.to(build.dtype), "text": text.to(build.dtype), "keep": keep}

    def call(model: nn.Module, given: Any) -> Any:
        return model(given["x"], given["text"], given["keep"])

    source = Source(__name__, bundled=True)
    side = Side("a model", source, built_from(Model), call, lambda out: out)
    return ModelPair(
        name="joint", reference=side, native=replace(side, build=built_from(lambda: Port(edit))),
        key_map=lambda build: KeyMap((rename(r"(.+)", r"\1"),)),
        taps=lambda build: (
            Tap("block0.self_attn", Point("joint.out"), Point("joint.out"), heads=HEADS),
            Tap("block0", Point("joint"), Point("joint")),
            Tap("final_output", Point(""), Point(""), channel_dim=1),
        ),
        inputs=inputs,
    )  # fmt: skip


def ran(edit: str) -> StateResult:
    return run_state(PairSession(pair(edit), Build(dtype=torch.float32)), False, Options(singles=0))


NAMED = {
    "eps": "1e-06 for 1e-05 in `add` at ",
    "mask": "the mask `keep` on the first keys of `_scaled_dot_product",
    "manual scale": "the scores times head_dim^-0.5 at ",
    "head layout": "joint.qkv.weight and its bias with its rows as [heads, 3, head_dim]",
    "residual": "`add` at ",
    "silu": "SiLU before `",
}


@pytest.mark.parametrize("edit", NAMED)
def test_what_ports_get_wrong_every_day_is_named(edit: str) -> None:
    result = ran(edit)
    assert result.first_different == {"residual": "block0", "silu": "final_output"}.get(edit, "block0.self_attn")
    found = result.explained.repairs[result.first_different]
    assert found.words.startswith(NAMED[edit]), found.words
    assert found.after < 1e-13


def test_attention_by_hand_in_16_bits_is_said_first() -> None:
    fused = {"_scaled_dot_product_flash_attention_for_cpu bfloat16": 1, "mul float32": 2}
    (said,) = _precision(fused, {"_softmax bfloat16": 1})
    assert said.startswith("attention by hand: the softmax runs in bfloat16 in the native, the reference calls a fused")
    assert _precision(fused, {"_softmax float32": 1}) == []


def test_attention_by_hand_is_the_same_function() -> None:
    assert ran("manual").first_different is None


def test_what_turns_keys_rightly_is_not_where_queries_part() -> None:
    place = ran("eps").explained.places["block0.self_attn"]
    assert place.native is not None
    assert place.reference is not None
    assert (place.native.name, place.reference.name) == ("add_", "add_")
