"""What a difference of names and shapes means: bands, flags, and what becomes of a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parity.weights.anatomy import Anatomy
from parity.weights.names import Shapes
from parity.weights.proposal import Proposal

COMPATIBLE, PARTIAL = 0.8, 0.3
"""Shares of common keys above which two checkpoints are compatible, and partially so."""


@dataclass(frozen=True)
class Compatibility:
    """The verdict on names and shapes.

    Args:
        overlap: common keys over those of the larger side.
        mapped: reference tensors a proposal covers, over all of them.
        band: compatible, partially compatible or incompatible.
        meaning, lora: what that means, for loading and for a LoRA.
        red_flags, green_flags: what speaks against and for a conversion.
    """

    overlap: float
    mapped: float
    band: str
    meaning: str
    lora: str
    red_flags: tuple[str, ...]
    green_flags: tuple[str, ...]


def compatibility(
    reference: Shapes, native: Shapes, anatomies: tuple[Anatomy, Anatomy], proposals: Sequence[Proposal]
) -> Compatibility:
    """Judge two checkpoints by names and shapes."""
    common = reference.keys() & native.keys()
    overlap = len(common) / max(len(reference), len(native))
    mapped = len({proposal.piece.reference for proposal in proposals}) / len(reference)
    red, green = _flags(reference, native, anatomies, mapped)
    exact = len(common) == len(reference) == len(native) and all(reference[key] == native[key] for key in common)
    band, meaning = _band(overlap, exact)
    return Compatibility(overlap, mapped, band, meaning, _lora(exact, mapped, proposals), tuple(red), tuple(green))


def _band(overlap: float, exact: bool) -> tuple[str, str]:
    if exact:
        return "compatible", "same keys, same shapes: one loads where the other does"
    if overlap > COMPATIBLE:
        return "compatible", "most keys are shared: note the rest, load, and check the outputs"
    if overlap >= PARTIAL:
        return "partially compatible", "review the proposed mapping and convert by it"
    return "incompatible by name", "no tensor loads by name; the values may still be the same: parity weights match"


def _lora(exact: bool, mapped: float, proposals: Sequence[Proposal]) -> str:
    if exact:
        return "a LoRA of one works on the other as it is"
    if mapped <= PARTIAL:
        return "a LoRA needs training anew, unless matching by value finds the same weights under other names"
    if any(proposal.relation in ("split", "fuse") for proposal in proposals):
        return "a LoRA needs its keys renamed and its factors cut or joined where projections are fused"
    if any(proposal.relation == "transpose" for proposal in proposals):
        return "a LoRA needs its keys renamed, and A and B exchanged where weights are transposed"
    return "a LoRA needs its keys renamed"


def _flags(
    reference: Shapes, native: Shapes, anatomies: tuple[Anatomy, Anatomy], mapped: float
) -> tuple[list[str], list[str]]:
    red: list[str] = []
    green: list[str] = []
    one, other = anatomies
    counts = [[stack.count for stack in anatomy.stacks[:1]] for anatomy in anatomies]
    _compare("number of blocks", counts[0], counts[1], red, green)
    _compare("attention", sorted(one.attention.values()), sorted(other.attention.values()), red, green)
    _compare("hidden size", one.hidden, other.hidden, red, green)
    _compare("ffn size", one.ffn, other.ffn, red, green)
    if mapped <= PARTIAL:
        red.append(f"names share no pattern: {mapped:.0%} of the reference's tensors could be placed")
    elif mapped > COMPATIBLE:
        green.append(f"similar structure: {mapped:.0%} of the reference's tensors were placed by name and shape")
    if sorted(map(tuple, reference.values())) == sorted(map(tuple, native.values())):
        green.append("the same shapes, in whatever order")
    return red, green


def _compare(what: str, one: object, other: object, red: list[str], green: list[str]) -> None:
    if not one or not other:
        return
    shown, against = (", ".join(map(str, held)) if isinstance(held, list) else str(held) for held in (one, other))
    if one == other:
        green.append(f"same {what}: {shown}")
    else:
        red.append(f"different {what}: {shown} against {against}")
