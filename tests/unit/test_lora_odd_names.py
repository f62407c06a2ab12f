"""Factors under names no tool has in common: any suffix below any prefix; changes in full by both words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fixtures.lora_commands import as_json, base_file, codes, lora
from fixtures.loras import BASE, Spelled, drawn_deltas, drawn_pairs, save
from parity.io.lora_files import open_lora
from parity.lora.delta import deltas_of
from parity.lora.formats import Given, LoraFile, read_lora

SUFFIXES = {
    "AB": (".lora_A.weight", ".lora_B.weight"), "du": (".lora_down.weight", ".lora_up.weight"),
    "bare": (".lora_down", ".lora_up"), "named": (".lora_A.default_0.weight", ".lora_B.default_0.weight"),
    "lora.": (".lora.down.weight", ".lora.up.weight"), "_lora.": ("_lora.down.weight", "_lora.up.weight"),
    "linear": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}  # fmt: skip
PREFIXES = ("diffusion_model.", "model.diffusion_model.", "transformer.", "unet.", "base_model.model.", "pipe.dit.", "")


def spelled(prefix: str, suffix: str) -> dict[str, Tensor]:
    a, b = SUFFIXES[suffix]
    out: dict[str, Tensor] = {}
    for module, (A, B) in drawn_pairs().items():
        out |= {f"{prefix}{module}{a}": A, f"{prefix}{module}{b}": B, f"{prefix}{module}.alpha": torch.tensor(2.0)}
    return out


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_suffix_is_read_below_every_prefix(prefix: str, suffix: str, tmp_path: Path) -> None:
    found = read_lora(LoraFile(open_lora(save(Spelled(spelled(prefix, suffix)), tmp_path)).source))
    for module, wanted in drawn_deltas().items():
        torch.testing.assert_close(deltas_of(found.targets[module])[module].dense(), wanted)
    assert set(found.keys.values()) == {"used"}


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "base_model.model.transformer.", "module.", "some.dit."])
def test_another_prefix_is_named_and_taken_off(prefix: str, tmp_path: Path) -> None:
    path, base = save(Spelled(spelled(prefix, "du")), tmp_path / "lora"), base_file(tmp_path)
    code, found = as_json("check", path, "--base", base)
    assert (code, codes(found, "error")) == (1, ["no_module_matched"])
    assert f"--prefix {prefix}" in str(found["problems"])
    out = tmp_path / "out.safetensors"
    assert lora("convert", path, "--to", "kohya", "--base", base, "--prefix", prefix, "-o", out)[0] == 0
    assert as_json("check", out, "--base", base)[0] == 0
    code, found = as_json("inspect", path, "--prefix", "other.")
    assert (code, codes(found, "error")) == (1, ["unknown_prefix"])


def test_a_table_of_modulations_is_one_under_both_its_names(tmp_path: Path) -> None:
    value = torch.randn(1, 6, 8)
    names = {"short": "diffusion_model.blocks.0.diff_m", "long": "diffusion_model.blocks.0.modulation.diff"}
    paths = [save(Spelled({key: value}), tmp_path / name) for name, key in names.items()]
    base = base_file(tmp_path, **{"blocks.0.modulation": torch.zeros(1, 6, 8)})
    assert [as_json("check", path, "--base", base)[0] for path in paths] == [0, 0]
    assert as_json("diff", *paths)[1]["verdict"] == "same"
    other = base_file(tmp_path, **{"blocks.0.modulation": torch.zeros(1, 2, 24)})
    assert codes(as_json("check", paths[0], "--base", other)[1], "error") == ["shape_mismatch"]


def test_norms_by_the_names_of_lycoris_are_changes_in_full(tmp_path: Path) -> None:
    path = save(Spelled({"lora_unet_norm.w_norm": torch.ones(8), "lora_unet_norm.b_norm": torch.ones(8)}), tmp_path)
    opened = open_lora(path)
    found = read_lora(LoraFile(opened.source, given=Given(modules=[*BASE, "norm"])))
    assert set(found.adapter().changes) == {"norm.weight", "norm.bias"}
