"""What loaders and converters get wrong without a word is read rightly here, told, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import ALPHA, BASE, HYPHEN, SCALING, Spelled, drawn_deltas, drawn_pairs, save
from parity.errors import LoraFileError
from parity.io.lora_files import open_lora
from parity.lora.conversion import mapped
from parity.lora.delta import deltas_of
from parity.lora.formats import Given, LoraFile, Written, dialects, read_lora
from parity.lora.loaded import LoadedLora
from parity.weights.keymap import KeyMap, rename, split
from parity.weights.source import StateDictSource

A, B = drawn_pairs()["blocks.0.ffn.0"]


def read(tensors: dict[str, Tensor], modules: list[str] | None = None, **about: object) -> LoadedLora:
    file = LoraFile(StateDictSource(tensors), about.get("header", {}), about.get("sidecar"),  # type: ignore[arg-type]
                    Given(modules=list(BASE) if modules is None else modules))  # fmt: skip
    return read_lora(file)


def spelled(name: str) -> LoadedLora:
    file = SPELLINGS[name][1](drawn_pairs())
    return read(dict(file.tensors), header=file.header, sidecar=file.sidecar)


def written(lora: LoadedLora, to: str) -> Written:
    write = dialects()[to].write
    assert write is not None
    return write(lora)


def codes(lora: LoadedLora) -> set[str]:
    return {problem.code for problem in lora.problems}


def dense(lora: LoadedLora, module: str) -> Tensor:
    return deltas_of(lora.targets[module])[module].dense()


@pytest.mark.parametrize("name", SPELLINGS)
def test_reading_leaves_the_tensors_as_they_are(name: str) -> None:
    """A loader that scales the caller's tensors in place is weaker each time the same dict is loaded."""
    tensors = dict(SPELLINGS[name][1](drawn_pairs()).tensors)
    kept = {key: value.clone() for key, value in tensors.items()}
    first, second = ([dense(read(tensors), m) for m in BASE if m in read(tensors).targets] for _ in range(2))
    assert all(torch.equal(tensors[key], kept[key]) for key in kept)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["diffusers_header_alpha", "comfyui_sidecar"])
def test_alpha_where_the_loaders_do_not_look_is_told_with_its_factor(name: str) -> None:
    lora = spelled(name)
    said = next(problem.message for problem in lora.problems if problem.code == "alpha_elsewhere")
    assert f"apply {1 / SCALING:.3g} times" in said
    assert all(target.scaling == SCALING for target in lora.targets.values())


def test_ranks_without_alpha_are_each_their_own_alpha() -> None:
    sizes = {"a.lora_A": (2, 3), "a.lora_B": (3, 2), "b.lora_A": (4, 3), "b.lora_B": (3, 4)}
    lora = read({f"transformer.{name}.weight": torch.ones(size) for name, size in sizes.items()})
    assert [target.scaling for target in lora.targets.values()] == [1, 1]


def test_a_shared_a_of_a_fused_layer_is_copied_not_cut_by_rank() -> None:
    lora = spelled("comfyui")
    names = tuple(rf"blocks.\1.attn.{x}.weight" for x in "qkv")
    found = mapped(lora, KeyMap((split(r"blocks\.(\d+)\.attn\.qkv\.weight", names), rename("(.*)", r"\1"))))
    parts = [found.targets[f"blocks.0.attn.{x}"].target() for x in "qkv"]
    assert all(torch.equal(part.A, drawn_pairs()["blocks.0.attn.qkv"][0]) for part in parts)
    joined = torch.cat([part.delta() for part in parts])
    torch.testing.assert_close(joined, drawn_deltas()["blocks.0.attn.qkv"])


def test_underscores_of_the_model_stay() -> None:
    """`q_linear` and `k_img` are names; a rule that makes every underscore a dot breaks them."""
    assert {"blocks.0.cross_attn.q_linear", "blocks.0.cross_attn.k_img"} <= set(spelled("kohya").targets)


def test_a_root_module_with_an_underscore_has_its_dots() -> None:
    for name in ("proj_out.lora_A", "proj_out.lora_A.weight", "proj_out.lora_A.default.weight"):
        tensors = {name: A, name.replace("lora_A", "lora_B"): B}
        lora = read_lora(LoraFile(StateDictSource(tensors)))
        assert (list(lora.targets), lora.underscored) == (["proj_out"], False)


def test_an_ending_that_is_another_layer_is_not_taken_for_the_module() -> None:
    tensors = {"lora_unet_blocks_7_proj.lora_down.weight": A, "lora_unet_blocks_7_proj.lora_up.weight": B}
    assert list(read(tensors, modules=["proj", "blocks.0.proj"]).targets) == ["blocks_7_proj"]


