"""Loading through a key map, and what each side really holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parity.errors import KeyMapError, ParityError, UsageError
from parity.registry import Registry, discover
from parity.weights.keymap import KeyMap, rename, split
from parity.weights.load import compared_weights, load_native
from parity.weights.source import StateDictSource, TensorSource, shapes_of


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


QKV = split(r"blocks\.(\d)\.qkv\.(.*)", tuple(rf"blocks.\1.to_{x}.\2" for x in "qkv"))
MODEL_MAP = KeyMap((QKV, rename("scale", "scale")))


def test_load_copies_parameters_and_buffers_in_the_natives_dtype() -> None:
    native, there = Split().bfloat16(), Fused()
    report = load_native(native, there, MODEL_MAP)
    assert torch.equal(native.state_dict()["scale"], there.state_dict()["scale"].bfloat16())
    assert len(report.copied) == 13
    assert report.cast["scale"] == (torch.float32, torch.bfloat16)
    found = compared_weights(native, there, MODEL_MAP)[1]
    assert all(one.equal and one.finer is not None and not one.differs for one in found.values())
    finer = found["blocks.1.to_k.weight"].finer
    assert finer is not None
    assert torch.equal(finer, there.state_dict()["blocks.1.qkv.weight"][4:8])


def test_the_native_may_be_the_finer_side() -> None:
    native, there = Split(), Fused()
    load_native(native, there, MODEL_MAP)
    found = compared_weights(native, there.bfloat16(), MODEL_MAP)[1]["blocks.0.to_q.weight"]
    assert (found.equal, found.native_finer, found.differs) == (False, True, False)


def test_swapped_weights_are_named() -> None:
    native, there = Split().bfloat16(), Fused()
    load_native(native, there, MODEL_MAP)
    state = native.state_dict()
    kept = state["blocks.1.to_q.weight"].clone()
    state["blocks.1.to_q.weight"].copy_(state["blocks.1.to_k.weight"])
    state["blocks.1.to_k.weight"].copy_(kept)
    state["blocks.0.to_v.weight"].mul_(1.5)
    found = {key: one for key, one in compared_weights(native, there, MODEL_MAP)[1].items() if one.differs}
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
    found = compared_weights(native, there, key_map)[1]["blocks.0.qkv.weight"]
    assert found.swapped_with == "blocks.0.to_k.weight"


def test_constant_tensors_name_no_swap() -> None:
    native, there = Split(), Fused()
    load_native(native, there, MODEL_MAP)
    for key in ("to_q.bias", "to_k.bias"):
        native.state_dict()[f"blocks.0.{key}"].zero_()
    there.state_dict()["blocks.0.qkv.bias"][4:8] = 0
    assert compared_weights(native, there, MODEL_MAP)[1]["blocks.0.to_q.bias"].swapped_with is None


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


def test_discovery_imports_every_module() -> None:
    assert "parity.weights.keymap" in discover("parity.weights")
