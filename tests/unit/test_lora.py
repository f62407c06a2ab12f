"""Adapters: the normal form, and the way through a key map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from parity.errors import LoraError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.dora import change_of
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


def of_rows(out: int, into: int, seed: int) -> LoraTarget:
    generator = torch.Generator().manual_seed(seed)
    m, bias = 1 + torch.rand(out, generator=generator), torch.randn(out, generator=generator)
    return replace(target(out, into, seed=seed), magnitude=m, bias=bias)


@pytest.mark.parametrize(
    ("rule", "targets", "reference"),
    [
        (rename("(.*)", r"\1", permute=lambda n: [2, 0, 1]), {"a": of_rows(3, 4, 1)}, {"a.weight": (3, 4)}),
        (SPLIT, {"qkv": of_rows(12, 4, 1)}, {"qkv.weight": (12, 4)}),
        (FUSE, {"q": of_rows(6, 4, 1), "k": of_rows(2, 4, 2), "v": of_rows(2, 4, 3)}, PARTS),
        (rename("a(.*)", r"b\1"), {"a": replace(target(5, 4), magnitude=torch.rand(1, 4))}, {"a.weight": (5, 4)}),
    ],
    ids=["permuted", "split", "fused", "by_input"],
)
def test_magnitudes_and_biases_follow_their_rows(
    rule: Rule, targets: dict[str, LoraTarget], reference: dict[str, tuple[int, ...]]
) -> None:
    """The changed weight of each native layer is the mapped changed weight of the reference's, and so are biases."""
    key_map = KeyMap((rule,))
    generator = torch.Generator().manual_seed(7)
    base = {key: torch.randn(size, generator=generator, dtype=torch.float64) for key, size in reference.items()}
    changed = {key: w + change_of(targets[key.removesuffix(".weight")], w) for key, w in base.items()}
    native, wanted = key_map.native_tensors(base), key_map.native_tensors(changed)
    there, here = ({key: value.shape for key, value in held.items()} for held in (base, native))
    found = map_adapter(LoraAdapter("x", targets), key_map, there, here).targets
    ones = {k: torch.zeros(v.shape, dtype=torch.float64) for k, v in base.items()}
    biases = {path: one.bias for path, one in targets.items() if one.bias is not None}
    gains = key_map.native_tensors({k: v + biases[k[:-7]][:, None] if k[:-7] in biases else v for k, v in ones.items()})
    for key, weight in native.items():
        one = found[key.removesuffix(".weight")]
        torch.testing.assert_close(weight + change_of(one, weight), wanted[key], rtol=1e-5, atol=1e-6)
        if one.bias is not None:
            torch.testing.assert_close(one.bias.double(), gains[key][:, 0])
    assert biases.keys() == {path for path in targets if targets[path].bias is not None}


_M, _BIAS = {"a": replace(target(5, 4), magnitude=torch.rand(5))}, {"a": replace(target(5, 4), bias=torch.rand(5))}
_BY_INPUT = {"qkv": replace(target(12, 4), magnitude=torch.rand(1, 4))}


@pytest.mark.parametrize(
    ("rule", "targets", "reference", "words"),
    [
        (rename(r"a\.weight", "b.weight", transpose=True), _M, {"a.weight": (5, 4)}, "its transpose"),
        (rename(r"a\.weight", "b.weight", transpose=True), _BIAS, {"a.weight": (5, 4)}, "a bias that cannot"),
        (split(r"a\.weight", ("x", "y"), dim=1, sizes=(1, 3)), _M, {"a.weight": (5, 4)}, "takes columns 0 to 1 only"),
        (SPLIT, _BY_INPUT, {"qkv.weight": (12, 4)}, "lengths of whole columns"),
        (FUSE, {"q": of_rows(6, 4, 1), "k": target(2, 4)}, PARTS, "of which 1 have magnitudes"),
        (FUSE_COLUMNS, {"l": of_rows(5, 4, 1), "r": of_rows(5, 3, 2)}, COLUMNS, "which become longer"),
    ],
)
def test_rows_that_do_not_stay_whole_are_refused(
    rule: Rule, targets: dict[str, LoraTarget], reference: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(LoraError, match=words):
        mapped(rule, targets, reference)


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
