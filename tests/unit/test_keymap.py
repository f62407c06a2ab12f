"""Key maps: every rule on values, total both ways, and each way of being wrong named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from parity.errors import KeyMapError, ParityError, UsageError
from parity.registry import Registry
from parity.weights.keymap import KeyMap, Rule, fuse, native_only, reference_only, rename, split
from parity.weights.load import finer_sources, load_native
from parity.weights.source import StateDictSource, TensorSource, shapes_of

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
        parts |= {"gate_up": (11, 4), "out": (4, 3), "norm": (4,)}  # type: ignore[dict-item]
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
        (drop_key, r"1 keys produced that the native lacks: 'layers.0.to_q.weight' \(nearest 'layers.0.to_"),
        (extra_reference, r"1 reference keys no rule matches: 'blocks.0.qkv.weights'"),
        (extra_native, r"1 native keys no rule produces: 'layers.0.to_qq.weight' \(nearest 'layers.0.to_q.weight'"),
        (other_shape, r"'layers.1.out' is \(3, 4\), the map gives \(4, 3\) from 'blocks.1.proj'"),
        (unsplittable, "'blocks.0.qkv.weight' .* dim 0 of size 13 does not split into 3 equal parts"),
        (missing_part, r"'layers.1.gate_up' got parts \[0\] of 2, from 'blocks.1.w1'"),
        (other_numel, r"'patch' is \(8, 5\), the map gives \(8, 2, 1, 2\)"),
    ],
)
def test_what_is_left_out_is_named(change: Callable[[dict[str, torch.Size], dict[str, torch.Size]], None], words: str) -> None:  # fmt: skip  # noqa: E501
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
    assert len(str(error.value).splitlines()) == 5
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
    with pytest.raises(KeyMapError, match=r"the parts have sizes \(2, 1\) along dim 0, the rule says \(1, 2\)"):
        fused = KeyMap((fuse(("a", "b"), "x", sizes=(1, 2)),))
        fused.native_tensors({"a": torch.ones(2), "b": torch.ones(1)})


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    heads = state["qkv"].view(2, 3, 2, 4)
    return {
        "q": heads[:, 0].reshape(4, 4),
        "kv": torch.cat((heads[:, 1].reshape(4, 4), heads[:, 2].reshape(4, 4))),
        "bias": state["bias"].view(2, 3).t().flatten(),
        "out": state["out"].t(),
        "wide": torch.cat((state["left"], state["right"]), dim=1),
        "patch": state["patch"].flatten(1),
        "left_half": state["both"][:, :3],
        "right_half": state["both"][:, 3:],
        "scale": state["scale"],
    }


def converted() -> dict[str, Tensor]:
    shapes = {"qkv": (12, 4), "bias": (6,), "out": (3, 4), "left": (3, 2), "right": (3, 5), "patch": (4, 2, 2)}
    shapes |= {"scale": (), "both": (4, 6)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_a_converter_function_is_read_off() -> None:
    state = converted()
    key_map = KeyMap.from_function(convert)
    plan = key_map.plan(sizes(state), sizes(convert(state)))
    assert_same(key_map.native_tensors(state), convert(state))
    assert_same(plan.native_tensors(state), convert(state))
    assert_same(plan.reference_tensors(convert(state)), state)
    assert plan.sources_of("q") == [("qkv", 0, 0, 2, False, None), ("qkv", 0, 6, 8, False, None)]
    assert plan.sources_of("bias")[0].permute == (0, 3, 1, 4, 2, 5)
    assert plan.sources_of("right_half") == [("both", 1, 3, 6, False, None)]
    with pytest.raises(KeyMapError, match="no inverse"):
        key_map.invert()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**convert(s), "scale": s["scale"] * 2}, "'scale': it computes with values"),
        (lambda s: {**convert(s), "out": s["out"].t().float()}, "'out': it casts values"),
        (lambda s: {**convert(s), "patch": s["patch"].transpose(1, 2).flatten(1)}, "'patch': cuts, joins"),
        (lambda s: {k: v for k, v in convert(s).items() if k != "out"}, "no rule matches: 'out'"),
        (lambda s: {**convert(s), "q": s["qkv"][:4], "kv": s["qkv"][4:10]}, "drops part of 'qkv': 10 of 12"),
        (lambda s: {**convert(s), "out": s["missing"]}, "KeyError: 'missing'"),
    ],
)
def test_a_converter_that_cannot_be_read(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str) -> None:
    state = converted()
    with pytest.raises(KeyMapError, match=words):
        KeyMap.from_function(change).plan(sizes(state), sizes(convert(state)))


def test_a_converter_with_declared_keys() -> None:
    state = converted() | {"rope": torch.ones(2)}
    key_map = KeyMap.from_function(convert, reference_only("rope", "recomputed"))
    assert key_map.plan(sizes(state), sizes(convert(state))).reference_only == {"rope": "recomputed"}


def test_an_existing_mapping_with_fused_parts_and_keys_that_keep_their_name() -> None:
    mapping = {rf"^b\.(\d+)\.to_{x}\.(.*)$": (r"b.\1.qkv.\2", i, 3) for i, x in enumerate("qkv")}
    state = {f"b.0.to_{x}.weight": torch.randn(2, 4) for x in "qkv"} | {"same": torch.ones(1), "o.w": torch.ones(2)}
    out = KeyMap.from_mapping({**mapping, r"^o\.": "out."}).native_tensors(state)
    assert list(out) == ["b.0.qkv.weight", "same", "out.w"]
    assert torch.equal(out["b.0.qkv.weight"], torch.cat([state[f"b.0.to_{x}.weight"] for x in "qkv"]))
    with pytest.raises(KeyMapError, match=r"got parts \[0, 1\] of 3"):
        KeyMap.from_mapping({**mapping}).native_tensors({k: v for k, v in state.items() if "to_v" not in k})


def test_an_existing_mapping_chained_or_with_a_list() -> None:
    mapping = {"^a$": "b", "^b$": "c", "^f$": ["x", "y"]}
    state = {"a": torch.ones(1), "f": torch.arange(4.0)}
    assert list(KeyMap.from_mapping(mapping).native_tensors(state)) == ["b", "x", "y"]  # type: ignore[arg-type]
    assert list(KeyMap.from_mapping(mapping, chained=True).native_tensors(state)) == ["c", "x", "y"]  # type: ignore[arg-type]
    with pytest.raises(KeyMapError, match="valid: name"):
        KeyMap.from_mapping({"a": ("b", 1)})  # type: ignore[dict-item]


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({f"to_{x}": nn.Linear(4, 4) for x in "qkv"}) for _ in range(2))
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("cache", torch.zeros(3), persistent=False)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(4, 12)}) for _ in range(2))
        self.register_buffer("scale", torch.randn(3))


MODEL_MAP = KeyMap((split(r"blocks\.(\d)\.qkv\.(.*)", tuple(rf"blocks.\1.to_{x}.\2" for x in "qkv")), rename("scale", "scale")))  # fmt: skip  # noqa: E501


def test_load_copies_parameters_and_buffers_in_the_natives_dtype() -> None:
    native, there = Split().bfloat16(), Fused()
    report = load_native(native, there, MODEL_MAP)
    assert torch.equal(native.state_dict()["scale"], there.state_dict()["scale"].bfloat16())
    assert len(report.copied) == 13
    assert report.cast["scale"] == (torch.float32, torch.bfloat16)
    found = finer_sources(native, there, MODEL_MAP)
    assert all(one.equal and one.finer is not None and not one.differs for one in found.values())
    finer = found["blocks.1.to_k.weight"].finer
    assert finer is not None
    assert torch.equal(finer, there.state_dict()["blocks.1.qkv.weight"][4:8])


def test_the_native_may_be_the_finer_side() -> None:
    native, there = Split(), Fused()
    load_native(native, there, MODEL_MAP)
    found = finer_sources(native, there.bfloat16(), MODEL_MAP)["blocks.0.to_q.weight"]
    assert (found.equal, found.native_finer, found.differs) == (False, True, False)


def test_swapped_weights_are_named() -> None:
    native, there = Split().bfloat16(), Fused()
    load_native(native, there, MODEL_MAP)
    state = native.state_dict()
    kept = state["blocks.1.to_q.weight"].clone()
    state["blocks.1.to_q.weight"].copy_(state["blocks.1.to_k.weight"])
    state["blocks.1.to_k.weight"].copy_(kept)
    state["blocks.0.to_v.weight"].mul_(1.5)
    found = {key: one for key, one in finer_sources(native, there, MODEL_MAP).items() if one.differs}
    assert {key: one.swapped_with for key, one in found.items()} == {
        "blocks.1.to_q.weight": "blocks.1.to_k.weight",
        "blocks.1.to_k.weight": "blocks.1.to_q.weight",
        "blocks.0.to_v.weight": None,
    }
    assert found["blocks.0.to_v.weight"].rel_l2 == pytest.approx(0.5, rel=0.01)


def test_swapped_parts_of_a_fused_weight_are_named() -> None:
    there, native = Split(), Fused()
    key_map = MODEL_MAP.invert()
    load_native(native, there, key_map)
    weight = native.state_dict()["blocks.0.qkv.weight"]
    weight.copy_(weight[[*range(4, 8), *range(4), *range(8, 12)]])
    found = finer_sources(native, there, key_map)["blocks.0.qkv.weight"]
    assert found.swapped_with == "blocks.0.to_k.weight"


def test_constant_tensors_name_no_swap() -> None:
    native, there = Split(), Fused()
    load_native(native, there, MODEL_MAP)
    for key in ("to_q.bias", "to_k.bias"):
        native.state_dict()[f"blocks.0.{key}"].zero_()
    there.state_dict()["blocks.0.qkv.bias"][4:8] = 0
    assert finer_sources(native, there, MODEL_MAP)["blocks.0.to_q.bias"].swapped_with is None


def test_loading_refuses_what_would_be_lost() -> None:
    with pytest.raises(KeyMapError, match="native are on the meta device"):
        load_native(Split().to("meta"), Fused(), MODEL_MAP)
    native = Split()
    native.blocks[0].to_k.weight = native.blocks[0].to_q.weight  # type: ignore[union-attr]
    with pytest.raises(KeyMapError, match=r"ties 'blocks.0.to_q.weight' and 'blocks.0.to_k.weight'"):
        load_native(native, Fused(), MODEL_MAP)
    with pytest.raises(KeyMapError, match="no rule matches: 'scale'"):
        load_native(Split(), Fused(), KeyMap(MODEL_MAP.rules[:1]))


def test_a_state_dict_is_a_tensor_source() -> None:
    source = StateDictSource({"a": torch.arange(6.0).view(3, 2), "extra": "text"})
    assert isinstance(source, TensorSource)
    assert shapes_of(source) == {"a": torch.Size([3, 2])}
    assert source.get_slice("a", 1, 3).tolist() == [[2, 3], [4, 5]]
    with pytest.raises(UsageError, match="did you mean 'a'"):
        StateDictSource({"a": torch.ones(1)}).get_tensor("aa")
    with pytest.raises(UsageError, match="rows 2 to 4"):
        source.get_slice("a", 2, 4)


def test_registry_names_are_unique() -> None:
    registry = Registry[int]("thing")
    registry.register("one")(1)
    with pytest.raises(ParityError, match="two entries named 'one' among things"):
        registry.add("one", 2)
    with pytest.raises(UsageError, match="did you mean 'one'"):
        registry["onne"]
