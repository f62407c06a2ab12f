"""What diffusers really loads, read off the model and compared with the file: what agrees, and what is lost in silence.

The differences are described in docs/findings/lora_diffusers.md; a test that fails here may mean that one is mended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.tiny_wan import KEY_MAP, tiny_wan, wan_lora
from parity.errors import LoraFileError
from parity.io.lora_files import open_lora, write_lora
from parity.lora.compare import Comparison, compared
from parity.lora.conversion import mapped
from parity.lora.formats import Given, LoraFile, dialects, read_lora
from parity.lora.loaded import LoadedLora
from parity.lora.recovered import recovered

pytest.importorskip("diffusers", reason="needs the extra `models`")


def tensors_of(dialect: str, official: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    write = dialects()[dialect].write
    assert write is not None
    written = write(wan_lora(official))
    return dict(written.tensors), dict(written.header)


def saved(tensors: dict[str, Tensor], header: dict[str, str], folder: Path) -> Path:
    return write_lora(folder / "x.safetensors", tensors, header, None, lambda path: None)[0]


def loaded(given: Any, **options: Any) -> nn.Module:
    """A model into which diffusers has loaded a file, or a state dict, by its own conversion."""
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    model: Any = tiny_wan()
    where = (str(given.parent), {"weight_name": given.name}) if isinstance(given, Path) else (given, {})
    state, metadata = WanLoraLoaderMixin.lora_state_dict(where[0], return_lora_metadata=True, **where[1])
    model.load_lora_adapter(state, prefix="transformer", adapter_name="default", metadata=metadata, **options)
    return model  # type: ignore[no-any-return]


def against(path: Path, model: nn.Module, official: bool = True) -> Comparison:
    """The file, as it is read here, against what is in the model."""
    opened, lora = open_lora(path), wan_lora(official)
    read = read_lora(LoraFile(opened.source, opened.header, opened.sidecar, Given(modules=list(lora.targets))))
    return compared(mapped(_pairs(read), KEY_MAP) if official else read, recovered(model))


def _pairs(lora: LoadedLora) -> LoadedLora:
    kept = {module: target for module, target in lora.targets.items() if target.factors is not None}
    return LoadedLora(lora.format, lora.prefix, kept, lora.keys, lora.problems)


@pytest.mark.parametrize(("dialect", "official"), [("comfyui", True), ("kohya", True), ("diffusers", False)])
def test_what_is_loaded_is_what_the_file_says(dialect: str, official: bool, tmp_path: Path) -> None:
    path = saved(*tensors_of(dialect, official), tmp_path)
    assert against(path, loaded(path), official).verdict == "same"


def test_alpha_in_the_header_is_not_looked_at(tmp_path: Path) -> None:
    """Finding 1."""
    drawn, _ = tensors_of("comfyui")
    pairs = {key: value[:2] if "lora_A" in key else value[:, :2] for key, value in drawn.items() if "lora_" in key}
    path = saved(pairs, {"lora_alpha": "1"}, tmp_path)
    found = against(path, loaded(path))
    assert found.verdict == "scaled"
    assert found.factor == pytest.approx(2)


def test_the_same_state_dict_loaded_twice_is_weaker(tmp_path: Path) -> None:
    """Finding 2."""
    drawn, header = tensors_of("comfyui")
    scaled = {key: value / 4 if key.endswith(".alpha") else value for key, value in drawn.items()}
    path = saved(scaled, header, tmp_path)
    held = {key: value.clone() for key, value in scaled.items()}
    assert against(path, loaded(dict(held))).verdict == "same"
    again = against(path, loaded(dict(held)))
    assert again.rows["blocks.0.attn1.to_q"].ratio == pytest.approx(1)
    assert again.rows["blocks.0.attn2.to_q"].ratio == pytest.approx(1 / 4, rel=1e-5)


def test_changes_of_norms_are_dropped(tmp_path: Path) -> None:
    """Finding 3."""
    drawn, header = tensors_of("comfyui")
    plain = {key: value for key, value in drawn.items() if "alpha" not in key}
    norms = {f"diffusion_model.blocks.{i}.norm3.diff": torch.ones(24) for i in range(2)}
    path = saved({**plain, **norms}, header, tmp_path)
    model = loaded(path)
    opened = open_lora(path)
    assert read_lora(LoraFile(opened.source)).targets["blocks.0.norm3"].extras.keys() == {"diff"}
    assert torch.equal(model.get_parameter("blocks.0.norm2.weight"), tiny_wan().get_parameter("blocks.0.norm2.weight"))


def test_an_unknown_prefix_loads_nothing(tmp_path: Path) -> None:
    """Finding 4."""
    drawn, _ = tensors_of("diffusers", official=False)
    model: Any = tiny_wan()
    model.load_lora_adapter({key.replace("transformer.", "dit."): v for key, v in drawn.items()}, prefix="transformer")
    with pytest.raises(LoraFileError, match="nothing was applied"):
        recovered(model)
