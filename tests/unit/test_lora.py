"""Adapters: the normal form, and the way through a key map."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from parity.errors import LoraError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.mapping import map_adapter
from parity.weights.keymap import KeyMap, Rule, fuse, native_only, reference_only, rename, split


def target(out: int, into: int, rank: int = 2, scaling: float = 1.0, seed: int = 0) -> LoraTarget:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    return LoraTarget(A, B, scaling, "header")


def mapped(
    rule: Rule | tuple[Rule, ...], targets: dict[str, LoraTarget], reference: dict[str, tuple[int, ...]]
) -> tuple[dict[str, LoraTarget], dict[str, Tensor]]:
    """Return the mapped targets, and what the key map makes of the full-size changes of the reference's weights."""
    key_map = KeyMap(rule if isinstance(rule, tuple) else (rule,))
    deltas = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in reference.items()}
    deltas |= {f"{path}.weight": one.delta().reshape(reference[f"{path}.weight"]) for path, one in targets.items()}
    wanted = key_map.native_tensors(deltas)
    shapes = {key: value.shape for key, value in wanted.items()}
    there = {key: torch.Size(shape) for key, shape in reference.items()}
    return dict(map_adapter(LoraAdapter("x", targets), key_map, there, shapes).targets), wanted


QKV = ("q", "k", "v")
SPLIT = split(r"qkv\.weight", tuple(f"{x}.weight" for x in QKV))
FUSE = fuse(tuple(rf"{x}\.weight" for x in QKV), "qkv.weight")
FUSE_COLUMNS = fuse((r"l\.weight", r"r\.weight"), "lr.weight", dim=1)
COLUMNS: dict[str, tuple[int, ...]] = {"l.weight": (5, 4), "r.weight": (5, 3)}
PARTS: dict[str, tuple[int, ...]] = {"q.weight": (6, 4), "k.weight": (2, 4), "v.weight": (2, 4)}


@pytest.mark.parametrize(
    ("rule", "targets", "reference"),
    [
        (rename(r"(.*)", r"m.\1"), {"a": target(5, 4)}, {"a.weight": (5, 4)}),
        (rename(r"a\.weight", "b.weight", transpose=True), {"a": target(5, 4)}, {"a.weight": (5, 4)}),
        (rename("(.*)", r"\1", permute=lambda n: [2, 0, 1]), {"a": target(3, 4)}, {"a.weight": (3, 4)}),
        (rename("(.*)", r"\1", transpose=True, permute=lambda n: [2, 0, 1]), {"a": target(4, 3)}, {"a.weight": (4, 3)}),
        (SPLIT, {"qkv": target(12, 4, scaling=0.3)}, {"qkv.weight": (12, 4)}),
        (split(r"a\.weight", ("x", "y"), dim=1, sizes=(1, 3)), {"a": target(5, 4)}, {"a.weight": (5, 4)}),
        (FUSE, {"q": target(6, 4, 2, 2.0), "k": target(2, 4, 3, 0.5), "v": target(2, 4, 1, -1.0)}, PARTS),
        (FUSE, {"q": target(6, 4, 2, 0.7), "v": target(2, 4, 1, 0.3)}, PARTS),
        (FUSE, {"q": target(6, 4, 2, 0.0), "v": target(2, 4, 1, 0.3)}, PARTS),
        (FUSE, {"k": target(2, 4)}, PARTS),
        (FUSE_COLUMNS, {"l": target(5, 4, 2, 2.0), "r": target(5, 3, 1, 0.7)}, COLUMNS),
        (rename("(.*)", r"\1", reshape=True), {"a": target(5, 8)}, {"a.weight": (5, 2, 2, 2)}),
    ],
)
def test_the_mapped_adapter_changes_each_weight_as_mapped(
    rule: Rule, targets: dict[str, LoraTarget], reference: dict[str, tuple[int, ...]]
) -> None:
    found, wanted = mapped(rule, targets, reference)
    changed = {key.removesuffix(".weight"): value for key, value in wanted.items() if bool(value.any())}
    assert changed.keys() <= found.keys()
    for path, value in changed.items():
        torch.testing.assert_close(found[path].delta(), value.reshape(found[path].delta().shape), rtol=0, atol=2e-15)


