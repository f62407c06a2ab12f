"""LyCORIS: LoHa and LoKr, whose change is a product of several factors; OFT and IA3 need the weight and are refused.

LoHa: `(w1_a w1_b) * (w2_a w2_b)` by element, exactly of rank R^2. LoKr: the Kronecker product of w1 and w2.
A kernel is written around a core (Tucker's form), which changes nothing of the ranks.
Letters in shapes: R rank, I inputs and O outputs of the layer; a, c rows and b, d columns of w1 and w2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from parity.errors import LoraFileError
from parity.lora.formats.file import Dialect, LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.products import Matrix, matrix
from parity.lora.formats.reading import Group, Pair, Reading
from parity.lora.formats.scaling import config_of
from parity.lora.formats.summary import Habits
from parity.lora.loaded import Factors, LoadedLora
from parity.lora.problems import error, some

_ROLES = ("hada", "lokr", "multiplied")


def matches(file: LoraFile) -> bool:
    """Whether a key names a factor of a product, or a kind that multiplies the weight; plain pairs may lie beside."""
    return any(key.role in _ROLES for key in file.keys)


def read(file: LoraFile) -> LoadedLora:
    """Read LoHa and LoKr; what needs the weight itself is an error."""
    honoured = {"tensor", "argument", "assumed", *(["sidecar"] if _is_pefts(file) else [])}
    habits = Habits(frozenset(honoured), zero_is_rank=True)
    lora = Reading(file, DIALECT.name, habits, _with_companions(file)).result(_factorise)
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
    return _lokr(file, lokr, _declared(file, group.module)) if lokr else pair_of(file, group)


def _declared(file: LoraFile, module: str) -> int | None:
    """Return r as PEFT's settings have it: PEFT scales by alpha / r also where no factor shows r."""
    config = config_of(file, "") if _is_pefts(file) else None
    return None if config is None else config.r(module)


def _is_pefts(file: LoraFile) -> bool:
    return "peft_type" in (file.sidecar or {})


def _by_name(group: Group, role: str) -> dict[str, Key]:
    return {key.tensor: key for key in group.by_role.get(role, ())}


def _loha(file: LoraFile, keys: dict[str, Key]) -> Pair:
    first, second = (matrix(file, keys, name, "hada") for name in ("w1", "w2"))
    if first.shape != second.shape:
        text = f"the two products are {first.shape} and {second.shape}, one size is needed"
        raise LoraFileError("rank_mismatch", text)
    used, rank = (*first.keys, *second.keys), first.rank * second.rank
    return Pair(first.shape, first.rank, partial(_loha_factors, first, second), used, first.kernel, rank=rank)


def _loha_factors(first: Matrix, second: Matrix) -> Factors:
    """Write the product by element as one of products by rows and columns.

    Shapes: to A [R^2, I], B [O, R^2].
    """
    (a1, b1), (a2, b2) = first.split(), second.split()
    B = (a1.unsqueeze(2) * a2.unsqueeze(1)).flatten(1)
    return Factors((b1.unsqueeze(1) * b2.unsqueeze(0)).flatten(0, 1), B)


def _lokr(file: LoraFile, keys: dict[str, Key], declared: int | None) -> Pair:
    first, second = (matrix(file, keys, name, "lokr") for name in ("w1", "w2"))
    shape = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1])
    ranks = [one.rank for one in (first, second) if len(one.keys) > 1]
    r = declared or (ranks[-1] if ranks else 1)  # two full factors have no rank of their own
    read = partial(_lokr_factors, first, second)
    used, rank = (*first.keys, *second.keys), first.rank * second.rank
    return Pair(shape, r, read, used, second.kernel, unscaled=not (ranks or declared), rank=rank)


def _lokr_factors(first: Matrix, second: Matrix) -> Factors:
    """Write the Kronecker product as the product of two; a kernel is w2's alone.

    Shapes: w1 [a, b], w2 [c, d] to B [a c, R'], A [R', b d].
    """
    (B1, A1), (B2, A2) = first.split(), second.split()
    return Factors(torch.kron(A1, A2), torch.kron(B1, B2))


DIALECT = Dialect(
    "lycoris", "<module>.hada_w1_a ..., .lokr_w1 ...", ".alpha tensor, alpha / r; 1 for a LoKr of two full factors",
    matches, read,
)  # fmt: skip
