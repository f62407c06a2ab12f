"""The pair `example`.

reference  original.model:VideoDiT
native     port.model:VideoTransformer3DModel

Written by `parity new`. In a float32 run the outputs were equal.
Lines marked TODO(pair) are open. Evidence stands beside each line; it is no proof: read it.
"""

from __future__ import annotations

from typing import Any

import torch
from parity.execution.tap import Inputs, Point, Tap, block_name
from parity.pair import Build, ModelPair, Side, Source
from parity.weights.draw import draw_weights
from parity.weights.keymap import KeyMap, rename, split
from torch import nn


def _build_reference(build: Build) -> nn.Module:
    """Build the reference in the build's dtype, on its device."""
    from original.model import VideoDiT

    model = VideoDiT()
    draw_weights(model, build.seed)
    return nn.Module.to(model, device=build.device, dtype=build.dtype).eval().requires_grad_(False)


def _call_reference(model: nn.Module, inputs: Inputs) -> Any:
    """Run one forward of the reference."""
    dtype = next(p for p in model.parameters() if p.dim() > 1).dtype
    return model(x=inputs["latents"].to(dtype), t=inputs["timestep"], context=inputs["text"].to(dtype))


def _build_native(build: Build) -> nn.Module:
    """Build the native in the build's dtype, on its device."""
    from port.model import VideoTransformer3DModel

    model = VideoTransformer3DModel()
    return nn.Module.to(model, device=build.device, dtype=build.dtype).eval().requires_grad_(False)


def _call_native(model: nn.Module, inputs: Inputs) -> Any:
    """Run one forward of the native."""
    dtype = next(p for p in model.parameters() if p.dim() > 1).dtype
    return model(
        hidden_states=inputs["latents"].to(dtype),
        timestep=inputs["timestep"],
        encoder_hidden_states=inputs["text"].to(dtype),
    )


def _key_map(build: Build) -> KeyMap:
    """Return the rules from reference to native keys."""
    return KeyMap((
        rename(r"patch_embedding\.(weight|bias)", r"patch_embed.\1"),  # the only one of its shape; names (1.00)
        # the only one of its shape; names (1.00)
        rename(r"time_embedding\.0\.(weight|bias)", r"time_embedder.linear_1.\1"),
        rename(r"time_embedding\.2\.(weight|bias)", r"time_embedder.linear_2.\1"),  # names (1.00)
        # the only one of its shape; names (1.00)
        rename(r"text_embedding\.0\.(weight|bias)", r"caption_embedder.linear_1.\1"),
        rename(r"text_embedding\.2\.(weight|bias)", r"caption_embedder.linear_2.\1"),  # names (1.00)
        # the only one of its shape; names (1.00)
        rename(r"blocks\.(\d+)\.modulation\.(weight|bias)", r"transformer_blocks.\1.adaln.\2"),
        # rows of a fused projection, names (1.00)
        split(
            r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)",
            (
                r"transformer_blocks.\1.attn1.to_q.\2",
                r"transformer_blocks.\1.attn1.to_k.\2",
                r"transformer_blocks.\1.attn1.to_v.\2",
            ),
        ),
        # names (0.90)
        rename(r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"transformer_blocks.\1.attn1.to_out.0.\2"),
        # names (0.90)
        rename(r"blocks\.(\d+)\.cross\.q_linear\.(weight|bias)", r"transformer_blocks.\1.attn2.to_q.\2"),
        # rows of a fused projection, names (0.64)
        split(
            r"blocks\.(\d+)\.cross\.kv_linear\.(weight|bias)",
            (r"transformer_blocks.\1.attn2.to_k.\2", r"transformer_blocks.\1.attn2.to_v.\2"),
        ),
        # names (0.65)
        rename(r"blocks\.(\d+)\.cross\.proj\.(weight|bias)", r"transformer_blocks.\1.attn2.to_out.0.\2"),
        # the only one of its shape; names (1.00)
        rename(r"blocks\.(\d+)\.mlp\.0\.(weight|bias)", r"transformer_blocks.\1.ff.up.\2"),
        # the only one of its shape; names (1.00)
        rename(r"blocks\.(\d+)\.mlp\.2\.(weight|bias)", r"transformer_blocks.\1.ff.down.\2"),
        rename(r"norm\.(weight|bias)", r"norm_out.\1"),  # names (0.65)
        rename(r"head\.(weight|bias)", r"proj_out.\1"),  # the only one of its shape; names (1.00)
    ))


