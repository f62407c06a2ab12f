"""Random weights that hide no bug: no gain of 1, no bias of 0, nothing exact in bfloat16."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_QK_GAIN = math.sqrt(3.0)
"""Gain of the norms of q and k: scores then spread by about 3, so that attention is far from uniform."""


def draw_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter of a model anew, by what its name and shape say it is; return the model, in eval mode.

    Matrices and kernels keep the variance of their input, gains lie around 1 (those of q and k around 1.7), biases
    spread by 0.2 and tables by 0.5, also where the model starts them at zero. Parameters that share memory stay
    shared; buffers are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_drawn(name.lower(), noise))
    return model.eval().requires_grad_(False)


def _drawn(name: str, noise: Tensor) -> Tensor:
    path, _, leaf = name.rpartition(".")
    if leaf.endswith(("bias", "beta")):
        return 0.2 * noise
    if noise.dim() < 2:
        words = path.rpartition(".")[2].split("_")
        return (_QK_GAIN if {"q", "k"} & set(words) else 1.0) * (1.0 + 0.2 * noise)
    if leaf.endswith(("weight", "kernel")):
        return noise / math.sqrt(noise[0].numel())
    return 0.5 * noise
