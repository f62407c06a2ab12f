"""Proposals of pairs against what is known of them: keys and taps right, nothing guessed in silence."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.models import adversarial
from fixtures.models.numerics import NativeNumerics
from fixtures.pairs import longcat, wan
from fixtures.third_party import locate
from fixtures.tiny import gelu_erf
from parity.pair import Build, ModelPair
from parity.scaffold.proposal import KeyProposal
from parity.scaffold.propose import Proposal, Request, propose
from parity.scaffold.sides import Factory
from parity.scaffold.taps import all_taps
from parity.scaffold.write import pair_file
from parity.weights.load import tensors_of

HERE = __name__
WAN = {
    "model_type": "t2v", "dim": 96, "ffn_dim": 256, "num_heads": 3, "num_layers": 3, "text_dim": 48, "text_len": 64,
}  # fmt: skip
DIFFUSERS = {"num_attention_heads": 3, "attention_head_dim": 32, "ffn_dim": 256, "num_layers": 3, "text_dim": 48}
CONVERTER = "diffusers.loaders.single_file_utils:convert_wan_transformer_to_diffusers"

BLOCK = r"^blocks\.(\d+)\."
MAPPING = {
    r"^text_embedding\.0\.(.*)$": r"condition_embedder.text_embedder.linear_1.\1",
    r"^text_embedding\.2\.(.*)$": r"condition_embedder.text_embedder.linear_2.\1",
    r"^time_embedding\.0\.(.*)$": r"condition_embedder.time_embedder.linear_1.\1",
    r"^time_embedding\.2\.(.*)$": r"condition_embedder.time_embedder.linear_2.\1",
    r"^time_projection\.1\.(.*)$": r"condition_embedder.time_proj.\1",
    BLOCK + r"modulation$": r"blocks.\1.scale_shift_table",
    BLOCK + r"self_attn\.([qkv])\.(.*)$": r"blocks.\1.attn1.to_\2.\3",
    BLOCK + r"self_attn\.o\.(.*)$": r"blocks.\1.attn1.to_out.0.\2",
    BLOCK + r"self_attn\.norm_(.*)$": r"blocks.\1.attn1.norm_\2",
    BLOCK + r"cross_attn\.([qkv])\.(.*)$": r"blocks.\1.attn2.to_\2.\3",
    BLOCK + r"cross_attn\.o\.(.*)$": r"blocks.\1.attn2.to_out.0.\2",
    BLOCK + r"cross_attn\.norm_(.*)$": r"blocks.\1.attn2.norm_\2",
    BLOCK + r"norm3\.(.*)$": r"blocks.\1.norm2.\2",
    BLOCK + r"ffn\.0\.(.*)$": r"blocks.\1.ffn.net.0.proj.\2",
    BLOCK + r"ffn\.2\.(.*)$": r"blocks.\1.ffn.net.2.\2",
    r"^head\.modulation$": "scale_shift_table",
    r"^head\.head\.(.*)$": r"proj_out.\1",
}
WITHOUT_HEAD = {pattern: name for pattern, name in MAPPING.items() if "head.head" not in name and name[:4] != "proj"}


def known(pair: ModelPair) -> tuple[Mapping[str, Any], dict[tuple[str, str], str]]:
    """The pair's own pieces by native key, and its taps by where they are on both sides."""
    build = Build(dtype=torch.float32)
    shapes = [{k: v.shape for k, v in tensors_of(s.build(build)).items()} for s in (pair.reference, pair.native)]
    points = {(t.reference.path, t.native.path): t.name for t in pair.taps(build) if t.reference and t.native}
    return pair.key_map(build).plan(shapes[0], shapes[1]).pieces, points


def pieces_of(found: Proposal) -> Mapping[str, Any]:
    shapes = [{k: v.shape for k, v in tensors_of(model).items()} for model in found.models]
    return found.keys.key_map(trial=True).plan(shapes[0], shapes[1]).pieces


def right_keys(found: Proposal, pair: ModelPair) -> float:
    truth, proposed = known(pair)[0], pieces_of(found)
    assert set(proposed) <= set(truth)
    right = [key for key in truth if truth[key] == proposed.get(key)]
    return len(right) / len(truth)


def points_of(found: Proposal) -> dict[tuple[str, str], str]:
    return {(t.reference.path, t.native.path): t.name for t in all_taps(found.taps) if t.reference and t.native}


@pytest.fixture(scope="module")
def wan_here() -> None:
    if not locate.is_here(wan.ORIGINAL):
        pytest.skip(f"wan is not here; get it with: {wan.ORIGINAL.get}")
    pytest.importorskip("diffusers", reason=wan.DIFFUSERS.get)


