"""Heads that a port repeats: recognised, said by the key map, and exact both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from fixtures.checkpoints import State, Trained, noisy
from fixtures.matching import matched, planned
from parity.cli import app
from parity.errors import KeyMapError
from parity.weights.keymap import KeyMap, rename
from parity.weights.orders import repeated

HEADS, TIMES, SIZE, C = 3, 2, 32, 96
Repeat = Callable[[Tensor], Tensor]


def by_head(value: Tensor) -> Tensor:
    out: Tensor = value.unflatten(0, (HEADS, -1)).repeat_interleave(TIMES, 0).flatten(0, 1)
    return out


def whole(value: Tensor) -> Tensor:
    return torch.cat([value] * TIMES)


def reference(seed: int = 0) -> State:
    made = Trained(seed)
    state: State = {}
    for block in range(2):
        at = f"blocks.{block}.attn"
        state |= made.linear(f"{at}.q", HEADS * TIMES * SIZE, C)
        state |= made.linear(f"{at}.k", HEADS * SIZE, C) | made.linear(f"{at}.v", HEADS * SIZE, C)
        state |= {f"{at}.norm_k.weight": made.gain(HEADS * SIZE)}
    return state


def native(state: State, repeat: Repeat) -> State:
    """The port: block 0 with k and v apart, block 1 with all in one."""
    out = {"layers.0.to_q.weight": state["blocks.0.attn.q.weight"], "layers.0.to_q.bias": state["blocks.0.attn.q.bias"]}
    for name in ("weight", "bias"):
        parts = [state[f"blocks.1.attn.{x}.{name}"] for x in "qkv"]
        out[f"layers.1.qkv.{name}"] = torch.cat([parts[0], *map(repeat, parts[1:])])
        out |= {f"layers.0.to_{x}.{name}": repeat(state[f"blocks.0.attn.{x}.{name}"]) for x in "kv"}
    return {**out, **{f"layers.{n}.k_norm.weight": repeat(state[f"blocks.{n}.attn.norm_k.weight"]) for n in range(2)}}


@pytest.mark.parametrize("repeat", [by_head, whole])
def test_repeated_heads_are_found_and_mapped_both_ways(repeat: Repeat) -> None:
    ours = reference()
    theirs = native(ours, repeat)
    entries = matched(ours, theirs)
    relations = {entry["reference"]: entry["relation"] for entry in entries}
    assert relations["blocks.0.attn.k.weight"] == relations["blocks.0.attn.norm_k.weight"] == "repeat"
    assert relations["blocks.1.attn.v.bias"] == "fuse + repeat"
    words = {"repeat": TIMES, "size": SIZE if repeat is by_head else HEADS * SIZE}
    assert {str(e["permutation"]) for e in entries if "repeat" in e["relation"]} == {str(words)}
    plan = planned(entries, ours, theirs)
    made, back = plan.native_tensors(ours), plan.reference_tensors(theirs)
    assert all(torch.equal(made[key], theirs[key]) for key in theirs)
    assert all(torch.equal(back[key], ours[key]) for key in ours)


@pytest.mark.parametrize("repeat", [by_head, whole])
def test_noise_and_casts_do_not_hide_repeated_heads(repeat: Repeat) -> None:
    ours = reference(1)
    theirs = native(ours, repeat)
    tuned = {key: (noisy(value, 0.3, n) if value.ndim > 1 else value).bfloat16()
             for n, (key, value) in enumerate(theirs.items())}  # fmt: skip
    made = planned(matched(ours, tuned), ours, tuned).native_tensors(ours)
    assert all(torch.equal(made[key], theirs[key]) for key in theirs)


def test_copies_that_were_changed_have_no_way_back() -> None:
    ours = reference()
    theirs = native(ours, by_head)
    plan = planned(matched(ours, theirs), ours, theirs)
    theirs["layers.0.to_k.weight"][SIZE + 1, 0] += 1
    with pytest.raises(KeyMapError, match=r"rows of 'layers.0.to_k.weight' that repeat .* differ: row 33 first"):
        plan.reference_tensors(theirs)


def test_verify_takes_repeated_heads_and_names_the_wrong_repetition(tmp_path: Path) -> None:
    ours = {"k.weight": reference()["blocks.0.attn.k.weight"]}
    rule = {"rename": ["k.weight", "to_k.weight"], "permute": {"repeat": TIMES, "size": SIZE}}
    key_map = {"schema": "dit-parity-key-map", "schema_version": 1, "rules": [rule]}
    (tmp_path / "map.json").write_text(json.dumps(key_map), encoding="utf-8")
    save_file(ours, tmp_path / "a.safetensors")
    words = ["weights", "verify", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--map",
             str(tmp_path / "map.json")]  # fmt: skip
    for repeat, code, said in ((by_head, 0, "every tensor is exact"), (whole, 1, "the right rows in another order")):
        save_file({"to_k.weight": repeat(ours["k.weight"])}, tmp_path / "b.safetensors")
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, said in result.stdout) == (code, True), result.output


def test_converters_and_rules_may_repeat_rows() -> None:
    state = {"k": torch.arange(float(HEADS * SIZE))}
    shapes = {"k": state["k"].shape}, {"to_k": torch.Size([HEADS * SIZE * TIMES])}
    rule = rename("k", "to_k", permute=lambda n: repeated(TIMES * n, TIMES, SIZE).tolist())
    for key_map in (KeyMap((rule,)), KeyMap.from_function(lambda held: {"to_k": by_head(held["k"])})):
        plan = key_map.plan(*shapes)
        assert torch.equal(plan.native_tensors(state)["to_k"], by_head(state["k"]))
        assert torch.equal(plan.reference_tensors({"to_k": by_head(state["k"])})["k"], state["k"])
    with pytest.raises(KeyMapError, match="rows are repeated"):
        KeyMap((rule,)).invert().plan(shapes[1], shapes[0])
