"""`parity lora convert`, from outside: what is written is what was there, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from fixtures.lora_commands import as_json, base_file, lora, lora_file
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import BASE, base_state, save
from parity.commands.key_maps import key_map_named
from parity.io.keymaps import write_key_map
from parity.weights.mapfile import encoded


def tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def test_a_map_that_weights_map_wrote_is_the_same_map(tmp_path: Path) -> None:
    """One inferred map serves checkpoints and LoRA: the JSON with pieces is read as the JSON with patterns is."""
    (tmp_path / "split.json").write_text(json.dumps(MAPS["split.json"]))
    shapes = {key: value.shape for key, value in base_state().items() if key.startswith("blocks.")}
    cut = {}
    for key, shape in shapes.items():
        for name in ("to_q", "to_k", "to_v") if "attn.qkv" in key else ("",):
            native = key.replace("blocks.", "layers.").replace("attn.qkv", name)
            cut[native] = torch.Size((shape[0] // 3, *shape[1:])) if name else shape
    found = key_map_named(str(tmp_path / "split.json"))
    assert found is not None
    plan = found.plan(shapes, cut)
    pieces = [piece for key in plan.pieces for piece in plan.pieces_into(key)]
    write_key_map(tmp_path / "pieces.json", encoded(pieces, ({}, {})))
    first = lora_file(tmp_path, "longcat")
    outs = []
    for name in ("split", "pieces"):
        outs.append(tmp_path / f"by_{name}.safetensors")
        words = lora("convert", first, "--to", "fastvideo", "--map", tmp_path / f"{name}.json", "-o", outs[-1])
        assert words[0] == 0, words
    one, other = (tensors(out) for out in outs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_convert_there_and_back(tmp_path: Path) -> None:
    model, out = base_file(tmp_path), tmp_path / "out"
    code, found = as_json("convert", lora_file(tmp_path, "kohya"), "--to", "PEFT", "--base", model, "-o", out)
    assert (code, found["format"], found["targets"]) == (0, "peft", 6)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    assert lora("convert", out, "--to", "kohya", "-o", tmp_path / "back.safetensors")[0] == 0
    back, first = tensors(tmp_path / "back.safetensors"), tensors(lora_file(tmp_path, "kohya"))
    assert back.keys() == first.keys()
    assert all(torch.equal(back[key], first[key]) for key in first)


MAPS = {
    "split.json": {
        r"blocks\.(\d+)\.attn\.qkv\.weight": [rf"layers.\1.to_{x}.weight" for x in "qkv"],
        r"blocks\.(.*)": r"layers.\1",
    },
    "fuse.json": {
        **{rf"layers\.(\d+)\.to_{x}\.weight": [r"blocks.\1.attn.qkv.weight", i, 3] for i, x in enumerate("qkv")},
        r"layers\.(.*)": r"blocks.\1",
    },
}  # fmt: skip


def test_convert_through_a_key_map_and_back(tmp_path: Path) -> None:
    for name, rules in MAPS.items():
        (tmp_path / name).write_text(json.dumps(rules), encoding="utf-8")
    first, split, fused = lora_file(tmp_path, "longcat"), tmp_path / "split.safetensors", tmp_path / "fused.safetensors"
    assert lora("convert", first, "--to", "fastvideo", "--map", tmp_path / "split.json", "-o", split)[0] == 0
    found = as_json("inspect", split)[1]["target_modules"]
    assert {"layers.0.to_q", "layers.0.to_k", "layers.1.to_v", "layers.0.ffn.0"} <= set(found)
    assert {row["r"] for row in found.values()} == {4}, "a cut of a block-diagonal B has its own rank back"
    assert as_json("diff", first, split, "--map", tmp_path / "split.json")[1]["verdict"] == "same"
    assert lora("convert", split, "--to", "longcat", "--map", tmp_path / "fuse.json", "-o", fused)[0] == 0
    assert as_json("diff", first, fused)[1]["verdict"] == "same"


@pytest.mark.parametrize("to", ["peft", "diffusers", "kohya", "comfyui", "longcat", "fastvideo"])
def test_layers_cut_from_one_share_its_a(to: str, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps(MAPS["split.json"]), encoding="utf-8")
    first, out = lora_file(tmp_path, "comfyui"), tmp_path / "out" / "out.safetensors"
    assert lora("convert", first, "--to", to, "--map", tmp_path / "split.json", "-o", out)[0] == 0
    assert as_json("diff", first, out, "--map", tmp_path / "split.json")[1]["verdict"] == "same"


def test_fusing_own_factors_keeps_the_change(tmp_path: Path) -> None:
    """Three layers with A of their own become one of three times the rank, alpha with it."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 2, 8, generator=generator), torch.randn(3, 4, 2, generator=generator)
    pairs = {f"l.to_{x}": (a[i], b[i]) for i, x in enumerate("qkv")}
    split = save(SPELLINGS["peft"][1](pairs), tmp_path / "split")
    (split.parent / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}), encoding="utf-8")
    rules = {rf"l\.to_{x}\.weight": ["l.qkv.weight", i, 3] for i, x in enumerate("qkv")}
    (tmp_path / "fuse.json").write_text(json.dumps(rules), encoding="utf-8")
    out = tmp_path / "out.safetensors"
    assert lora("convert", split, "--to", "kohya", "--map", tmp_path / "fuse.json", "-o", out)[0] == 0
    found = tensors(out)
    assert float(found["lora_unet_l_qkv.alpha"]) == 12
    delta = found["lora_unet_l_qkv.lora_up.weight"] @ found["lora_unet_l_qkv.lora_down.weight"] * 2
    torch.testing.assert_close(delta, torch.cat([2 * B @ A for A, B in pairs.values()]))
    longcat = tmp_path / "longcat.safetensors"
    assert lora("convert", split, "--to", "longcat", "--map", tmp_path / "fuse.json", "-o", longcat)[0] == 0
    assert sum("lora_up.blocks" in key for key in tensors(longcat)) == 3


