"""A and B of a module from their keys: whole, or in parts where several layers are fused.

Letters in shapes: R rank, I inputs and O outputs of the layer, n parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.file import LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.products import cored
from parity.lora.formats.reading import Group, Pair
from parity.lora.formats.shapes import check_matrix, flat, two_dimensional
from parity.lora.loaded import Factors


def pair_of(file: LoraFile, group: Group) -> Pair | None:
    """Return A and B of a module, block-diagonal where B comes in parts; None where it has neither.

    Raises:
        LoraFileError: one of them is missing, is no matrix of floats, or their ranks differ.
    """
    down, up = group.parts("A"), group.parts("B")
    if not down and not up:
        return None
    if not down or not up:
        raise LoraFileError("missing_half", f"{'B' if down else 'A'} is missing, there is only {(down or up)[0].key}")
    for key in (*down, *group.parts("mid"), *up):
        check_matrix(file, key)
    if down[0].style == "parts" or up[0].style in ("parts", "blocks"):
        return _in_parts(file, down, up)
    if len(down) > 1 or len(up) > 1:
        names = ", ".join(key.key for key in (*down, *up))
        raise LoraFileError("duplicate_pair", f"several keys spell one factor: {names}")
    if {down[0].style, up[0].style} == {"embedding"}:
        return _table(file, down[0], up[0])
    middle = group.parts("mid")
    return _cored(file, down[0], middle[0], up[0]) if middle else _whole(file, down[0], up[0])


def _cored(file: LoraFile, down: Key, middle: Key, up: Key) -> Pair:
    """Return a convolution in Tucker's form: A meets the core's second rank, B its first.

    Shapes: down [S, I, 1, 1], middle [R, S, *kernel], up [O, R, 1, 1].
    """
    shapes = [file.shape(key) for key in (down, middle, up)]
    (s, into), (out, r) = two_dimensional(shapes[0]), two_dimensional(shapes[2])
    if len(shapes[1]) < 2 or shapes[1][:2] != (r, s):
        raise LoraFileError("rank_mismatch", f"{middle.key} is {shapes[1]}, [{r}, {s}, kernel] is needed")
    kernel = tuple(shapes[1][2:])

    def read() -> Factors:
        A, core, B = (file.tensor(key) for key in (down, middle, up))
        return Factors(cored(core, flat(A)), flat(B))

    return Pair((out, into * math.prod(kernel)), r, read, (down, middle, up), kernel=kernel)


def _whole(file: LoraFile, down: Key, up: Key) -> Pair:
    shape_a, shape_b = file.shape(down), file.shape(up)
    (r, into), (out, columns) = two_dimensional(shape_a), two_dimensional(shape_b)
    if r != columns:
        _raise_apart(shape_a, shape_b)
    return Pair((out, into), r, partial(_read, file, (down,), (up,)), (down, up), kernel=tuple(shape_a[2:]))


def _table(file: LoraFile, down: Key, up: Key) -> Pair:
    """Return what an embedding's factors change: its weight has a row for each entry, so they are turned.

    Shapes: down [R, O], up [I, R] to A [R, I], B [O, R].
    """
    (r, rows), (into, columns) = (two_dimensional(file.shape(key)) for key in (down, up))
    if r != columns:
        text = f"lora_embedding_A {file.shape(down)} is not [r, entries] beside lora_embedding_B {file.shape(up)}"
        raise LoraFileError("rank_mismatch", f"{text} [width, r]")

    def read() -> Factors:
        return Factors(file.tensor(up).t().contiguous(), file.tensor(down).t().contiguous())

    return Pair((rows, into), r, read, (down, up), embedding=True)


def _raise_apart(shape_a: Sequence[int], shape_b: Sequence[int]) -> None:
    shapes = f"A {tuple(shape_a)}, B {tuple(shape_b)}"
    if shape_a[1] == shape_b[0]:
        raise LoraFileError("orientation", f"A and B are transposed: {shapes}; A is [r, in] and B [out, r]")
    raise LoraFileError("rank_mismatch", f"the ranks of A [r, in] and B [out, r] differ: {shapes}")


def _in_parts(file: LoraFile, down: list[Key], up: list[Key]) -> Pair:
    """Set the parts of B in diagonal blocks; each meets its own rows of A."""
    rows = [two_dimensional(file.shape(key)) for key in down]
    blocks = [two_dimensional(file.shape(key)) for key in up]
    if [key.part for key in up] != list(range(len(up))):
        raise LoraFileError("missing_half", f"parts {[key.part for key in up]} of B, all from 0 on are needed")
    total, wanted = sum(r for r, _ in rows), sum(r for _, r in blocks)
    if total != wanted or (len(down) > 1 and len(down) != len(up)):
        text = f"A has {total} rows in {len(down)} parts, B {wanted} columns in {len(up)}"
        raise LoraFileError("rank_mismatch", text)
    ranks = tuple(r for _, r in blocks)
    if len({into for _, into in rows}) > 1 or (len(down) > 1 and [r for r, _ in rows] != list(ranks)):
        raise LoraFileError("rank_mismatch", f"the parts differ: A {rows}, B {blocks}")
    shape = (sum(out for out, _ in blocks), rows[0][1])
    read = partial(_read, file, tuple(down), tuple(up))
    if len(set(ranks)) > 1:  # alpha / r differs by part, so that they are no parts of one rank
        return Pair(shape, total, read, (*down, *up), ranks=ranks)
    return Pair(shape, ranks[0], read, (*down, *up), parts=len(up))


def _read(file: LoraFile, down: Sequence[Key], up: Sequence[Key]) -> Factors:
    A = torch.cat([flat(file.tensor(key)) for key in down])
    return Factors(A, block_diagonal([flat(file.tensor(key)) for key in up]))


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Set matrices along the diagonal.

    Shapes: n blocks [O/n, R/n] to [O, R].
    """
    return blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)
