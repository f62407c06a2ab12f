"""Matching by value: every relation at every noise gives the map that makes the native, and nothing is invented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.checkpoints import (
    State,
    Trained,
    diffusers_like,
    diffusers_name,
    fastvideo_like,
    longcat_like,
    noisy,
    per_head,
    shuffled,
    to_half_split,
    wan_like,
)
from parity.commands.weights.key_map import mapped
from parity.errors import KeyMapError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.mapping import map_adapter
from parity.weights.mapfile import key_map_from
from parity.weights.matching.matcher import Entry, Matcher, Options
from parity.weights.source import StateDictSource

HEADS = 4


def matched(reference: State, native: State, **options: Any) -> list[Entry]:
    return list(Matcher(StateDictSource(reference), StateDictSource(native), Options(**options)).entries())


def converted(entries: list[Entry], reference: State, native: State) -> dict[str, Tensor]:
    """What the map that follows from the entries makes of the reference."""
    shapes = {"reference": {k: list(v.shape) for k, v in reference.items()}}
    shapes["native"] = {k: list(v.shape) for k, v in native.items()}
    key_map = key_map_from(mapped({"matches": entries, "shapes": shapes}, 0))
    sizes = [{k: v.shape for k, v in side.items()} for side in (reference, native)]
    return key_map.plan(*sizes).native_tensors(reference)


def part(state: State, x: str, block: int = 0, attention: str = "self_attn", name: str = "weight") -> Tensor:
    return state[f"blocks.{block}.{attention}.{x}.{name}"]


def qkv(state: State, block: int = 0) -> list[Tensor]:
    return [part(state, x, block) for x in "qkv"]


RELATIONS: dict[str, tuple[str, Callable[[State], Tensor]]] = {
    "rename": ("rename", lambda s: part(s, "q")),
    "qkv": ("fuse", lambda s: torch.cat(qkv(s))),
    "qkv per head": ("fuse", lambda s: per_head(qkv(s), HEADS)),
    "vkq": ("fuse", lambda s: torch.cat(qkv(s)[::-1])),
    "kv": ("fuse", lambda s: torch.cat(qkv(s)[1:])),
    "gqa": ("fuse + split", lambda s: torch.cat([part(s, "q"), part(s, "k")[:16], part(s, "v")[:16]])),
    "up and gate": ("fuse", lambda s: torch.cat([s["blocks.1.ffn.0.weight"], s["blocks.0.ffn.0.weight"]])),
    "columns fused": ("fuse", lambda s: torch.cat([part(s, "o"), part(s, "o", 1)], dim=1)),
    "split": ("split", lambda s: part(s, "q")[16:48]),
    "transposed": ("transpose", lambda s: part(s, "o").t().contiguous()),
    "transposed ffn": ("transpose", lambda s: s["blocks.0.ffn.0.weight"].t().contiguous()),
    "half-split rope": ("permute rows", lambda s: to_half_split(part(s, "q"), HEADS)),
    "rope inside qkv": (
        "fuse + permute rows",
        lambda s: torch.cat([*(to_half_split(t, HEADS) for t in qkv(s)[:2]), part(s, "v")]),
    ),
    "heads shuffled": ("permute rows", lambda s: shuffled(part(s, "q"), 8)),
    "heads shuffled on columns": ("permute columns", lambda s: shuffled(part(s, "o"), 8, 1)),
    "conv as linear": ("reshape", lambda s: s["patch_embedding.weight"].flatten(1)),
    "table": ("rename", lambda s: s["blocks.1.modulation"]),
    "table flat": ("reshape", lambda s: s["blocks.1.modulation"].flatten()),
}


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("name", RELATIONS)
def test_a_relation_at_a_noise(name: str, noise: float) -> None:
    relation, make = RELATIONS[name]
    reference = wan_like(2)
    right = make(reference)
    native = {"found": noisy(right, noise) if noise else right, "noise": Trained(99).matrix(64, 64)}
    native["beside"] = part(reference, "v", 1)  # vouches for what is small and of its block
    entries = [entry for entry in matched(reference, native) if entry["native"] not in (None, "beside")]
    assert {entry["native"] for entry in entries} == {"found"}
    assert {entry["relation"] for entry in entries} <= {relation, "fuse", "fuse + split"}
    assert relation in {entry["relation"] for entry in entries} or "fuse" in relation
    used = {entry["reference"] for entry in entries}
    made = converted(entries, {key: value for key, value in reference.items() if key in used}, {"found": right}) \
        if "split" not in relation else {"found": right}  # fmt: skip
    assert torch.equal(made["found"], right)
    assert min(entry["cosine"] for entry in entries) > 0.85 if noise == 0.3 else 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("make", "port"), [(wan_like, diffusers_like), (longcat_like, fastvideo_like)])
def test_a_whole_model_gives_the_exact_map(
    make: Callable[..., State], port: Callable[[State], State], seed: int
) -> None:
    reference = make(12 if seed == 0 else 3, seed=seed)
    right = port(reference)
    native = {key: value.bfloat16() for key, value in right.items()}
    entries = matched(reference, native)
    made = converted(entries, reference, native)
    assert made.keys() == right.keys()
    assert [key for key in right if not torch.equal(made[key], right[key])] == []
    assert {entry["confidence"] for entry in entries} == {"high"}


def test_names_without_any_pattern_are_no_obstacle() -> None:
    reference = longcat_like(2)
    right = {f"t{(7 * n) % 97}": value for n, value in enumerate(fastvideo_like(reference).values())}
    made = converted(matched(reference, right), reference, right)
    assert [key for key in right if not torch.equal(made[key], right[key])] == []


def test_biases_follow_their_weights() -> None:
    reference = wan_like(2)
    native = {}
    for name in ("weight", "bias"):
        q, k, v = (part(reference, x, name=name) for x in "qkv")
        native[f"a.qkv.{name}"] = per_head([to_half_split(q, HEADS), to_half_split(k, HEADS), v], HEADS)
    used = {k: v for k, v in reference.items() if k.startswith(tuple(f"blocks.0.self_attn.{x}." for x in "qkv"))}
    made = converted(matched(used, native), used, native)
    assert [key for key in native if not torch.equal(made[key], native[key])] == []


def test_a_weak_part_of_a_fused_tensor_is_found_too() -> None:
    reference = wan_like(2)
    for x, scale in (("q", 6.0), ("v", 0.2)):
        reference[f"blocks.0.self_attn.{x}.weight"] *= scale
    used = {f"blocks.0.self_attn.{x}.weight": part(reference, x) for x in "qkv"}
    native = {"qkv": per_head(qkv(reference), HEADS)}
    assert torch.equal(converted(matched({**reference}, native)[:3], used, native)["qkv"], native["qkv"])


def test_one_map_serves_weights_and_lora() -> None:
    made, reference = Trained(3), longcat_like(2)
    native = fastvideo_like(reference)
    for block in range(2):
        for x in "qk":
            key = f"blocks.{block}.self_attn.to_{x}.weight"
            native[key] = to_half_split(native[key], HEADS)
    sizes = [{k: v.shape for k, v in side.items()} for side in (reference, native)]
    named = zip(("reference", "native"), sizes, strict=True)
    shapes = {side: {k: list(v) for k, v in held.items()} for side, held in named}
    key_map = key_map_from(mapped({"matches": matched(reference, native), "shapes": shapes}, 0))
    target = LoraTarget(made.normal(4, 64), made.normal(192, 4), 2.0, "alpha / r")
    adapter = map_adapter(LoraAdapter("a", {"blocks.1.attn.qkv": target}), key_map, *sizes)
    changed = dict(reference)
    changed["blocks.1.attn.qkv.weight"] = reference["blocks.1.attn.qkv.weight"] + 2.0 * target.B @ target.A
    wanted = key_map.plan(*sizes).native_tensors(changed)
    for x in "qkv":
        key = f"blocks.1.self_attn.to_{x}"
        delta = adapter.targets[key].scaling * adapter.targets[key].B @ adapter.targets[key].A
        assert torch.allclose(native[f"{key}.weight"] + delta, wanted[f"{key}.weight"], atol=1e-5)


def test_little_memory_means_more_reading_not_less_found() -> None:
    made = Trained(8)
    reference = {"a": made.matrix(80, 640), "b": made.matrix(512, 96)}
    native = {"turned": reference["a"].t().contiguous(), "other": reference["b"]}
    entries = matched(reference, native, budget=300_000)
    assert {(e["reference"], e["native"], e["cosine"]) for e in entries} == {("a", "turned", 1.0), ("b", "other", 1.0)}


def test_what_was_not_searched_for_want_of_memory_is_said() -> None:
    made = Trained(9)
    reference = {"a": made.matrix(64, 64), "b": made.matrix(64, 64)}
    native = {"turned": reference["b"].t().contiguous()}
    matcher = Matcher(StateDictSource(reference), StateDictSource(native), Options(budget=30_000))
    assert {entry["relation"] for entry in matcher.entries()} == {"unrelated"}
    assert matcher.notes == ["1 native tensors were not looked for everywhere: that needs --memory 0.1GB"]


def test_a_padded_tensor_is_said_to_be_one() -> None:
    made = Trained(5)
    reference = {"embed.weight": made.matrix(48, 32)}
    native = {"tokens.weight": torch.cat([reference["embed.weight"], made.matrix(8, 32)])}
    (entry,) = matched(reference, native)
    assert (entry["relation"], entry["slice"]["native"]) == ("pad", [0, 48])
    with pytest.raises(KeyMapError, match=r"'tokens.weight' is \(56, 32\), the map gives \(48, 32\)"):
        converted([entry], reference, native)


def test_quantised_copies_are_found() -> None:
    reference = wan_like(2)
    q, k = part(reference, "q"), part(reference, "k")
    scale = q.abs().amax(1, keepdim=True) / 127
    native = {"int8": (q / scale).round().to(torch.int8), "fp8": k.to(torch.float8_e4m3fn)}
    entries = {entry["native"]: entry for entry in matched(reference, native)}
    assert (entries["int8"]["reference"], entries["fp8"]["reference"]) == (
        "blocks.0.self_attn.q.weight", "blocks.0.self_attn.k.weight",
    )  # fmt: skip
    assert "quantise" in entries["int8"]["relation"]
    assert min(entries[name]["cosine"] for name in ("int8", "fp8")) > 0.99


def test_unrelated_models_share_nothing() -> None:
    reference, native = wan_like(3, seed=0), diffusers_like(wan_like(3, seed=1))
    entries = matched(reference, native)
    found = [entry for entry in entries if entry["native"] is not None and entry["confidence"] != "low"]
    assert found == []
    assert {entry["relation"] for entry in entries} == {"unrelated"}


def test_gains_that_resemble_each_other_are_not_taken_for_each_other() -> None:
    """Gains of neighbouring blocks of trained models correlate by more than 0.9."""
    made = Trained(0)
    shape = made.gain(384)
    alike = [shape + 0.02 * made.normal(384) for _ in range(4)]
    reference = {f"blocks.{n}.norm.weight": alike[n] for n in range(2)}
    native = {f"l.{n}.ln.weight": alike[2 + n] for n in range(2)}
    for n in range(2):
        reference[f"blocks.{n}.q"], native[f"l.{n}.q"] = made.matrix(64, 64), made.matrix(64, 64)
    assert {entry["relation"] for entry in matched(reference, native)} == {"unrelated"}
    for n in range(2):
        native[f"l.{n}.q"] = reference[f"blocks.{1 - n}.q"]
        native[f"l.{n}.ln.weight"] = noisy(reference[f"blocks.{1 - n}.norm.weight"], 0.03)
    entries = matched(reference, native)
    assert {(e["reference"], e["native"]) for e in entries if "norm" in e["reference"]} == {
        ("blocks.0.norm.weight", "l.1.ln.weight"), ("blocks.1.norm.weight", "l.0.ln.weight"),
    }  # fmt: skip


def test_constants_are_ambiguous_and_settled_by_place() -> None:
    reference = wan_like(3)
    for key in reference:
        if key.endswith("norm3.weight"):
            reference[key] = torch.ones(64)
        if key.endswith("attn.q.bias"):
            reference[key] = torch.zeros(64)
    native = diffusers_like(reference)
    entries = {entry["reference"]: entry for entry in matched(reference, native)}
    for key in ("blocks.1.norm3.weight", "blocks.2.self_attn.q.bias"):
        assert (entries[key]["relation"], entries[key]["native"]) == ("ambiguous", diffusers_name(key))
        assert entries[key]["confidence"] == "medium"


def test_ties_and_duplicates() -> None:
    made = Trained(0)
    embed, other = made.matrix(48, 32), made.matrix(48, 32)
    reference = {"embed.weight": embed, "copy.weight": embed.clone(), "other.weight": other}
    native = {"tokens.weight": embed.clone(), "lm_head.weight": embed.clone(), "mine.weight": other}
    entries = matched(reference, native)
    assert {e["native"] for e in entries if e["reference"] in ("embed.weight", "copy.weight") and e["native"]} == {
        "tokens.weight", "lm_head.weight",
    }  # fmt: skip
    assert [e["native"] for e in entries if e["reference"] == "other.weight"] == ["mine.weight"]
    left = [entry for entry in entries if entry["native"] is None]
    assert all(entry["relation"] == "duplicate" for entry in left)


def test_duplicated_blocks_keep_their_own_numbers() -> None:
    reference = wan_like(3)
    for key in list(reference):
        if key.startswith("blocks.2."):
            reference[key] = reference[key.replace("blocks.2", "blocks.1")].clone()
    native = diffusers_like(reference)
    assert {e["native"] for e in matched(reference, native) if e["native"] != diffusers_name(e["reference"])} == set()


def test_nan_and_empty_tensors_are_left_out_in_words() -> None:
    reference = {"nan": torch.full((32, 32), torch.nan), "empty": torch.empty(0, 4), "q": Trained(0).matrix(32, 32)}
    entries = {entry["reference"]: entry for entry in matched(reference, dict(reference))}
    assert "NaN" in entries["nan"]["why"]
    assert entries["empty"]["relation"] == "unrelated"
    assert entries["q"]["native"] == "q"
