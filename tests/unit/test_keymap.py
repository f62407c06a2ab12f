"""Key maps: every rule on values, total both ways, and each way of being wrong named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from parity.errors import KeyMapError
from parity.weights.keymap import KeyMap, Rule, fuse, native_only, reference_only, rename, split

QKV = split(
    r"blocks\.(\d+)\.qkv\.(weight|bias)", (r"layers.\1.to_q.\2", r"layers.\1.to_k.\2", r"layers.\1.to_v.\2")
)
GATE = fuse((r"blocks\.(\d+)\.w1", r"blocks\.(\d+)\.w3"), r"layers.\1.gate_up")
RULES = (
    QKV,
    GATE,
    rename(r"blocks\.(\d+)\.proj", r"layers.\1.out", transpose=True),
    rename(r"blocks\.(\d+)\.norm", r"layers.\1.norm", permute=lambda n: [*range(n // 2, n), *range(n // 2)]),
    rename("patch", "patch", reshape=True),
    rename("scale", "scale"),
    reference_only("rope", "recomputed"),
    native_only(r"mask\d", "a buffer of its own"),
)


def reference() -> dict[str, Tensor]:
    shapes = {"rope": (5,), "scale": (), "patch": (8, 2, 1, 2)}
    for block in range(2):
        parts = {"qkv.weight": (12, 4), "qkv.bias": (12,), "w1": (6, 4), "w3": (5, 4), "proj": (3, 4), "norm": (4,)}
        shapes.update({f"blocks.{block}.{name}": shape for name, shape in parts.items()})
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def native_shapes() -> dict[str, torch.Size]:
    shapes: dict[str, tuple[int, ...]] = {"scale": (), "patch": (8, 4), "mask0": (9,)}
    for block in range(2):
        parts = {f"to_{x}.weight": (4, 4) for x in "qkv"} | {f"to_{x}.bias": (4,) for x in "qkv"}
        parts |= {"gate_up": (11, 4), "out": (4, 3), "norm": (4,)}
        shapes.update({f"layers.{block}.{name}": shape for name, shape in parts.items()})
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def sizes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_every_rule_on_values() -> None:
    state = reference()
    out = KeyMap(RULES).plan(sizes(state), native_shapes()).native_tensors(state)
    assert sizes(out) == {k: v for k, v in native_shapes().items() if k != "mask0"}
    assert torch.equal(out["layers.1.to_k.weight"], state["blocks.1.qkv.weight"][4:8])
    assert torch.equal(out["layers.0.gate_up"], torch.cat((state["blocks.0.w1"], state["blocks.0.w3"])))
    assert torch.equal(out["layers.0.out"], state["blocks.0.proj"].t())
    assert torch.equal(out["layers.0.norm"], state["blocks.0.norm"][[2, 3, 0, 1]])
    assert torch.equal(out["patch"], state["patch"].flatten(1))


def test_views_where_possible() -> None:
    state = reference()
    out = KeyMap(RULES).native_tensors(state)
    shared = {value.untyped_storage().data_ptr() for value in state.values()}
    assert {key.split(".")[-1] for key, v in out.items() if v.untyped_storage().data_ptr() not in shared} == {
        "gate_up", "norm",
    }  # fmt: skip


def test_round_trip_by_shapes_and_by_rules() -> None:
    state = reference()
    plan = KeyMap(RULES).plan(sizes(state), native_shapes())
    del state["rope"]
    assert_same(plan.reference_tensors(plan.native_tensors(state | {"rope": torch.ones(5)})), state)
    simple = KeyMap((QKV, fuse(GATE.patterns, GATE.to[0], sizes=(6, 5)), *RULES[2:4], rename("patch|scale", r"\g<0>")))
    with pytest.raises(KeyMapError, match="no literal or simple group"):
        simple.invert()
    simple = KeyMap((*simple.rules[:-1], rename("(patch|scale)", r"m.\1")))
    assert_same(simple.invert().native_tensors(simple.native_tensors(state)), state)
    assert_same(simple.invert().invert().native_tensors(state), simple.native_tensors(state))


def test_sources_and_pieces_tell_where_values_come_from() -> None:
    plan = KeyMap(RULES).plan(sizes(reference()), native_shapes())
    assert plan.sources_of("layers.1.to_v.bias") == [("blocks.1.qkv.bias", 0, 8, 12, False, None)]
    assert [s.reference_key for s in plan.sources_of("layers.0.gate_up")] == ["blocks.0.w1", "blocks.0.w3"]
    assert [p.native for p in plan.pieces_of("blocks.0.qkv.bias")] == [f"layers.0.to_{x}.bias" for x in "qkv"]
    assert [(p.native_start, p.native_stop) for p in plan.pieces_into("layers.0.gate_up")] == [(0, 6), (6, 11)]
    assert plan.reference_only == {"rope": "recomputed"}
    assert plan.native_only == {"mask0": "a buffer of its own"}


def test_first_matching_rule_wins_and_unused_rules_are_told() -> None:
    key_map = KeyMap((rename("a", "x"), rename("(a|b)", r"y.\1"), rename("never", "z")))
    plan = key_map.plan({"a": torch.Size([1]), "b": torch.Size([1])}, {"x": torch.Size([1]), "y.b": torch.Size([1])})
    assert list(plan.pieces) == ["x", "y.b"]
    assert [str(rule) for rule in plan.unused] == ["rename(never)"]


Change = Callable[[dict[str, torch.Size], dict[str, torch.Size]], None]


def drop_key(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    del native["layers.0.to_q.weight"]


def extra_reference(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    reference["blocks.0.qkv.weights"] = torch.Size([1])


def extra_native(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    native["layers.0.to_qq.weight"] = torch.Size([1])


def other_shape(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    native["layers.1.out"] = torch.Size([3, 4])


def unsplittable(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    reference["blocks.0.qkv.weight"] = torch.Size([13, 4])


def missing_part(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    del reference["blocks.1.w3"]


def other_numel(reference: dict[str, torch.Size], native: dict[str, torch.Size]) -> None:
    native["patch"] = torch.Size([8, 5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_key, r"1 keys produced that the native lacks: 'layers.0.to_q.weight' \(nearest 'layers.1.to_q.weight'"),
        (extra_reference, r"1 reference keys no rule matches: 'blocks.0.qkv.weights'"),
        (extra_native, r"1 native keys no rule produces: 'layers.0.to_qq.weight' \(nearest 'layers.0.to_q.weight'"),
        (other_shape, r"'layers.1.out' is \(3, 4\), the map gives \(4, 3\) from 'blocks.1.proj'"),
        (unsplittable, "'blocks.0.qkv.weight' .* dim 0 of size 13 does not split into 3 equal parts"),
        (missing_part, r"'layers.1.gate_up' got parts \[0\] of 2, from 'blocks.1.w1'"),
        (other_numel, r"'patch' is \(8, 5\), the map gives \(8, 2, 1, 2\)"),
    ],
)
def test_what_is_left_out_is_named(change: Change, words: str) -> None:
    there, here = sizes(reference()), native_shapes()
    KeyMap(RULES).check(there, here)
    change(there, here)
    with pytest.raises(KeyMapError, match=words) as error:
        KeyMap(RULES).check(there, here)
    assert len(str(error.value).splitlines()) <= 5


def test_many_problems_stay_within_five_lines() -> None:
    there = {f"z{i}": torch.Size([1]) for i in range(50)} | sizes(reference())
    here = {f"y{i}": torch.Size([1]) for i in range(50)} | native_shapes()
    for change in (drop_key, other_shape, unsplittable):
        change(there, here)
    with pytest.raises(KeyMapError, match="50 reference keys no rule matches") as error:
        KeyMap(RULES).check(there, here)
    assert 4 <= len(str(error.value).splitlines()) <= 5
    assert max(map(len, str(error.value).splitlines())) < 400


def test_a_native_key_produced_twice_or_though_declared_absent() -> None:
    one = torch.Size([1])
    with pytest.raises(KeyMapError, match="'x' is produced twice, from 'a' and 'b'"):
        KeyMap((rename("a|b", "x"),)).native_tensors({"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(KeyMapError, match="'x' is produced and declared native_only"):
        KeyMap((rename("a", "x"), native_only("x", "because"))).check({"a": one}, {"x": one})


def test_native_tensors_never_drops_an_unmatched_key() -> None:
    with pytest.raises(KeyMapError, match="'b'"):
        KeyMap((rename("a", "x"),)).native_tensors({"a": torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: rename("(", "x"), "no regular expression"),
        (lambda: split("a", ("x",)), "at least two parts"),
        (lambda: split("a", ("x", "y"), sizes=(1, 2, 3)), "3 sizes for 2 parts"),
        (lambda: fuse(("(a)", "b"), "x"), "same groups"),
        (lambda: reference_only("a", ""), "needs a reason"),
        (lambda: rename("a", r"\1").routes("a"), "does not fit pattern"),
    ],
)
def test_a_bad_rule_is_refused(make: Callable[[], Rule], words: str) -> None:
    with pytest.raises(KeyMapError, match=words):
        make()


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1], [1, 2, 3]])
def test_a_permutation_that_is_none(order: list[int]) -> None:
    with pytest.raises(KeyMapError, match="no permutation of its 3 rows"):
        KeyMap((rename("a", "x", permute=lambda n: order),)).native_tensors({"a": torch.ones(3)})


def test_sizes_that_do_not_sum() -> None:
    with pytest.raises(KeyMapError, match=r"sizes \(1, 1\) sum to 2, dim 0 has 3"):
        KeyMap((split("a", ("x", "y"), sizes=(1, 1)),)).native_tensors({"a": torch.ones(3)})
    fused = KeyMap((fuse(("a", "b"), "x", sizes=(1, 2)),))
    with pytest.raises(KeyMapError, match=r"the parts have sizes \(2, 1\) along dim 0, the rule says \(1, 2\)"):
        fused.native_tensors({"a": torch.ones(2), "b": torch.ones(1)})
