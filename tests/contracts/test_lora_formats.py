"""Every dialect of LoRA files gives the same changes, and exactly one claims each file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import BASE, Spelled, drawn_deltas, drawn_pairs, save
from parity.io.lora_files import open_lora, write_lora
from parity.lora.compare import compared
from parity.lora.delta import deltas_of
from parity.lora.formats import Given, LoraFile, dialect_of, dialects, read_lora, writers
from parity.lora.loaded import LoadedLora


def opened(path: Path, lora_alpha: float | None = None) -> LoraFile:
    found = open_lora(path)
    return LoraFile(found.source, found.header, found.sidecar, Given(lora_alpha=lora_alpha, modules=list(BASE)))


def spelled(name: str, folder: Path) -> LoraFile:
    file = SPELLINGS[name][1](drawn_pairs())
    return opened(save(file, folder), file.lora_alpha)


def distance(lora: LoadedLora) -> float:
    """The largest relative distance from the changes all files hold."""
    wanted = drawn_deltas()
    assert set(lora.targets) == set(wanted)
    found = {module: deltas_of(target)[module].dense() for module, target in lora.targets.items()}
    return max(float((found[m] - wanted[m]).norm() / wanted[m].norm()) for m in wanted)


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_gives_the_same_changes(name: str, tmp_path: Path) -> None:
    file = spelled(name, tmp_path)
    lora = read_lora(file)
    assert lora.format == SPELLINGS[name][0]
    assert distance(lora) < 1e-6
    assert set(lora.keys) == {key.key for key in file.keys}
    assert not [problem for problem in lora.problems if problem.severity == "error"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_exactly_one_dialect_claims_a_file(name: str, tmp_path: Path) -> None:
    file = spelled(name, tmp_path)
    assert [d.name for d in dialects().values() if d.matches(file)] == [dialect_of(file).name] == [SPELLINGS[name][0]]


@pytest.mark.parametrize("to", writers())
@pytest.mark.parametrize("name", ["longcat", "musubi_split", "peft_patterns", "comfyui", "loha"])
def test_what_is_written_is_read_with_the_same_changes(name: str, to: str, tmp_path: Path) -> None:
    write = dialects()[to].write
    assert write is not None
    written = write(read_lora(spelled(name, tmp_path / "from")))
    places = write_lora(tmp_path / "to", written.tensors, written.header, written.sidecar, lambda path: None)
    lora = read_lora(opened(places[0]))
    assert (lora.format, set(lora.keys.values())) == (to, {"used"})
    assert distance(lora) < 1e-6


@pytest.mark.parametrize("to", writers())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_odd_scalings_and_ranks_survive_in_every_dtype(dtype: torch.dtype, to: str, tmp_path: Path) -> None:
    generator, tensors = torch.Generator().manual_seed(5), {}
    for rank, (module, (out, into)) in enumerate(BASE.items(), start=1):
        path = f"diffusion_model.{module}"
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, into, generator=generator).to(dtype)
        tensors[f"{path}.lora_B.weight"] = torch.randn(out, rank, generator=generator).to(dtype)
        tensors[f"{path}.alpha"] = torch.tensor(0.1 * rank**2 - 0.37)
    lora = read_lora(opened(save(Spelled(tensors), tmp_path / "from")))
    write = dialects()[to].write
    assert write is not None
    written = write(lora)
    places = write_lora(tmp_path / "to", written.tensors, written.header, written.sidecar, lambda path: None)
    found = compared(lora, read_lora(opened(places[0])))
    assert (found.verdict, len(found.rows)) == ("same", len(BASE))


def test_every_dialect_is_spelled() -> None:
    assert {dialect for dialect, _ in SPELLINGS.values()} == set(dialects()) - {"xlabs"}


def test_a_wrong_change_would_show(tmp_path: Path) -> None:
    file = SPELLINGS["kohya"][1](drawn_pairs())
    tensors = {k: v * 2 if k.endswith(".alpha") else v for k, v in file.tensors.items()}
    path = save(type(file)(tensors), tmp_path)
    assert distance(read_lora(opened(path))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("peft", "sidecar"), ("diffusers", "assumed"), ("diffusers_metadata", "header"), ("kohya", "tensor"),
        ("diffusers_header_alpha", "header"), ("longcat", "tensor"), ("cosmos", "argument"), ("diffsynth", "assumed"),
        ("comfyui_sidecar", "sidecar"), ("comfyui_no_alpha", "assumed"), ("fastvideo", "tensor"),
    ],
)  # fmt: skip
def test_it_is_said_where_the_scaling_came_from(name: str, origin: str, tmp_path: Path) -> None:
    lora = read_lora(spelled(name, tmp_path))
    assert {target.scaling_from for target in lora.targets.values()} == {origin}


def test_factors_around_a_core(tmp_path: Path) -> None:
    """Tucker's form of a convolution [6, 4, 3, 3], of plain factors, of LoHa and of LoKr (with w1 [2, 2])."""
    g = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=g)

    def rebuilt(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("ijxy,ip,jq->pqxy", t, a, b)

    t, a, b, t2, a2, b2 = draw(2, 2, 3, 3), draw(2, 6), draw(2, 4), draw(2, 2, 3, 3), draw(2, 6), draw(2, 4)
    core, w1, ka, kb = draw(2, 5, 3, 3), draw(2, 2), draw(2, 3), draw(2, 2)
    up, down = draw(6, 2, 1, 1), draw(5, 4, 1, 1)
    tensors = {
        "lora_unet_c.lora_up.weight": up, "lora_unet_c.lora_mid.weight": core, "lora_unet_c.lora_down.weight": down,
        "lora_unet_h.hada_t1": t, "lora_unet_h.hada_w1_a": a, "lora_unet_h.hada_w1_b": b, "lora_unet_h.hada_t2": t2,
        "lora_unet_h.hada_w2_a": a2, "lora_unet_h.hada_w2_b": b2, "lora_unet_k.lokr_w1": w1, "lora_unet_k.lokr_t2": t,
        "lora_unet_k.lokr_w2_a": ka, "lora_unet_k.lokr_w2_b": kb,
    }  # fmt: skip
    tensors |= {f"lora_unet_{name}.alpha": torch.tensor(1.0) for name in "chk"}
    wanted = {
        "c": rebuilt(core, up[..., 0, 0].t(), down[..., 0, 0]), "h": rebuilt(t, a, b) * rebuilt(t2, a2, b2),
        "k": torch.einsum("ab,cdxy->acbdxy", w1, rebuilt(t, ka, kb)).reshape(6, 4, 3, 3),
    }  # fmt: skip
    found = open_lora(save(Spelled(tensors), tmp_path))
    lora = read_lora(LoraFile(found.source, found.header, found.sidecar, Given(modules="chk")))
    assert (set(lora.keys.values()), {target.kernel for target in lora.targets.values()}) == ({"used"}, {(3, 3)})
    for module, value in wanted.items():
        dense = deltas_of(lora.targets[module])[module].dense().float()
        torch.testing.assert_close(dense, 0.5 * value.flatten(1), rtol=1e-5, atol=1e-5)


def test_parts_of_a_fused_layer_may_have_ranks_of_their_own(tmp_path: Path) -> None:
    """Each part is scaled by alpha over its own rank."""
    g, parts = torch.Generator().manual_seed(0), ((2, 3), (4, 5))
    tensors, changes = {"lora_unet_qk.alpha": torch.tensor(1.0)}, []
    for j, (r, out) in enumerate(parts):
        A, B = torch.randn(r, 8, generator=g), torch.randn(out, r, generator=g)
        tensors |= {f"lora_unet_qk.lora_down.{j}.weight": A, f"lora_unet_qk.lora_up.{j}.weight": B}
        changes.append(B @ A / r)
    found = open_lora(save(Spelled(tensors), tmp_path))
    lora = read_lora(LoraFile(found.source, found.header, found.sidecar, Given(modules=["qk"])))
    torch.testing.assert_close(deltas_of(lora.targets["qk"])["qk"].dense().float(), torch.cat(changes))
    assert not lora.problems


def test_factors_of_an_attentions_processor(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for key, module, out in (("qkv_lora1", "img_attn.qkv", 24), ("proj_lora2", "txt_attn.proj", 8)):
        A, B = torch.randn(2, 8, generator=g), torch.randn(out, 2, generator=g)
        path = f"double_blocks.3.processor.{key}"
        tensors |= {f"{path}.down.weight": A, f"{path}.up.weight": B}
        wanted[f"double_blocks.3.{module}"] = B @ A
    lora = read_lora(opened(save(Spelled(tensors), tmp_path)))
    assert (lora.format, set(lora.keys.values())) == ("xlabs", {"used"})
    for module, value in wanted.items():
        torch.testing.assert_close(deltas_of(lora.targets[module])[module].dense().float(), value)


def test_real_products_of_lycoris(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    sizes = {"a1": (6, 2), "b1": (2, 4), "a2": (6, 2), "b2": (2, 4), "k1": (2, 3), "ka": (3, 2), "kb": (2, 4)}
    w = {name: torch.randn(size, generator=g) for name, size in sizes.items()}
    tensors = {
        "diffusion_model.h.hada_w1_a": w["a1"], "diffusion_model.h.hada_w1_b": w["b1"],
        "diffusion_model.h.hada_w2_a": w["a2"], "diffusion_model.h.hada_w2_b": w["b2"],
        "diffusion_model.h.alpha": torch.tensor(1.0), "diffusion_model.k.alpha": torch.tensor(1.0),
        "diffusion_model.k.lokr_w1": w["k1"], "diffusion_model.k.lokr_w2_a": w["ka"],
        "diffusion_model.k.lokr_w2_b": w["kb"],
    }  # fmt: skip
    file = SPELLINGS["kohya"][1](drawn_pairs())
    lora = read_lora(opened(save(type(file)(tensors), tmp_path)))
    hada = (w["a1"] @ w["b1"]) * (w["a2"] @ w["b2"]) * 0.5
    kron = torch.kron(w["k1"], w["ka"] @ w["kb"]) * 0.5
    for module, wanted in (("h", hada), ("k", kron)):
        torch.testing.assert_close(deltas_of(lora.targets[module])[module].dense().float(), wanted)
