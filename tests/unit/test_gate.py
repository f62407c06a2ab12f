"""The gate on records: what is new, worse, missing, expired, mended; noise alone is none of these."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fixtures.tiny import down_rounded_twice, edited, gelu_erf, sinusoid_low, tiny_pair
from parity.case import all_cases
from parity.engine import Engine, Settings
from parity.environment import describe_environment
from parity.errors import RecordError, UsageError
from parity.gate.accept import Acceptance, accept
from parity.gate.baseline import Baseline, device_kind
from parity.gate.findings import Terms
from parity.gate.plain import from_plain, to_plain
from parity.gate.whole import judge_run, scopes_of
from parity.io.atomic import locked
from parity.io.baselines import BASELINE, change_baseline, read_baseline
from parity.io.records import write_record
from parity.known import Known
from parity.pair import Build
from parity.report.gate import render_baseline, render_gate
from parity.report.record import run_record
from parity.run import Options

pytestmark = pytest.mark.usefixtures("one_thread")
DAY = "2026-06-01"
KNOWN = Known("the port saves memory", "maintainers", "2026-12-31")
EDITS: dict[str, Any] = {
    "healthy": lambda model: None, "drowned": sinusoid_low, "felt": down_rounded_twice, "logic": gelu_erf,
}  # fmt: skip
Record = dict[str, Any]


@cache
def _run(edit: str, seed: int) -> str:
    pair = edited(tiny_pair("tiny", lora=None), EDITS[edit])
    engine = Engine({"tiny": pair}, Settings(options=Options(seed=seed, explain=False)))
    cases = all_cases([(pair, Build())])
    states = {(c.pair, c.state): engine.state_record(c) for c in cases}
    found = [engine.case_record(c) for c in cases]
    return json.dumps(run_record(describe_environment(), list(states.values()), found, f"{DAY}T00:00:00+00:00"))


def run(edit: str = "healthy", seed: int = 0) -> Record:
    record: Record = json.loads(_run(edit, seed))
    return record


def baseline_of(record: Record, known: Known | None = None, logic: bool = False) -> Baseline:
    return accept(Baseline(), record, Acceptance(known, logic), DAY).baseline


def gate(record: Record, baseline: Baseline, today: str = DAY, require_exact: bool = False) -> dict[str, Any]:
    (device,) = baseline.devices.values()
    return judge_run(record, device, Terms(today, require_exact), scopes_of(record, device)).as_dict("b.json", "cpu")


def kinds(found: dict[str, Any]) -> set[tuple[str, bool]]:
    return {(f["kind"], f["fails"]) for f in found["findings"]}


def case_of(record: Record, id: str) -> Record:
    return next(c for c in record["cases"] if c["id"] == id)


def test_the_run_that_was_accepted_passes() -> None:
    found = gate(run(), baseline_of(run()))
    assert (found["passed"], found["findings"]) == (True, [])
    assert [(s["judged"], s["baseline_judged"]) for s in found["states"]] == [(15, 15)]


@pytest.mark.parametrize("edit", ["drowned", "felt", "logic"])
def test_a_difference_that_is_not_known_is_new(edit: str) -> None:
    assert kinds(gate(run(edit), baseline_of(run()))) == {("new", True)}


@pytest.mark.parametrize("edit", ["drowned", "felt", "logic"])
def test_a_difference_needs_a_reason_to_be_accepted_and_is_known_then(edit: str) -> None:
    with pytest.raises(UsageError, match="pass --reason, --owner and --expires"):
        baseline_of(run(edit))
    if edit == "logic":
        with pytest.raises(UsageError, match="--logic"):
            baseline_of(run(edit), KNOWN)
    found = gate(run(edit), baseline_of(run(edit), KNOWN, logic=True))
    assert (found["passed"], found["findings"]) == (True, [])


def test_a_known_difference_on_other_inputs_is_no_worse() -> None:
    accepted = baseline_of(run("felt"), KNOWN)
    found = gate(run("felt", 1), accepted)["findings"]
    assert not [f for f in found if f["kind"] == "worse"]


@pytest.mark.parametrize("factor", [1.0, 1.05, 3.0])
def test_worse_is_what_exceeds_margin_and_noise(factor: float) -> None:
    """Margin 10 % and 4.27 standard errors of both measurements: 1.05 is inside, 3 is not."""
    accepted, record = baseline_of(run("felt"), KNOWN), run("felt")
    for case in record["cases"]:
        if case["verdict"].startswith("different"):
            excess = case["rounding_excess"]["identity"]
            excess["ratio"], excess["se"] = factor * excess["ratio"], 0.02
    assert kinds(gate(record, accepted)) == (set() if factor < 2 else {("worse", True)})


def test_noise_is_that_of_both_measurements() -> None:
    accepted, record = baseline_of(run("felt"), KNOWN), run("felt")
    for case in record["cases"]:
        for excess in case["rounding_excess"].values():
            excess["ratio"], excess["se"] = 3.0 * excess["ratio"], 1.0
    assert "worse" not in {kind for kind, _ in kinds(gate(record, accepted))}


def test_another_function_is_worse_than_a_known_loss_of_precision() -> None:
    accepted, record = baseline_of(run("felt"), KNOWN), run("felt")
    case = next(c for c in record["cases"] if c["verdict"].startswith("different"))
    case["logic"] = True
    assert [(f["kind"], f["id"]) for f in gate(record, accepted)["findings"]] == [("worse", case["id"])]


def test_a_logic_error_that_grew_is_worse() -> None:
    accepted, record = baseline_of(run("logic"), KNOWN, logic=True), run("logic")
    case = next(c for c in record["cases"] if c["logic"])
    case["logic_error"] *= 2
    assert kinds(gate(record, accepted)) == {("worse", True)}
    case["logic_error"] = float("nan")
    assert kinds(gate(record, accepted)) == {("worse", True)}


def test_a_known_difference_that_is_gone_is_told_and_accepting_drops_it() -> None:
    accepted = baseline_of(run("drowned"), KNOWN)
    found = gate(run(), accepted)
    assert found["passed"]
    assert kinds(found) == {("gone", False)}
    again = accept(accepted, run(), Acceptance(), DAY)
    assert not next(iter(again.baseline.devices.values())).known
    assert any("dropped" in line for line in again.lines)


def test_an_expired_difference_fails_from_the_day_after() -> None:
    accepted = baseline_of(run("drowned"), KNOWN)
    assert gate(run("drowned"), accepted, today="2026-12-31")["passed"]
    assert kinds(gate(run("drowned"), accepted, today="2027-01-01")) == {("expired", True)}


def test_a_case_that_is_judged_no_more_fails_and_a_missing_one_does() -> None:
    record, accepted = run(), baseline_of(run())
    record["cases"][3].update(verdict="not judged", outcome="not judged", reasons=["tainted"])
    gone = record["cases"].pop(0)
    found = gate(record, accepted)
    assert kinds(found) == {("not judged", True), ("missing", True)}
    assert gone["id"] in {f["id"] for f in found["findings"]}


def test_a_selection_misses_nothing_unless_the_cases_are_gone() -> None:
    record, accepted = run(), baseline_of(run())
    kept = record["cases"][:4]
    (device,) = accepted.devices.values()
    ids = {c["id"] for c in record["cases"]}
    record["cases"] = kept
    left_out = ids - {c["id"] for c in kept}
    scopes = scopes_of(record, device)
    assert not judge_run(record, device, Terms(DAY), scopes, ids, left_out).findings
    without = judge_run(record, device, Terms(DAY), scopes, ids - {"tiny-final_output-lora_off"}, left_out)
    assert [(f.kind, f.id) for f in without.findings] == [("missing", "tiny-final_output-lora_off")]


def test_an_amber_tap_is_told_unless_it_moved() -> None:
    record, accepted = run(), baseline_of(run())
    case = record["cases"][3]
    case.update(verdict="not judged", outcome="not judged", amber=True, shown_by="identity")
    case["rounding_excess"]["identity"] = {"ratio": 1.6, "se": 0.1, "freedom": 50.0}
    assert kinds(gate(record, accepted)) == {("amber", False)}
    case["rounding_excess"]["identity"]["se"] = 0.01
    assert kinds(gate(record, accepted)) == {("worse", True)}


def test_a_lost_bit_exact_tap_fails_where_it_is_asked_for() -> None:
    record, accepted = run(), baseline_of(run())
    record["cases"][0]["verdict"] = "same function, as precise"
    assert kinds(gate(record, accepted)) == {("lost exact", False)}
    assert kinds(gate(record, accepted, require_exact=True)) == {("lost exact", True)}


def test_a_known_difference_that_matches_no_case_fails() -> None:
    accepted = baseline_of(run("drowned"), KNOWN)
    plain = to_plain(accepted)
    (device,) = plain["devices"].values()
    device["known"][0]["cases"].append("tiny-block9-lora_off")
    assert kinds(gate(run("drowned"), from_plain(plain))) == {("unmatched", True)}


def test_another_pair_is_not_in_the_baseline_yet() -> None:
    record = json.loads(json.dumps(run()).replace('"tiny', '"other'))
    found = gate(record, baseline_of(run()))
    assert found["passed"]
    assert kinds(found) == {("unlisted", False), ("absent", False)}


@pytest.mark.parametrize(("others", "said"), [(True, {("missing", True)}), (False, {("absent", False)}), (None, set())])
def test_a_pair_that_is_gone_is_missed_where_every_pair_was_asked_for(others: bool | None, said: set[Any]) -> None:
    other = json.loads(json.dumps(run()).replace('"tiny', '"other'))
    (device,) = accept(baseline_of(run()), other, Acceptance(), DAY).baseline.devices.values()
    found = judge_run(run(), device, Terms(DAY), scopes_of(run(), device), others=others).as_dict("b.json", "cpu")
    assert kinds(found) == said


def test_runs_of_several_pairs_make_one_baseline() -> None:
    other = json.loads(json.dumps(run()).replace('"tiny', '"other'))
    both = accept(baseline_of(run()), other, Acceptance(), DAY).baseline
    (device,) = both.devices.values()
    assert {key[0] for key in device.states} == {"tiny", "other"}
    assert gate(run(), both)["passed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(complete=False), "cut short"),
        (lambda r: r["cases"][0].update(verdict="not judged", outcome="error", reasons=["boom"]), "boom"),
        (lambda r: [c.update(verdict="not judged", outcome="not judged") for c in r["cases"]], "no case"),
        (lambda r: r["pairs"].clear(), "no state that ran"),
    ],
)
def test_what_cannot_be_accepted(change: Callable[[Record], Any], said: str) -> None:
    record = run()
    change(record)
    with pytest.raises(UsageError, match=said):
        baseline_of(record)


def test_a_selection_adds_to_what_is_accepted_on_the_same_inputs_only() -> None:
    part, accepted = run(), baseline_of(run())
    part["cases"], part["selected"] = part["cases"][:3], True
    assert to_plain(accept(accepted, part, Acceptance(), DAY).baseline) == to_plain(accepted)
    part["pairs"][0]["seed"] = 5
    with pytest.raises(UsageError, match="on other inputs"):
        accept(accepted, part, Acceptance(), DAY)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_baseline_is_read_back_as_it_was(tmp_path: Path) -> None:
    accepted = baseline_of(run("logic"), KNOWN, logic=True)
    path = change_baseline(tmp_path / "b.json", lambda before: accepted)
    assert to_plain(read_baseline(path)) == to_plain(accepted)
    assert "known, logic" in render_baseline(read_baseline(path), DAY)


def _edited(path: Path) -> None:
    path.write_text(path.read_text().replace("bit-exact", "felt", 1))


def _hostile(path: Path) -> None:
    write_record(path, {"devices": {"cpu": {"states": [{"pair": 3}], "known": "x"}}}, BASELINE)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:300]), "truncated"),
    "edited": (_edited, "edited or damaged"),
    "a record": (lambda path: write_record(path, run()), "is no parity baseline"),
    "newer": (lambda path: path.write_text(path.read_text().replace('version": 1', 'version": 2', 1)), "newer"),
    "hostile": (_hostile, "does not fit"),
    "deep": (lambda path: path.write_text("[" * 100_000), "truncated or no JSON"),
    "a folder": (_folder, "no regular file"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_baseline_is_named_as_what_it_is(how: str, tmp_path: Path) -> None:
    path = change_baseline(tmp_path / "b.json", lambda before: baseline_of(run()))
    BROKEN[how][0](path)
    with pytest.raises(RecordError, match=BROKEN[how][1]) as error:
        read_baseline(path)
    assert len(str(error.value).splitlines()) <= 5


def test_a_broken_baseline_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text("{")
    with pytest.raises(RecordError):
        change_baseline(path, lambda before: baseline_of(run()))
    assert path.read_text() == "{"


def test_of_two_writers_the_second_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    path = change_baseline(tmp_path / "b.json", lambda before: baseline_of(run()))
    before = path.read_bytes()
    with locked(path), pytest.raises(RecordError, match="is being written by process"):
        change_baseline(path, lambda before: Baseline())
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write"):
        change_baseline(tmp_path / "file" / "b.json", lambda before: Baseline())


def test_words_of_a_file_do_not_reach_the_terminal_as_control_characters() -> None:
    accepted = baseline_of(run("drowned"), Known("\033[2Jgone\n::error::", "maintainers", "2026-12-31"))
    texts = [render_baseline(accepted, DAY), render_gate(gate(run(), accepted))]
    assert all("\033" not in text and "\n::error::" not in text for text in texts)


def test_device_kinds() -> None:
    assert device_kind("cuda:0", {"gpu": "X", "platform": "linux x86_64"}) != device_kind("cpu", describe_environment())
    with pytest.raises(UsageError, match="has no accepted state for cuda X\nit has: cpu"):
        baseline_of(run()).on("cuda X", "b.json")


@pytest.mark.parametrize("day", ["2026-13-01", "tomorrow", "20260101", "2026-1-1"])
def test_a_day_is_a_day(day: str) -> None:
    with pytest.raises(UsageError, match="YYYY-MM-DD"):
        Known("why", "maintainers", day)


def test_the_gate_changes_copies_only() -> None:
    record = run("drowned")
    before = copy.deepcopy(record)
    gate(record, baseline_of(run()))
    assert record == before
