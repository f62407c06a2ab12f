"""FastVideo's own way to load a LoRA, held to the file before any forward; docs/findings/lora_fastvideo.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import ALPHA, save
from fixtures.pairs.longcat_fastvideo import FASTVIDEO, PAIR
from fixtures.third_party import locate
from fixtures.third_party.fastvideo_lora import FLOAT32, drawn, loaded_report, lora_loader
from parity.loaded import load_side, with_lora

if not locate.is_here(FASTVIDEO):
    pytest.skip(f"needs FastVideo; get it with: {FASTVIDEO.get}", allow_module_level=True)


def test_what_is_loaded_is_what_the_file_says() -> None:
    report = loaded_report(lora_loader())
    assert (report.found, report.missing, len(report.modules)) == ([], "", 36)


def test_a_switch_leaves_the_old_adapter_merged_and_two_at_once_are_the_sum() -> None:
    report = loaded_report(lora_loader(), several=True)
    assert [one.code for one in report.found] == ["old_adapter"]
    assert "in 18 layers" in report.found[0].message


def test_unmerged_and_unwrapped_the_model_is_as_it_was() -> None:
    held = load_side("native", replace(PAIR.native, apply_lora=lora_loader()), FLOAT32)
    before = {key: value.clone() for key, value in held.model.state_dict().items()}
    with with_lora(held, drawn(held.model)):
        changed = held.model.get_submodule("blocks.0.ffn.w1").get_parameter("base_layer.weight")
        assert not torch.equal(changed, before["blocks.0.ffn.w1.weight"])
    after = held.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


FILES: dict[str, tuple[str, float, str]] = {
    "peft_prefix": ("peft", ALPHA, "not_applied"),
    "component_prefix": ("diffusers", ALPHA, "not_applied"),
    "underscores": ("kohya", ALPHA, "not_applied"),
    "sidecar": ("comfyui_sidecar", ALPHA, "scaling"),
    "fractional_alpha": ("comfyui", 3.5, "scaling"),
    "alpha_below_one": ("comfyui", 0.5, "scaling"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_lost_in_silence_is_found(name: str, tmp_path: Path) -> None:
    spelling, alpha, code = FILES[name]
    model = PAIR.native.build(FLOAT32)
    spelled = SPELLINGS[spelling][1]({path: (one.A, one.B) for path, one in drawn(model).targets.items()})
    tensors = {k: torch.tensor(alpha) if k.endswith(".alpha") else v for k, v in spelled.tensors.items()}
    path = save(replace(spelled, tensors=tensors), tmp_path)
    report = loaded_report(lora_loader(file=path), alpha=alpha)
    assert [one.code for one in report.found] == [code], (report.found, report.missing)
