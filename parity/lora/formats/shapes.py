"""Shapes and dtypes of factors: what is a matrix of floats, and how large a kernel makes it.

Letters in shapes: I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.file import LoraFile
from parity.lora.formats.keys import Key


def check_floats(file: LoraFile, key: Key) -> None:
    """Refuse a tensor that holds nothing, or no floats.

    Raises:
        LoraFileError: it does.
    """
    info = file.source.info(key.key)
    if not info.dtype.is_floating_point:
        raise LoraFileError("not_float", f"{key.key} holds {info.dtype}, a float dtype is needed")
    if 0 in info.shape:
        raise LoraFileError("bad_shape", f"{key.key} has shape {tuple(info.shape)}: it holds nothing")


def check_matrix(file: LoraFile, key: Key) -> None:
    """Refuse a factor that is no matrix of floats.

    Raises:
        LoraFileError: it is none.
    """
    check_floats(file, key)
    if len(shape := file.shape(key)) < 2:
        raise LoraFileError("bad_shape", f"{key.key} has shape {tuple(shape)}, a matrix is needed")


def numel(shape: Sequence[int]) -> int:
    """Return how many numbers a tensor of a shape has."""
    return int(torch.Size(shape).numel())


def two_dimensional(shape: Sequence[int]) -> tuple[int, int]:
    """Return (O, I) of a weight, a kernel counted to I; a vector has I = 1."""
    return (shape[0] if shape else 1, numel(shape[1:]))


def flat(value: Tensor) -> Tensor:
    """Return a factor as a matrix, a kernel counted to the columns."""
    return value.flatten(1)
