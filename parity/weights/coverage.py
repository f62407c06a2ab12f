"""What a key map leaves out, worded in five lines at most."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from parity.weights.piece import Piece, assembled_shape

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Draft:
    """What a key map makes of the reference's keys before the native's are looked at.

    Args:
        pieces: by native key, in order.
        reference_only: declared keys with the reason.
        unmatched: reference keys that go nowhere.
        broken: native keys that cannot be joined, with why.
        reference_shapes: shape of each reference tensor.
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    reference_only: Mapping[str, str]
    unmatched: Sequence[str]
    broken: Mapping[str, str]
    reference_shapes: Shapes

    def shape_of(self, native_key: str) -> torch.Size:
        """Return the shape the pieces give, before any reshape."""
        return assembled_shape(self.pieces[native_key], self.reference_shapes)


def problems_of(draft: Draft, native: Shapes | None, native_only: Mapping[str, str]) -> list[str]:
    """Return at most five lines on what is unmatched, broken, produced twice, never produced or mis-shaped.

    `native` None: only the reference's side is checked.
    """
    lines = _line("reference keys no rule matches", draft.unmatched, native or ())
    lines += _listed("broken", list(draft.broken.values()))
    if native is None:
        return lines
    never = [key for key in native if key not in draft.pieces and key not in native_only and key not in draft.broken]
    lines += _line("native keys no rule produces", never, draft.pieces or draft.reference_shapes)
    lines += _line("keys produced that the native lacks", [k for k in draft.pieces if k not in native], native)
    both = [f"{key!r} is produced and declared native_only" for key in draft.pieces if key in native_only]
    return lines + _listed("mis-shaped", both + _misshaped(draft, native))


def _misshaped(draft: Draft, native: Shapes) -> list[str]:
    out = []
    for key, parts in draft.pieces.items():
        wanted = native.get(key)
        got = draft.shape_of(key)
        same = wanted is None or (got.numel() == wanted.numel() if parts[0].reshape else got == wanted)
        if not same:
            names = " + ".join(repr(piece.reference) for piece in parts[:3])
            out.append(f"{key!r} is {tuple(wanted or ())}, the map gives {tuple(got)} from {names}")
    return out


def _line(what: str, keys: Sequence[str], others: Iterable[str]) -> list[str]:
    if not keys:
        return []
    pool = list(others)
    return [f"{len(keys)} {what}: " + ", ".join(_with_near(key, pool) for key in keys[:3]) + _more(keys)]


def _listed(what: str, texts: Sequence[str]) -> list[str]:
    return [f"{len(texts)} {what}: " + "; ".join(texts[:2]) + (", ..." if len(texts) > 2 else "")] if texts else []


def _with_near(key: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.5)
    return f"{key!r} (nearest {near[0]!r})" if near else repr(key)


def _more(keys: Sequence[str]) -> str:
    return ", ..." if len(keys) > 3 else ""
