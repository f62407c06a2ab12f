"""PEFT and diffusers load what is written here, and give the output that applying the adapter here gives."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import BASE, Spelled, base_state, drawn_pairs, save
from fixtures.tiny_wan import OFFICIAL, call, tiny_wan, wan_lora
from parity.errors import LoraError
from parity.io.lora_files import open_lora, write_lora
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import applied, merged
from parity.lora.compare import compared
from parity.lora.delta import Delta, apart, deltas_of
from parity.lora.formats import Given, LoraFile, dialects, read_lora
from parity.lora.loaded import Factors, LoadedLora
from parity.lora.recovered import recovered

pytest.importorskip("peft", reason="needs the extra `models`")
pytest.importorskip("diffusers", reason="needs the extra `models`")


class Layers(nn.Module):
    """The modules of the base, each applied to the first of its inputs' worth of x."""

    def __init__(self) -> None:
        super().__init__()
        for path, (out, into) in BASE.items():
            parent: nn.Module = self
            *above, last = path.split(".")
            for name in above:
                if not hasattr(parent, name):
                    parent.add_module(name, nn.Module())
                parent = getattr(parent, name)
            parent.add_module(last, nn.Linear(into, out, bias=False))
        self.load_state_dict(base_state())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Run every layer. Shapes: x [B, 16], result [B, sum of O]."""
        layers = [self.get_submodule(path) for path in BASE]
        return torch.cat([layer(x[:, : BASE[path][1]]) for path, layer in zip(BASE, layers, strict=True)], 1)


def read(path: Path) -> LoadedLora:
    opened = open_lora(path)
    return read_lora(LoraFile(opened.source, opened.header, opened.sidecar, Given(modules=list(BASE))))


def written(lora: LoadedLora, dialect: str, folder: Path) -> Path:
    write = dialects()[dialect].write
    assert write is not None
    file = write(lora)
    return write_lora(folder, file.tensors, file.header, file.sidecar, lambda path: None)[0]


@pytest.mark.parametrize("name", ["peft_patterns", "musubi_split", "fastvideo", "loha"])
def test_peft_loads_what_is_written(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    lora = read(save(SPELLINGS[name][1](drawn_pairs()), tmp_path / "from"))
    path = written(lora, "peft", tmp_path / "to")
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    ours = Layers()
    plain = ours(x)
    with applied(ours, lora.adapter()):
        wanted = ours(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns where it leaves keys out
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loaded = PeftModel.from_pretrained(Layers(), str(path.parent)).eval()
    with torch.no_grad():
        found = loaded(x)
    assert float((found - wanted).norm() / (wanted - plain).norm()) < 1e-6


def test_magnitudes_are_pefts(tmp_path: Path) -> None:
    """Weight-decomposed LoRA: read, applied unmerged and merged, as PEFT applies it."""
    from peft import PeftModel

    spelled = SPELLINGS["peft"][1](drawn_pairs())
    state = base_state()
    lengths = {
        f"base_model.model.{m}.lora_magnitude_vector": 1.5 * state[f"{m}.weight"].norm(dim=1) for m in BASE
    }
    assert spelled.sidecar is not None
    config = {**spelled.sidecar, "use_dora": True, "target_modules": list(BASE)}
    path = save(Spelled({**spelled.tensors, **lengths}, sidecar=config), tmp_path / "dora")
    x, ours = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), Layers()
    plain = ours(x)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(Layers(), str(path.parent)).eval()(x)
    for way in (applied, merged):
        with way(ours, read(path).adapter()):
            assert float((ours(x) - wanted).norm() / (wanted - plain).norm()) < 1e-5
        assert torch.equal(ours(x), plain)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("LoKr", {}), ("LoKr", {"decompose_both": True, "r": 2}), ("LoHa", {"rank_pattern": {"ffn.0": 2}})],
)
def test_pefts_own_products_are_read(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """PEFT scales a Kronecker product of two full factors by alpha / r, too."""
    import peft

    config = getattr(peft, f"{kind}Config")(**{"r": 4, "alpha": 7, "target_modules": list(BASE), **more})
    theirs, generator = peft.get_peft_model(Layers(), config).eval(), torch.Generator().manual_seed(1)
    for value in [p for p in theirs.parameters() if p.requires_grad]:
        value.data = torch.randn(value.shape, generator=generator)
    theirs.save_pretrained(str(tmp_path))
    lora = read(tmp_path)
    assert [problem.code for problem in lora.problems] == []
    for module, target in lora.targets.items():
        wanted = theirs.base_model.get_submodule(f"model.{module}").get_delta_weight("default")
        torch.testing.assert_close(deltas_of(target)[module].dense().float(), wanted.detach(), rtol=1e-4, atol=1e-4)


def with_biases(model: nn.Module) -> nn.Module:
    """Give every linear layer a bias, the same each time."""
    generator = torch.Generator().manual_seed(3)
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        layer.bias = nn.Parameter(torch.randn(layer.out_features, generator=generator), requires_grad=False)
    return model


def test_biases_beside_b_are_pefts(tmp_path: Path) -> None:
    """`lora_bias`: B has a bias of its own, scaled as B is; read, applied, merged, written, loaded again."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, lora_alpha=2, lora_bias=True, target_modules=list(BASE), init_lora_weights=False)
    torch.manual_seed(0)
    theirs = get_peft_model(with_biases(Layers()), config).eval()
    for name, value in theirs.named_parameters():
        if "lora_B" in name and name.endswith("bias"):
            value.data.normal_()
    theirs.save_pretrained(str(tmp_path / "peft"))
    x, ours = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), with_biases(Layers())
    lora = read(tmp_path / "peft")
    again = PeftModel.from_pretrained(with_biases(Layers()), str(written(lora, "peft", tmp_path / "to").parent)).eval()
    with torch.no_grad():
        plain, wanted = ours(x), theirs(x)
        assert float((again(x) - wanted).norm() / (wanted - plain).norm()) < 1e-6
        for way in (applied, merged):
            with way(ours, lora.adapter()):
                assert float((ours(x) - wanted).norm() / (wanted - plain).norm()) < 1e-5
            assert torch.equal(ours(x), plain)
    with pytest.raises(LoraError, match="has no bias to merge"), merged(Layers(), lora.adapter()):
        pytest.fail("merged")
    assert set(lora.keys.values()) == {"used"}
    assert not lora.problems