def test_two_modules_with_one_underscored_name_are_told_apart_or_refused() -> None:
    tensors = {"lora_unet_a_b_c.lora_down.weight": A, "lora_unet_a_b_c.lora_up.weight": B}
    assert "ambiguous_name" in codes(read(tensors, modules=["a.b_c", "a_b.c"]))
    pair = {f"{m}.lora_{x}.weight": value for m in ("a.b_c", "a_b.c") for x, value in (("A", A), ("B", B))}
    with pytest.raises(LoraFileError, match="one and the same key"):
        written(read(pair), "kohya")


def test_parts_of_a_fused_layer_do_not_overwrite_each_other() -> None:
    torch.testing.assert_close(dense(spelled("musubi_split"), "blocks.0.attn.qkv"), drawn_deltas()["blocks.0.attn.qkv"])


FULL = {
    "diffusion_model.blocks.0.ffn.0.diff": torch.full((16, 8), 0.5),
    "diffusion_model.blocks.0.ffn.0.diff_b": torch.ones(16), "diffusion_model.blocks.0.norm.diff": torch.ones(8),
    "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 8),
    "diffusion_model.head.set_weight": torch.ones(4, 8), "diffusion_model.patch.diff": torch.ones(8, 2, 1, 2, 2),
}  # fmt: skip


def test_changes_in_full_are_all_read_and_written_again() -> None:
    lora = read(FULL)
    assert set(lora.keys.values()) == {"used"}
    again = written(lora, "comfyui").tensors
    assert again.keys() == FULL.keys()
    assert all(torch.equal(again[key], FULL[key]) for key in FULL)


@pytest.mark.parametrize("to", ["peft", "diffusers", "kohya", "longcat", "fastvideo"])
def test_what_a_dialect_cannot_hold_is_refused_not_dropped(to: str) -> None:
    with pytest.raises(LoraFileError, match="cannot hold"):
        written(read(FULL), to)


def test_a_change_in_full_beside_a_pair_does_not_replace_it() -> None:
    torch.testing.assert_close(
        dense(spelled("full_and_pair"), "blocks.0.ffn.0"), drawn_deltas()["blocks.0.ffn.0"], rtol=1e-6, atol=1e-6
    )


def test_a_missing_alpha_scale_is_told() -> None:
    path = f"lora{HYPHEN}x"
    lora = read({f"{path}.lora_down.weight": A, f"{path}.lora_up.weight": B})
    assert (lora.targets["x"].scaling_from, "scaling_assumed" in codes(lora)) == ("assumed", True)


@pytest.mark.parametrize("alpha", [0.75, 2.0, 0.1])
@pytest.mark.parametrize("to", ["fastvideo", "comfyui"])
def test_a_loader_that_mishandles_alpha_is_right_all_the_same(to: str, alpha: float) -> None:
    """One makes alpha a whole number, some drop it: what is written is right without it, where that is exact."""
    tensors = {"x.lora_A.weight": A, "x.lora_B.weight": B}
    found = written(read(tensors, sidecar={"r": 4, "lora_alpha": alpha}), to).tensors
    name = "x.lora_{}" if to == "fastvideo" else "diffusion_model.x.lora_{}.weight"
    wanted = (B.double() @ A.double()) * alpha / 4
    got = found[name.format("B")].double() @ found[name.format("A")].double()
    if to == "fastvideo" or alpha == ALPHA:
        assert float((got - wanted).norm() / wanted.norm()) < 1e-6
    stored = float(found["x.lora_alpha" if to == "fastvideo" else "diffusion_model.x.alpha"])
    assert stored == pytest.approx(4 if to == "fastvideo" or alpha == ALPHA else alpha)


def _with_magnitudes(value: Tensor) -> LoadedLora:
    return read({"lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B,
                 "lora_unet_x.alpha": torch.tensor(2.0), "lora_unet_x.dora_scale": value}, modules=["x"])  # fmt: skip


def test_magnitudes_are_kept_or_refused() -> None:
    lora = _with_magnitudes(torch.rand(16, 1))
    assert written(lora, "peft").tensors["base_model.model.x.lora_magnitude_vector"].shape == (16,)
    assert (written(lora, "peft").sidecar or {})["use_dora"] is True
    assert written(lora, "kohya").tensors["lora_unet_x.dora_scale"].shape == (16, 1)
    for to in ("diffusers", "longcat", "fastvideo"):
        with pytest.raises(LoraFileError, match="cannot hold magnitude"):
            written(lora, to)
    with pytest.raises(LoraFileError, match="not one for each output"):
        written(_with_magnitudes(torch.rand(1, 8)), "peft")


