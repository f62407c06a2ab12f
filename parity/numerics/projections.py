"""Projections of rounding residuals on structure.

Rounding noise is incoherent and averages out over tokens; a lost FP32 island is the same rounded shift and scale on
every token and does not. Each projection is one decorated function from residual rows [T, C] to a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.errors import UsageError


@dataclass(frozen=True)
class Rows:
    """A tap's value as rows.

    Shapes: values [T, C]; group [T] (the sample of each row); heads is N where C = N * D, else 0.
    """

    values: Tensor
    group: Tensor
    groups: int
    heads: int = 0
    upstream: Mapping[str, Tensor] = field(default_factory=dict)


Projection = Callable[[Tensor, Rows], Tensor]
PROJECTIONS: dict[str, Projection] = {}


def projection(function: Projection) -> Projection:
    """Register a projection of residual rows [T, C], given the reference's rows, under the function's name."""
    if function.__name__ in PROJECTIONS:
        raise UsageError(f"the projection {function.__name__!r} is registered twice")
    PROJECTIONS[function.__name__] = function
    return function


@projection
def identity(e: Tensor, rows: Rows) -> Tensor:
    """Everything: the known "error at most twice the reference's own"."""
    return e.flatten()


@projection
def channel_mean(e: Tensor, rows: Rows) -> Tensor:
    """Mean over the tokens of each sample: a shift common to all tokens (a rounded modulation shift). [B * C]."""
    return _grouped(e, rows).flatten()


@projection
def channel_slope(e: Tensor, rows: Rows) -> Tensor:
    """Slope of each channel's residual against its value: a rounded scale or norm weight. [B * C]."""
    return _grouped(e * _unit(rows.values, rows), rows).flatten()


@projection
def token_mean(e: Tensor, rows: Rows) -> Tensor:
    """Mean over the channels of each token: a rounded mean or inverse standard deviation. [T]."""
    return e.mean(-1)


@projection
def head_mean(e: Tensor, rows: Rows) -> Tensor:
    """Mean over each head's channels and a sample's tokens: one head's softmax or norm. [B * N]."""
    if not rows.heads or e.shape[-1] % rows.heads:
        return e.new_empty(0)
    return _grouped(e.unflatten(-1, (rows.heads, -1)).mean(-1), rows).flatten()


def project(e: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Apply every projection, and the slope against each upstream tap of the same shape (a gate's branch)."""
    found = {name: function(e, rows) for name, function in PROJECTIONS.items()}
    for name, value in rows.upstream.items():
        found[f"slope_on_{name}"] = _grouped(e * _unit(value, rows), rows).flatten()
    return {name: vector for name, vector in found.items() if vector.numel()}


def _grouped(e: Tensor, rows: Rows) -> Tensor:
    """Average rows within each sample. [B, C]."""
    if rows.groups == 1:
        return e.mean(0, keepdim=True)
    total = e.new_zeros(rows.groups, e.shape[-1]).index_add_(0, rows.group, e)
    count = torch.bincount(rows.group, minlength=rows.groups).clamp_min(1).unsqueeze(-1)
    return total / count


def _unit(values: Tensor, rows: Rows) -> Tensor:
    """Centre per sample and scale each channel to unit mean square, so that a slope is a mean over tokens."""
    centred = values - _grouped(values, rows)[rows.group]
    return centred / centred.square().mean(0).sqrt().clamp_min(1e-300)


def coherence(e: Tensor, rows: Rows) -> float:
    """Return how structured a residual is: 1 for incoherent noise, sqrt(tokens) for one vector on every token."""
    tokens = e.shape[0] / max(rows.groups, 1)
    mean_square = float(e.square().mean())
    if mean_square == 0.0 or tokens < 2:
        return 1.0
    return float(_grouped(e, rows).square().mean().sqrt()) * math.sqrt(tokens / mean_square)
