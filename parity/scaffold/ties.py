"""Tied tensors: one memory under several keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parity.scaffold.keys import propose_keys
from parity.scaffold.proposal import KeyProposal
from parity.scaffold.stacks import Group


def ties_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return keys whose tensor is the memory of an earlier key, with that key."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    ties = {}
    for key, value in tensors.items():
        if value.numel() and not value.is_meta:
            owner = first.setdefault((value.data_ptr(), value.shape, value.stride()), key)
            if owner != key:
                ties[key] = owner
    return ties


def with_ties(
    keys: KeyProposal, bare: KeyProposal, reference: Mapping[str, str], native: Mapping[str, str]
) -> KeyProposal:
    """Return the proposal that leaves less open: of all tensors (`keys`), or of those no other's memory (`bare`).

    `reference` and `native` hold the tied keys of each side with the key they are tied to.
    """
    if not reference and not native:
        return keys
    if _open(bare) <= _open(keys):
        return replace(bare, reference_ties=dict(reference), native_ties=dict(native))
    left_r, ties_r = _parted(keys.reference_blank, reference)
    left_n, ties_n = _parted(keys.native_blank, native)
    again = propose_keys(left_r, left_n)
    return replace(
        keys, matches=[*keys.matches, *again.matches], reference_blank=again.reference_blank,
        native_blank=again.native_blank, reference_ties=ties_r, native_ties=ties_n,
    )  # fmt: skip


def _open(keys: KeyProposal) -> int:
    doubtful = sum(not match.certain for match in keys.matches)
    return len(keys.reference_blank) + len(keys.native_blank) + 2 * doubtful


def _parted(blank: Sequence[Group], ties: Mapping[str, str]) -> tuple[list[Group], dict[str, str]]:
    left, found = [], {}
    for group in blank:
        tied = {key: ties[key] for key in group.keys if key in ties}
        found.update(tied)
        free = [key for key in group.keys if key not in tied]
        left += [group] if not tied else [Group(key, ((),), group.shape, group.order, group.side) for key in free]
    return left, found
