"""`parity weights verify`: ten planted conversion bugs are named, and a right conversion passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from parity.cli import app

State = dict[str, Tensor]
C, H = 16, 4
MAP: dict[str, Any] = {
    "schema": "dit-parity-key-map",
    "schema_version": 1,
    "rules": [
        {"split": [r"blocks\.(\d+)\.qkv\.weight", [rf"layers.\1.to_{x}.weight" for x in "qkv"]]},
        {"rename": [r"blocks\.(\d+)\.(proj|norm|table)(.*)", r"layers.\1.\2\3"]},
        {"rename": ["embed.weight", "embed.weight"]},
    ],
    "pieces": [{"reference": "head.weight", "native": "head.weight"}],
    "reference_only": {"rope": "recomputed"},
}


def reference() -> State:
    generator = torch.Generator().manual_seed(0)
    state = {"rope": torch.arange(4.0), "embed.weight": torch.randn(8, C, generator=generator)}
    for block in range(3):
        shapes = {"qkv.weight": (3 * C, C), "proj.weight": (C, C), "norm.weight": (C,), "table": (1, 6, C)}
        made = {f"blocks.{block}.{n}": torch.randn(s, generator=generator) for n, s in shapes.items()}
        state |= {k: v if k.endswith("table") else v.bfloat16() for k, v in made.items()}
    return {**state, "head.weight": torch.randn(4, C, generator=generator)}


def converted() -> State:
    out: State = {}
    for key, value in reference().items():
        if key.endswith("qkv.weight"):
            parts = zip("qkv", value.chunk(3), strict=True)
            out |= {f"layers.{key[7]}.to_{x}.weight": part.clone() for x, part in parts}
        elif key != "rope":
            out[key.replace("blocks", "layers")] = value
    return out


def verified(folder: Path, state: State, *words: str, key_map: Any = MAP, ref: State | None = None) -> tuple[int, Any]:
    save_file(ref or reference(), folder / "reference.safetensors")
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "native.safetensors")
    (folder / "map.json").write_text(json.dumps(key_map), encoding="utf-8")
    paths = [str(folder / name) for name in ("reference.safetensors", "native.safetensors")]
    result = CliRunner().invoke(app, ["weights", "verify", *paths, "--map", str(folder / "map.json"), "--json", *words])
    return result.exit_code, json.loads(result.stdout)


def test_a_right_conversion_is_exact(tmp_path: Path) -> None:
    code, found = verified(tmp_path, converted())
    assert (code, found["verdict"], found["findings"]) == (0, "exact", [])
    assert found["counts"] == {"exact": 20, "rounded": 0, "finer": 0, "different": 0}
    assert found["reference_only"] == {"rope": "recomputed"}


def test_a_finer_copy_is_no_finding(tmp_path: Path) -> None:
    code, found = verified(tmp_path, {key: value.float() for key, value in converted().items()})
    assert (code, found["verdict"], found["counts"]["exact"]) == (0, "exact", 20)


def swapped(state: State) -> None:
    q, k = (f"layers.1.to_{x}.weight" for x in "qk")
    state[q], state[k] = state[k], state[q]


def duplicated(state: State) -> None:
    state |= {key: state[key.replace("layers.2", "layers.1")].clone() for key in state if key.startswith("layers.2")}


def interleaved(state: State) -> None:
    key = "layers.0.to_q.weight"
    state[key] = state[key].view(H, 2, -1, C).transpose(1, 2).reshape(C, C)


def changed(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    def change_one(state: State) -> None:
        state[key] = change(state[key])

    return change_one


def one_nan(value: Tensor) -> Tensor:
    value = value.clone()
    value[0] = torch.nan
    return value


def quantised(value: Tensor) -> Tensor:
    return (value.float() / value.float().abs().amax(1, keepdim=True) * 448).to(torch.float8_e4m3fn)


Q0 = "layers.0.to_q.weight"
BUGS: list[tuple[str, Callable[[State], object], str, str]] = [
    ("swap", swapped, "swapped", "layers.1.to_q.weight holds layers.1.to_k.weight"),
    ("duplicate", duplicated, "duplicated_block", "layers.2 holds layers.1"),
    ("missing", lambda s: s.pop(Q0), "missing_key", f"the native lacks {Q0}"),
    ("unexpected", lambda s: s.update({"more": torch.ones(1)}), "unexpected_key", "no rule of the map makes more"),
    ("downcast", changed("layers.1.table", Tensor.bfloat16), "precision_lost", "layers.1.table: its values were round"),
    ("through bf16", changed("layers.1.table", lambda v: v.bfloat16().float()), "precision_lost", "to bfloat16"),
    ("transposed", changed("layers.2.proj.weight", Tensor.t), "different", "holds its own transpose"),
    ("rope order", interleaved, "different", f"{Q0}: holds the right rows in another order"),
    ("never filled", changed(Q0, torch.zeros_like), "different", "holds 0 everywhere: never filled?"),
    ("cut", changed("embed.weight", lambda v: v[:6]), "shape", "embed.weight has shape [6, 16], the map gives [8, 16]"),
    ("nan", changed("layers.0.norm.weight", one_nan), "different", "layers.0.norm.weight: holds 1 NaN"),
    ("sign", changed(Q0, Tensor.neg), "different", "has the sign turned"),
    ("scaled", changed("head.weight", lambda v: v * 0.5), "different", "is the right tensor times 0.5"),
    ("quantised", changed(Q0, quantised), "different", "is right but for its scales and float8_e4m3fn"),
    ("noise", changed("head.weight", lambda v: v + 1e-3 * v.roll(1)), "different", "differs by"),
]


@pytest.mark.parametrize(("bug", "kind", "says"), [b[1:] for b in BUGS], ids=[b[0] for b in BUGS])
def test_a_planted_conversion_bug_is_named(
    bug: Callable[[State], object], kind: str, says: str, tmp_path: Path
) -> None:
    state = converted()
    bug(state)
    code, found = verified(tmp_path, state)
    assert (code, found["verdict"]) == (1, "different")
    first = found["findings"][0]
    assert first["kind"] == kind
    assert says in first["says"]


def test_tied_copies_that_differ(tmp_path: Path) -> None:
    key_map = {**MAP, "rules": [*MAP["rules"], {"split": ["none", ["a", "b"]]}]}
    whole = {"dim": 0, "start": 0, "stop": 8, "reference": "embed.weight"}
    key_map["pieces"] = [*MAP["pieces"], *({**whole, "native": name} for name in ("embed.weight", "lm_head.weight"))]
    state = converted()
    state["lm_head.weight"] = state["embed.weight"].clone()
    assert verified(tmp_path, state, key_map=key_map)[0] == 0
    state["lm_head.weight"][0] += 1
    code, found = verified(tmp_path, state, key_map=key_map)
    assert code == 1
    assert found["findings"][0]["says"] == "copies of one tensor differ: embed.weight, lm_head.weight"


def test_a_cast_can_be_allowed(tmp_path: Path) -> None:
    state = {key: value.bfloat16() for key, value in converted().items()}
    code, found = verified(tmp_path, state)
    assert (code, len(found["findings"])) == (1, 5)
    code, found = verified(tmp_path, state, "--allow-cast", "bfloat16")
    assert (code, found["verdict"], found["counts"]["rounded"]) == (0, "rounded", 5)


def test_the_wrong_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "port"
    folder.mkdir()
    state, names = converted(), ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"]
    held = {key: names[n % 2] for n, key in enumerate(state)}
    for name in names:
        save_file({key: state[key].contiguous() for key in state if held[key] == name}, folder / name)
    lie = {**held, "embed.weight": names[1 - names.index(held["embed.weight"])]}
    (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": lie}), encoding="utf-8")
    verified(tmp_path, state)
    words = [str(tmp_path / "reference.safetensors"), str(folder), "--map", str(tmp_path / "map.json")]
    result = CliRunner().invoke(app, ["weights", "verify", *words])
    assert result.exit_code == 1
    assert "wrong_shard" in result.stdout
    assert "the index puts 'embed.weight' in" in result.stdout


def test_same_names_need_no_map(tmp_path: Path) -> None:
    save_file(reference(), tmp_path / "a.safetensors")
    words = ["weights", "verify", str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "every tensor is exact" in result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "truncated or no JSON"), ("[]", "a key map is a JSON object"),
        ('{"schema": "other"}', "no dit-parity-key-map of version 1"),
        ('{"schema": "dit-parity-key-map", "schema_version": 1, "peices": []}', "has no 'peices'"),
        ('{"schema": "dit-parity-key-map", "schema_version": 1, "pieces": [3]}', "piece 0 of the map"),
        ('{"schema": "dit-parity-key-map", "schema_version": 1, "rules": [{"rename": ["(", "a"]}]}', "regular"),
        ('{"schema": "dit-parity-key-map", "schema_version": 1, "rules": [{"join": []}]}', "is no rule"),
        ('{"a(": "b"}', "regular|unterminated|missing"),
    ],
)  # fmt: skip
def test_a_broken_map_is_a_usage_error(text: str, said: str, tmp_path: Path) -> None:
    save_file(reference(), tmp_path / "a.safetensors")
    (tmp_path / "map.json").write_text(text, encoding="utf-8")
    path = str(tmp_path / "a.safetensors")
    result = CliRunner().invoke(app, ["weights", "verify", path, path, "--map", str(tmp_path / "map.json")])
    assert result.exit_code == 2, result.output
    assert any(word in result.stderr for word in said.split("|")), result.stderr
    assert len(result.stderr.strip().splitlines()) <= 5


def test_a_param_names_mapping_is_a_map(tmp_path: Path) -> None:
    save_file({"blocks.0.q.w": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"layers.0.to_q.w": torch.ones(2)}, tmp_path / "b.safetensors")
    (tmp_path / "map.json").write_text(json.dumps({r"blocks\.(\d+)\.q\.w": r"layers.\1.to_q.w"}), encoding="utf-8")
    words = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--map", str(tmp_path / "map.json")]
    assert CliRunner().invoke(app, ["weights", "verify", *words]).exit_code == 0
