"""Factors that a loader rounded: A, B or both, as a storage dtype holds them.

Letters in shapes: N rows of inputs, R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from parity.lora.adapter import LoraTarget

_EXPLAINS = 0.25
"""Share of the distance that may be left where a rounding explains it."""
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def rounding_of(target: LoraTarget, x: Tensor, change: Tensor) -> str:
    """Say which rounding of A and B makes what is there of what the file says, "" where none does.

    Shapes: x [N, I], change [N, O]; both float64.
    """
    A, B = target.A.to(x), target.B.to(x)

    def away(a: Tensor, b: Tensor) -> float:
        return float((x @ a.t() @ b.t() * target.scaling - change).norm())

    tried = [
        (away(rounded(A) if "A" in which else A, rounded(B) if "B" in which else B), f"{which} rounded to {words}")
        for words, rounded in _roundings()
        for which in ("A", "B", "A and B")
    ]
    least, words = min((one for one in tried if one[0] == one[0]), default=(0.0, ""))
    return words if least < _EXPLAINS * away(A, B) else ""


def in_eight_bits(words: str) -> bool:
    """Say whether a rounding, in the words of `rounding_of`, is to fewer bits than any side computes in."""
    return "float8" in words or "int8" in words


def _roundings() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    for dtype in (torch.bfloat16, torch.float16, *_FP8):
        yield str(dtype).removeprefix("torch."), partial(_saturated, dtype=dtype)
    for dtype in _FP8:
        yield f"{str(dtype).removeprefix('torch.')} with a scale", partial(_scaled, dtype=dtype)
    yield "int8 with a scale", partial(_scaled, dtype=torch.int8)
    yield "int8 with a scale a row", partial(_scaled, dtype=torch.int8, dim=1)


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    most = torch.finfo(dtype).max
    return value.clamp(-most, most).to(torch.float32).to(dtype).to(value.dtype)


def _scaled(value: Tensor, dtype: torch.dtype, dim: int | None = None) -> Tensor:
    """Divide by what brings the largest magnitude, of all or of a row, to the dtype's; round; multiply."""
    most = value.abs().amax() if dim is None else value.abs().amax(dim, keepdim=True)
    scale = torch.where(most > 0, most, 1.0) / (127 if dtype == torch.int8 else torch.finfo(dtype).max)
    scaled = value / scale
    return (scaled.round() if dtype == torch.int8 else _saturated(scaled, dtype)) * scale
