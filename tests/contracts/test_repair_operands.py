"""Repairs of operands: a gate that is not squashed, chunks of a modulation and norms of q and k exchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.tiny import built_from
from parity.execution.tap import Point, Tap
from parity.pair import Build, ModelPair, Side, Source
from parity.run import Options, StateResult, run_state
from parity.session import PairSession
from parity.weights.keymap import KeyMap, rename

WIDTH, TEXT = 16, 5
pytestmark = pytest.mark.usefixtures("one_thread")


class Norms(nn.Module):
    """The norms of q and k of one stream."""

    def __init__(self, *, exchanged: bool) -> None:
        super().__init__()
        self.exchanged = exchanged
        self.query, self.key = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self.key(q), self.query(k)) if self.exchanged else (self.query(q), self.key(k))


class Model(nn.Module):
    """Two streams that are joined, modulated and gated; `edit` says what a port does otherwise."""

    def __init__(self, edit: str = "") -> None:
        super().__init__()
        self.edit = edit
        self.q, self.k, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.shift, self.scale, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.video, self.words = (Norms(exchanged=edit == "norms") for _ in range(2))

    def forward(self, x: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        shift, scale, gate = (layer(vec).unsqueeze(1) for layer in (self.shift, self.scale, self.gate))
        if self.edit == "order":
            shift, scale = scale, shift
        (q, k), (tq, tk) = (norms(self.q(z), self.k(z)) for norms, z in ((self.video, x), (self.words, text)))
        if self.edit == "streams":
            q, k, tq, tk = k, q, tk, tq
        q, k = torch.cat([tq, q], 1), torch.cat([tk, k], 1)
        joined = (q * F.softplus(k))[:, text.shape[1] :] * (1 + scale) + shift
        if self.edit == "other":
            gate = shift
        gate = gate.float() if self.edit == "tanh" else gate.float().tanh()
        out: Tensor = (x + gate.to(x.dtype) * self.out(joined)).mT
        return torch.unflatten(out, 2, (2, 2, 3))


class Port(Model):
    """The same under another class."""


def pair(edit: str, tapped: tuple[str, ...]) -> ModelPair:
    def inputs(build: Build, seed: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(seed)
        shapes = {"x": (2, 12, WIDTH), "text": (2, TEXT, WIDTH), "vec": (2, WIDTH)}
        return {name: torch.randn(shape, generator=g).to(build.dtype) for name, shape in shapes.items()}

    source = Source(__name__, bundled=True)
    side = Side("a model", source, built_from(Model), lambda m, given: m(**given), lambda out: out)
    return ModelPair(
        name="gated", reference=side, native=replace(side, build=built_from(lambda: Port(edit))),
        key_map=lambda build: KeyMap((rename(r"(.+)", r"\1"),)),
        taps=lambda build: (
            *(Tap(name, Point(name), Point(name)) for name in tapped),
            Tap("joined", Point("out", "input"), Point("out", "input")),
            Tap("out", Point("out"), Point("out")),
            Tap("final_output", Point(""), Point(""), channel_dim=1),
        ),
        inputs=inputs,
    )  # fmt: skip


def ran(edit: str, tapped: tuple[str, ...], dtype: torch.dtype) -> StateResult:
    return run_state(PairSession(pair(edit, tapped), Build(dtype=dtype)), False, Options(singles=0, twins=1))


MODULATION = ("shift", "scale", "gate")
STREAMS = (*MODULATION, "video.query", "video.key", "words.query", "words.key")
NAMED = {
    "tanh": (MODULATION, "final_output", "`tanh` of the first factor of `mul` at "),
    "order": (MODULATION, "joined", "the values of scale and shift exchanged where they are read"),
    "other": (MODULATION, "final_output", "the value of gate for that of shift, which `"),
    "streams": (STREAMS, "joined", "the values of words.key and words.query, video.key and video.query exchanged"),
    "norms": (MODULATION, "joined", "exchanged, and 1 more pairs named so"),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("edit", NAMED)
def test_an_operand_is_named(edit: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity.diagnose.repair.SECONDS", 600.0)
    tapped, tap, words = NAMED[edit]
    found = ran(edit, tapped, dtype)
    assert [n for n, j in found.judged.items() if j.different] == [tap]
    repair = found.explained.repairs[tap]
    assert words in repair.words, repair.words
    assert repair.after < 1e-12


def test_a_healthy_port_has_no_repair() -> None:
    found = ran("", STREAMS, torch.float32)
    assert not any(j.different for j in found.judged.values())
    assert not found.explained.repairs