def test_layers_trained_in_full_replace_the_base() -> None:
    tensors = {**SPELLINGS["peft"][1](drawn_pairs()).tensors, "base_model.model.head.weight": torch.ones(4, 8)}
    lora = read(tensors, sidecar={"r": 4, "lora_alpha": 2, "modules_to_save": ["head"]})
    assert set(lora.targets["head"].extras) == {"set_weight"}
    assert set(lora.keys.values()) == {"used"}
    assert torch.equal(written(lora, "peft").tensors["base_model.model.head.weight"], torch.ones(4, 8))


def test_biases_trained_beside_the_adapter_are_read() -> None:
    key = "base_model.model.blocks.0.ffn.0.base_layer.bias"
    tensors = {**SPELLINGS["peft"][1](drawn_pairs()).tensors, key: B[:, 0]}
    lora = read(tensors, sidecar={"r": 4, "lora_alpha": 2, "bias": "lora_only"})
    assert lora.format == "peft"
    assert set(lora.targets["blocks.0.ffn.0"].extras) == {"set_bias"}
    assert set(lora.keys.values()) == {"used"}


def test_a_layer_saved_in_full_inside_a_model_is_read_once() -> None:
    tensors = {**SPELLINGS["peft_in_model"][1](drawn_pairs()).tensors,
               "base_model.model.head.modules_to_save.default.weight": torch.ones(4, 8),
               "base_model.model.head.original_module.weight": torch.zeros(4, 8)}  # fmt: skip
    lora = read(tensors, sidecar={"r": 4, "lora_alpha": 2})
    assert torch.equal(lora.targets["head"].extras["set_weight"](), torch.ones(4, 8))
    assert len(lora.keys_that_are("unsupported")) == 1


def test_changes_in_full_below_underscored_names_are_read() -> None:
    lora = read({"lora_unet_blocks_0_ffn_0.diff": torch.ones(16, 8)})
    assert torch.equal(dense(lora, "blocks.0.ffn.0"), torch.ones(16, 8).double())


def test_settings_of_products_name_alpha_otherwise() -> None:
    tensors = {f"base_model.model.x.hada_{name}": torch.ones(size) for name, size in
               {"w1_a": (6, 2), "w1_b": (2, 4), "w2_a": (6, 2), "w2_b": (2, 4)}.items()}  # fmt: skip
    lora = read(tensors, sidecar={"peft_type": "LOHA", "r": 2, "alpha": 8})
    assert (lora.targets["x"].scaling, lora.targets["x"].scaling_from) == (4, "sidecar")


def test_a_model_with_lora_in_a_layer_name_is_no_lora() -> None:
    state = {"net.blocks.0.adaln_lora.1.weight": torch.ones(4, 8), "net.blocks.0.attn.q.weight": torch.ones(8, 8)}
    with pytest.raises(LoraFileError, match="model's checkpoint, no LoRA"):
        read(state)


def test_transposed_storage_of_a_layer_exchanges_the_factors() -> None:
    lora = read({"base_model.model.x.lora_A.weight": A, "base_model.model.x.lora_B.weight": B},
                sidecar={"r": 4, "lora_alpha": 4, "fan_in_fan_out": True})  # fmt: skip
    assert lora.targets["x"].shape == (8, 16)
    torch.testing.assert_close(dense(lora, "x"), (B.double() @ A.double()).t())


def test_an_adapter_of_the_text_encoder_is_not_mixed_in(tmp_path: Path) -> None:
    file = SPELLINGS["kohya"][1](drawn_pairs())
    beside = {"lora_te1_layer_0.lora_down.weight": A, "lora_te1_layer_0.lora_up.weight": B}
    opened = open_lora(save(Spelled({**file.tensors, **beside}), tmp_path))
    lora = read_lora(LoraFile(opened.source, given=Given(modules=list(BASE))))
    assert set(lora.targets) == set(BASE)
    assert "other_component" in codes(lora)


def test_padding_to_one_rank_changes_nothing() -> None:
    """LongCat's loader takes one rank for the whole file."""
    found = written(spelled("peft_patterns"), "longcat").tensors
    ranks = {value.shape[0] for key, value in found.items() if key.endswith("ffn___lorahyphen___0.lora_down.weight")}
    assert ranks == {6}
    again = read(dict(found))
    assert all(torch.allclose(dense(again, m), drawn_deltas()[m], rtol=1e-6) for m in BASE)

