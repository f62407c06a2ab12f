"""Join what routes bring to one native key into pieces with their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch

from parity.errors import KeyMapError
from parity.weights.orders import is_order
from parity.weights.piece import Piece, assembled_shape
from parity.weights.rule import Permute, Route


def joined(
    native: str, routes: list[tuple[Route, str]], shapes: Mapping[str, torch.Size], broken: dict[str, str]
) -> tuple[Piece, ...]:
    """Return the pieces of one native key from the routes that lead to it; none, and why in `broken`, if they fail."""
    routes = sorted(routes, key=lambda pair: pair[0].part)
    parts = [route.part for route, _ in routes]
    if len(set(parts)) < len(parts):
        broken[native] = (f"{native!r} is produced twice, from {' and '.join(repr(key) for _, key in routes[:3])}")
    elif parts != list(range(routes[0][0].parts)):
        broken[native] = (f"{native!r} got parts {parts} of {routes[0][0].parts}, from {routes[0][1]!r}")
    else:
        try:
            return _placed([_cut(route, key, shapes[key]) for route, key in routes], routes, shapes)
        except (KeyMapError, RuntimeError, IndexError) as error:
            key = routes[0][1]
            broken[native] = f"{key!r} {tuple(shapes[key])} to {native!r}: {str(error).splitlines()[0]}"
    return ()


def _cut(route: Route, key: str, shape: torch.Size) -> Piece:
    size = shape[route.dim] if shape else 1
    sizes = route.sizes if route.cuts > 1 else (size,)
    if sizes is None and size % route.cuts:
        raise KeyMapError(f"dim {route.dim} of size {size} does not split into {route.cuts} equal parts; give sizes")
    sizes = sizes or (size // route.cuts,) * route.cuts
    if sum(sizes) != size:
        raise KeyMapError(f"sizes {sizes} sum to {sum(sizes)}, dim {route.dim} has {size}")
    start = sum(sizes[: route.cut])
    rows = shape[1 if route.transpose else 0] if shape else 1
    permute = _permutation(route.permute, rows)
    native_dim = route.dim if route.parts > 1 else 0
    return Piece(
        key, route.native, route.dim, start, start + sizes[route.cut], route.transpose, permute, native_dim,
        reshape=route.reshape,
    )  # fmt: skip


def _permutation(permute: Permute | None, rows: int) -> tuple[int, ...] | None:
    if permute is None:
        return None
    order = tuple(int(i) for i in permute(rows))
    if not order or max(order) != rows - 1 or not is_order(np.asarray(order)):
        text = f"permute({rows}) gave {len(order)} numbers that are no permutation of its {rows} rows"
        raise KeyMapError(f"{text}, nor each as often as the others")
    return order


def _placed(
    pieces: list[Piece], routes: list[tuple[Route, str]], shapes: Mapping[str, torch.Size]
) -> tuple[Piece, ...]:
    dim = pieces[0].native_dim
    taken = [assembled_shape((piece,), shapes) for piece in pieces]
    sizes = [shape[dim] if shape else 1 for shape in taken]
    declared = routes[0][0].sizes if routes[0][0].parts > 1 else None
    if declared is not None and tuple(sizes) != declared:
        raise KeyMapError(f"the parts have sizes {tuple(sizes)} along dim {dim}, the rule says {declared}")
    assembled_shape(pieces, shapes)
    ends = list(accumulate(sizes))
    return tuple(_at(piece, end - size, end) for piece, size, end in zip(pieces, sizes, ends, strict=True))


def _at(piece: Piece, start: int, stop: int) -> Piece:
    return replace(piece, native_start=start, native_stop=stop)
