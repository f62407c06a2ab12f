"""`parity weights inspect` and `diff`: what names and shapes tell, and what is proposed from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from fixtures.checkpoints import State, diffusers_like, diffusers_name, fastvideo_like, longcat_like, wan_like
from parity.cli import app
from parity.weights.anatomy import anatomy_of
from parity.weights.names import printable, stacks_of, templated
from parity.weights.orders import described, order_from
from parity.weights.proposal import proposed


def called(*words: str) -> Any:
    return CliRunner().invoke(app, ["weights", *words])


def kept(folder: Path, name: str, state: State) -> str:
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def test_inspect_says_what_is_there(tmp_path: Path) -> None:
    path, keys = kept(tmp_path, "a", longcat_like(3)), tmp_path / "keys.txt"
    held = json.loads(called("inspect", path, "--name", "original", "--export", str(keys), "--json").stdout)
    assert (held["model"], held["tensors"]) == ("original", len(longcat_like(3)))
    assert held["parameters"] == sum(value.numel() for value in longcat_like(3).values())
    assert held["dtypes"]["F32"]["tensors"] == held["tensors"]
    assert held["blocks"] == [{"prefix": "blocks", "blocks": 3, "tensors_per_block": 21, "irregular": []}]
    assert held["attention"] == {"blocks.*.attn": "fused QKV", "blocks.*.cross_attn": "Q + fused KV"}
    assert held["sizes"] == {"hidden": 64, "head_dim": 16, "heads": 4, "ffn": 160, "gated_ffn": True}
    assert held["modulation"].startswith("a linear of 6 vectors: blocks.*.adaLN_modulation.1.weight")
    assert held["naming"]["separator"] == "."
    assert len(keys.read_text(encoding="utf-8").splitlines()) == held["tensors"]
    text = called("inspect", path).stdout
    assert "* x 3" in text
    assert "qkv  bias [192], weight [192, 64]" in text


def test_anatomy_of_the_other_kind() -> None:
    for state in (wan_like(2), diffusers_like(wan_like(2))):
        found = anatomy_of({key: value.shape for key, value in state.items()})
        assert set(found.attention.values()) == {"separate Q, K, V"}
        assert (found.hidden, found.ffn, found.gated_ffn) == (64, 160, False)
        assert "a table of 6 vectors" in (found.modulation or "")
        assert [stack.count for stack in found.stacks] == [2]
        assert sum(found.norms.values()) == 10


def test_stacks_are_told_from_numbered_layers() -> None:
    shapes = {f"m.{n}.{x}": torch.Size((2, 2)) for n in (0, 2) for x in ("weight", "bias")}
    shapes |= {f"up.{n}.b.{m}.w{x}": torch.Size((n + 1,)) for n in range(2) for m in range(2) for x in range(3)}
    stacks = stacks_of(shapes)
    assert [(stack.prefix, stack.count, stack.irregular) for stack in stacks] == [("up", 2, (1,))]
    assert templated("up.1.b.0.w2", stacks) == ("up.*.b.0.w2", 1)
    assert templated("m.2.weight", stacks) == ("m.2.weight", None)


def test_names_from_files_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    key = "a\x1b[2J.<b>[red]../../x\n"
    result = called("inspect", kept(tmp_path, "a", {key: torch.ones(2)}))
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\\x1b[2J.<b>[red]../../x\\n" in result.stdout
    assert printable("ok\u202e") == "ok\\u202e"


def test_diff_of_the_same_and_of_ports(tmp_path: Path) -> None:
    wan, port = kept(tmp_path, "a", wan_like(3)), kept(tmp_path, "b", diffusers_like(wan_like(3)))
    same = called("diff", wan, wan, "--json")
    assert (same.exit_code, json.loads(same.stdout)["compatibility"]["band"]) == (0, "compatible")
    result = called("diff", wan, port, "--name", "original", "--name", "port", "--json")
    held = json.loads(result.stdout)
    assert (result.exit_code, held["reference"], held["native"]) == (1, "original", "port")
    assert held["common_keys"] + len(held["missing_keys"]) == held["counts"]["reference"]
    assert held["common_keys"] + len(held["unexpected_keys"]) == held["counts"]["native"]
    assert held["compatibility"]["band"] == "incompatible by name"
    right = [diffusers_name(entry["reference"]) == entry["native"] for entry in held["mapping"]]
    assert sum(right) > 0.9 * len(right) > 0.8 * held["counts"]["reference"]
    sure = [entry for entry in held["mapping"] if entry["confidence"] == "high"]
    assert all(diffusers_name(entry["reference"]) == entry["native"] for entry in sure)


def test_diff_writes_a_map_that_verify_takes(tmp_path: Path) -> None:
    reference, out = longcat_like(2), str(tmp_path / "map.json")
    paths = [kept(tmp_path, "a", reference), kept(tmp_path, "b", fastvideo_like(reference))]
    result = called("diff", *paths, "-o", out, "--export", str(tmp_path / "keys.txt"))
    assert result.exit_code == 1
    assert "split: qkv into its parts" in result.stdout
    assert "different attention: Q + fused KV, fused QKV against separate Q, K, V" in result.stdout
    assert "LoRA: a LoRA needs its keys renamed and its factors cut" in result.stdout
    found = json.loads(called("verify", *paths, "--map", out, "--json").stdout)
    assert found["counts"]["exact"] > 40
    assert found["missing_keys"] == []


def test_proposals_never_claim_a_tensor_twice() -> None:
    one, other = longcat_like(2), diffusers_like(wan_like(2))
    shapes = [{key: value.shape for key, value in state.items()} for state in (one, other)]
    places: dict[tuple[str, int], int] = {}
    for proposal in proposed(*shapes):
        piece = proposal.piece
        places[piece.native, piece.native_start] = places.get((piece.native, piece.native_start), 0) + 1
    assert set(places.values()) == {1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "nowhere"], "there is no nowhere"), (["inspect", "A", "--name", "x", "--name", "y"], "2 --name"),
        (["diff", "A", "A", "--revision", "1", "--revision", "2", "--revision", "3"], "3 --revision for 2"),
        (["inspect", "A", "--export", "."], "it is a folder"),
        (["inspect", "A", "--export", "/proc/no/x"], "cannot write"),
        (["inspect", "E"], "holds no tensor"), (["inspekt"], "No such command"),
    ],
)  # fmt: skip
def test_usage_errors(words: list[str], said: str, tmp_path: Path) -> None:
    paths = {"A": kept(tmp_path, "a", {"w": torch.ones(2)}), "E": kept(tmp_path, "e", {})}
    result = called(*(paths.get(word, word) for word in words))
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 5


@pytest.mark.parametrize("command", ["inspect", "diff", "match", "map", "verify"])
def test_help_has_examples_and_json(command: str) -> None:
    text = called(command, "--help").stdout
    assert f"    parity weights {command}" in text.partition("Examples:")[2]
    assert "--json" in text


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([0, 1, 2], None), ([0, 2, 1, 3], {"view": [2, 2], "dims": [1, 0]}),
        ([0, 2, 1, 3, 4, 6, 5, 7], {"view": [2, 2, 2], "dims": [0, 2, 1]}),
        ([4, 5, 2, 3, 0, 1], {"blocks": 2, "order": [2, 1, 0]}), ([1, 0, 2, 4, 3], {"rows": [1, 0, 2, 4, 3]}),
        ([0], None),
    ],
)  # fmt: skip
def test_orders_in_few_words(order: list[int], words: dict[str, Any] | None) -> None:
    assert described(order) == words
    assert words is None or list(order_from(words, len(order))) == order
