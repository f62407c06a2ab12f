"""Factors of products: a matrix in full, as two factors, or as two factors around a core (Tucker's form, of kernels).

With a core t the weight is `sum over i, j of a[i, p] t[i, j, ...] b[j, q]`: of rank R, whatever the kernel.
Letters in shapes: P rows and Q columns of the matrix, R rank, K a kernel's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.file import LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.shapes import check_matrix, flat, two_dimensional


@dataclass(frozen=True)
class Matrix:
    """One matrix of a product, by the keys that hold it: all of it, or its halves and perhaps a core."""

    file: LoraFile
    keys: tuple[Key, ...]
    shape: tuple[int, int]
    kernel: tuple[int, ...]
    rank: int

    def split(self) -> tuple[Tensor, Tensor]:
        """Return two factors in float64; a full matrix is multiplied by the identity on its shorter side.

        Shapes: [P, R], [R, Q K].
        """
        values = [self.file.tensor(key).double() for key in self.keys]
        if len(values) == 3:
            return values[0].t().contiguous(), cored(values[2], flat(values[1]))
        if len(values) == 2:
            return flat(values[0]), flat(values[1])
        value = flat(values[0])
        one = torch.eye(min(value.shape), dtype=value.dtype)
        return (one, value) if value.shape[0] <= value.shape[1] else (value, one)


def cored(core: Tensor, right: Tensor) -> Tensor:
    """Return a core and the factor right of it as one. Shapes: core [R, S, *kernel], right [S, Q] to [R, Q K]."""
    return torch.einsum("ij...,jq->iq...", core, right).flatten(1)


def matrix(file: LoraFile, keys: Mapping[str, Key], name: str, kind: str) -> Matrix:
    """Return a matrix from the keys `name`, or `name_a`, `name_b` and the core of its number.

    Raises:
        LoraFileError: a half is missing, no matrix of floats, or the factors do not fit.
    """
    for key in (keys[one] for one in (name, f"{name}_a", f"{name}_b", name.replace("w", "t")) if one in keys):
        check_matrix(file, key)
    if name in keys:
        shape = file.shape(keys[name])
        return Matrix(file, (keys[name],), two_dimensional(shape), tuple(shape[2:]), min(two_dimensional(shape)))
    if missing := [half for half in (f"{name}_a", f"{name}_b") if half not in keys]:
        raise LoraFileError("missing_half", f"{kind}_{f', {kind}_'.join(missing)} missing")
    a, b = keys[f"{name}_a"], keys[f"{name}_b"]
    core = keys.get(name.replace("w", "t"))
    return _halves(file, a, b) if core is None else _around(file, a, b, core)


def _halves(file: LoraFile, a: Key, b: Key) -> Matrix:
    (rows, r), (r2, columns) = two_dimensional(file.shape(a)), two_dimensional(file.shape(b))
    if r != r2:
        raise LoraFileError("rank_mismatch", f"{a.tensor} {file.shape(a)} and {b.tensor} {file.shape(b)} do not fit")
    return Matrix(file, (a, b), (rows, columns), (), r)


def _around(file: LoraFile, a: Key, b: Key, core: Key) -> Matrix:
    left, right, middle = (file.shape(key) for key in (a, b, core))
    if len(middle) < 2 or middle[:2] != (left[0], right[0]) or len(left) != 2 or len(right) != 2:
        text = f"{core.tensor} {middle} does not fit {a.tensor} {left} and {b.tensor} {right}"
        raise LoraFileError("rank_mismatch", f"{text}: [r, r, kernel], [r, out], [r, in] are needed")
    columns = right[1] * math.prod(middle[2:])
    return Matrix(file, (a, b, core), (left[1], columns), tuple(middle[2:]), middle[0])
