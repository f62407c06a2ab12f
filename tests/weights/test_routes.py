"""How much of the files matching reads, and what the measured numbers make it look at again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fixtures.checkpoints import (
    State,
    Trained,
    diffusers_like,
    diffusers_name,
    fastvideo_like,
    longcat_like,
    noisy,
    per_head,
    shuffled,
    to_half_split,
    wan_like,
)
from parity.weights.matching import exact
from parity.weights.matching.matcher import Entry, Matcher, Options
from parity.weights.matching.moments import Moments, all_numbers, same_bytes
from parity.weights.source import StateDictSource

C, HEADS = 256, 8


class Counting(StateDictSource):
    """Counts the elements that are read."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.read = 0
        self.size = sum(value.numel() for value in state.values())

    def get_elements(self, key: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        self.read += stop - start
        return super().get_elements(key, start, stop, out)


def matched(reference: State, native: State) -> tuple[list[Entry], tuple[float, float]]:
    """Entries, and how often each file was read."""
    sources = Counting(reference), Counting(native)
    entries = list(Matcher(*sources, Options()).entries())
    return entries, (sources[0].read / sources[0].size, sources[1].read / sources[1].size)


def pairs(entries: list[Entry]) -> set[tuple[str, str]]:
    return {(entry["reference"], entry["native"]) for entry in entries}


def turned(reference: State) -> State:
    """The queries and keys of all blocks in another RoPE layout, their outputs' heads in another order."""
    native = diffusers_like(reference)
    for key in native:
        if "norm" not in key and "weight" in key and (".to_q" in key or ".to_k" in key):
            native[key] = to_half_split(native[key], HEADS)
        if key.endswith("to_out.0.weight"):
            native[key] = shuffled(native[key], HEADS, 1)
    return native


@pytest.fixture(scope="module")
def wan() -> State:
    return wan_like(5, C, 640)


def test_plain_renames_and_splits_are_read_about_once(wan: State) -> None:
    entries, read = matched(wan, diffusers_like(wan))
    assert {other for _, other in pairs(entries) if other} == {diffusers_name(key) for key in wan}
    assert max(read) < 1.12  # 16 of 256 rows more than once; of real widths that is under 1 %
    reference = longcat_like(3, C, 640, HEADS)
    _, read = matched(reference, fastvideo_like(reference))
    assert max(read) < 1.12


def test_unrelated_models_are_read_about_once() -> None:
    entries, read = matched(wan_like(1, 128), diffusers_like(wan_like(1, 128, seed=7)))
    assert {entry["relation"] for entry in entries} == {"unrelated"}
    assert max(read) < 1.3  # 16 of 128 rows more than once


def test_a_layout_is_searched_in_one_block_and_tried_in_the_others(wan: State) -> None:
    entries, read = matched(wan, turned(wan))
    wanted = {(key, diffusers_name(key)) for key in wan}
    assert pairs(entries) == wanted
    moved = [entry["relation"] for entry in entries if "permute" in entry["relation"]]
    assert len(moved) == 5 * 2 * 3
    assert max(read) < 2.0
    assert min(entry["cosine"] for entry in entries) == 1.0


def test_heads_that_a_sample_misses_are_seen_when_measured() -> None:
    made = Trained(2)
    reference = {"q.weight": made.matrix(1024, 64)}
    rows = torch.arange(1024)
    rows[144:160], rows[176:192] = torch.arange(176, 192), torch.arange(144, 160)  # between the rows seen first
    entries, _ = matched(reference, {"to_q.weight": reference["q.weight"][rows]})
    assert [(entry["relation"], entry["cosine"]) for entry in entries] == [("permute rows", 1.0)]


def test_runs_and_gathered_lines_give_the_same_numbers(wan: State, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [[wan[f"blocks.{block}.self_attn.{x}.weight"] for x in "qkv"] for block in range(2)]
    native = {"0.qkv": per_head(parts[0], HEADS), "1.qkv": noisy(per_head(parts[1], HEADS), 0.01)}
    found = []
    for least in (1, 1 << 30):
        monkeypatch.setattr(exact, "_RUN", least)
        entries = [entry for entry in matched(wan, native)[0] if entry["native"]]
        assert [entry["rel_l2"] for entry in entries] == pytest.approx([0.0] * 3 + [0.01] * 3, rel=0.2)
        found.append([(entry["reference"], entry["cosine"], entry["pearson"]) for entry in entries])
    for one, other in zip(*found, strict=True):
        assert one == (other[0], pytest.approx(other[1], abs=1e-9), pytest.approx(other[2], abs=1e-9))


def test_a_nan_in_the_middle_is_named(wan: State) -> None:
    native = diffusers_like(wan)
    key = "blocks.3.attn1.to_v.weight"
    native[key] = native[key].clone()
    native[key][77, 3] = torch.nan
    held = {entry["native"]: entry for entry in matched(wan, native)[0]}
    assert (held[key]["reference"], held[key]["confidence"]) == ("blocks.3.self_attn.v.weight", "low")
    assert "NaN" in held[key]["why"]
    assert math.isnan(held[key]["cosine"])


def test_siblings_vouch_for_gains_that_noise_drowns(wan: State) -> None:
    native = {key: noisy(value, 0.15) for key, value in diffusers_like(wan).items()}
    entries, _ = matched(wan, native)
    found = {entry["native"]: entry for entry in entries}
    for block in range(5):
        gain = found[f"blocks.{block}.norm2.weight"]
        assert gain["reference"] == f"blocks.{block}.norm3.weight"
        assert gain["confidence"] in ("medium", "high")


def test_complex_tensors_are_compared_by_their_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.view_as_complex(torch.randn(64, 32, 2, generator=generator))
    entries, _ = matched({"freqs": table}, {"rope.freqs": table * 1.001})
    assert entries[0]["cosine"] == pytest.approx(1.0)
    assert entries[0]["rel_l2"] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_moments_against_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    one = (torch.randn(1 << 18, generator=generator) + 0.3).to(dtype)
    other = (one.double() + 0.01 * torch.randn(1 << 18, generator=generator, dtype=torch.float64)).to(dtype)
    moments = Moments()
    for chunk, against in zip(one.split(70_000), other.split(70_000), strict=True):
        moments.add(chunk, against)
    found, (e, a) = moments.metrics(), (one.double(), other.double())
    assert found["rel_l2"] == pytest.approx(float((a - e).norm() / e.norm()), rel=1e-5)
    assert 1 - found["cosine"] == pytest.approx(1 - float(e.dot(a) / e.norm() / a.norm()), rel=1e-4)
    assert 1 - found["pearson"] == pytest.approx(1 - float(torch.corrcoef(torch.stack([e, a]))[0, 1]), rel=1e-4)


@pytest.mark.parametrize("scale", [1e30, 1e-3])
def test_moments_where_float32_would_fail(scale: float) -> None:
    """Squares that overflow, and a mean a thousand times the spread."""
    generator = torch.Generator().manual_seed(2)
    one = torch.randn(1 << 14, generator=generator) * scale + (1.0 if scale < 1 else 0.0)
    other = one + 0.1 * scale * torch.randn(1 << 14, generator=generator)
    moments = Moments()
    moments.add(one, other)
    wanted = float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])
    assert moments.metrics()["pearson"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
     torch.float8_e4m3fnuz, torch.complex64],
)  # fmt: skip
def test_nan_is_seen_in_the_bits(dtype: torch.dtype) -> None:
    plain = torch.tensor([-224.0 if dtype.itemsize == 1 else -3e4, 0.0, -0.0, 1.0, 2.0, -1.0, 224.0, 8.0]).to(dtype)
    assert all_numbers(plain)
    for bad in (torch.nan, -torch.nan):
        worse = plain.clone()
        worse[3] = torch.tensor(bad).to(dtype)
        assert not all_numbers(worse)
    assert same_bytes(plain, plain.clone())
    assert not same_bytes(plain, worse)
