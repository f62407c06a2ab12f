"""A proposal from names alone against the `param_names_mapping` a real port ships."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from fixtures.pairs import longcat_fastvideo
from fixtures.third_party import locate, single_process
from parity.execution.tap import Inputs
from parity.scaffold.propose import Proposal, Request, propose
from parity.scaffold.sides import Factory
from parity.weights.load import tensors_of

HERE = __name__
DIFFUSERS = {"num_attention_heads": 3, "attention_head_dim": 32, "ffn_dim": 256, "num_layers": 2, "text_dim": 48}
FASTVIDEO = {
    "num_attention_heads": 3, "attention_head_dim": 32, "ffn_dim": 256, "num_layers": 2, "text_dim": 48,
    "in_channels": 16, "out_channels": 16, "num_channels_latents": 16, "hidden_size": 96,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here() -> None:
    pytest.importorskip("diffusers", reason='get it with: pip install "dit-parity[models]"')
    if not locate.is_here(longcat_fastvideo.FASTVIDEO):
        pytest.skip(f"fastvideo is not here; get it with: {longcat_fastvideo.FASTVIDEO.get}")


def config() -> Any:
    longcat_fastvideo.fastvideo_module()
    found = importlib.import_module("fastvideo.configs.models.dits.wanvideo").WanVideoConfig()
    for name, value in FASTVIDEO.items():
        setattr(found.arch_config, name, value)
    return found


def native() -> nn.Module:
    made = config()
    module = importlib.import_module("fastvideo.models.dits.wanvideo")
    model: nn.Module = module.WanTransformer3DModel(made, hf_config={})
    return model


def names() -> Mapping[str, Any]:
    mapping: Mapping[str, Any] = config().arch_config.param_names_mapping
    return mapping


def call(model: nn.Module, inputs: Inputs) -> Any:
    single_process.start_groups()
    with single_process.forward_context():
        return model(inputs["latents"], inputs["text"], inputs["timestep"])


def proposed(**existing: str) -> Proposal:
    reference = Factory("diffusers:WanTransformer3DModel", DIFFUSERS)
    return propose(Request("port", reference, Factory(f"{HERE}:native", call=f"{HERE}:call"), **existing))


def test_names_say_what_the_port_s_own_mapping_says() -> None:
    own, found = proposed(mapping=f"{HERE}:names()"), proposed()
    shapes = [{k: v.shape for k, v in tensors_of(model).items()} for model in found.models]
    pieces = [p.keys.key_map().plan(shapes[0], shapes[1]).pieces for p in (own, found)]
    assert pieces[0] == pieces[1]
    assert found.output_distance is not None
    assert found.output_distance < 1e-5
    assert found.taps == own.taps
    outside = ["patch_embed", "time_sinusoid", "time_embed", "time_modulation", "caption_embed"]
    last = ["final_layer_in", "final_layer"]
    assert [spec.name for spec in found.taps if spec.stack is None] == [*outside, *last]
    attention = ["self_attn_in", "self_attn", "self_attn_residual", "cross_attn_in", "cross_attn"]
    ffn = ["cross_attn_residual", "ffn_in", "ffn", ""]
    assert [spec.name for spec in found.taps if spec.stack] == [*attention, *ffn]
    assert max(found.distances.values()) < 1e-5
