"""Convolutions whose channels, kernels or layouts were exchanged: found, mapped both ways, and named by `verify`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fixtures.checkpoints import Trained, noisy
from fixtures.matching import matched, planned
from parity.weights.rearranged import rearranged

Change = Callable[[Tensor], Tensor]
CHANGES: list[tuple[str, Change]] = [
    ("permute in-channels", lambda v: v[:, torch.arange(v.shape[1]).roll(1)]),
    ("permute out-channels", lambda v: v[torch.arange(v.shape[0]).roll(1)]),
    ("permute kernel axes", lambda v: v.transpose(3, 4)),
    ("permute kernel axes", lambda v: v.permute(0, 1, 4, 2, 3)),
    ("reshape", lambda v: v.flatten(1)),
    ("reshape", lambda v: v.squeeze(2)),
    ("channels last", lambda v: v.permute(0, 2, 3, 4, 1).flatten(1)),
    ("exchange channels", lambda v: v.transpose(0, 1)),
    ("exchange channels", lambda v: v.permute(2, 3, 4, 1, 0)),
]


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize(("relation", "change"), CHANGES)
def test_an_exchange_is_found_and_mapped(relation: str, change: Change, channels: int) -> None:
    made = Trained(channels)
    weight = made.matrix(64, 4 * channels).view(64, channels, 1, 2, 2)
    reference = {"patch.weight": weight, "other": made.matrix(64, 4 * channels)}
    native = {"embed.weight": change(weight).contiguous(), "other": reference["other"]}
    entries = matched(reference, native)
    assert entries[0]["relation"] == relation
    plan = planned(entries, reference, native)
    assert torch.equal(plan.native_tensors(reference)["embed.weight"], native["embed.weight"])
    assert torch.equal(plan.reference_tensors(native)["patch.weight"], weight)
    if (relation, channels) != ("permute out-channels", 4):  # rows of 16 values that noise drowns
        native["embed.weight"] = noisy(native["embed.weight"], 0.1)
        assert matched(reference, native)[0]["relation"] == relation


W, CONV = Trained(0).matrix(48, 32), Trained(1).matrix(24, 24).view(24, 6, 1, 2, 2)
SQUARE = Trained(2).matrix(16, 144).view(16, 16, 3, 3)
SAID: list[tuple[Tensor, Change, str]] = [
    (CONV, lambda v: v[:, [1, 0, 2, 3, 5, 4]], "the right in-channels in another order: [1, 0, 2, 3, 5, 4]"),
    (CONV, lambda v: v.roll(1, 0), "the right out-channels in another order"),
    (CONV, lambda v: v.transpose(3, 4), "the axes of its kernel exchanged: dims [0, 1, 2, 4, 3]"),
    (SQUARE, lambda v: v.transpose(0, 1), "with in- and out-channels exchanged"),
    (CONV.flatten(1), lambda v: v.unflatten(1, (6, 4)).transpose(1, 2).flatten(1), "a view of [6, 4] with dims [1, 0]"),
    (W, lambda v: v.roll(24, 0), "its halves exchanged"),
    (W, lambda v: torch.cat([v[:16], v[32:], v[16:32]]), "blocks of 16 in the order [0, 2, 1]"),
    (W, lambda v: v.t().reshape(48, 32), "reshaped where they should be transposed"),
    (W, lambda v: v.flatten().flip(0).view(48, 32), "the right values, but in another order"),
    (1 + W[0], lambda v: v - 1, "plus -1: a gain stored without its 1?"),
]


@pytest.mark.parametrize(("value", "change", "said"), SAID)
def test_verify_says_what_was_exchanged(value: Tensor, change: Change, said: str) -> None:
    assert said in (rearranged(value, change(value).contiguous()) or "")


def test_other_values_are_no_exchange() -> None:
    assert rearranged(W, Trained(3).matrix(48, 32)) is None
    assert rearranged(CONV, noisy(CONV, 0.01)) is None
