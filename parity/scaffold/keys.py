"""Propose a key map from names and shapes.

Two tensors belong together where their names say so better than those of any other candidate of that shape, by a margin
on both sides. What only the order or an elimination decides is proposed as uncertain, never as a fact.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from parity.scaffold.names import fused_parts, similarity, sort_of, weights_of, words_of
from parity.scaffold.proposal import KeyProposal, Match
from parity.scaffold.stacks import Group

MARGIN = 0.06
"""By how much the best candidate's score must lead the second one's, for both tensors."""
LEAST = 0.2
"""Score below which names have nothing in common worth a proposal."""


@dataclass
class _Board:
    """What is still free on both sides, what is matched, and which modules have been matched to which."""

    reference: list[Group]
    native: list[Group]
    matches: list[Match] = field(default_factory=list)
    owners: Counter[tuple[str, str]] = field(default_factory=Counter)

    def take(self, match: Match) -> None:
        """Accept a match."""
        self.matches.append(match)
        self.reference = [g for g in self.reference if g not in match.reference]
        self.native = [g for g in self.native if g not in match.native]
        for r in match.reference:
            for n in match.native:
                self.owners[r.owner, n.owner] += 1
                self.owners[_above(r.owner), _above(n.owner)] += 1

    def leaning(self, r: Group, n: Group) -> float:
        """Say how what is matched so far speaks for a pair: same owners, or owners within matched modules."""
        same = 0.5 if self.owners[r.owner, n.owner] else 0.0
        above = _above(r.owner), _above(n.owner)
        mine = self.owners[above]
        rival = max((c for (a, b), c in self.owners.items() if (a == above[0]) != (b == above[1])), default=0)
        return same + (0.15 if mine > rival else -0.1 if rival > mine else 0.0)


def propose_keys(
    reference: Sequence[Group], native: Sequence[Group], known: Iterable[Match] = ()
) -> KeyProposal:
    """Propose rules for the tensors of two models; `known` matches, from equal values, are taken over."""
    board = _Board(list(reference), list(native))
    for match in known:
        board.take(match)
    _take_fused(board, turned=False)
    _take_fused(board, turned=True)
    _take_sole(board)
    while _take_named(board):
        pass
    guesses = _guessed(board)
    for match in guesses:
        board.take(match)
    return KeyProposal(board.matches, board.reference, board.native)


def fit(r: Group, n: Group) -> dict[str, bool] | None:
    """Return what has to be done to a tensor to have the other's shape; None where they do not fit.

    Shapes: any; [I, J] against [J, I] is a transpose, [O, I, kF, kH, kW] against [O, I*kF*kH*kW] a reshape.
    """
    if r.indices != n.indices or not _one_sort(r, n):
        return None
    if r.shape == n.shape:
        return {}
    if len(r.shape) == len(n.shape) == 2 and r.shape == torch.Size(reversed(n.shape)):
        return {"transpose": True}
    flat = _squeezed(r.shape) == _squeezed(n.shape) or _rows_and_rest(r.shape) == _rows_and_rest(n.shape)
    return {"reshape": True} if flat and r.shape.numel() == n.shape.numel() and r.shape and n.shape else None


def _one_sort(r: Group, n: Group) -> bool:
    sorts = {sort_of(r.leaf), sort_of(n.leaf)}
    return len(sorts) == 1 or ("" in sorts and "bias" not in sorts)


def _squeezed(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _rows_and_rest(shape: torch.Size) -> tuple[int, int]:
    return (shape[0], shape[1:].numel()) if shape else (0, 0)


def _above(path: str) -> str:
    return path.rpartition(".")[0]


def score(board: _Board, r: Group, n: Group) -> float | None:
    """Return how much speaks for a pair; None where the shapes do not fit."""
    how = fit(r, n)
    if how is None:
        return None
    cost = 0.3 if "transpose" in how else 0.1 if how else 0.0
    return _named_alike(r, n) + board.leaning(r, n) + (0.2 if _rank(board, r, n) else 0.0) - cost


def _named_alike(r: Group, n: Group) -> float:
    """Compare the layers' names; for tables (no weight, no bias) the tensors' own too."""
    tables = sort_of(r.leaf) == "" and sort_of(n.leaf) == ""
    return similarity(r.template, n.template) if tables else similarity(r.owner, n.owner)


def _rank(board: _Board, r: Group, n: Group) -> bool:
    """Say whether two of equal names but for numbers (`mlp.0`, `mlp.2`) have the same place among their like."""
    mine = [g for g in board.reference if _alike(g, r)]
    theirs = [g for g in board.native if _alike(g, n)]
    return len(mine) == len(theirs) > 1 and mine.index(r) == theirs.index(n)


def _alike(g: Group, other: Group) -> bool:
    return (
        (g.shape, g.leaf, g.indices) == (other.shape, other.leaf, other.indices)
        and weights_of(g.owner) == weights_of(other.owner)
        and _above(g.owner) == _above(other.owner)
    )


def _take_sole(board: _Board) -> None:
    """Match tensors of two or more dims that are the only ones of their shape on both sides."""
    pairs = [(r, n) for r in board.reference for n in board.native if len(r.shape) > 1 and fit(r, n) == {}]
    count = Counter(g for pair in pairs for g in pair)
    for r, n in pairs:
        squarish = r.shape.numel() == max(r.shape)
        if count[r] == count[n] == 1 and not squarish:
            certain = _named_alike(r, n) > 0.1
            board.take(Match("rename", (r,), (n,), "the only one of its shape", certain))


def _take_named(board: _Board) -> bool:
    """Match what names decide with the widest margins of this round; say whether there was anything."""
    scores = {(r, n): s for r in board.reference for n in board.native if (s := score(board, r, n)) is not None}
    rows: dict[Group, list[float]] = defaultdict(list)
    for (r, n), s in scores.items():
        rows[r].append(s)
        rows[n].append(s)
    leads = {pair: _lead(s, rows, pair) for pair, s in scores.items() if s >= LEAST}
    clear = {pair: lead for pair, lead in leads.items() if lead >= MARGIN}
    widest = max(clear.values(), default=0.0)
    for (r, n), lead in clear.items():
        if lead >= widest / 2:
            board.take(Match("rename", (r,), (n,), _words(scores[r, n], fit(r, n) or {}), **(fit(r, n) or {})))
    return bool(clear)


def _lead(s: float, rows: dict[Group, list[float]], pair: tuple[Group, Group]) -> float:
    """Return by how much a score leads every other of its row and column; 1 where there is no other."""
    seconds = [sorted(rows[g], reverse=True)[1:2] for g in pair]
    if any(rows[g] and max(rows[g]) > s for g in pair):
        return 0.0
    return min((s - second[0] for second in seconds if second), default=1.0)


def _words(s: float, how: dict[str, bool]) -> str:
    return f"names ({min(s, 1.0):.2f})" + "".join(f", fits by {name}" for name in how)


def _guessed(board: _Board) -> list[Match]:
    """Pair what is left by its order where both sides have as many of a shape; uncertain."""
    out = []
    taken: set[Group] = set()
    for r in board.reference:
        mine = [g for g in board.reference if _same_class(g, r)]
        theirs = [n for n in board.native if fit(r, n) is not None and n not in taken]
        place = [g for g in mine if g not in taken]
        if not theirs or len(theirs) != len(place) or r in taken:
            continue
        for g, n in zip(place, theirs, strict=True):
            taken |= {g, n}
            out.append(Match("rename", (g,), (n,), "the order alone", certain=False, **(fit(g, n) or {})))
    return out


def _same_class(g: Group, r: Group) -> bool:
    return (g.shape, g.indices, sort_of(g.leaf)) == (r.shape, r.indices, sort_of(r.leaf))


# --- fused projections ------------------------------------------------------------------------------------------------


def _take_fused(board: _Board, turned: bool) -> None:
    """Match fused projections with their parts: of the reference (split), or, turned, of the native (fuse)."""
    whole, parts = (board.native, board.reference) if turned else (board.reference, board.native)
    found = [(s, g, p) for g in whole for s, p in _part_sets(g, parts)]
    for s, group, chosen in sorted(found, key=lambda item: -item[0]):
        rivals = [t for t, g, p in found if (g is group) != (set(p) & set(chosen) != set()) and t > s - MARGIN]
        free = board.native if turned else board.reference
        if rivals or group not in free:
            continue
        evidence = f"rows of a fused projection, names ({s:.2f})"
        if turned:
            board.take(Match("fuse", chosen, (group,), evidence))
        else:
            board.take(Match("split", (group,), chosen, evidence))


def _part_sets(group: Group, others: Sequence[Group]) -> list[tuple[float, tuple[Group, ...]]]:
    """Return the sets of tensors that could be the parts of a fused one, with how alike the names are."""
    in_leaf = fused_parts(group.leaf)
    fused = in_leaf or fused_parts(group.owner)
    if fused is None:
        return []
    last = words_of(_last(group.owner))
    alone = not in_leaf and set(last) - {"text"} <= {fused[0], *fused[1]}
    by_home: dict[tuple[str, str], dict[str, Group]] = defaultdict(dict)
    for other in others:
        part = _part_of(other, fused[1])
        alike = other.indices == group.indices and sort_of(other.leaf) == sort_of(group.leaf)
        if part and alike and _of_text(other) == ("text" in last):
            by_home[_above(other.owner), other.leaf][part] = other
    home = _above(group.owner) if alone else group.owner
    whole = [(place, held) for (place, _), held in by_home.items() if len(held) == len(fused[1])]
    sets = [(place, tuple(held[p] for p in fused[1])) for place, held in whole]
    return [(similarity(home, place), parts) for place, parts in sets if _sums_up(group, parts)]


def _part_of(group: Group, parts: Sequence[str]) -> str | None:
    """Return which part of a fused projection a layer is by its name: `q` for `to_q`, `add_q_proj` (of the text)."""
    words = [word for word in words_of(_last(group.owner)) if word != "text"]
    return words[0] if len(words) == 1 and words[0] in parts else None


def _of_text(group: Group) -> bool:
    return "text" in words_of(_last(group.owner))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _sums_up(group: Group, parts: Sequence[Group]) -> bool:
    """Say whether the rows of the parts make those of the whole. Shapes: [I1, ...], [I2, ...] and [I1 + I2, ...]."""
    rows = sum(part.shape[0] for part in parts)
    return rows == group.shape[0] and all(part.shape[1:] == group.shape[1:] for part in parts)