BLOCKS = 2
"""How many of them the models above have."""


def _taps(build: Build) -> tuple[Tap, ...]:
    """Return the taps in execution order."""
    return (
        Tap("patch_embed", Point("patch_embedding"), Point("patch_embed"), channel_dim=1),  # equal
        Tap("time_sinusoid", Point("time_embedding", "input"), Point("time_embedder", "input")),  # equal
        Tap("time_embed", Point("time_embedding"), Point("time_embedder")),  # equal
        Tap("caption_embed", Point("text_embedding"), Point("caption_embedder")),  # equal
        *(tap for index in range(BLOCKS) for tap in _block_taps(index)),
        Tap("final_layer_in", Point("head", "input"), Point("proj_out", "input")),  # equal
        Tap("final_layer", Point("head"), Point("proj_out")),  # equal
        Tap("final_output", Point(""), Point(""), replace=False, channel_dim=1),  # equal
    )


def _block_taps(index: int) -> tuple[Tap, ...]:
    """Return the taps of one block."""
    name = block_name(index, BLOCKS)
    return (
        # equal
        Tap(f"{name}.modulation", Point(f"blocks.{index}.modulation"), Point(f"transformer_blocks.{index}.adaln")),
        # equal
        Tap(
            f"{name}.self_attn_in",
            Point(f"blocks.{index}.attn", "input"),
            Point(f"transformer_blocks.{index}.attn1", "input"),
            attention=False,
        ),
        # equal
        Tap(f"{name}.self_attn", Point(f"blocks.{index}.attn"), Point(f"transformer_blocks.{index}.attn1"), heads=2),
        # equal
        Tap(
            f"{name}.cross_attn_in",
            Point(f"blocks.{index}.cross", "input"),
            Point(f"transformer_blocks.{index}.attn2", "input"),
            replace=False,
            attention=False,
        ),
        # equal
        Tap(
            f"{name}.cross_attn",
            Point(f"blocks.{index}.cross"),
            Point(f"transformer_blocks.{index}.attn2"),
            heads=2,
        ),
        # equal
        Tap(
            f"{name}.cross_attn_residual",
            Point(f"blocks.{index}.norm2", "input"),
            Point(f"transformer_blocks.{index}.norm3", "input"),
            replace=False,
            attention=False,
        ),
        # equal
        Tap(
            f"{name}.ffn_in",
            Point(f"blocks.{index}.mlp", "input"),
            Point(f"transformer_blocks.{index}.ff.up", "input"),
        ),
        Tap(f"{name}.ffn", Point(f"blocks.{index}.mlp"), Point(f"transformer_blocks.{index}.ff.down")),  # equal
        Tap(name, Point(f"blocks.{index}"), Point(f"transformer_blocks.{index}")),  # equal
    )


def _inputs(build: Build, seed: int) -> dict[str, Any]:
    """Draw what both sides are called with."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Any] = {
        "latents": torch.randn(1, 4, 4, 16, 32, generator=generator),
        "timestep": 600.0 + 399.0 * torch.rand(1, generator=generator),
        "text": torch.randn(1, 16, 24, generator=generator),
    }
    return {name: value.to(build.device) for name, value in drawn.items()}


PAIR = ModelPair(
    name="example",
    reference=Side(
        name="VideoDiT of original.model",
        source=Source("original.model", bundled=True),
        build=_build_reference,
        call=_call_reference,
        output=lambda returned: returned,
    ),
    native=Side(
        name="VideoTransformer3DModel of port.model",
        source=Source("port.model", bundled=True),
        build=_build_native,
        call=_call_native,
        output=lambda returned: returned.sample,
    ),
    key_map=_key_map,
    taps=_taps,
    inputs=_inputs,
)
