"""Find the points two models share: equal values first, equal structure where values say nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from parity.execution.tap import SAME, Layout, Point
from parity.scaffold.layouts import Laid, agreeing, could_agree, layouts_between, tells
from parity.scaffold.record import Seen
from parity.scaffold.structure import Tree


@dataclass(frozen=True, eq=False)
class Shared:
    """A point both models have.

    Args:
        reference, native: where, with real block numbers where it was seen.
        layout, text: from native to reference, and its source text.
        order: when the reference reaches it.
        by_value: values agree; False: only the structure and the shapes do.
        shared: the value is used after the call on either side.
        quiet: no branch ends here: the output of a norm, activation or dropout, or the input of one (a residual).
        value: what the reference has there; None without a run.
    """

    reference: Point
    native: Point
    layout: Layout = SAME
    text: str = ""
    order: int = 0
    by_value: bool = True
    shared: bool = False
    quiet: bool = False
    value: Seen | None = None


@dataclass(frozen=True)
class _Edge:
    reference: Seen
    native: Seen
    laid: Laid


def by_value(reference: Sequence[Seen], native: Sequence[Seen]) -> list[Shared]:
    """Return the points whose values agree, one for each value: the plainest pair of those that show it."""
    mine, theirs = [s for s in reference if tells(s.value)], [s for s in native if tells(s.value)]
    edges = [_Edge(r, n, laid) for r in mine for n in theirs if (laid := _agreeing(r, n)) is not None]
    return [_shared(min(component, key=_cost)) for component in _components(edges)]


def _agreeing(r: Seen, n: Seen) -> Laid | None:
    return agreeing(r.value, n.value) if could_agree(r.fingerprint, n.fingerprint) else None


def _components(edges: Sequence[_Edge]) -> list[list[_Edge]]:
    """Group edges that share a point."""
    home: dict[int, int] = {}

    def root(point: Seen) -> int:
        at = id(point)
        while home.setdefault(at, at) != at:
            at = home[at]
        return at

    for edge in edges:
        home[root(edge.reference)] = root(edge.native)
    groups: dict[int, list[_Edge]] = defaultdict(list)
    for edge in edges:
        groups[root(edge.reference)].append(edge)
    return list(groups.values())


def _cost(edge: _Edge) -> tuple[float, ...]:
    """Rank pairs that show one value: the same role on both sides, whole outputs, the outermost modules, first."""
    r, n = edge.reference, edge.native
    return (
        r.point.at != n.point.at,
        r.quiet + n.quiet,
        _is_block(r) + _is_block(n) if r.point.at == "input" else 0,
        sum(isinstance(s.point.call, int) for s in (r, n)),
        r.point.at == "input",
        sum(s.point.element is not None for s in (r, n)),
        edge.laid.rank,
        r.module.count(".") + n.module.count("."),
        r.order,
        n.order,
    )


def _is_block(seen: Seen) -> bool:
    return seen.module.rpartition(".")[2].isdigit()


def _shared(edge: _Edge) -> Shared:
    r, n = edge.reference, edge.native
    return Shared(
        r.point, n.point, edge.laid.layout, edge.laid.text, r.order, True, r.shared or n.shared, _quiet(r, n), r
    )


def _quiet(r: Seen, n: Seen) -> bool:
    """Say whether no branch ends here: outputs of norms on both sides, the input of a norm on one (a residual)."""
    return (r.quiet or n.quiet) if r.point.at == "input" else (r.quiet and n.quiet)


def by_structure(
    pairs: Mapping[str, str], trees: tuple[Tree, Tree], seen: tuple[Sequence[Seen], Sequence[Seen]] | None
) -> list[Shared]:
    """Return inputs and outputs of modules that belong together; where both sides ran, only those whose shapes fit."""
    found: list[Shared] = []
    for path, other in pairs.items():
        found += _ran(path, other, trees, seen) if seen is not None else _unseen(path, other, trees)
    return found


def _unseen(path: str, other: str, trees: tuple[Tree, Tree]) -> Iterator[Shared]:
    quiet = trees[0].is_quiet(path) and trees[1].is_quiet(other)
    names = list(trees[0].paths)
    below = [i for i, name in enumerate(names) if name == path or name.startswith(f"{path}.")]
    places: dict[Literal["input", "output"], int] = {"input": 2 * below[0], "output": 2 * below[-1] + 1}
    for at, place in places.items():
        residual = quiet and at == "input"
        yield Shared(Point(path, at), Point(other, at), order=place, by_value=False, shared=residual, quiet=quiet)


def _ran(
    path: str, other: str, trees: tuple[Tree, Tree], seen: tuple[Sequence[Seen], Sequence[Seen]]
) -> Iterator[Shared]:
    mine = [s for s in seen[0] if trees[0].template(s.module) == path]
    theirs = [s for s in seen[1] if trees[1].template(s.module) == other]
    for at in ("input", "output"):
        pairs = [(r, n) for r in mine for n in theirs if r.point.at == at and _same_place(r, n, trees)]
        if any(_agreeing(r, n) is not None or _handed_on(r, seen[0]) for r, n in pairs):
            continue  # a value that has a tap already
        for r, n in pairs:
            layout = next(iter(layouts_between(r.value, n.value)), None)
            if layout is not None:
                yield Shared(r.point, n.point, *layout, r.order, False, r.shared or n.shared, _quiet(r, n), r)


def _handed_on(given: Seen, seen: Sequence[Seen]) -> bool:
    """Say whether an input is what an earlier module returned: that output is the place for a tap."""
    if given.point.at == "output":
        return False
    earlier = (s for s in seen if s.point.at == "output" and not s.quiet and s.order < given.order)
    alike = (s for s in earlier if could_agree(s.fingerprint, given.fingerprint))
    return any(torch.equal(s.value.flatten(), given.value.flatten()) for s in alike)


def _same_place(r: Seen, n: Seen, trees: tuple[Tree, Tree]) -> bool:
    numbers = [[part for part in s.module.split(".") if part.isdigit()][:1] for s in (r, n)]
    in_block = "{}" in trees[0].template(r.module)
    first = (r.point.element in (None, "0") and n.point.element in (None, "0")) or r.point.at == "input"
    whole = not isinstance(r.point.call, int) and not isinstance(n.point.call, int)
    return r.point.at == n.point.at and first and whole and (not in_block or numbers[0] == numbers[1])
