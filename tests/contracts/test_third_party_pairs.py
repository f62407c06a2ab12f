"""The pairs of real third-party code, and what stands in so that they run on a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fixtures.pairs import longcat_fastvideo, wan
from fixtures.third_party import locate, stand_ins
from fixtures.third_party.cuda_autocast import CudaAutocast
from fixtures.third_party.random_weights import random_adapter
from parity.errors import LoraError, SourceMissing
from parity.execution.hooks import TapHooks
from parity.execution.tap import Tap
from parity.pair import Build, ModelPair, Side, Source

PAIRS = {"wan": wan.PAIR, "longcat_fastvideo": longcat_fastvideo.PAIR}
FLOAT32 = Build(dtype=torch.float32)


@dataclass
class Both:
    """Both sides of a pair, the native holding the reference's weights, and what one forward gave."""

    pair: ModelPair
    reference: nn.Module
    native: nn.Module
    build: Build

    def run(self, side_name: str) -> tuple[Tensor, dict[str, list[Tensor]]]:
        side: Side = getattr(self.pair, side_name)
        model: nn.Module = getattr(self, side_name)
        inputs = self.pair.inputs(self.build, 0)
        seen: dict[str, list[Tensor]] = {}

        def record(tap: Tap, value: Tensor, call: int) -> None:
            seen.setdefault(tap.name, []).append(value)

        hooks = TapHooks(model, self.pair.taps(self.build), side_name, record)
        with torch.no_grad(), side.around_session(), side.around_call(model, inputs), hooks.attached():
            return side.output(side.call(model, inputs)), seen


def built(pair: ModelPair, build: Build) -> Both:
    reference, native = pair.reference.build(build), pair.native.build(build)
    native.load_state_dict(pair.key_map(build).native_tensors(reference.state_dict()), strict=True)
    return Both(pair, reference, native, build)


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> ModelPair:
    chosen = PAIRS[request.param]
    for source in (chosen.reference.source, chosen.native.source):
        if not (source.checkout or source.folder):
            pytest.importorskip(locate.top_package(source), reason=source.get)
        elif not locate.is_here(source):
            pytest.skip(f"{locate.top_package(source)} is not here; get it with: {source.get}")
    return chosen


@pytest.fixture(scope="module")
def both(pair: ModelPair) -> Iterator[Both]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield built(pair, FLOAT32)
    torch.set_num_threads(threads)


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def test_importing_a_pair_file_imports_no_model_code() -> None:
    heavy = {"diffusers", "transformers", "wan", "fastvideo", "longcat_video"}
    imports = "import sys, fixtures.pairs.wan, fixtures.pairs.longcat_fastvideo"
    code = f"{imports}; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=locate.ROOT)


def test_key_map_accounts_for_every_tensor_of_both_sides(both: Both) -> None:
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (both.reference, both.native)]
    both.pair.key_map(both.build).check(*shapes)


def test_forwards_agree_in_float32_and_every_tap_is_seen_on_both_sides(both: Both) -> None:
    (expected, reference), (actual, native) = both.run("reference"), both.run("native")
    assert actual.shape == expected.shape == both.pair.inputs(both.build, 0)["latents"].shape
    assert distance(actual, expected) < 1e-4
    *taps, last = both.pair.taps(both.build)
    assert last.name == "final_output"
    assert list(reference) == [tap.name for tap in taps], "the reference does not reach its taps in order"
    assert set(native) == set(reference)
    for tap in taps:
        there, here = torch.cat(reference[tap.name]), torch.cat(native[tap.name])
        laid_out = tap.layout.forward(here, there.shape)
        assert distance(*_valid(both, tap, laid_out, there)) < 1e-4, tap.name
        assert tap.layout.backward is not None
        assert torch.equal(tap.layout.backward(laid_out, here.shape), here), tap.name


def _valid(both: Both, tap: Tap, *values: Tensor) -> list[Tensor]:
    if tap.valid is None:
        return list(values)
    mask = tap.valid(both.pair.inputs(both.build, 0))
    assert not bool(mask.all()), "the inputs have no padding, so that the trap it sets is not tried"
    return [value[mask.expand(value.shape[:-1])] for value in values]


def test_weights_are_not_exact_in_bfloat16_and_nothing_is_left_at_its_initial_value(both: Both) -> None:
    for name, value in both.reference.named_parameters():
        assert not torch.equal(value, value.bfloat16().float()), name
        assert float(value.std()) > 0.01, name


def test_bfloat16_keeps_the_reference_near_its_float32_self(both: Both) -> None:
    low = built(both.pair, Build(dtype=torch.bfloat16))
    rounded = {"timestep": both.pair.inputs(FLOAT32, 0)["timestep"].bfloat16().float()}
    outputs = [_with_inputs(side, rounded).run(name)[0] for side in (both, low) for name in ("reference", "native")]
    assert all(1e-3 < distance(value, outputs[0]) < 2e-2 for value in outputs[2:])


