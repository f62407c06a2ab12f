"""Files that are broken, foreign or do nothing: each its own problem with a code, never a traceback or a silence."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fixtures.lora_commands import as_json, codes, lora
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import Spelled, base_state, drawn_pairs, save


def inspected(path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    return as_json("inspect", path, *words)


def spelled(name: str) -> Spelled:
    return SPELLINGS[name][1](drawn_pairs())


def edited(name: str, folder: Path, edit: Callable[[str, Tensor], Tensor | None], **header: str) -> Path:
    """A spelling with tensors changed, or left out where `edit` returns None."""
    old = spelled(name)
    new = {key: value for key, old_value in old.tensors.items() if (value := edit(key, old_value)) is not None}
    return save(Spelled(new, {**old.header, **header}, old.sidecar), folder)


class _Runs:
    """A pickle that would make a folder when loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _truncated(folder: Path) -> Path:
    path = save(spelled("kohya"), folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _truncated_in_the_header(folder: Path) -> Path:
    path = save(spelled("kohya"), folder)
    path.write_bytes(path.read_bytes()[:60])
    return path


def _truncated_torch(folder: Path) -> Path:
    path = save(spelled("peft_bin"), folder)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _empty(folder: Path) -> Path:
    (folder / "empty.safetensors").write_bytes(b"")
    return folder / "empty.safetensors"


def _no_tensors(folder: Path) -> Path:
    return save(Spelled({}), folder)


def _text(folder: Path) -> Path:
    (folder / "page.safetensors").write_text("<!doctype html> the page one gets without logging in", encoding="utf-8")
    return folder / "page.safetensors"


def _folder(folder: Path) -> Path:
    for name in ("one", "two"):
        safetensors.torch.save_file(base_state(), folder / f"{name}.safetensors")
    return folder


def _base(folder: Path) -> Path:
    safetensors.torch.save_file(base_state(), folder / "base.safetensors")
    return folder / "base.safetensors"


def _gguf(folder: Path) -> Path:
    (folder / "lora.gguf").write_bytes(b"GGUF" + bytes(60))
    return folder / "lora.gguf"


def _pickle_with_code(folder: Path) -> Path:
    (folder / "lora.bin").write_bytes(pickle.dumps({"x.lora_A.weight": _Runs(folder / "was_run")}))
    return folder / "lora.bin"


def _torch_file_with_code(folder: Path) -> Path:
    torch.save({"x.lora_A.weight": _Runs(folder / "was_run")}, folder / "lora.pt")
    return folder / "lora.pt"


def _nan(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v * torch.nan if k.endswith("ffn_0.lora_up.weight") else v)


def _all_zero(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v * 0 if "lora_up" in k else v)


def _mixed(folder: Path) -> Path:
    return save(Spelled({**spelled("kohya").tensors, **spelled("peft").tensors}), folder)


def _two_adapters(folder: Path) -> Path:
    tensors = dict(spelled("peft_in_model").tensors)
    return save(Spelled(tensors | {k.replace(".default.", ".other."): v for k, v in tensors.items()}), folder)


def _half(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: None if k.endswith("ffn_0.lora_up.weight") else v)


def _exchanged(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v.t() if "ffn_0.lora_" in k else v)


def _other_ranks(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v[:, :3] if k.endswith("ffn_0.lora_up.weight") else v)


def _config_of_another(folder: Path) -> Path:
    old = spelled("peft")
    return save(Spelled(old.tensors, sidecar={"r": 16, "lora_alpha": 16}), folder)


def _broken_config(folder: Path) -> Path:
    path = save(spelled("peft"), folder)
    (folder / "adapter_config.json").write_text("{'r': 4", encoding="utf-8")
    return path


def _config_of_words(folder: Path) -> Path:
    return save(Spelled(spelled("peft").tensors, sidecar={"r": "many", "lora_alpha": 16}), folder)


def _integers(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v.to(torch.int8) if "ffn_0.lora" in k else v)


def _alpha_of_words(folder: Path) -> Path:
    return edited("diffusers_header_alpha", folder, lambda k, v: v, lora_alpha="sixteen")


def _alpha_infinite(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: v * torch.inf if k.endswith("alpha") else v)


def _alpha_of_shape(folder: Path) -> Path:
    return edited("kohya", folder, lambda k, v: torch.ones(2) if k.endswith("alpha") else v)


def _scaled_storage(folder: Path) -> Path:
    old = dict(spelled("comfyui").tensors)
    scales = {f"{key}_scale": torch.tensor(1e-3) for key in old if key.endswith("lora_A.weight")}
    return save(Spelled(old | scales), folder)


def _multiplied(folder: Path) -> Path:
    return save(Spelled({"lora_unet_blocks_0_ffn_0.oft_blocks": torch.zeros(2, 4, 4)}), folder)


def _xlabs(folder: Path) -> Path:
    return save(Spelled({"single_blocks.0.processor.qkv_lora.down.weight": torch.zeros(4, 8)}), folder)


def _flat_product(folder: Path) -> Path:
    return edited("lokr_full", folder, lambda k, v: v.flatten() if k.endswith("ffn.0.lokr_w1") else v)


def _full_of_another_size(folder: Path) -> Path:
    return edited("full_and_pair", folder, lambda k, v: v.flatten() if k.endswith("ffn.0.diff") else v)


def _bias_of_another_size(folder: Path) -> Path:
    path = "base_model.model.blocks.0.ffn.0.lora_B.bias"
    return save(Spelled({**spelled("peft").tensors, path: torch.ones(3)}, sidecar=spelled("peft").sidecar), folder)


def _duplicate(folder: Path) -> Path:
    """One module spelled with lora_A and with lora_down."""
    old = dict(spelled("comfyui").tensors)
    again = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in old.items() if "ffn.0" in k}
    return save(Spelled(old | again), folder)


