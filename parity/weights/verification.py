"""Verify a converted checkpoint against its source: every tensor accounted for, exact after the map, or how not."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.numerics.metrics import bit_equal
from parity.weights.coverage import Draft, Shapes
from parity.weights.differences import Difference, difference_of
from parity.weights.keymap import KeyMap
from parity.weights.lazily import Lazily
from parity.weights.matching.moments import same_bytes
from parity.weights.names import stacks_of, templated
from parity.weights.piece import Piece, assemble, disassemble
from parity.weights.source import TensorSource, computable

EXACT, ROUNDED, FINER, DIFFERENT = "exact", "rounded", "finer", "different"
_SAMPLE = 1 << 12


@dataclass(frozen=True)
class Verified:
    """One native tensor that the map produces.

    Args:
        native: its key.
        references: keys it comes from.
        status: exact, rounded (what the reference holds, stored coarser), finer or different.
        difference: what is known of a tensor that is not exact.
        holds: the native tensor whose values it holds instead.
    """

    native: str
    references: tuple[str, ...]
    status: str
    difference: Difference | None = None
    holds: str | None = None


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        tensors: every native tensor that was compared.
        missing_keys: native keys the map produces and the native lacks.
        unexpected_keys: native keys the map does not produce and does not declare.
        unmapped_keys: reference keys the map sends nowhere.
        broken: native keys the map cannot make, with why.
        mis_shaped: native keys with the shape the map gives and the shape that is there.
        reference_only, native_only: declared keys of one side.
        blocks: native blocks that hold another block's values, whole.
        tied: sets of native keys of one reference that differ among themselves.
    """

    tensors: tuple[Verified, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    unmapped_keys: tuple[str, ...]
    broken: Mapping[str, str]
    mis_shaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    reference_only: Mapping[str, str] = field(default_factory=dict)
    native_only: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def accounted(self) -> bool:
        """Whether no tensor of either side is left over."""
        return not (self.missing_keys or self.unexpected_keys or self.unmapped_keys or self.broken or self.mis_shaped)

    def count(self, status: str) -> int:
        """Return how many tensors have a status."""
        return sum(tensor.status == status for tensor in self.tensors)


def verify(
    reference: TensorSource, native: TensorSource, key_map: KeyMap, shapes: tuple[Shapes, Shapes]
) -> Verification:
    """Compare every native tensor with what the map makes of the reference; one tensor of each side in memory."""
    ours, theirs = shapes
    draft = key_map.draft(ours)
    declared = {k: r.reason for k in theirs for r in key_map.rules if r.kind == "native_only" and r.matches(k)}
    wrong = dict(_mis_shaped(draft, theirs))
    fitting = [key for key in draft.pieces if key in theirs and key not in wrong]
    compared, samples = _compared(fitting, draft, Lazily(reference), native)
    tensors = tuple(_holders(compared, samples, draft, Lazily(reference), native))
    known = draft.pieces.keys() | draft.broken.keys() | declared.keys()
    return Verification(
        tensors, tuple(k for k in draft.pieces if k not in theirs), tuple(k for k in theirs if k not in known),
        tuple(draft.unmatched), draft.broken, wrong, draft.reference_only, declared,
        _blocks(tensors, theirs), _tied(tensors, draft),
    )  # fmt: skip


def _mis_shaped(draft: Draft, native: Shapes) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    for key, pieces in draft.pieces.items():
        given = draft.shape_of(key)
        held = native.get(key, given)
        if held != given and not (pieces[0].reshape and held.numel() == given.numel()):
            yield key, (tuple(given), tuple(held))


Samples = dict[str, tuple[list[bytes], list[bytes]]]
"""By native key: of each piece, a digest of the first values it should hold, and of those it holds."""


def _compared(
    keys: Sequence[str], draft: Draft, reference: Mapping[str, Tensor], native: TensorSource
) -> tuple[list[Verified], Samples]:
    compared: list[Verified] = []
    samples: Samples = {}
    for key in keys:
        pieces = draft.pieces[key]
        held = computable(native.get_tensor(key))
        value = assemble(pieces, reference, held.shape if pieces[0].reshape else None)
        status, difference = _status(value, held)
        compared.append(Verified(key, tuple(dict.fromkeys(p.reference for p in pieces)), status, difference))
        parts = [disassemble(pieces, tensor, draft.reference_shapes) for tensor in (value.to(held.dtype), held)]
        samples[key] = [_sample(part) for part in parts[0]], [_sample(part) for part in parts[1]]
    return compared, samples


def _status(value: Tensor, held: Tensor) -> tuple[str, Difference | None]:
    if same_bytes(value, held) or bit_equal(value, held):
        return EXACT, None
    if value.dtype != held.dtype and bit_equal(value.to(held.dtype), held):
        rounded = not bit_equal(held.to(value.dtype), value)
        return (ROUNDED if rounded else EXACT), (difference_of(value, held) if rounded else None)
    if value.dtype != held.dtype and bit_equal(held.to(value.dtype), value):
        return FINER, difference_of(value, held)
    difference = difference_of(value, held)
    return (ROUNDED if difference.rounded_to else DIFFERENT), difference


def _sample(part: Tensor) -> bytes:
    """Return a digest of the shape and first elements: enough to suspect whose values they are, not to prove it."""
    first = part.reshape(part.shape[0], -1)[:8] if part.ndim else part.reshape(1, 1)
    some = first.reshape(-1)[:_SAMPLE].contiguous()
    digest = hashlib.blake2b(f"{tuple(part.shape)}{part.dtype}".encode(), digest_size=16)
    digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _holders(
    compared: Sequence[Verified], samples: Samples, draft: Draft, reference: Mapping[str, Tensor], native: TensorSource
) -> Iterator[Verified]:
    """Name, for each tensor that differs, the one whose values a part of it holds."""
    wanted: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for key, (should, _) in samples.items():
        for number, sample in enumerate(should):
            wanted[sample].append((key, number))
    for found in compared:
        if found.status != DIFFERENT:
            yield found
            continue
        holds = _holder(found.native, samples[found.native], wanted, draft, reference, native)
        yield Verified(found.native, found.references, found.status, found.difference, holds)


def _holder(
    key: str, sample: tuple[list[bytes], list[bytes]], wanted: Mapping[bytes, list[tuple[str, int]]], draft: Draft,
    reference: Mapping[str, Tensor], native: TensorSource,
) -> str | None:  # fmt: skip
    for number, (should, does) in enumerate(zip(*sample, strict=True)):
        if should == does:
            continue
        part = disassemble(draft.pieces[key], computable(native.get_tensor(key)), draft.reference_shapes)[number]
        for other, place in wanted.get(does, ()):
            piece = draft.pieces[other][place]
            if _is(piece, part, reference):
                return other if other != key else piece.reference
    return None


def _is(piece: Piece, part: Tensor, reference: Mapping[str, Tensor]) -> bool:
    value = piece.take(reference[piece.reference])
    constant = bool((part == part.reshape(-1)[0]).all()) if part.numel() else True
    return not constant and value.shape == part.shape and bit_equal(value.to(part.dtype), part)


def _blocks(tensors: Sequence[Verified], native: Shapes) -> dict[str, str]:
    """Return the blocks that differ for the greater part, and of which each such tensor is that of one other block."""
    stacks = stacks_of(native)
    holds: dict[str, list[str | None]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for tensor in tensors:
        template, number = templated(tensor.native, stacks)
        start = template.partition("*")[0]
        sizes[f"{start}{number}"] += 1
        if number is not None and tensor.status == DIFFERENT:
            other, other_number = templated(tensor.holds or "", stacks)
            source = f"{start}{other_number}" if other == template and other_number is not None else None
            holds[f"{start}{number}"].append(source)
    whole = {block: found for block, found in holds.items() if len(set(found)) == 1 and 2 * len(found) > sizes[block]}
    return {block: found[0] for block, found in whole.items() if found[0] is not None}


def _tied(tensors: Sequence[Verified], draft: Draft) -> tuple[tuple[str, ...], ...]:
    """Return sets of native tensors that come from the same pieces and of which some are exact, some not."""
    sets: dict[tuple[object, ...], list[Verified]] = defaultdict(list)
    for tensor in tensors:
        sets[tuple(piece.source for piece in draft.pieces[tensor.native])].append(tensor)
    return tuple(
        tuple(tensor.native for tensor in held) for held in sets.values()
        if len(held) > 1 and len({tensor.status for tensor in held}) > 1
    )  # fmt: skip
