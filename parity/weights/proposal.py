"""Propose which tensor is which from names and shapes alone, each proposal with its confidence and why."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from parity.weights.names import Shapes, Stack, projections_of, role_of, stacks_of, templated
from parity.weights.piece import Piece

Confidence = Literal["high", "medium", "low"]
_RANK: dict[str, int] = {"high": 2, "medium": 1, "low": 0}
_VAGUE = {"text", "time", "self", "cross", "ffn"}
"""Words that say where a module is and not what it is."""
_FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}


@dataclass(frozen=True)
class Proposal:
    """One reference tensor, or some rows of it, proposed for one native tensor, or some rows of it."""

    piece: Piece
    relation: str
    confidence: Confidence
    why: str


@dataclass(frozen=True)
class _Side:
    """Templates of one side: shape by template, and the key of each by block number."""

    shapes: dict[str, torch.Size]
    keys: dict[str, dict[int | None, str]]


Parts = Sequence[tuple[str, str]]
Found = tuple[Parts, str, Confidence, str]
"""Template pairs that make one relation; the relation, its confidence and why."""


def proposed(reference: Shapes, native: Shapes) -> list[Proposal]:
    """Return at most one proposal for each reference tensor and native piece, the most confident first taken."""
    ours, theirs = _paired_stacks(stacks_of(reference), stacks_of(native))
    left, right = _side(reference, ours), _side(native, theirs)
    out: list[Proposal] = []
    for parts, relation, confidence, why in _chosen(left, right):
        numbers = set.intersection(*(set(left.keys[a]) & set(right.keys[b]) for a, b in parts))
        for number in sorted(numbers, key=lambda n: -1 if n is None else n):
            pieces = _pieces(parts, relation, number, left, right)
            out += [Proposal(piece, relation, confidence, why) for piece in pieces]
    return out


def _paired_stacks(ours: Sequence[Stack], theirs: Sequence[Stack]) -> tuple[list[Stack], list[Stack]]:
    """Order the stacks of both sides so that the n-th is the n-th's partner: by name, then by size."""
    names = {stack.prefix for stack in ours} & {stack.prefix for stack in theirs}

    def order(stack: Stack) -> tuple[bool, str, int]:
        return stack.prefix not in names, stack.prefix * (stack.prefix in names), -stack.count * len(stack.tensors)

    return sorted(ours, key=order), sorted(theirs, key=order)


def _side(shapes: Shapes, stacks: Sequence[Stack]) -> _Side:
    named = {stack.prefix: f"<{number}>" for number, stack in enumerate(stacks)}
    side = _Side({}, {})
    for key, shape in shapes.items():
        template, number = templated(key, stacks)
        if number is not None:
            prefix = template[: template.index("*")].rstrip(".")
            template = named[prefix] + template[len(prefix) :].lstrip(".")
        side.shapes.setdefault(template, shape)
        side.keys.setdefault(template, {})[number] = key
    return side


def _chosen(left: _Side, right: _Side) -> Iterator[Found]:
    ranked = sorted(_candidates(left, right), key=lambda pair: (-_RANK[pair[1][2]], -pair[0]))
    taken_left: set[str] = set()
    taken_right: set[str] = set()
    for _, found in ranked:
        ours, theirs = {a for a, _ in found[0]}, {b for _, b in found[0]}
        if not ours & taken_left and not theirs & taken_right:
            taken_left |= ours
            taken_right |= theirs
            yield found


def _candidates(left: _Side, right: _Side) -> Iterator[tuple[float, Found]]:
    roles = [Counter((role_of(key), side.shapes[key]) for key in side.shapes) for side in (left, right)]
    for a, shape in left.shapes.items():
        for b, other in right.shapes.items():
            if (a[:3] == b[:3]) if a.startswith("<") or b.startswith("<") else True:
                score, found = _judged(a, shape, b, other)
                shared = max(roles[0][role_of(a), shape], roles[1][role_of(b), other]) > 1
                if found is not None:
                    yield score, _doubted(found) if shared and a != b else found
    yield from _fusions(left, right)


def _doubted(found: Found) -> Found:
    """Return a proposal less sure, since another tensor of that shape has its role."""
    parts, relation, confidence, why = found
    return parts, relation, "medium" if confidence == "high" else confidence, f"{why}, as others have"