def _other_kind(folder: Path) -> Path:
    path = "base_model.model.blocks.0.ffn.0.vera_lambda"
    tensors = {f"{path}_b": torch.ones(16), f"{path}_d": torch.ones(4)}
    return save(Spelled(tensors, sidecar={"peft_type": "VERA", "r": 4}), folder)


def _embedding(folder: Path) -> Path:
    path = "base_model.model.emb.lora_embedding"
    tensors = {f"{path}_A": torch.ones(8, 4), f"{path}_B": torch.ones(4, 8)}  # each transposed
    return save(Spelled(tensors, sidecar={"r": 4, "lora_alpha": 4}), folder)


def _part_missing(folder: Path) -> Path:
    return edited("longcat", folder, lambda k, v: None if k.endswith("qkv.lora_up.blocks.1.weight") else v)


ERRORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (_truncated, "truncated"), "truncated_header": (_truncated_in_the_header, "truncated"),
    "truncated_torch": (_truncated_torch, "truncated"), "empty": (_empty, "empty_file"),
    "no_tensors": (_no_tensors, "no_tensors"), "text": (_text, "not_a_lora_file"), "folder": (_folder, "directory"),
    "base": (_base, "base_checkpoint"), "gguf": (_gguf, "gguf"), "pickle": (_pickle_with_code, "pickle_with_code"),
    "torch_pickle": (_torch_file_with_code, "pickle_with_code"), "nan": (_nan, "not_finite"),
    "all_zero": (_all_zero, "changes_nothing"), "mixed": (_mixed, "mixed_dialects"),
    "two_adapters": (_two_adapters, "several_adapters"), "half": (_half, "missing_half"),
    "exchanged": (_exchanged, "orientation"), "other_ranks": (_other_ranks, "rank_mismatch"),
    "config_of_another": (_config_of_another, "rank_mismatch"), "broken_config": (_broken_config, "bad_config"),
    "config_of_words": (_config_of_words, "alpha_not_a_number"),
    "integers": (_integers, "not_float"), "alpha_of_words": (_alpha_of_words, "alpha_not_a_number"),
    "alpha_infinite": (_alpha_infinite, "not_finite"), "alpha_of_shape": (_alpha_of_shape, "alpha_shape"),
    "scaled_storage": (_scaled_storage, "scaled_storage"), "multiplied": (_multiplied, "unsupported_kind"),
    "flat_product": (_flat_product, "bad_shape"), "full_of_another_size": (_full_of_another_size, "bad_shape"),
    "bias_of_another_size": (_bias_of_another_size, "bad_shape"),
    "xlabs": (_xlabs, "unsupported_kind"), "part_missing": (_part_missing, "missing_half"),
    "duplicate": (_duplicate, "duplicate_pair"), "other_kind": (_other_kind, "unsupported_kind"),
    "embedding": (_embedding, "rank_mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_a_bad_file_is_an_error_of_its_own(name: str, tmp_path: Path) -> None:
    make, code = ERRORS[name]
    exit_code, found = inspected(make(tmp_path))
    assert (exit_code, code in codes(found, "error")) == (1, True), found["problems"]
    assert all(len(problem["message"].splitlines()) <= 5 for problem in found["problems"])


@pytest.mark.parametrize("name", ERRORS)
def test_no_command_goes_on_with_a_bad_file(name: str, tmp_path: Path) -> None:
    path, good, out = ERRORS[name][0](tmp_path), tmp_path / "good", tmp_path / "out.safetensors"
    save(spelled("peft"), good)
    safetensors.torch.save_file(base_state(), tmp_path / "model.safetensors")
    model = str(tmp_path / "model.safetensors")
    assert lora("diff", path, good)[0] == 1
    assert lora("check", path, "--base", model)[0] == 1
    assert lora("convert", path, "--to", "kohya", "--base", model, "-o", out)[0] == 1
    assert not out.exists()


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    for make in (_pickle_with_code, _torch_file_with_code):
        inspected(make(tmp_path))
    assert not (tmp_path / "was_run").exists()
    pickle.loads((tmp_path / "lora.bin").read_bytes())  # noqa: S301  # the plain way does run it
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize("size", [9, 200, 4096])
def test_random_bytes_are_no_traceback(size: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(size)
    for start in (b"", b"\x80\x02", b"PK\x03\x04", (50).to_bytes(8, "little") + b"{"):
        noise = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).numpy().tobytes()
        (tmp_path / "noise.safetensors").write_bytes(start + noise)
        code, found = inspected(tmp_path / "noise.safetensors")
        assert (code, len(found["problems"]), found["target_modules"]) == (1, 1, {})


def test_a_change_that_is_no_number_is_named_by_diff(tmp_path: Path) -> None:
    code, found = as_json("diff", _nan(tmp_path), _nan(tmp_path))
    assert (code, found["verdict"], codes(found, "error")) == (1, "different", ["not_finite"])
