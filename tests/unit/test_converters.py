"""Existing converter functions and name mappings as key maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from parity.errors import KeyMapError
from parity.weights.keymap import KeyMap, reference_only
from parity.weights.mapping import Replacement


def sizes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


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
        (lambda s: {**convert(s), "patch": s["patch"].flatten().roll(1).view(4, -1)}, "'patch': cuts, joins"),
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
    mapping: dict[str, Replacement] = {"^a$": "b", "^b$": "c", "^f$": ["x", "y"]}
    state = {"a": torch.ones(1), "f": torch.arange(4.0)}
    assert list(KeyMap.from_mapping(mapping).native_tensors(state)) == ["b", "x", "y"]
    assert list(KeyMap.from_mapping(mapping, chained=True).native_tensors(state)) == ["c", "x", "y"]
    with pytest.raises(KeyMapError, match="valid: name"):
        KeyMap.from_mapping({"a": ("b", 1)})  # type: ignore[dict-item]
