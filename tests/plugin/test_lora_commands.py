"""`parity lora inspect`, `check` and `diff`, from outside: what is printed, JSON, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from fixtures.lora_commands import as_json, base_file, codes, lora, lora_file
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import BASE, Spelled, base_state, drawn_pairs, save


def test_inspect_says_what_each_target_has(tmp_path: Path) -> None:
    code, found = as_json("inspect", lora_file(tmp_path, "kohya"), "--base", base_file(tmp_path))
    assert (code, found["format"], found["unexpected_keys"], found["problems"]) == (0, "kohya", [], [])
    assert set(found["target_modules"]) == set(BASE)
    row = found["target_modules"]["blocks.0.ffn.0"]
    A, B = drawn_pairs()["blocks.0.ffn.0"]
    assert (row["r"], row["lora_alpha"], row["scaling"], row["scaling_from"]) == (4, 2.0, 0.5, "tensor")
    assert row["delta_norm"] == pytest.approx(0.5 * float((B @ A).norm()), rel=1e-6)
    keys = found["keys"]
    assert keys["total"] == 18 == keys["used"] + keys["unsupported"] + keys["unexpected"]


def test_inspect_in_words(tmp_path: Path) -> None:
    code, output = lora("inspect", lora_file(tmp_path, "longcat"), "--base", base_file(tmp_path))
    assert code == 0
    assert "format: longcat" in output
    assert "3 x 4" in output
    assert "LoRA parameters 704, " in output
    assert "% of base" in output


def test_check_of_a_fitting_file(tmp_path: Path) -> None:
    code, found = as_json("check", lora_file(tmp_path, "onetrainer"), "--base", base_file(tmp_path))
    assert (code, len(found["matched"]), found["missing_modules"], found["problems"]) == (0, 6, [], [])


def test_check_of_another_size_of_the_model(tmp_path: Path) -> None:
    model = base_file(tmp_path, **{"blocks.0.ffn.0.weight": torch.zeros(16, 12)})
    code, found = as_json("check", lora_file(tmp_path, "peft"), "--base", model)
    assert (code, codes(found, "error")) == (1, ["shape_mismatch"])
    assert found["shape_mismatches"] == {"blocks.0.ffn.0": {"lora": [16, 8], "model": [16, 12]}}
    assert "8 where this one has 12" in found["problems"][0]["message"]


def test_check_finds_what_is_transposed(tmp_path: Path) -> None:
    model = base_file(tmp_path, **{"blocks.0.ffn.0.weight": torch.zeros(8, 16)})
    code, found = as_json("check", lora_file(tmp_path, "peft"), "--base", model)
    assert (code, codes(found, "error")) == (1, ["orientation"])


def test_check_finds_what_is_transposed_on_a_square_weight(tmp_path: Path) -> None:
    """The product of A and B, each transposed, is rank by rank and of rank 8."""
    module = "blocks.0.cross_attn.k_img"
    turned = {module: tuple(value.t() for value in reversed(drawn_pairs()[module]))}
    path = save(SPELLINGS["diffusers"][1]({m: (b, a) for m, (a, b) in turned.items()}), tmp_path / "turned")
    code, found = as_json("check", path, "--base", base_file(tmp_path))
    assert (code, codes(found, "error")) == (1, ["orientation"])


def test_two_files_without_a_target_are_not_the_same(tmp_path: Path) -> None:
    path = save(Spelled({"lora_unet_blocks_0_ffn_0.oft_blocks": torch.zeros(2, 4, 4)}), tmp_path / "oft")
    code, found = as_json("diff", path, path)
    assert (code, found["verdict"]) == (1, "nothing compared")


def test_check_of_missing_modules_names_them(tmp_path: Path) -> None:
    state = base_state()
    del state["blocks.0.cross_attn.k_img.weight"]
    safetensors.torch.save_file(state, tmp_path / "base.safetensors")
    code, found = as_json("check", lora_file(tmp_path, "peft"), "--base", tmp_path / "base.safetensors")
    assert (code, codes(found, "error"), found["missing_modules"]) == (
        1, ["missing_modules"], ["blocks.0.cross_attn.k_img"],
    )  # fmt: skip
    assert "k_img" in found["problems"][0]["message"]


@pytest.mark.parametrize(
    ("prefix", "words"),
    [("model.transformer.", "put 'model.transformer.' before the names"), ("", "convert --map")],
)
def test_no_module_matched_is_always_an_error(prefix: str, words: str, tmp_path: Path) -> None:
    numbered = enumerate(base_state().items())
    state = {f"{prefix}{key}" if prefix else f"other.{i}.weight": value for i, (key, value) in numbered}
    path = tmp_path / "base.safetensors"
    safetensors.torch.save_file(state, path)
    code, found = as_json("check", lora_file(tmp_path, "peft"), "--base", path)
    assert (code, codes(found, "error"), found["matched"]) == (1, ["no_module_matched"], [])
    assert words in found["problems"][0]["message"]
    assert codes(as_json("inspect", lora_file(tmp_path, "peft"), "--base", path)[1], "error") == ["no_module_matched"]


def test_diff_across_dialects(tmp_path: Path) -> None:
    code, found = as_json("diff", lora_file(tmp_path, "kohya"), lora_file(tmp_path, "diffusers_metadata"))
    assert (code, found["verdict"], found["missing_keys"], found["unexpected_keys"]) == (0, "same", [], [])
    assert set(found["target_modules"]) == set(BASE)
    row = found["target_modules"]["blocks.1.attn.qkv"]
    assert row["rel_l2"] < 1e-12
    assert row["cosine"] == pytest.approx(1)
    assert row["ratio"] == pytest.approx(1)


def test_diff_does_not_compare_the_factors_themselves(tmp_path: Path) -> None:
    spelled = SPELLINGS["peft"][1](drawn_pairs())
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double()
    turned = {
        key: (torch.linalg.inv(mix) @ value.double() if "lora_A" in key else value.double() @ mix)
        for key, value in spelled.tensors.items()
    }
    path = save(Spelled(turned, sidecar=spelled.sidecar), tmp_path / "turned")
    assert as_json("diff", lora_file(tmp_path, "peft"), path)[1]["verdict"] == "same"


@pytest.mark.parametrize(("factor", "words"), [(2.0, "exactly 2 x"), (-1.0, "exactly -1 x"), (0.37, "0.37 x")])
def test_diff_names_the_factor(factor: float, words: str, tmp_path: Path) -> None:
    spelled = SPELLINGS["kohya"][1](drawn_pairs())
    scaled = {key: value * factor if "lora_up" in key else value for key, value in spelled.tensors.items()}
    path = save(Spelled(scaled), tmp_path / "scaled")
    code, output = lora("diff", lora_file(tmp_path, "kohya"), path)
    assert code == 1
    assert words in output
    found = as_json("diff", lora_file(tmp_path, "kohya"), path)[1]
    assert found["verdict"] == "scaled"
    assert found["factor"] == pytest.approx(factor)


def test_a_copy_in_bfloat16_is_different_and_why_is_said(tmp_path: Path) -> None:
    spelled = SPELLINGS["kohya"][1](drawn_pairs())
    low = {key: value if key.endswith("alpha") else value.bfloat16() for key, value in spelled.tensors.items()}
    path = save(Spelled(low), tmp_path / "low")
    code, output = lora("diff", lora_file(tmp_path, "kohya"), path)
    assert (code, "storing in bfloat16 alone explains it: --rtol 0.008" in output) == (1, True)
    assert lora("diff", lora_file(tmp_path, "kohya"), path, "--rtol", "0.008")[0] == 0


def test_exchanged_layers_are_found(tmp_path: Path) -> None:
    one, other = "blocks.0.cross_attn.q_linear", "blocks.0.cross_attn.k_img"
    pairs = drawn_pairs()
    path = save(SPELLINGS["peft"][1]({**pairs, one: pairs[other], other: pairs[one]}), tmp_path / "exchanged")
    code, found = as_json("diff", lora_file(tmp_path, "peft"), path)
    assert (code, found["moved"]) == (1, {one: other, other: one})
    assert as_json("diff", lora_file(tmp_path, "peft"), lora_file(tmp_path, "kohya"))[1]["moved"] == {}


def test_names_of_two_models_are_told_apart(tmp_path: Path) -> None:
    other = save(SPELLINGS["peft"][1]({f"x.{m}": pair for m, pair in drawn_pairs().items()}), tmp_path / "other")
    first = lora_file(tmp_path, "peft")
    code, output = lora("diff", first, other)
    assert (code, "no target in common" in output) == (1, True)
    assert f"moved: blocks.0.ffn.2 of {first} is x.blocks.0.ffn.2 of {other}" in output


def test_diff_of_other_values_and_targets(tmp_path: Path) -> None:
    other = save(SPELLINGS["peft"][1]({m: p for m, p in drawn_pairs(5).items() if "ffn.2" not in m}), tmp_path / "o")
    code, found = as_json("diff", lora_file(tmp_path, "peft"), other)
    assert (code, found["verdict"], found["missing_keys"]) == (1, "different", ["blocks.0.ffn.2"])
    assert as_json("diff", other, lora_file(tmp_path, "peft"))[1]["unexpected_keys"] == ["blocks.0.ffn.2"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("inspect", "no_such_file.safetensors"), 2, "no such file"),
        (("convert", "X", "--to", "pft", "-o", "o"), 2, "did you mean 'peft'"),
        (("convert", "X", "--to", "diffsynth", "-o", "o"), 2, "unknown format to write"),
        (("convert", "X", "--to", "peft", "--map", "none.json", "-o", "o"), 2, "cannot read the key map"),
        (("convert", "X", "--to", "peft", "--reverse", "-o", "o"), 2, "--map"),
        (("diff", "X", "X", "--map", "no_such_pair"), 2, "unknown pair"),
        (("diff", "X", "X", "--map", "json:no_such_name"), 2, "names nothing"),
    ],
)
def test_usage(words: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    given = [lora_file(tmp_path, "peft") if word == "X" else word for word in words]
    result = lora(*given)
    assert result[0] == code
    assert said in result[1]