@functools.cache
def wan_proposal(**existing: str) -> Proposal:
    reference = Factory("fixtures.pairs.wan:original_module().WanModel", WAN)
    return propose(Request("port", reference, Factory("diffusers:WanTransformer3DModel", DIFFUSERS), **existing))


@functools.cache
def longcat_proposal() -> Proposal:
    where = "fixtures.pairs.longcat:build_"
    return propose(Request("port", Factory(where + "reference"), Factory(where + "native")))


@pytest.mark.usefixtures("wan_here")
def test_keys_and_taps_of_wan_from_module_paths_alone() -> None:
    found, truth = wan_proposal(), known(wan.PAIR)[1]
    assert found.why_not_run is None
    assert right_keys(found, wan.PAIR) >= 0.9
    assert found.keys.is_total
    proposed = points_of(found)
    assert len(set(truth) & set(proposed)) >= 0.9 * len(truth), sorted(set(truth) - set(proposed))
    assert len(set(truth) & set(proposed)) >= 0.9 * len(proposed), sorted(set(proposed) - set(truth))
    assert all(proposed[point] == name for point, name in truth.items() if point in proposed)


@pytest.mark.usefixtures("wan_here")
@pytest.mark.parametrize("existing", [{"mapping": f"{HERE}:MAPPING"}, {"converter": CONVERTER}], ids=str)
def test_wan_from_what_exists(existing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = wan_proposal(**existing)
    assert found.keys.existing is not None
    assert not found.keys.problems
    assert right_keys(found, wan.PAIR) == 1
    assert points_of(found) == points_of(wan_proposal())


@pytest.mark.usefixtures("wan_here")
def test_a_mapping_that_leaves_keys_out_is_completed_from_names() -> None:
    found = wan_proposal(mapping=f"{HERE}:WITHOUT_HEAD")
    assert any("proj_out.weight" in problem for problem in found.keys.problems)
    assert [line.text for line in KeyProposal(found.keys.suggested).lines()] == [
        r'rename(r"head\.head\.(weight|bias)", r"proj_out.\1")'
    ]
    assert "TODO(pair)" in pair_file(found).partition("def _key_map")[2].partition("return")[0]
    assert points_of(found) == points_of(wan_proposal())


@pytest.mark.usefixtures("wan_here")
def test_without_a_run_the_structure_says_as_much() -> None:
    reference = Factory("fixtures.pairs.wan:original_module().WanModel", WAN, call=f"{HERE}:raises")
    found = propose(Request("port", reference, Factory("diffusers:WanTransformer3DModel", DIFFUSERS)))
    truth = known(wan.PAIR)[1]
    assert "no kernel" in (found.why_not_run or "")
    assert right_keys(found, wan.PAIR) >= 0.9
    assert len(set(truth) & set(points_of(found))) >= 0.9 * len(truth)
    text = pair_file(found)
    assert text.count("TODO(pair): by names and order alone, not run") == len(found.taps)


def test_keys_and_taps_of_longcat() -> None:
    found, truth = longcat_proposal(), known(longcat.PAIR)[1]
    assert right_keys(found, longcat.PAIR) == 1
    assert len(set(truth) & set(points_of(found))) >= 0.9 * len(truth)
    assert max(found.distances.values()) < 1e-5
    assert found.output_distance is not None
    assert found.output_distance < 1e-5


def test_two_streams_in_one_block_and_fused_layers_without_a_name_for_it() -> None:
    models = "fixtures.models.dual_stream:"
    sides = Factory(f"{models}DualStreamReference"), Factory(f"{models}DualStreamNative")
    found = propose(Request("dual", *sides, inputs=f"{models}dual_stream_inputs"))
    assert found.keys.is_total
    assert found.low_fails is None
    assert max(found.distances.values()) < 1e-5
    to = r"single_transformer_blocks.\1."
    parts = ", ".join(f'r"{to}{part}.\\2"' for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    linear1 = r'split(r"single_blocks\.(\d+)\.linear1\.(weight|bias)", '
    assert f"{linear1}({parts}), sizes=(24, 24, 24, 96))" in rules_of(found)
    points = points_of(found)
    assert points["double_blocks.0[0]", "transformer_blocks.0[1]"] == "double_block0"
    assert points["double_blocks.0[1]", "transformer_blocks.0[0]"] == "double_block0.second_stream"
    assert points["double_blocks.1.txt_mlp", "transformer_blocks.1.ff_context"] == "double_block1.ff_context"
    assert points["single_blocks.2", "single_transformer_blocks.2"] == "single_block2"


# --- traps ------------------------------------------------------------------------------------------------------------

MODELS = "fixtures.models.adversarial:"


def adversarial_proposal(inputs: str | None = MODELS + "adversarial_inputs", call: str | None = None) -> Proposal:
    reference, native = (Factory(MODELS + f"Adversarial{side}", call=call) for side in ("Reference", "Native"))
    return propose(Request("traps", reference, native, inputs=inputs))


def rules_of(found: Proposal) -> set[str]:
    return {line.text for line in found.keys.lines()}


def test_a_run_decides_what_names_do_not() -> None:
    found = adversarial_proposal()
    assert {
        r'rename(r"blocks\.(\d+)\.alpha\.(weight|bias)", r"blocks.\1.first.\2")',
        r'rename(r"blocks\.(\d+)\.omega\.weight", r"blocks.\1.second.weight", transpose=True)',
        r'rename(r"blocks\.(\d+)\.fc1\.weight", r"blocks.\1.up.weight", transpose=True)',
        r'rename(r"inp\.(weight|bias)", r"enter.\1")',
        r'rename(r"outp\.bias", "leave.bias")',
        r'native_only(r"leave\.weight", "tied to enter.weight")',
    } < rules_of(found)
    assert {group.template for group in found.keys.native_blank} == {"blocks.{}.idle.weight", "blocks.{}.idle.bias"}
    assert "its layer is not called in this forward" in pair_file(found)
    twice = [t for t in all_taps(found.taps) if t.reference and t.reference.call == 1]
    assert [t.native.call for t in twice if t.native] == [1, 1]


def test_without_a_run_nothing_is_guessed() -> None:
    found = adversarial_proposal(call=f"{HERE}:raises")
    named = {"blocks.{}.norm", "blocks.{}.fc1", "blocks.{}.fc2"}
    assert {group.owner for match in found.keys.matches for group in match.reference} == named
    assert set(found.keys.native_ties) == {"leave.weight"}
    blank = {group.owner for group in found.keys.reference_blank}
    assert blank == {"inp", "outp", "blocks.{}.alpha", "blocks.{}.omega"}
    text = pair_file(found)
    assert "free and of that shape: blocks.N.second.weight, blocks.N.first.weight, blocks.N.idle.weight" in " ".join(
        line.strip(" #") for line in text.splitlines()
    )


def raises(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    raise RuntimeError("no kernel")


class Tied(adversarial.AdversarialReference):
    """Blocks that are one block: every key but the first block's is another key's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = self.blocks[0]


def test_tied_tensors_are_declared() -> None:
    where = Factory(f"{HERE}:Tied"), Factory(f"{HERE}:OneBlock")
    found = propose(Request("tied", *where, inputs=MODELS + "adversarial_inputs"))
    assert found.keys.reference_ties["blocks.1.fc1.weight"] == "blocks.0.fc1.weight"
    assert 'reference_only(r"blocks\\.1\\.fc1\\.weight", "tied to blocks.0.fc1.weight")' in rules_of(found)


class OneBlock(nn.Module):
    """The tied original written with one block that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.outp = nn.Linear(8, 8), nn.Linear(8, 8)
        self.outp.weight = self.inp.weight
        self.block = adversarial.ReferenceBlock()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outp(self.block(self.block(self.inp(x))))
        return out


# --- values -----------------------------------------------------------------------------------------------------------


class Loaded(nn.Module):
    """Four layers of one shape that hold a checkpoint; the names say nothing."""

    def __init__(self, order: str, fused: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        held = {name: torch.randn(6, 6, generator=generator) for name in "abcd"}
        for place, name in enumerate(order):
            self.register_parameter(f"part_{place}{name if fused else ''}", nn.Parameter(held[name]))
        if fused:
            self.joined = nn.Parameter(torch.cat([held["c"], held["d"]]))

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            x = x @ parameter.t()[:6, :6]
        return x


class LoadedOriginal(Loaded):
    """The original."""


class LoadedPort(Loaded):
    """The port."""


def test_equal_values_decide_and_row_pieces_are_found() -> None:
    original = Factory(f"{HERE}:LoadedOriginal", {"order": "abcd"})
    found = propose(Request("loaded", original, Factory(f"{HERE}:LoadedPort", {"order": "ba", "fused": True})))
    assert found.loaded
    assert rules_of(found) == {
        'rename("part_0", "part_1a")', 'rename("part_1", "part_0b")', 'fuse(("part_2", "part_3"), "joined")',
    }  # fmt: skip
    assert "load=lambda reference, native: None" in pair_file(found)


def test_values_that_are_equal_by_accident_do_not_count() -> None:
    """Both models drawn from one seed: some tensors are equal, in the wrong places."""
    seeded = Factory(f"{HERE}:seeded_reference"), Factory(f"{HERE}:seeded_native")
    found = propose(Request("seeded", *seeded, inputs=MODELS + "adversarial_inputs"))
    held = [tensors_of(make()) for make in (seeded_reference, seeded_native)]
    assert any(torch.equal(a, b) for a in held[0].values() for b in held[1].values() if a.shape == b.shape)
    assert not found.loaded
    assert rules_of(found) == rules_of(adversarial_proposal())


def seeded_reference() -> nn.Module:
    torch.manual_seed(0)
    return adversarial.AdversarialReference()


def seeded_native() -> nn.Module:
    torch.manual_seed(0)
    return adversarial.AdversarialNative()


# --- a port with a bug ------------------------------------------------------------------------------------------------


def test_a_bug_of_the_port_is_flagged_at_its_tap_and_hides_no_other() -> None:
    config = {"depth": 2, "width": 16}
    reference = Factory("fixtures.tiny:Reference", config)
    found = propose(Request("buggy", reference, Factory(f"{HERE}:buggy_native")))
    healthy = propose(Request("tiny", reference, Factory("fixtures.tiny:Native", config)))
    assert points_of(found) == points_of(healthy)
    apart = {name for name, distance in found.distances.items() if distance > 1e-5}
    assert apart == {"block1.down_in"}
    (line,) = [line for line in pair_file(found).splitlines() if "or a difference of the port" in line]
    assert "TODO(pair): " in line
    assert "or a difference of the port" not in pair_file(healthy)


def buggy_native() -> nn.Module:
    from fixtures.tiny import Native

    model = Native(2, 16)
    gelu_erf(model)
    return model


def test_a_bug_in_every_block_hides_no_tap() -> None:
    reference = Factory("fixtures.pairs.longcat:build_reference")
    found = propose(Request("crossed", reference, Factory(f"{HERE}:crossed_axes")))
    assert points_of(found) == points_of(longcat_proposal())
    apart = {name for name, distance in found.distances.items() if distance > 1e-5}
    assert apart == {f"block{number}.self_attn" for number in range(4)}


def crossed_axes(build: Build) -> nn.Module:
    return longcat.build_native(build, NativeNumerics(rope_axes=(1, 0, 2)))


# --- blocks that are not alike, points that only look alike -----------------------------------------------------------


class Uneven(nn.Module):
    """Two blocks, the last of them without a second branch; frames are convolved one by one."""

    def __init__(self, native: bool = False) -> None:
        super().__init__()
        self.native = native
        self.patch = nn.Conv2d(4, 8, 2, 2)
        self.embedding, self.tied = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.tied.weight = self.embedding.weight
        self.blocks = nn.ModuleList(UnevenBlock(last) for last in (False, True))
        self.proj_out = nn.Linear(8, 4)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.patch(latents.transpose(1, 2).flatten(0, 1)).flatten(2).mT
        x = self.embedding(x.reshape(len(latents), -1, 8))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.proj_out(x)
        return out


class UnevenPort(Uneven):
    """The same; its convolution is one of videos, and nothing is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("patch", nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2)))
        del self.tied
        self.embedding = nn.Linear(8, 8, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.embedding(self.patch(latents).flatten(2).mT)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.proj_out(x)
        return out


class UnevenBlock(nn.Module):
    """A branch, and all but the last a second one."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.other = None if last else nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ffn(x)
        return x if self.other is None else x + self.other(x)


def uneven_inputs() -> dict[str, Tensor]:
    return {"latents": torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))}


def to_uneven(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {key: value for key, value in state.items() if key != "tied.weight"}
    return {**found, "patch.weight": state["patch.weight"].unsqueeze(2)}


def test_a_last_block_without_a_layer_and_a_second_name_of_a_tensor() -> None:
    sides = Factory(f"{HERE}:Uneven"), Factory(f"{HERE}:UnevenPort")
    found = propose(Request("uneven", *sides, converter=f"{HERE}:to_uneven", inputs=f"{HERE}:uneven_inputs"))
    text = pair_file(found)
    assert "TODO(pair)" not in text.replace("Lines marked TODO(pair) are open", "")
    assert 'reference_only(r"tied\\.weight", "tied to embedding.weight")' in text
    names = [tap.name for tap in all_taps(found.taps)]
    assert "block0.other" in names
    assert "block1.other" not in names
    assert 'ABSENT = (\n    "block1.other_in",\n    "block1.other",\n)' in text
    assert "if tap.name not in ABSENT" in text
    assert "layout=per_frame()" in text
    assert max(found.distances.values()) < 1e-5
