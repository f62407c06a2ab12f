"""`parity lora converter`: the script it writes gives what `parity lora convert --map` gives, without this package."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fixtures.lora_commands import as_json, lora, lora_file
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import BASE, Spelled, base_state, drawn_pairs, save
from parity.io.keymaps import write_key_map
from parity.io.matchreports import write_match_report
from parity.weights.mapfile import encoded
from parity.weights.piece import Piece

SQUARE = "blocks.0.cross_attn.k_img"
ORDER = tuple(torch.arange(8).reshape(4, 2).t().reshape(-1).tolist())
ALONE = """
import runpy, sys
sys.modules['parity'] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], None, '__main__')
"""


def pieces() -> list[Piece]:
    """A fused layer cut in three, rows permuted, a layer transposed, two joined, the others renamed."""
    found = [
        Piece(f"blocks.{i}.attn.qkv.weight", f"layers.{i}.to_{x}.weight", 0, 8 * n, 8 * n + 8, native_stop=8)
        for i in range(2) for n, x in enumerate("qkv")
    ]  # fmt: skip
    found.append(Piece(f"{SQUARE}.weight", "layers.0.k_img.weight", 0, 0, 8, permute=ORDER, native_stop=8))
    found.append(Piece("blocks.0.ffn.2.weight", "layers.0.down.weight", 0, 0, 8, transpose=True, native_stop=16))
    joined = ("blocks.0.cross_attn.q_linear", 0, 8), ("blocks.0.ffn.0", 8, 24)
    found += [
        Piece(f"{name}.weight", "layers.0.fused.weight", 0, 0, stop - start, native_start=start, native_stop=stop)
        for name, start, stop in joined
    ]  # fmt: skip
    return found


def alone(script: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the script in a process in which this package cannot be imported."""
    command = [sys.executable, "-I", "-c", ALONE, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(script: Path, *words: object) -> int:
    """Run the script in this process, which has torch already."""
    return int(runpy.run_path(str(script))["main"]([str(word) for word in words]))


@pytest.mark.parametrize(("name", "to"), [("longcat", "comfyui"), ("peft_patterns", "fastvideo"), ("kohya", "kohya")])
def test_the_script_does_what_convert_does(name: str, to: str, tmp_path: Path) -> None:
    write_key_map(tmp_path / "map.json", encoded(pieces(), ({}, {})))
    safetensors.torch.save_file(base_state(), tmp_path / "base.safetensors")
    script, first = tmp_path / "convert.py", lora_file(tmp_path, name)
    assert lora("converter", tmp_path / "map.json", "--to", to, "-o", script)[0] == 0
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    if name == "longcat":
        done = alone(script, first, theirs)
        assert done.returncode == 0, done.stderr
    else:
        assert here(script, first, theirs) == 0
    words = ("--to", to, "--map", tmp_path / "map.json", "--base", tmp_path / "base.safetensors", "-o", ours)
    assert lora("convert", first, *words)[0] == 0
    code, found = as_json("diff", ours, theirs)
    assert (code, found["verdict"], len(found["target_modules"])) == (0, "same", 9)
    assert found["rtol"] <= 1e-6


def test_a_report_of_matching_will_do(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    state = base_state()
    safetensors.torch.save_file(state, first)
    safetensors.torch.save_file({key.replace("blocks.", "layers."): value for key, value in state.items()}, second)
    from typer.testing import CliRunner

    from parity.cli import app

    report, script = tmp_path / "report.json", tmp_path / "convert.py"
    result = CliRunner().invoke(app, ["weights", "match", str(first), str(second), "-o", str(report)])
    assert result.exit_code == 0, result.output
    code, found = as_json("converter", report, "-o", script)
    assert (code, found["modules"]) == (0, len(BASE))
    assert "layers.1.attn.qkv" in script.read_text()


def test_what_the_table_does_not_know_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key_map(tmp_path / "map.json", encoded(pieces()[:3], ({}, {})))
    script, out = tmp_path / "convert.py", tmp_path / "out.safetensors"
    assert lora("converter", tmp_path / "map.json", "-o", script)[0] == 0
    wide = {"blocks.0.attn.qkv": (torch.ones(4, 8), torch.ones(30, 4))}
    for given, words in (
        (SPELLINGS["peft"][1](drawn_pairs()), "has no place in the table"),
        (SPELLINGS["comfyui"][1](wide), "30 outputs, the table of one with 24"),
        (Spelled({"blocks.0.attn.qkv.diff": torch.ones(24, 8)}), "is not a factor"),
    ):
        code = here(script, save(given, tmp_path / words[:5]), out)
        assert (code, words in capsys.readouterr().err, out.exists()) == (1, True, False)


def test_patterns_need_the_model(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({r"blocks\.(.*)": r"layers.\1"}))
    safetensors.torch.save_file(base_state(), tmp_path / "base.safetensors")
    words = ("converter", tmp_path / "map.json", "-o", tmp_path / "convert.py")
    code, said = lora(*words)
    assert (code, "name it with --base" in said) == (2, True)
    assert as_json(*words, "--base", tmp_path / "base.safetensors")[1]["modules"] == len(BASE)
    assert lora(*words, "--to", "longcat")[0] == 2


def test_a_partial_report_is_refused(tmp_path: Path) -> None:
    shapes: dict[str, dict[str, list[int]]] = {"reference": {}, "native": {}}
    write_match_report(tmp_path / "report.json", {"complete": False, "matches": [], "shapes": shapes})
    code, said = lora("converter", tmp_path / "report.json", "-o", tmp_path / "convert.py")
    assert (code, "is partial" in said) == (2, True)
