"""LyCORIS: LoHa and LoKr, whose change is a product of several factors; OFT and IA3 need the weight and are refused.

LoHa: `(w1_a w1_b) * (w2_a w2_b)` by element, exactly of rank R^2. LoKr: the Kronecker product of w1 and w2.
Letters in shapes: R rank, I inputs and O outputs of the layer; a, c rows and b, d columns of w1 and w2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.file import Dialect, LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Group, Pair, Reading, flat, two_dimensional
from parity.lora.formats.summary import Habits
from parity.lora.loaded import Factors, LoadedLora
from parity.lora.problems import error, some

_ROLES = ("hada", "lokr", "multiplied")
_ALL = ("w1_a", "w1_b", "w2_a", "w2_b")


def matches(file: LoraFile) -> bool:
    """Whether a key names a factor of a product, or a kind that multiplies the weight; plain pairs may lie beside."""
    return any(key.role in _ROLES for key in file.keys)


def read(file: LoraFile) -> LoadedLora:
    """Read LoHa and LoKr; what needs the weight itself is an error."""
    lora = Reading(file, DIALECT.name, Habits(zero_is_rank=True), _with_companions(file)).result(_factorise)
    multiplied = [key.key for key in file.keys if key.role == "multiplied"]
    if not multiplied:
        return lora
    text = f"{len(multiplied)} keys are of a kind that multiplies the weight (OFT, IA3, GLoRA) or is not read"
    refused = error("unsupported_kind", f"{text}: {some(multiplied)}; merge it into the base with its own tool")
    return replace(lora, problems=(*lora.problems, refused))


def _with_companions(file: LoraFile) -> Iterator[Key]:
    """Call alpha and weight of a module that is multiplied what its other keys are."""
    modules = {key.module for key in file.keys if key.role == "multiplied"}
    for key in file.keys:
        yield replace(key, role="multiplied") if key.module.removesuffix(".weight") in modules else key


def _factorise(file: LoraFile, group: Group) -> Pair | None:
    hada, lokr = _by_name(group, "hada"), _by_name(group, "lokr")
    if hada:
        return _loha(file, hada)
    return _lokr(file, lokr) if lokr else pair_of(file, group)


def _by_name(group: Group, role: str) -> dict[str, Key]:
    found = {key.tensor: key for key in group.by_role.get(role, ())}
    if tucker := {"t1", "t2"} & set(found):
        raise LoraFileError("unsupported_kind", f"the Tucker form ({', '.join(sorted(tucker))}) is not read")
    return found


def _loha(file: LoraFile, keys: dict[str, Key]) -> Pair:
    if missing := [name for name in _ALL if name not in keys]:
        raise LoraFileError("missing_half", f"hada_{', hada_'.join(missing)} missing")
    (out, r1), (r2, into) = (two_dimensional(file.shape(keys[name])) for name in ("w1_a", "w1_b"))
    if r1 != r2 or two_dimensional(file.shape(keys["w2_a"]))[0] != out:
        raise LoraFileError("rank_mismatch", f"w1_a {file.shape(keys['w1_a'])}, w1_b {file.shape(keys['w1_b'])}")
    used = [keys[name] for name in _ALL]
    rank = r2 * file.shape(keys["w2_b"])[0]
    return Pair((out, into), r2, partial(_loha_factors, file, used), used, rank=rank)


def _loha_factors(file: LoraFile, keys: list[Key]) -> Factors:
    """Write the product by element as one of products by rows and columns.

    Shapes: w1_a, w2_a [O, R], w1_b, w2_b [R, I] to A [R^2, I], B [O, R^2].
    """
    a1, b1, a2, b2 = (flat(file.tensor(key)).double() for key in keys)
    B = (a1.unsqueeze(2) * a2.unsqueeze(1)).flatten(1)
    return Factors((b1.unsqueeze(1) * b2.unsqueeze(0)).flatten(0, 1), B)


def _lokr(file: LoraFile, keys: dict[str, Key]) -> Pair:
    full = "w1" in keys and "w2" in keys
    sides = [(keys[name],) if name in keys else _halves(keys, name) for name in ("w1", "w2")]
    shapes = [_product_shape([two_dimensional(file.shape(key)) for key in side]) for side in sides]
    ranks = [file.shape(side[1])[0] for side in sides if len(side) == 2]
    shape = (shapes[0][0] * shapes[1][0], shapes[0][1] * shapes[1][1])
    used = [key for side in sides for key in side]
    r = ranks[-1] if ranks else 1  # two full factors have no rank of their own
    both = zip(sides, shapes, strict=True)
    rank = math.prod(file.shape(side[1])[0] if len(side) == 2 else min(size) for side, size in both)
    return Pair(shape, r, partial(_lokr_factors, file, sides), used, unscaled=full, rank=rank)


def _halves(keys: dict[str, Key], name: str) -> tuple[Key, ...]:
    if missing := [half for half in (f"{name}_a", f"{name}_b") if half not in keys]:
        raise LoraFileError("missing_half", f"lokr_{', lokr_'.join(missing)} missing")
    return keys[f"{name}_a"], keys[f"{name}_b"]


def _product_shape(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    if len(shapes) == 2 and shapes[0][1] != shapes[1][0]:
        raise LoraFileError("rank_mismatch", f"factors {shapes} do not fit")
    return shapes[0][0], shapes[-1][1]


def _lokr_factors(file: LoraFile, sides: list[tuple[Key, ...]]) -> Factors:
    """Write the Kronecker product as the product of two.

    Shapes: w1 [a, b], w2 [c, d] to B [a c, R'], A [R', b d].
    """
    (B1, A1), (B2, A2) = (_split([flat(file.tensor(key)).double() for key in side]) for side in sides)
    return Factors(torch.kron(A1, A2), torch.kron(B1, B2))


def _split(side: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return two factors of a side; a full one is multiplied by the identity on its shorter side."""
    if len(side) == 2:
        return side[0], side[1]
    value = side[0]
    if value.shape[0] <= value.shape[1]:
        return torch.eye(value.shape[0], dtype=value.dtype), value
    return value, torch.eye(value.shape[1], dtype=value.dtype)


DIALECT = Dialect(
    "lycoris", "<module>.hada_w1_a ..., .lokr_w1 ...", ".alpha tensor, alpha / r; 1 for a LoKr of two full factors",
    matches, read,
)  # fmt: skip
