"""The detection benchmark measures what it says: plants, published bugs, equivalent mutants, and its own counting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.detect import tables
from benchmarks.detect.benign import Calm, Quiet, quiet_runs
from benchmarks.detect.gates import GATES, Outputs, alarms
from benchmarks.detect.measure import Bench
from benchmarks.detect.plan import trials_of_bundled
from benchmarks.detect.rows import append_row, read_rows, write_rows
from benchmarks.detect.statistics import held_out_table, upper_bound
from benchmarks.detect.trials import Trial
from benchmarks.detect.work import Task, done_by
from benchmarks.detect.yardstick import measure_published
from fixtures.mutations import MUTATIONS
from fixtures.plants import PLANTS
from fixtures.published import PUBLISHED
from parity.diagnose.signature import SIGNATURES

Row = dict[str, Any]


@pytest.fixture(scope="module")
def bench() -> Bench:
    """The bench of all trials here, which share one reference."""
    return Bench()


def trial(source: str, name: str, where: str = "first", site: str = "") -> Trial:
    return Trial(source, name, "longcat", "float32", where, site=site)


FOUND = [
    trial("signature", "sign", "last", "block.ffn"),
    trial("mutation", "norm_eps", "middle"),
    trial("mutation", "q_k_swapped", "all"),
    trial("mutation", "lora_alpha", "first"),
    trial("plant", "timestep_scale", ""),
]


@pytest.mark.parametrize("one", FOUND, ids=lambda t: t.name)
def test_a_plant_is_detected_placed_and_named(bench: Bench, one: Trial) -> None:
    row = bench.measure(one)
    assert (row["status"], row["fails"], row["placed"], row["named"]) == ("detected", True, True, True), row
    assert set(row["gates"]) <= set(GATES)


def test_a_few_bits_of_float64_are_proved_where_statistics_see_nothing() -> None:
    one = Trial("signature", "float64_kept", "longcat", "bfloat16", "all", "drawn1", 3)
    row = Bench().measure(one)
    assert (row["status"], row["by"], row["placed"], row["named"]) == ("detected", "precision", True, True), row
    assert "is bit-exact with the native" in row["likely"][0]


@pytest.mark.parametrize("name", ["same_rope_offset", "same_heads_permuted"])
def test_an_equivalent_mutant_is_told_from_a_bug(bench: Bench, name: str) -> None:
    row = bench.measure(trial("mutation", name, "middle"))
    assert row["status"] == "equivalent", row
    assert 0 < row["apart"] < 1e-12
    assert not row["alarm"]


def test_what_changes_no_bit_is_not_counted(bench: Bench) -> None:
    row = bench.measure(trial("mutation", "text_first_row", ""))
    assert row["status"] == "no effect"
    assert tables.expressible([row]) == []


def test_a_blind_engine_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were nothing ever judged different, every plant would be missed, and the goals say so."""
    monkeypatch.setattr("parity.numerics.verdict.Judged.different", property(lambda self: False))
    monkeypatch.setattr("benchmarks.detect.measure._new", lambda *given: [])
    row = bench.measure(FOUND[1])
    assert row["status"] == "missed"
    assert any(goal.startswith("detected 0 of 1") for goal in tables.missed_goals([row]))


@pytest.mark.parametrize("name", ["gain_before_cast", "timestep_750_752", "weights_downcast"])
def test_a_published_bug_is_found_before_its_fix_and_silent_after(name: str) -> None:
    row = measure_published(next(b for b in PUBLISHED if b.name == name), 0)
    assert (row["status"], row["placed"], row["after"]) == ("detected", True, []), row


def test_every_published_bug_has_its_link() -> None:
    assert len(PUBLISHED) >= 15
    assert all(b.link.startswith("https://github.com/") for b in PUBLISHED)
    assert len({b.name for b in PUBLISHED}) == len(PUBLISHED)


def test_a_harmless_change_is_measured_and_silent() -> None:
    row = Calm().measure(Quiet("attention_math", "bfloat16", 0, 2))
    assert row["different"] == []
    assert row["live_tests"] > 0
    assert row["cases"] == 41


