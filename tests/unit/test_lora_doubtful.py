"""LoRA files that load and may not mean what they say: each a warning with a code, and every key accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.lora_commands import as_json, codes
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import Spelled, drawn_pairs, save


def inspected(path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    return as_json("inspect", path, *words)


def spelled(name: str) -> Spelled:
    return SPELLINGS[name][1](drawn_pairs())


def edited(name: str, folder: Path, edit: Callable[[str, Tensor], Tensor | None], **header: str) -> Path:
    """A spelling with tensors changed, or left out where `edit` returns None."""
    old = spelled(name)
    new = {key: value for key, old_value in old.tensors.items() if (value := edit(key, old_value)) is not None}
    return save(Spelled(new, {**old.header, **header}, old.sidecar), folder)


def _two_adapters(folder: Path) -> Path:
    tensors = dict(spelled("peft_in_model").tensors)
    return save(Spelled(tensors | {k.replace(".default.", ".other."): v for k, v in tensors.items()}), folder)


def _zero_in_one(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v * 0 if k.endswith("ffn_0.lora_up.weight") else v)


def _alpha(value: float) -> Callable[[Path], Path]:
    return lambda folder: edited("kohya", folder, lambda k, v: torch.tensor(value) if k.endswith("alpha") else v)


def _rank_above(folder: Path) -> Path:
    wide = {"blocks.0.ffn.0": (torch.randn(12, 8), torch.randn(16, 12))}
    return save(SPELLINGS["kohya"][1](wide), folder)


def _strange_key(folder: Path) -> Path:
    old = spelled("kohya")
    return save(Spelled({**old.tensors, "lora_unet_blocks_0_ffn_0.something": torch.ones(1)}), folder)


@pytest.mark.parametrize("size", [0x80, 0x4B50])
def test_the_length_of_a_header_is_no_kind_of_file(size: int, tmp_path: Path) -> None:
    """Lengths whose bytes are those a pickle, or a zip file, begins with."""
    header = {"__metadata__": {"lora_alpha": "3"}}
    for name, start in (("A", 0), ("B", 8)):
        held = {"dtype": "F32", "shape": [1, 2] if name == "A" else [2, 1], "data_offsets": [start, start + 8]}
        header[f"x.y.lora_{name}.weight"] = held  # type: ignore[assignment]
    text = json.dumps(header, separators=(",", ":")).encode()
    size += (len(text) - size + 255) // 256 * 256 * (size == 0x80)
    path = tmp_path / "lora.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + text.ljust(size) + torch.ones(4).numpy().tobytes())
    _, found = inspected(path)
    assert found["target_modules"]["x.y"]["scaling_from"] == "header"


def _alpha_for_some(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: None if k.endswith("ffn_0.alpha") else v)


def _no_config(folder: Path) -> Path:
    return save(Spelled(spelled("peft").tensors), folder)


WARNINGS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zero_in_one": (_zero_in_one, "zero_b"), "alpha_zero": (_alpha(0.0), "alpha_zero"),
    "alpha_fraction": (_alpha(0.75), "fractional_alpha"), "rank_above": (_rank_above, "rank_above_dimensions"),
    "strange_key": (_strange_key, "unexpected_keys"), "alpha_for_some": (_alpha_for_some, "partial_alpha"),
    "no_config": (_no_config, "no_config"), "header_alpha": (
        lambda folder: save(spelled("diffusers_header_alpha"), folder), "alpha_elsewhere"),
    "no_alpha": (lambda folder: save(spelled("diffsynth"), folder), "scaling_assumed"),
    "averaged_copy": (lambda folder: save(spelled("cosmos"), folder), "other_component"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_doubtful_is_told(name: str, tmp_path: Path) -> None:
    make, code = WARNINGS[name]
    exit_code, found = inspected(make(tmp_path))
    assert (exit_code, code in codes(found, "warning")) == (0, True), found["problems"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_key_of_every_spelling_is_accounted_for(name: str, tmp_path: Path) -> None:
    path = save(spelled(name), tmp_path)
    keys = inspected(path)[1]["keys"]
    assert keys["total"] == len(spelled(name).tensors) == keys["used"] + keys["unsupported"] + keys["unexpected"]
    assert keys["unexpected"] == 0


def test_one_of_two_adapters_is_chosen(tmp_path: Path) -> None:
    code, found = inspected(_two_adapters(tmp_path), "--adapter", "other")
    assert (code, len(found["target_modules"]), len(found["unsupported_keys"])) == (0, 6, 12)
    assert codes(inspected(_two_adapters(tmp_path), "--adapter", "third")[1], "error") == ["unknown_adapter"]


def test_the_averaged_copy_is_read_on_request(tmp_path: Path) -> None:
    path = save(spelled("cosmos"), tmp_path)
    rows = [inspected(path, *words)[1]["target_modules"] for words in ((), ("--prefix", "net_ema."))]
    assert all(rows[1][m]["delta_norm"] == pytest.approx(rows[0][m]["delta_norm"] / 2) for m in rows[0])


def test_an_expected_rank_is_checked(tmp_path: Path) -> None:
    path = save(spelled("cosmos"), tmp_path)
    found = inspected(path, "--r", "16")[1]
    assert codes(found, "error") == ["rank_mismatch"]
    assert any("says r = 16, and 5 more" in problem["message"] for problem in found["problems"])
    assert codes(inspected(path, "--r", "4")[1], "error") == []


def test_alpha_zero_means_what_the_dialect_means(tmp_path: Path) -> None:
    row = inspected(_alpha(0.0)(tmp_path / "k"))[1]["target_modules"]["blocks_0_ffn_0"]
    assert (row["lora_alpha"], row["scaling"]) == (0, 1)
    path = edited("comfyui", tmp_path / "c", lambda k, v: v * 0 if k.endswith("alpha") else v)
    code, found = inspected(path)
    assert (code, codes(found, "error")) == (1, ["changes_nothing"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_low_precision_storage_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    path = edited("kohya", tmp_path, lambda k, v: v if k.endswith("alpha") else v.to(dtype))
    code, found = inspected(path)
    A, B = (value.to(dtype).double() for value in drawn_pairs()["blocks.0.ffn.0"])
    row = found["target_modules"]["blocks_0_ffn_0"]
    assert (code, row["dtype"]) == (0, str(dtype).removeprefix("torch."))
    assert row["delta_norm"] == pytest.approx(0.5 * float((B @ A).norm()), rel=1e-6)