def _with_inputs(both: Both, changed: dict[str, Any]) -> Both:
    pair = replace(both.pair, inputs=lambda build, seed: {**PAIRS[both.pair.name].inputs(build, seed), **changed})
    return replace(both, pair=pair)


def test_adapter_is_the_same_for_a_seed_and_changes_every_target(both: Both) -> None:
    assert both.pair.lora is not None
    adapter, again = (both.pair.lora(both.build, both.reference) for _ in range(2))
    for path, target in adapter.targets.items():
        weight = both.reference.get_parameter(f"{path}.weight")
        assert torch.equal(target.A, again.targets[path].A)
        assert 0.05 < float(target.delta().norm() / weight.norm()) < 3, path
    with pytest.raises(LoraError, match="no Linear layer"):
        random_adapter(both.reference, "nothing", 0)


def test_wan_keeps_in_float32_what_from_pretrained_keeps(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = wan.PAIR.native.build(Build(dtype=torch.bfloat16))
    assert isinstance(model, diffusers.ModelMixin)
    model.save_pretrained(tmp_path)
    loaded = diffusers.WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    kept = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert kept == {name for name, value in loaded.named_parameters() if value.dtype == torch.float32}
    assert kept


def test_missing_source_ends_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_SUCH_SRC", str(tmp_path))
    source = Source("nowhere.model", checkout="NO_SUCH_SRC", folder=".third_party/nowhere", get="make third-party")
    with pytest.raises(SourceMissing) as error:
        locate.folder_of(source)
    lines = str(error.value).splitlines()
    assert len(lines) <= 5
    assert lines[-1] == "get it with: make third-party"


def test_autocast_to_float32_computes_low_weights_in_float32() -> None:
    layer, x = nn.Linear(64, 64).bfloat16(), torch.randn(8, 64)
    with CudaAutocast("cuda", dtype=torch.float32):
        assert torch.equal(layer(x), F.linear(x, layer.weight.float(), layer.bias.float()))


def test_autocast_to_bfloat16_does_what_torch_does() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(torch.ones(4, 64)) @ torch.ones(64, 2)
    with CudaAutocast("cuda", dtype=torch.bfloat16):
        actual = model(torch.ones(4, 64)) @ torch.ones(64, 2)
    assert torch.equal(actual, expected)
    assert actual.dtype == torch.bfloat16


def test_only_the_innermost_autocast_counts_and_float64_is_left_alone() -> None:
    x = torch.randn(4, 4)
    with CudaAutocast("cuda", dtype=torch.bfloat16):
        with CudaAutocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
        assert (x.double() @ x.double()).dtype == torch.float64
        assert x.bfloat16().softmax(-1).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


def test_absent_packages_leave_no_trace_but_a_note() -> None:
    with stand_ins.absent_packages("surely_absent"):
        import surely_absent.kernels as kernels  # type: ignore[import-not-found]

        @kernels.jit  # type: ignore[untyped-decorator]
        def kernel() -> int:
            return 3

        class Config(kernels.Base):  # type: ignore[misc]
            pass

        assert kernel() == 3
        assert Config()
        with pytest.raises(SourceMissing, match="only a stand-in"):
            kernels.attention(torch.ones(1))
    assert "surely_absent.kernels" not in sys.modules
    assert importlib.util.find_spec("surely_absent") is None
    assert any(line.startswith("surely_absent:") for line in stand_ins.SUBSTITUTES)


def test_packed_attention_keeps_sequences_apart() -> None:
    q, k, v = (torch.randn(7, 2, 8) for _ in range(3))
    starts = torch.tensor([0, 3, 7])
    packed = stand_ins.flash_attn_varlen_func(q, k, v, starts, starts, 4, 4)
    alone = [stand_ins.flash_attn_func(q[None, a:b], k[None, a:b], v[None, a:b])[0] for a, b in ((0, 3), (3, 7))]
    assert torch.equal(packed, torch.cat(alone))


def test_keys_beyond_a_samples_length_are_not_attended_to() -> None:
    q, k, v = (torch.randn(2, 5, 2, 8) for _ in range(3))
    short = wan._attention(q, k, v, k_lens=torch.tensor([5, 3]))
    assert torch.equal(short[1:], stand_ins.attend(q[1:], k[1:, :3], v[1:, :3]))


def test_a_wheel_cannot_be_unpacked_outside_its_folder(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("unpack", locate.ROOT / "scripts" / "unpack_third_party.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("../outside", "x")
    with pytest.raises(ValueError, match="leads outside"):
        script.unzip(tmp_path / "bad.whl", tmp_path / "target")
    assert not (tmp_path / "outside").exists()
