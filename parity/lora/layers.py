"""What a low-rank change does beside a layer's weight: linear layers, embeddings, convolutions.

Letters in shapes: R rank, I inputs (of a convolution with its kernel) and O outputs of the layer, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["linear", "embedding", "convolution"]


def quantised(layer: nn.Module) -> bool:
    """Whether a layer's stored weight is integers, eight-bit floats, or not there under that name."""
    weight = getattr(layer, "weight", None)
    return not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.element_size() == 1


def kind_of(layer: nn.Module) -> Kind | None:
    """Return how a change stands beside a layer; None where it cannot."""
    if isinstance(layer, nn.Embedding):
        return "embedding"
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim > 2:
        return "convolution" if hasattr(layer, "_conv_forward") and not quantised(layer) else None
    return None if shape_of(layer) is None or isinstance(layer, nn.EmbeddingBag) else "linear"


def shape_of(layer: nn.Module) -> tuple[int, int] | None:
    """Return (O, I) of a layer; of a quantised one by its features, since its weight may be packed."""
    weight, sizes = getattr(layer, "weight", None), [getattr(layer, f"{way}_features", None) for way in ("out", "in")]
    if isinstance(weight, Tensor) and not quantised(layer):
        return (weight.shape[0], weight[0].numel()) if weight.ndim >= 2 else None
    if all(isinstance(size, int) for size in sizes):
        return int(sizes[0] or 0), int(sizes[1] or 0)
    return (weight.shape[0], weight.shape[1]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def added(layer: nn.Module, kind: Kind, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return what factors add to a layer's output.

    Shapes: A [R, I], B [O, R]; x [..., I], or of an embedding rows [...], or of a convolution [B, C, ...].
    """
    if kind == "embedding":
        return F.linear(F.embedding(x, B), A.t())
    if kind == "linear":
        return F.linear(F.linear(x.to(A.dtype), A), B)
    if getattr(layer, "groups", 1) != 1:
        return convolved(layer, x, B @ A)
    return F.linear(convolved(layer, x, A).movedim(-_dims(layer) - 1, -1), B).movedim(-1, -_dims(layer) - 1)


def convolved(layer: Any, x: Tensor, flat: Tensor) -> Tensor:
    """Call a convolution with another kernel and no bias. Shapes: flat [R, I]."""
    value: Tensor = layer._conv_forward(x.to(flat.dtype), flat.reshape(flat.shape[0], *layer.weight.shape[1:]), None)
    return value


def added_in_full(layer: nn.Module, kind: Kind, x: Tensor, change: Tensor) -> Tensor:
    """Return what a change in full of the weight adds to a layer's output. Shapes: change [O, I]."""
    if kind == "embedding":
        return F.embedding(x, change)
    return F.linear(x.to(change.dtype), change) if kind == "linear" else convolved(layer, x, change)


def along_outputs(layer: nn.Module, kind: Kind, value: Tensor) -> Tensor:
    """Give one number for each output the shape in which it is added. Shapes: [O] to [O], or [O, 1, ...]."""
    return value.reshape(-1, *(1 for _ in range(_dims(layer)))) if kind == "convolution" else value


def _dims(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.ndim - 2