def test_a_model_of_other_widths_is_refused_with_the_dimension(tmp_path: Path) -> None:
    state = {key: torch.zeros(value.shape[0], value.shape[1] + 4) for key, value in base_state().items()}
    safetensors.torch.save_file(state, tmp_path / "wide.safetensors")
    out = tmp_path / "out.safetensors"
    words = ("convert", lora_file(tmp_path, "peft"), "--to", "fastvideo", "--to-base", tmp_path / "wide.safetensors")
    code, found = as_json(*words, "-o", out)
    assert (code, found["code"], out.exists()) == (1, "shape_mismatch", False)
    assert "8 where this one has 12" in found["message"]


def test_a_base_that_the_file_is_not_for_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"other.weight": torch.zeros(8, 8)}, tmp_path / "other.safetensors")
    out, model = tmp_path / "out.safetensors", tmp_path / "other.safetensors"
    words = ("convert", lora_file(tmp_path, "peft"), "--to", "kohya", "--base", model, "-o", out)
    assert (as_json(*words)[1]["code"], out.exists()) == ("no_module_matched", False)


def test_recompression_states_its_error(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    code, found = as_json("convert", lora_file(tmp_path, "peft"), "--to", "fastvideo", "--rank", "2", "-o", out)
    assert code == 0
    stated = found["recompression"]
    rows = as_json("diff", lora_file(tmp_path, "peft"), out)[1]["target_modules"]
    assert set(stated) == set(BASE)
    assert all(rows[module]["rel_l2"] == pytest.approx(stated[module], rel=1e-4) for module in BASE)
    assert min(stated.values()) > 0.1


def test_what_does_not_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parity.lora.formats import kohya

    monkeypatch.setattr(kohya, "scalar", lambda value: torch.tensor(value * 2))
    out = tmp_path / "out.safetensors"
    code, found = as_json("convert", lora_file(tmp_path, "peft"), "--to", "kohya", "-o", out)
    assert (code, found["code"]) == (1, "not_proved")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_file_is_not_written_over_itself(tmp_path: Path) -> None:
    path = lora_file(tmp_path, "peft")
    code, said = lora("convert", path, "--to", "diffusers", "-o", path)
    assert (code, "the file to convert" in said) == (2, True)


def test_the_header_is_kept_for_tools_that_read_it(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert lora("convert", lora_file(tmp_path, "peft_patterns"), "--to", "diffusers", "-o", out)[0] == 0
    with safe_open(out, framework="pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert settings["transformer.r"] == 4
    assert list(settings["transformer.rank_pattern"].values()) == [6]


def test_a_product_of_full_rank_is_refused_or_recompressed(tmp_path: Path) -> None:
    first, out = lora_file(tmp_path, "lokr_full"), tmp_path / "out.safetensors"
    assert as_json("convert", first, "--to", "fastvideo", "-o", out)[1]["code"] == "full_rank"
    code, found = as_json("convert", first, "--to", "fastvideo", "--rank", "4", "-o", out)
    assert code == 0
    assert max(found["recompression"].values()) < 1e-6, "the true rank is 4"


SPLIT = {"q.weight": (8, 8), "k.weight": (8, 8), "q.bias": (8,), "k.bias": (8,), "norm.weight": (8,),
         "table": (1, 2, 8)}  # fmt: skip
FUSED = {"qk.weight": (16, 8), "qk.bias": (16,), "ln.weight": (8,), "shift": (1, 2, 8)}


def test_changes_in_full_go_through_a_map_of_fused_parts_and_back(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, sizes in ((first, SPLIT), (second, FUSED)):
        safetensors.torch.save_file({name: torch.randn(size, generator=g) for name, size in sizes.items()}, path)
    rules = {rf"{x}\.(weight|bias)": [r"qk.\1", i, 2] for i, x in enumerate("qk")}
    map_file = tmp_path / "map.json"
    map_file.write_text(json.dumps({**rules, r"norm\.(.*)": r"ln.\1", "table": "shift"}), encoding="utf-8")
    held = {"norm.diff": (8,), "table.diff": (1, 2, 8), "k.diff_b": (8,), "k.diff": (8, 8)}
    given = {f"diffusion_model.{name}": torch.randn(size, generator=g) for name, size in held.items()}
    low = {"A": torch.randn(2, 8, generator=g), "B": torch.randn(8, 2, generator=g)}
    pair = {f"diffusion_model.q.lora_{x}.weight": value for x, value in low.items()}
    path, there, back = (tmp_path / f"{name}.safetensors" for name in ("given", "there", "back"))
    safetensors.torch.save_file({**given, **pair}, path)
    ways = (("--base", first, "--to-base", second, "-o", there), ("--base", second, "--to-base", first, "-o", back))
    assert lora("convert", path, "--to", "comfyui", "--map", map_file, *ways[0])[0] == 0
    found = tensors(there)
    assert torch.equal(found["diffusion_model.shift.diff"], given["diffusion_model.table.diff"])
    assert torch.equal(found["diffusion_model.qk.diff"][8:], given["diffusion_model.k.diff"])
    wanted = torch.cat([torch.zeros(8), given["diffusion_model.k.diff_b"]])
    assert torch.equal(found["diffusion_model.qk.diff_b"], wanted)
    code, said = lora("convert", there, "--to", "comfyui", "--map", map_file, "--reverse", "-o", back)
    assert (code, "--base and --to-base" in said) == (1, True)
    assert lora("convert", there, "--to", "comfyui", "--map", map_file, "--reverse", *ways[1])[0] == 0
    assert as_json("diff", path, back)[1]["verdict"] == "same"
    assert "base's shapes" in lora("convert", path, "--to", "comfyui", "--map", map_file, "-o", tmp_path / "x.st")[1]


def test_half_of_a_layer_is_not_written_where_layers_are_kept_whole(tmp_path: Path) -> None:
    """PEFT's `modules_to_save` needs the bias beside the weight where the model has one."""
    base, path, out = tmp_path / "base.safetensors", tmp_path / "x.safetensors", tmp_path / "out"
    pair = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.ones(8, 2)}
    given = {"head.set_weight": torch.ones(4, 8), **pair}
    safetensors.torch.save_file({f"diffusion_model.{key}": value for key, value in given.items()}, path)
    sizes = {"q.weight": (8, 8), "head.weight": (4, 8), "head.bias": (4,)}
    safetensors.torch.save_file({key: torch.zeros(size) for key, size in sizes.items()}, base)
    code, said = lora("convert", path, "--to", "peft", "--base", base, "-o", out)
    assert (code, "has no bias for head" in said) == (1, True)
    safetensors.torch.save_file({key: torch.zeros(sizes[key]) for key in ("q.weight", "head.weight")}, base)
    assert lora("convert", path, "--to", "peft", "--base", base, "-o", out)[0] == 0