def test_split_shares_a_and_slices_b_bit_for_bit() -> None:
    one = target(12, 4)
    found, _ = mapped(SPLIT, {"qkv": one}, {"qkv.weight": (12, 4)})
    assert all(torch.equal(found[x].A, one.A) for x in QKV)
    assert torch.equal(torch.cat([found[x].B for x in QKV]), one.B)


def test_fusing_shared_a_keeps_the_rank_and_own_a_adds_them() -> None:
    whole = target(10, 4, 2)
    parts = {"q": whole.B[:6], "k": whole.B[6:8], "v": whole.B[8:]}
    shared = {path: LoraTarget(whole.A, B, 1.0, "header") for path, B in parts.items()}
    found, _ = mapped(FUSE, shared, PARTS)
    assert torch.equal(found["qkv"].B, whole.B)
    assert torch.equal(found["qkv"].A, whole.A)
    own = {path: target(len(B), 4, rank, seed=rank) for rank, (path, B) in enumerate(parts.items(), start=1)}
    assert mapped(FUSE, own, PARTS)[0]["qkv"].rank == 6


def test_forgetting_the_scaling_of_a_fused_part_would_show() -> None:
    targets = {"q": target(6, 4, 2, 2.0), "k": target(2, 4, 2, 1.0), "v": target(2, 4, 2, 1.0)}
    found, wanted = mapped(FUSE, targets, PARTS)
    blind = torch.cat([one.B @ one.A for one in targets.values()]).double() * 2.0
    assert float((blind - wanted["qkv.weight"]).norm() / wanted["qkv.weight"].norm()) > 0.1
    assert float((found["qkv"].delta() - wanted["qkv.weight"]).norm() / wanted["qkv.weight"].norm()) < 1e-15


@pytest.mark.parametrize(
    ("rule", "targets", "words"),
    [
        (rename("(.*)", r"\1"), {"aa": target(5, 4)}, "'aa', the reference has no weight of that name; nearest 'a'"),
        (rename("(.*)", r"\1"), {"a": target(5, 3)}, r"'a': B @ A is \(5, 3\), the weight is \(5, 4\)"),
        ((reference_only(r"a\..*", "fused away"), native_only("z", "own")), {"a": target(5, 4)}, "lacks: fused away"),
        (rename("(.*)", r"\1"), {"a": target(5, 4), "a.weight": target(5, 4)}, "name one weight"),
    ],
)
def test_every_target_is_accounted_for(
    rule: Rule | tuple[Rule, ...], targets: dict[str, LoraTarget], words: str
) -> None:
    key_map, shape = KeyMap(rule if isinstance(rule, tuple) else (rule,)), torch.Size([5, 4])
    native = {"z": shape} if isinstance(rule, tuple) else {"a.weight": shape}
    with pytest.raises(LoraError, match=words):
        map_adapter(LoraAdapter("x", targets), key_map, {"a.weight": shape}, native)


def test_rows_that_are_reshaped_are_refused() -> None:
    rule, adapter = KeyMap((rename("(.*)", r"\1", reshape=True),)), LoraAdapter("x", {"a": target(4, 6)})
    with pytest.raises(LoraError, match="its rows are reshaped"):
        map_adapter(adapter, rule, {"a.weight": torch.Size([4, 6])}, {"a.weight": torch.Size([8, 3])})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LoraTarget(torch.ones(4), torch.ones(5, 2), 1.0, "t"), r"needs A \[R, in\]"),
        (lambda: LoraTarget(torch.ones(3, 4), torch.ones(5, 2), 1.0, "t"), "ranks of A"),
        (lambda: LoraTarget(torch.ones(5, 2), torch.ones(2, 4), 1.0, "t"), "they are exchanged"),
        (lambda: LoraTarget(torch.ones(0, 4), torch.ones(5, 0), 1.0, "t"), "empty"),
        (lambda: LoraTarget(torch.ones(2, 4), torch.ones(5, 2), math.nan, "sidecar"), "scaling is nan .from sidecar"),
        (lambda: LoraTarget(torch.full((2, 4), math.inf), torch.ones(5, 2), 1.0, "t"), "A .* holds NaN or inf"),
        (lambda: LoraTarget(torch.ones(2, 4), torch.ones(5, 2).int(), 1.0, "t"), "B holds torch.int32"),
        (lambda: LoraAdapter("x", {}), "no targets"),
    ],
)
def test_a_bad_adapter_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(LoraError, match=words):
        make()