def test_every_plant_is_in_the_plan_in_every_place() -> None:
    planned = trials_of_bundled()
    names = {t.name for t in planned}
    assert names >= {*SIGNATURES.names(), *MUTATIONS.names(), *(n for n, p in PLANTS.items() if p.kind != "benign")}
    assert {t.where for t in planned if t.source == "signature"} == {"", "first", "middle", "last", "all"}
    assert {t.dtype for t in planned if t.source == "signature"} == {"float32", "bfloat16"}
    assert any(t.inputs.startswith("drawn") for t in planned)
    assert len({t.key for t in planned}) == len(planned)


def test_every_category_has_a_mutation() -> None:
    wanted = {"precision", "rope", "norm", "attention", "activation", "modulation", "weights", "lora", "timestep",
              "text", "layout", "quant"}  # fmt: skip
    assert {m.category for _, m in MUTATIONS.items()} == wanted


def test_two_thirds_calibrate_and_one_is_held_out() -> None:
    runs = quiet_runs(2000)
    assert len({r.key for r in runs}) == 2000
    assert 0.3 < sum(r.held_out for r in runs) / 2000 < 0.37
    parts = [{(r.seed, r.shape) for r in runs if r.held_out is held} for held in (True, False)]
    assert not parts[0] & parts[1]


def benign_row(key: str, held_out: bool, different: list[str]) -> Row:
    return {
        "source": "benign", "key": key, "name": "none", "held_out": held_out, "different": different, "fails": [],
        "amber": [], "cases": 41, "not_judged": 0, "nearest": 0.98, "tests": 200, "live_tests": 100,
        "exceeding": len(different), "beyond": [1.0, 0.5], "gates": [], "seconds": 0.1,
    }  # fmt: skip


def test_a_false_alarm_of_the_held_out_part_is_told() -> None:
    rows = [benign_row(str(n), n % 3 == 0, []) for n in range(9)] + [benign_row("x", True, ["block0"])]
    text = "\n".join(held_out_table(rows))
    assert "| calibration (two thirds) | 6 |" in text
    assert "| held out (one third) | 4 |" in text
    assert any("1 of 10 benign runs" in goal for goal in tables.missed_goals(rows))


def test_the_bound_of_no_event_is_that_of_three_over_n() -> None:
    assert upper_bound(0, 2000) == pytest.approx(3 / 2000, rel=0.01)
    assert upper_bound(2, 10) == pytest.approx(0.507, abs=0.002)


def test_a_row_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    raw = tmp_path / "deep" / "rows.jsonl"
    for key in ("a", "b", "a"):
        append_row(raw, {"key": key, "n": key})
    raw.write_text(raw.read_text() + json.dumps({"key": "c"})[:-3])
    assert sorted(r["key"] for r in read_rows(raw)) == ["a", "b"]


def test_the_result_is_columns_and_a_line_a_run(tmp_path: Path) -> None:
    rows = [benign_row(str(n), False, []) for n in range(3)]
    write_rows(tmp_path / "detect.json", [*rows, {"key": "x", "source": "plant", "name": "p", "likely": ["w" * 300]}])
    held = json.loads((tmp_path / "detect.json").read_text(encoding="utf-8"))
    assert [len(held[source]["rows"]) for source in ("benign", "plant")] == [3, 1]
    assert all(len(r) == len(held["benign"]["columns"]) for r in held["benign"]["rows"])
    assert max(map(len, map(str, held["plant"]["rows"]))) < 300


def test_what_cannot_be_run_is_a_row_and_a_missed_goal() -> None:
    rows = done_by([Task("trial", trial("mutation", "no_such_mutation"))])
    assert rows[0]["status"] == "broken"
    assert "something could not be run" in tables.missed_goals(rows)


def test_the_gates_pass_rounding_and_see_another_value() -> None:
    truth = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low = truth.bfloat16()
    assert alarms(Outputs(low, low.clone(), truth)) == []
    assert alarms(Outputs(low, -low, truth)) == list(GATES)
    assert alarms(Outputs(low, low * torch.nan, truth)) == list(GATES)


def test_the_page_is_made_of_rows(bench: Bench) -> None:
    rows = [bench.measure(FOUND[1]), benign_row("q", False, []), measure_published(PUBLISHED[5], 1)]
    text = tables.page(rows, 1.0)
    assert "| norm | 1 of 1 |" in text
    assert PUBLISHED[5].link in text
    assert "95 % bound" in text
