"""From evidence to verdict: each class is reached, and for the reason it says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fixtures.synthetic import synthetic_evidence
from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits, limits_for
from parity.numerics.rounding import Excess
from parity.numerics.verdict import Judged, TapFacts, VerdictClass, judge, settle
from parity.report.record import outcome_of

LIMITS = Limits()
BASE = synthetic_evidence()
MANY = 4096
BIT, SAME, DROWNED, FELT, NOT = VerdictClass


def excess(ratio: float = 1.0, freedom: float = 1000.0, correlation: float = 0.5) -> Excess:
    """A projection whose native residual is `ratio` times the reference's, among three twins like the reference's."""
    difference = ratio**2 + 1 - 2 * correlation * ratio
    return Excess(ratio**2, 1.0, (1.0, 1.0, 1.0), freedom, correlation, difference, int(freedom))


def evidence(ratios: Mapping[str, float] | None = None, freedom: float = 1000.0, **changes: Any) -> Evidence:
    found = {name: excess(1.0, freedom) for name in ("identity", "channel_mean", "channel_slope", "token_mean")}
    found |= {name: excess(ratio, freedom) for name, ratio in (ratios or {}).items()}
    given: dict[str, Any] = {
        "logic_error": 1e-16, "excesses": found, "rows": MANY, "groups": 1, "excluded": 0, "bit_exact": False,
        "nonfinite": (0, 0), "coherence": 1.0, "noise": 2e-3, "implausible": 1.0, "reference_dtype": "bfloat16",
        "native_dtype": "bfloat16",
    }  # fmt: skip
    return replace(BASE, **{**given, **changes})


def facts(name: str, **changes: Any) -> TapFacts:
    block, _, layer = name.rpartition(".") if "." in name else ("", "", name)
    kind = re.sub(r"\d+", "", name)
    given: dict[str, Any] = {"name": name, "kind": kind, "block": block, "attention": "attn" in layer, "allowed": None}
    return TapFacts(**{**given, **changes})


def judge_all(taps: Mapping[str, Evidence | Sequence[Evidence]], **about: Any) -> dict[str, Judged]:
    """Judge taps, each with one draw or with several."""
    lists = {name: [found] if isinstance(found, Evidence) else list(found) for name, found in taps.items()}
    count = max(map(len, lists.values()))
    draws = [{name: found[i] for name, found in lists.items() if i < len(found)} for i in range(count)]
    return judge([facts(name, **about) for name in taps], draws, LIMITS)


def judge_one(found: Evidence | Sequence[Evidence], name: str = "block0.ffn", **about: Any) -> Judged:
    return judge_all({name: found}, **about)[name]


# --- the classes ------------------------------------------------------------------------------------------------------


def test_same_bits_are_bit_exact() -> None:
    assert judge_one(evidence(bit_exact=True)).cls is BIT


def test_one_draw_that_is_not_bit_exact_loses_the_class() -> None:
    assert judge_one([evidence(bit_exact=True), evidence()]).cls is SAME


def test_equal_rounding_is_the_same_function_as_precise() -> None:
    judged = judge_one(evidence())
    assert (judged.cls, judged.direction, judged.reasons) == (SAME, 0, [])
    assert not judged.different


@pytest.mark.parametrize(("logic_error", "cls"), [(0.9e-12, SAME), (1.1e-12, FELT), (math.inf, FELT)])
def test_logic_above_its_limit_is_another_function(logic_error: float, cls: VerdictClass) -> None:
    judged = judge_one(evidence(logic_error=logic_error))
    assert judged.cls is cls
    assert judged.logic == judged.fails == (cls is FELT)


def test_the_worst_draw_decides_about_logic() -> None:
    assert judge_one([evidence(), evidence(logic_error=1e-3)]).logic


def test_float32_shadow_has_a_limit_of_its_own() -> None:
    assert limits_for(torch.float64).logic_error == 1e-12
    assert limits_for(torch.float32).logic_error == 1e-5


@pytest.mark.parametrize(
    ("nonfinite", "where"), [((0, 3), "on the native"), ((2, 0), "on the reference"), ((2, 3), "on both sides")]
)
def test_what_is_not_finite_fails_whatever_its_impact(nonfinite: tuple[int, int], where: str) -> None:
    judged = judge_one(evidence(nonfinite=nonfinite, bit_exact=True))
    assert judged.reasons == [f"NaN or Inf {where}: {nonfinite[0]} reference, {nonfinite[1]} native values"]
    assert settle(judged, 0.0, LIMITS).fails


def test_no_draw_is_not_judged() -> None:
    judged = judge([facts("block0.ffn"), facts("block1.ffn")], [{"block0.ffn": evidence()}], LIMITS)["block1.ffn"]
    assert (judged.cls, judged.reasons) == (NOT, ["no draw reached this tap"])


@pytest.mark.parametrize(("excluded", "cls"), [(MANY - 1, SAME), (MANY + 1, NOT)])
def test_taint_of_more_than_half_is_not_judged(excluded: int, cls: VerdictClass) -> None:
    judged = judge_one(evidence(excluded=excluded))
    assert judged.cls is cls
    assert ("tainted" in "".join(judged.reasons)) == (cls is NOT)


def test_taint_hides_neither_logic_nor_a_ratio() -> None:
    judged = judge_one(evidence({"identity": 9.0}, logic_error=1.0, excluded=MANY * 3))
    assert judged.cls is NOT, "never failed on values that are not trusted"


def test_no_row_left_is_not_judged() -> None:
    assert judge_one(evidence(rows=0, excesses={}, excluded=5)).cls is NOT


def test_bit_exact_values_need_no_shadow() -> None:
    judged = judge_one(evidence(bit_exact=True, excluded=MANY * 9))
    assert (judged.cls, judged.reasons) == (BIT, [f"{MANY * 9} rows have no trusted shadow"])


def test_a_residual_no_rounding_makes_is_not_judged() -> None:
    judged = judge_one(evidence(implausible=31.0))
    assert judged.cls is NOT
    assert "31x farther" in judged.reasons[0]


def test_declared_approximation_passes_and_is_said() -> None:
    judged = judge_one(evidence(logic_error=1e-2), allowed="sparse attention")
    assert (judged.cls, judged.reasons) == (SAME, ["declared: sparse attention"])


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "direction"), [(1.5, 1), (1 / 1.5, -1)])
def test_one_tap_alone_is_amber(ratio: float, direction: int) -> None:
    found = judge_all({"block0.ffn": evidence({"channel_mean": ratio}), "block0.self_attn": evidence()})
    judged = found["block0.ffn"]
    assert judged.amber
    assert (judged.cls, judged.direction) == (NOT, 0)
    assert "draw more inputs" in judged.reasons[0]
    assert found["block0.self_attn"].cls is SAME


@pytest.mark.parametrize(("ratio", "direction"), [(1.5, 1), (1 / 1.5, -1)])
def test_two_taps_are_red(ratio: float, direction: int) -> None:
    differing = evidence({"channel_mean": ratio})
    found = judge_all({"block0.ffn": differing, "block0.ffn_in": differing, "block0.modulation": evidence()})
    for name in ("block0.ffn", "block0.ffn_in"):
        assert (found[name].cls, found[name].direction) == (DROWNED, direction)
        assert "seconded by another tap" in found[name].reasons[0]
        assert ("less" if direction > 0 else "more") + " precise" in found[name].reasons[0]
    assert found["block0.modulation"].cls is SAME


def test_another_function_seconds_nothing() -> None:
    ratio = {"token_mean": 1.6}
    wrong = evidence(ratio, logic_error=1e-3)
    found = judge_all({"block0.ffn": evidence(ratio), "block0.other": wrong})
    assert found["block0.other"].logic
    assert not found["block0.ffn"].different
    assert judge_all({"block0.ffn": evidence(ratio), "block0.other": evidence(ratio)})["block0.ffn"].different


def test_two_taps_in_opposite_directions_second_nothing() -> None:
    found = judge_all({"block0.ffn": evidence({"channel_mean": 1.5}), "block0.self_attn": evidence({"identity": 0.6})})
    assert {j.direction for j in found.values()} == {0}


@pytest.mark.parametrize(("ratio", "direction"), [(3.0, 1), (1 / 3.0, -1)])
def test_strong_total_rounding_is_red_alone(ratio: float, direction: int) -> None:
    judged = judge_one(evidence({"identity": ratio}))
    assert (judged.direction, judged.projection) == (direction, "identity")
    assert "total rounding" in judged.reasons[0]


def test_a_strong_ratio_of_one_structure_is_not_red_alone() -> None:
    assert judge_one(evidence({"token_mean": 3.0})).amber


@pytest.mark.parametrize(("ratio", "direction"), [(1.12, 1), (1 / 1.12, -1)])
def test_what_no_block_shows_alone_shows_pooled(ratio: float, direction: int) -> None:
    blocks = {f"block{n}.ffn": evidence({"channel_mean": ratio}, freedom=500.0) for n in range(8)}
    assert judge_one(blocks["block0.ffn"]).direction == 0
    found = judge_all(blocks)
    assert {j.direction for j in found.values()} == {direction}
    assert all("pooled over 8 blocks" in j.reasons[0] for j in found.values())


def test_pooling_blames_only_blocks_that_are_off() -> None:
    blocks = {f"block{n}.ffn": evidence({"channel_mean": 1.3}, freedom=500.0) for n in range(7)}
    found = judge_all({**blocks, "block7.ffn": evidence(freedom=500.0)})
    assert found["block7.ffn"].cls is SAME
    assert found["block0.ffn"].direction == 1


def test_pooled_draws_narrow_the_error() -> None:
    wide = evidence({"channel_mean": 1.25}, freedom=150.0)
    assert not judge_one(wide, "final_layer").amber
    assert judge_one([wide] * 8, "final_layer").amber


@pytest.mark.parametrize(("attention", "different"), [(False, True), (True, False)])
def test_attention_has_a_wider_margin(attention: bool, different: bool) -> None:
    differing = evidence({"channel_mean": 1.3}, freedom=20000.0)
    found = judge_all({"a": differing, "b": differing}, attention=attention)
    assert {j.different for j in found.values()} == {different}


@pytest.mark.parametrize(("ratio", "different"), [(1.8, False), (3.0, True)])
def test_where_the_reference_computes_in_float32_only_a_down_cast_counts(ratio: float, different: bool) -> None:
    fine = evidence({"channel_mean": ratio}, noise=1e-7, freedom=20000.0)
    assert {j.different for j in judge_all({"a": fine, "b": fine}).values()} == {different}


@pytest.mark.parametrize(("native", "direction"), [("bfloat16", 1), ("float32", 0), ("float64", -1)])
def test_another_dtype_is_a_finding_without_statistics(native: str, direction: int) -> None:
    judged = judge_one(evidence(reference_dtype="float32", native_dtype=native))
    assert judged.direction == direction
    assert bool(judged.reasons) == bool(direction)


# --- power ------------------------------------------------------------------------------------------------------------


def test_too_few_tokens_have_no_power() -> None:
    judged = judge_one(evidence(rows=100))
    assert judged.cls is NOT
    assert judged.reasons[0].startswith("no power: 100 tokens a sample, a lost FP32 island needs ")


def test_tokens_count_per_sample() -> None:
    assert judge_one(evidence(rows=MANY, groups=32)).cls is NOT
    assert judge_one(evidence(rows=MANY, groups=1)).cls is SAME


def test_almost_bit_exact_needs_no_power() -> None:
    near = {name: Excess(1.0, 1.0, (1.0,), 10.0, 0.9999, 0.05**2, 10) for name in ("identity", "channel_mean")}
    assert judge_one(evidence(rows=4, excesses=near)).cls is SAME
    assert judge_one(evidence(rows=4, excesses={**near, "token_mean": excess()})).cls is NOT


def test_structured_rounding_of_the_reference_has_no_power() -> None:
    judged = judge_one(evidence(coherence=3.1))
    assert judged.cls is NOT
    assert "coherence 3.1 (limit 3)" in judged.reasons[0]


@pytest.mark.parametrize("changes", [{"rows": 1}, {"coherence": 9.0}])
def test_outside_blocks_a_tap_is_judged_whole(changes: dict[str, Any]) -> None:
    assert judge_one(evidence(**changes), "time_embed").cls is SAME


def test_a_row_or_two_within_a_block_are_judged_whole() -> None:
    found = judge_all({"block0.ffn": evidence(), "block0.modulation": evidence(rows=1)})
    assert found["block0.modulation"].cls is SAME


def test_a_difference_is_told_even_without_power() -> None:
    assert judge_one(evidence({"identity": 5.0}, rows=100)).direction == 1


# --- impact and outcome -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("impact", "cls"), [(0.0, DROWNED), (0.45, DROWNED), (0.46, FELT), (math.inf, FELT), (math.nan, FELT), (None, FELT)]
)
def test_impact_decides_between_drowned_and_felt(impact: float | None, cls: VerdictClass) -> None:
    judged = settle(judge_one(evidence({"identity": 5.0})), impact, LIMITS)
    assert judged.cls is cls
    assert judged.fails == (cls is FELT)


def test_another_function_fails_even_when_drowned() -> None:
    judged = settle(judge_one(evidence(logic_error=1e-3)), 0.01, LIMITS)
    assert (judged.cls, judged.fails) == (DROWNED, True)


def test_impact_changes_nothing_where_nothing_differs() -> None:
    assert settle(judge_one(evidence()), 99.0, LIMITS).cls is SAME


@pytest.mark.parametrize(
    ("judged", "known", "outcome"),
    [
        (Judged("t", BIT), None, "passed"),
        (Judged("t", SAME), "why", "passed"),
        (Judged("t", DROWNED, direction=1), None, "warned"),
        (Judged("t", DROWNED, direction=1), "why", "known"),
        (Judged("t", FELT, direction=-1), None, "failed"),
        (Judged("t", FELT, direction=-1), "why", "known"),
        (Judged("t", FELT, logic=True), "why", "failed"),
        (Judged("t", DROWNED, logic=True), "why", "failed"),
        (Judged("t", NOT), "why", "not judged"),
    ],
)
def test_outcome(judged: Judged, known: str | None, outcome: str) -> None:
    assert outcome_of(judged, known) == outcome


@pytest.mark.parametrize("ratio", [4.0, 0.25])
@pytest.mark.parametrize("how", ["total rounding", "seconded", "pooled"])
def test_the_number_shown_is_outside_the_limit_shown(how: str, ratio: float) -> None:
    gentle = 1.12 if ratio > 1 else 1 / 1.12
    taps = {
        "total rounding": {"block0.ffn": evidence({"identity": ratio})},
        "seconded": {f"block0.{name}": evidence({"token_mean": ratio}) for name in ("ffn", "other")},
        "pooled": {f"block{n}.ffn": evidence({"channel_mean": gentle}, freedom=500.0) for n in range(8)},
    }[how]
    (reason,) = judge_all(taps)["block0.ffn"].reasons
    shown = re.match(r"rounding_excess (\S+) \(\w+, limit (\S+), " + how, reason)
    assert shown is not None, reason
    value, limit = float(shown[1]), float(shown[2])
    assert (value > limit) if ratio > 1 else (value < limit)


def test_tap_whose_rows_are_all_padding_is_not_judged() -> None:
    found = evidence(rows=0, excluded=0, bit_exact=True)
    judged = judge([facts("caption_embed")], [{"caption_embed": found}], LIMITS)["caption_embed"]
    assert judged.cls is NOT
    assert judged.reasons == ["all is padding in these inputs"]
    pooled = judge([facts("caption_embed")], [{"caption_embed": found}, {"caption_embed": evidence()}], LIMITS)
    assert pooled["caption_embed"].cls is SAME