def _judged(a: str, shape: torch.Size, b: str, other: torch.Size) -> tuple[float, Found | None]:
    relation = _relation(shape, other)
    if relation is None:
        return 0.0, None
    ours, theirs = (tuple(word for word in role_of(key) if "<" not in word) for key in (a, b))
    if ours[-1:] != theirs[-1:] and {*ours[-1:], *theirs[-1:]} <= {"weight", "bias"}:
        return 0.0, None
    named = projections_of(a), projections_of(b)
    if all(named) and not named[0] & named[1]:
        return 0.0, None
    score = difflib.SequenceMatcher(None, ours, theirs).ratio() + difflib.SequenceMatcher(None, a, b).ratio()
    if a == b:
        return score, (((a, b),), relation, "high" if relation == "rename" else "medium", "same name")
    exact = ours == theirs and not {*ours[-2:-1]} & _VAGUE
    confidence: Confidence = "high" if exact else "medium" if ours == theirs or score > 1.1 else "low"
    if relation != "rename" and confidence == "high":
        confidence = "medium"
    if confidence == "low" and score < 0.6:
        return score, None
    why = f"same role: {' '.join(ours)}" if ours == theirs else f"shapes fit, names are alike by {score / 2:.0%}"
    return score, (((a, b),), relation, confidence, why)


def _relation(shape: torch.Size, other: torch.Size) -> str | None:
    if shape == other:
        return "rename"
    if len(shape) == len(other) == 2 and shape == other[::-1]:
        return "transpose"
    plain = tuple(n for n in shape if n != 1), tuple(n for n in other if n != 1)
    same_rows = bool(shape) and bool(other) and shape[0] == other[0] and math.prod(shape) == math.prod(other)
    return "reshape" if plain[0] == plain[1] or same_rows else None


def _fusions(left: _Side, right: _Side) -> Iterator[tuple[float, Found]]:
    why = "the order of the parts is taken from the name; `parity weights match` shows it by value"
    for a, b, parts in _fused(left, right):
        yield 2.0, ([(a, part) for part in parts], "split", "medium", f"{b} into its parts: {why}")
    for a, b, parts in _fused(right, left):
        yield 2.0, ([(part, a) for part in parts], "fuse", "medium", f"{b} from its parts: {why}")


def _fused(one: _Side, other: _Side) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each fused template of one side with the templates of the other that it holds."""
    roles = {b: (b[:3] if b.startswith("<") else "", role_of(b)) for b in other.shapes}
    for a, shape in one.shapes.items():
        role, stack = role_of(a), a[:3] if a.startswith("<") else ""
        for fused in {*role} & set(_FUSED):
            wanted = [tuple(part if word == fused else word for word in role) for part in _FUSED[fused]]
            found = [_named(w, stack, roles) for w in wanted]
            parts = [part for part in found if part is not None]
            if len(parts) == len(wanted) and _joins([other.shapes[part] for part in parts], shape):
                yield a, fused, parts


def _joins(parts: Sequence[torch.Size], whole: torch.Size) -> bool:
    """Whether the parts stacked along dim 0 have the shape of the whole."""
    if not whole or any(len(part) != len(whole) or part[1:] != whole[1:] for part in parts):
        return False
    return sum(part[0] for part in parts) == whole[0]


def _named(wanted: tuple[str, ...], stack: str, roles: dict[str, tuple[str, tuple[str, ...]]]) -> str | None:
    """Return the template of this role; where a model has no module of attention, the one without its name."""
    fitting = [b for b, (where, role) in roles.items() if where == stack and role == wanted]
    if not fitting and "self" in wanted:
        short = tuple(word for word in wanted if word != "self")
        fitting = [b for b, (where, role) in roles.items() if where == stack and role == short]
    return fitting[0] if len(fitting) == 1 else None


def _pieces(parts: Parts, relation: str, number: int | None, left: _Side, right: _Side) -> Iterable[Piece]:
    at = 0
    for a, b in parts:
        ours, theirs = left.keys[a][number], right.keys[b][number]
        rows, other = left.shapes[a], right.shapes[b]
        if relation == "split":
            start, at = at, at + other[0]
            yield Piece(ours, theirs, 0, start, at, native_stop=other[0])
        elif relation == "fuse":
            start, at = at, at + rows[0]
            yield Piece(ours, theirs, 0, 0, rows[0], native_start=start, native_stop=at)
        else:
            size = rows[0] if rows else 1
            turned, reshaped = relation == "transpose", relation == "reshape"
            stop = rows[1] if turned else size
            yield Piece(ours, theirs, 0, 0, size, turned, native_stop=stop, reshape=reshaped)
