"""Parts of a proposal: names, stacks, layouts, what a run shows, weights that tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity.about import blind_spots
from parity.execution.tap import Layout, per_frame, permuted, reshaped
from parity.scaffold.inputs import arguments_of, proposed_inputs, role_of
from parity.scaffold.keys import fit
from parity.scaffold.layouts import agreeing, layouts_between
from parity.scaffold.names import fused_parts, similarity, words_of
from parity.scaffold.outputs import output_of
from parity.scaffold.record import record
from parity.scaffold.stacks import Group, groups_of, stacks_of, template_of
from parity.scaffold.ties import ties_of
from parity.weights.draw import draw_weights


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("self_attn", "attn1", {"self", "attn"}), ("cross_attn", "attn2", {"cross", "attn"}), ("to_q", "q_proj", {"q"}),
        ("q_linear", "wq", {"q"}), ("adaLN_modulation", "scale_shift_table", {"mod"}),
        ("norm_q", "q_norm", {"norm", "q"}), ("TimeEmbed", "temb_emb", {"time", "embed"}),
        ("y_embedder", "caption_embedder", {"text", "embed"}), ("t_embedder", "time_embedding", {"time", "embed"}),
        ("proj", "to_out", {"out"}), ("in_proj_weight", "qkv_weight", {"qkv", "weight"}),
    ],
)  # fmt: skip
def test_names_of_one_thing(one: str, other: str, words: set[str]) -> None:
    assert set(words_of(one)) == set(words_of(other)) == words


def test_similar_names_of_other_things_are_told_apart() -> None:
    q = "blocks.{}.self_attn.q"
    assert similarity(q, "blocks.{}.attn1.to_q") > similarity(q, "blocks.{}.attn2.to_q")
    assert similarity(q, "blocks.{}.attn1.to_q") > similarity(q, "blocks.{}.attn1.to_k")
    assert fused_parts("attn.qkv") == ("qkv", ("q", "k", "v"))
    assert fused_parts("attn.q_norm") is None


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.stack = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(4, 4)}) for _ in range(3))
        self.stack[2].add_module("extra", nn.Linear(4, 2))


def test_blocks_are_stacks_and_the_layers_of_an_mlp_are_not() -> None:
    model = Blocks()
    assert stacks_of(model) == {"stack": 3}
    assert template_of("stack.2.fc.weight", {"stack": 3}) == ("stack.{}.fc.weight", (2,))
    groups = {g.template: g.indices for g in groups_of(model.state_dict(), {"stack": 3}, "native")}
    assert groups["stack.{}.fc.weight"] == ((0,), (1,), (2,))
    assert groups["stack.2.extra.weight"] == ((),)
    assert groups["mlp.0.weight"] == ((),)


def test_ties() -> None:
    weight = torch.ones(2, 2)
    assert ties_of({"a": weight, "b": weight, "c": weight.clone(), "d": weight[:1]}) == {"b": "a"}


@pytest.mark.parametrize(
    ("r", "n", "how"),
    [
        ((4, 3), (4, 3), {}), ((4, 3), (3, 4), {"transpose": True}), ((4, 3, 1, 2), (4, 6), {"reshape": True}),
        ((1, 6, 8), (6, 8), {"reshape": True}), ((168,), (96,), None), ((4, 3), (4, 4), None), ((), (1,), None),
    ],
)  # fmt: skip
def test_shapes_that_fit(r: tuple[int, ...], n: tuple[int, ...], how: dict[str, bool] | None) -> None:
    groups = [Group("a.weight", ((),), torch.Size(s), 0, side) for s, side in ((r, "reference"), (n, "native"))]
    assert fit(*groups) == how


def test_a_weight_fits_no_bias() -> None:
    one, other = (Group(f"a.{leaf}", ((),), torch.Size([4]), 0, "") for leaf in ("weight", "bias"))
    assert fit(one, other) is None


X = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
MADE: dict[str, Tensor] = {
    "": X,
    "reshaped()": X.reshape(2, 3, 4, 5),
    "permuted(1, 2, 0)": X.permute(2, 0, 1),
    'Layout("channels last"': X.mT.reshape(2, 5, 3, 4),
}


@pytest.mark.parametrize("text", MADE)
def test_a_layout_is_found_and_its_text_makes_it(text: str) -> None:
    found = agreeing(X, MADE[text])
    assert found is not None
    assert found.text.startswith(text)
    made: Layout = eval(found.text or "reshaped()", {"Layout": Layout, "permuted": permuted, "reshaped": reshaped})
    assert torch.equal(made.forward(MADE[text], X.shape), X)
    assert made.backward is not None
    assert torch.equal(made.backward(X, MADE[text].shape), MADE[text])


VIDEO = torch.randn(2, 5, 3, 4, 2, generator=torch.Generator().manual_seed(0))
FRAMES = VIDEO.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("other", [VIDEO, VIDEO.flatten(2).mT], ids=["video", "tokens"])
def test_frames_may_be_samples_of_one_side(other: Tensor) -> None:
    for one, two in ((FRAMES, other), (other, FRAMES)):
        found = agreeing(one, two)
        assert found is not None
        assert found.text == "per_frame()"
        assert torch.equal(per_frame().forward(two, one.shape), one)


@pytest.mark.parametrize(("r", "n"), [((2, 5, 3, 4), (2, 12, 5)), ((2, 7, 5), (2, 5)), ((2, 5), (2, 7, 5))])
def test_every_written_layout_goes_there_and_back(r: tuple[int, ...], n: tuple[int, ...]) -> None:
    small = torch.randn(2, 5)
    values: dict[tuple[int, ...], Tensor] = {(2, 5): small, (2, 7, 5): small[:, None].expand(2, 7, 5), (2, 12, 5): X}
    values[2, 5, 3, 4] = X.mT.reshape(2, 5, 3, 4)
    for _, text in layouts_between(values[r], values[n]):
        made: Layout = eval(text, {"Layout": Layout, "permuted": permuted, "reshaped": reshaped})
        laid = made.forward(values[n], torch.Size(r))
        assert laid.shape == r
        if text.startswith("Layout"):
            assert torch.equal(laid, values[r])
    assert agreeing(values[r], values[n]) is not None


def test_other_values_do_not_agree() -> None:
    assert agreeing(X, X + 0.01) is None
    assert agreeing(X, X.flip(1)) is None
    assert agreeing(X[:, 0], X) is None, "one per sample only where all tokens are the same"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc, self.twice = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = x + 1
        h = self.fc(self.norm(x) * 2)
        return {"sample": self.twice(self.twice(x + h)), "rest": [h]}


def test_a_run_shows_inputs_outputs_calls_and_what_is_used_again() -> None:
    model = Residual()
    seen = record(model, lambda: model(torch.randn(3, 4)))
    by_place = {(s.module, s.point.at, s.point.call): s for s in seen.points}
    assert by_place["norm", "input", "only"].shared, "the residual goes on with it"
    assert not by_place["fc", "input", "only"].shared
    assert by_place["norm", "output", "only"].quiet
    assert by_place["twice", "output", "all"].value.shape == (6, 4)
    assert {call for module, _, call in by_place if module == "twice"} == {"all", 0, 1}
    assert [s.order for s in seen.points] == sorted(s.order for s in seen.points)
    picked = output_of(seen.returned)
    assert picked is not None
    assert picked[0] == 'returned["sample"]'
    assert torch.equal(picked[1](seen.returned), seen.returned["sample"])


def test_drawn_weights_hide_nothing_and_depend_on_the_seed_alone() -> None:
    one, other = (draw_weights(Residual(), 3) for _ in range(2))
    assert blind_spots("reference", one) == []
    assert blind_spots("reference", Residual()) != []
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.get_parameter("fc.weight"), draw_weights(Residual(), 4).get_parameter("fc.weight"))


class Patched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_len, self.patch = 9, nn.Conv3d(3, 8, (1, 2, 2), (1, 2, 2))
        self.text_in = nn.Linear(5, 8)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, seq_len: int, y: Tensor | None = None) -> Tensor:
        return x


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.caption_proj = nn.Conv3d(3, 8, (1, 2, 2), (1, 2, 2)), nn.Linear(5, 8)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, fps: int) -> Tensor:
        return hidden_states


def test_inputs_from_two_signatures() -> None:
    found = proposed_inputs(Patched(), Kept())
    assert {d.name: d.shape for d in found.drawn} == {
        "latents": (1, 3, 4, 16, 32), "timestep": (1,), "text": (1, 9, 5), "seq_len": (512,),
    }  # fmt: skip
    names = [d.name for d in found.drawn]
    assert arguments_of(Patched(), names).given == {
        "x": "latents", "t": "timestep", "context": "text", "seq_len": "seq_len",
    }  # fmt: skip
    assert arguments_of(Kept(), names).missing == ("fps",)
    roles = {"img": "latents", "txt": "text", "sigma": "timestep", "y_mask": "text_mask", "guidance": ""}
    assert {name: role_of(name) for name in roles} == roles
    values = {d.name: d.draw(torch.Generator().manual_seed(0)) for d in found.drawn}
    for d in found.drawn:
        there = eval(d.text, {"torch": torch, "generator": torch.Generator().manual_seed(0)})
        assert getattr(there, "shape", there) == getattr(values[d.name], "shape", values[d.name])
