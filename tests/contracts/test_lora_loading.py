"""A side that loads its LoRA itself is held to the file before any forward: diffusers' pipelines and PEFT, as used.

What goes wrong in silence is described in docs/findings/lora_loading.md; `scripts/lora_loading.py` makes its table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.lora_loading import BUILD, drawn, loaded_report, loader, official, side, tiny_cosmos
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import Spelled, save
from fixtures.tiny_wan import tiny_wan
from parity.loaded import load_side, with_lora
from parity.lora.adapter import FullChange, LoraAdapter
from parity.lora_audit import LoraAudit
from parity.lora_loading import LoraLoader, adapter_from, written_adapter

pytest.importorskip("diffusers", reason="needs the extra `models`")
pytest.importorskip("peft", reason="needs the extra `models`")
MODELS = {"Wan": tiny_wan, "Cosmos": tiny_cosmos}
Tensors = dict[str, Tensor]


@pytest.mark.parametrize(("name", "format"), [("Wan", "diffusers"), ("Wan", "comfyui"), ("Cosmos", "diffusers")])
def test_diffusers_own_loading_is_what_the_file_says(name: str, format: str) -> None:
    """Loaded, taken off, switched, and two at once."""
    held = load_side("native", side(name, loader(name, format)), BUILD)
    adapter = drawn(held.model, name)
    before = {key: value.clone() for key, value in held.model.state_dict().items()}
    audit = LoraAudit(held, adapter, {})
    with with_lora(held, adapter) as kept:
        audit.on(kept)
    audit.after()
    audit.several()
    assert (audit.report.found, audit.report.missing, len(audit.report.modules)) == ([], "", 20)
    after = held.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_pefts_own_loading_is_what_the_file_says() -> None:
    peft: Any = pytest.importorskip("peft")
    wrapped: list[Any] = []

    def load(model: Any, path: Path, adapter_name: str) -> None:
        wrapped.append(peft.PeftModel.from_pretrained(model, str(path.parent), adapter_name=adapter_name))

    own = LoraLoader("peft", load, lambda model: wrapped.pop().unload())
    report = loaded_report("Wan", drawn(tiny_wan(), "Wan"), own)
    assert (report.found, report.missing, len(report.modules)) == ([], "", 20)


@pytest.mark.parametrize("kept", [True, False])
def test_magnitudes_that_peft_is_not_told_of_are_found(kept: bool) -> None:
    peft: Any = pytest.importorskip("peft")
    wrapped: list[Any] = []

    def load(model: Any, path: Path, adapter_name: str) -> None:
        settings = path.parent / "adapter_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "use_dora": kept}))
        wrapped.append(peft.PeftModel.from_pretrained(model, str(path.parent), adapter_name=adapter_name))

    model = tiny_wan().requires_grad_(False)
    held = {
        path: replace(one, magnitude=1.3 * model.get_parameter(f"{path}.weight").norm(dim=1))
        for path, one in drawn(model, "Wan").targets.items()
    }
    found = loaded_report("Wan", LoraAdapter("x", held), LoraLoader("peft", load, lambda model: wrapped.pop().unload()))
    assert (found.missing, len(found.modules)) == ("", 20)
    assert [one.code for one in found.found] == ([] if kept else ["magnitudes"])
    assert kept or "are not used, B @ A is added alone in 20 layers" in found.found[0].message


def test_changes_of_norms_that_diffusers_drops_are_found() -> None:
    changes = {"blocks.0.norm2.weight": FullChange(torch.ones(24)), "blocks.1.norm2.bias": FullChange(torch.ones(24))}

    def names(path: str) -> str:
        return path.replace("norm2", "norm3") if "norm" in path else official("Wan", path)

    adapter = replace(drawn(tiny_wan(), "Wan"), changes=changes)
    report = loaded_report("Wan", adapter, loader("Wan", "comfyui", names=names))
    assert [(one.code, one.modules) for one in report.found] == [("partly_applied", tuple(changes))]


def test_one_adapter_at_a_time_is_said() -> None:
    own = LoraLoader("diffusers", lambda model, path, name: None, lambda model: None)
    model, adapter = tiny_wan(), drawn(tiny_wan(), "Wan")
    with own(model, adapter), pytest.raises(Exception, match="takes one at a time"), own(model, adapter):
        pytest.fail("two are on")
    assert not own.several


def test_a_written_adapter_reads_back(tmp_path: Path) -> None:
    adapter = drawn(tiny_wan(), "Wan")
    found = adapter_from(written_adapter(adapter, "kohya", tmp_path), list(adapter.targets))
    assert found.targets.keys() == adapter.targets.keys()
    assert all(torch.allclose(found.targets[p].delta(), t.delta()) for p, t in adapter.targets.items())


def _comfyui(name: str, adapter: LoraAdapter, spelling: str = "comfyui_no_alpha") -> Tensors:
    pairs = {official(name, path): (t.A, t.B) for path, t in adapter.targets.items()}
    return dict(SPELLINGS[spelling][1](pairs).tensors)


def _no_b(tensors: Tensors) -> Tensors:
    return {k: v for k, v in tensors.items() if k != "diffusion_model.blocks.0.self_attn.q.lora_B.weight"}


def _bias_of_one(tensors: Tensors) -> Tensors:
    return {**tensors, "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24)}


SILENT: dict[str, tuple[str, str, Callable[[Tensors], Tensors], str]] = {
    "half_missing": ("Wan", "comfyui_no_alpha", _no_b, "no_values"),
    "full_beside_a_pair": ("Wan", "full_and_pair", dict, "scaling"),
    "full": ("Wan", "full", dict, "not_applied"),
    "peft_prefix": ("Wan", "peft", dict, "not_applied"),
    "other_prefix": ("Wan", "kohya_foreign_prefix", dict, "not_applied"),
    "original_names": ("Cosmos", "comfyui_no_alpha", dict, "not_applied"),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_lost_in_silence_is_found(name: str, tmp_path: Path) -> None:
    model, spelling, edit, code = SILENT[name]
    adapter = drawn(MODELS[model](), model)
    path = save(Spelled(edit(_comfyui(model, adapter, spelling))), tmp_path)
    report = loaded_report(model, adapter, loader(model, file=path))
    assert [one.code for one in report.found] == [code], (report.found, report.missing)


def test_a_bias_of_one_layer_stops_the_model(tmp_path: Path) -> None:
    """diffusers makes biases for all layers and leaves those the file lacks without values."""
    adapter = drawn(tiny_wan(), "Wan")
    path = save(Spelled(_bias_of_one(_comfyui("Wan", adapter))), tmp_path)
    report = loaded_report("Wan", adapter, loader("Wan", file=path))
    assert "meta" in report.missing