class Mixed(nn.Module):
    """A table, convolutions with and without padding, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.patch = nn.Embedding(11, 6), nn.Conv3d(3, 6, (1, 2, 2), stride=(1, 2, 2))
        self.padded, self.line = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv1d(4, 5, 3, padding="same")
        self.out = nn.Linear(6, 7)
        self.requires_grad_(False)

    def forward(self, ids: Tensor, video: Tensor, image: Tensor, line: Tensor) -> Tensor:
        """Run every layer. Shapes: ids [B, L], video [B, 3, F, H, W], image [B, 6, H, W], line [B, 4, L]."""
        words = self.words(ids)
        parts = (words, self.out(words), self.patch(video), self.padded(image), self.line(line))
        return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("dora", [False, True])
def test_tables_and_convolutions_are_pefts(dora: bool, tmp_path: Path) -> None:
    """Embeddings, patch embeddings, padded kernels: read, applied, merged, written, loaded, read off the model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    layers = ["words", "patch", "padded", "line", "out"]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=layers, init_lora_weights=False, use_dora=dora)
    theirs, g = get_peft_model(Mixed(), config).eval(), torch.Generator().manual_seed(1)
    for name, value in theirs.named_parameters():
        if "lora_" in name:
            value.data = 0.5 * torch.randn(value.shape, generator=g) + 1.5 * ("magnitude" in name)
    theirs.save_pretrained(str(tmp_path / "peft"))
    given = (torch.randint(0, 11, (2, 3), generator=g), torch.randn(2, 3, 2, 4, 4, generator=g),
             torch.randn(2, 6, 7, 7, generator=g), torch.randn(2, 4, 9, generator=g))  # fmt: skip
    lora, ours = read(tmp_path / "peft"), Mixed()
    again = PeftModel.from_pretrained(Mixed(), str(written(lora, "peft", tmp_path / "to").parent)).eval()
    with torch.no_grad():
        plain, wanted = ours(*given), theirs(*given)
        assert torch.equal(again(*given), wanted)
        for way in (applied, merged):
            with way(ours, lora.adapter()):
                assert float((ours(*given) - wanted).norm() / (wanted - plain).norm()) < 1e-6
            assert torch.equal(ours(*given), plain)
    assert compared(lora, recovered(theirs)).verdict == "same"
    assert set(lora.keys.values()) == {"used"}
    assert not lora.problems


def test_diffusers_loads_what_is_written(tmp_path: Path) -> None:
    lora, ours, theirs = wan_lora(official=False), tiny_wan(), tiny_wan()
    plain = call(ours)
    with applied(ours, lora.adapter()):
        wanted = call(ours)
    path = written(lora, "diffusers", tmp_path)
    theirs.load_lora_adapter(str(path.parent), weight_name=path.name, prefix="transformer")  # type: ignore[operator]
    found = call(theirs)
    assert float((wanted - plain).norm() / plain.norm()) > 0.01
    assert float((found - wanted).norm() / (wanted - plain).norm()) < 1e-5


@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
def test_diffusers_converts_what_is_written_with_the_original_names(dialect: str, tmp_path: Path) -> None:
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    lora = wan_lora(official=True)
    path = written(lora, dialect, tmp_path)
    state = WanLoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name)
    for module, target in lora.targets.items():
        block, _, name = module.removeprefix("blocks.").partition(".")
        key = f"transformer.blocks.{block}.{OFFICIAL[name]}"
        A, B = state[f"{key}.lora_A.weight"].double(), state[f"{key}.lora_B.weight"].double()
        assert apart(deltas_of(target)[module], Delta(Factors(A, B))).rel_l2 < 1e-6
    assert len(state) == 2 * len(lora.targets)


def test_a_scaling_lost_on_the_way_would_show(tmp_path: Path) -> None:
    lora, ours = wan_lora(official=False), tiny_wan()
    plain = call(ours)
    with applied(ours, lora.adapter()):
        wanted = call(ours)
    lost = {m: LoraTarget(*t.factors(), 1.0, "assumed") for m, t in lora.targets.items() if t.factors is not None}
    with applied(ours, LoraAdapter("lost", lost)):
        assert float((call(ours) - wanted).norm() / (wanted - plain).norm()) > 1e-2
