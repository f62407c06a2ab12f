"""Records in words: never wider than asked, never coloured unless asked, five lines a case, and strict JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fixtures.records import EDITS, recorded
from parity.io.records import read_record, write_record
from parity.numerics.limits import Limits
from parity.report.record import SCHEMA, false_alarm_rate, unjudged_record
from parity.report.terminal import render_case, render_run
from parity.report.wording import error_text, evidence_text, failure_text, fitted, not_judged_text

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
ESCAPE = "\033["
LONG = "a module wrote 12,288 values by a raw kernel that nobody registered a float64 equivalent for, " * 3


def everything() -> dict[str, Any]:
    """A record in which every row of the summary is there, and long."""
    record: dict[str, Any] = json.loads(json.dumps(recorded(*EDITS)))
    for state in record["pairs"]:
        state.update(
            events={LONG: 12, "x" * 200: 3}, weight_differences=[LONG, LONG, LONG], blind_spots=[LONG], decisions=7,
            flips={"block0": 2}, unmatched_decisions={"block1": 1}, absent_taps={"vae": LONG}, substitutes=[LONG, "y"],
            observer_effect=[f"native at {'z' * 150}"],
        )  # fmt: skip
    for n, outcome in enumerate(("error", "skipped")):
        record["cases"].append(
            unjudged_record(case_id=f"gone-{n}", pair="gone", state="lora_off", tap="t", outcome=outcome, text=LONG)
        )
    return record


def case_of(outcome: str) -> dict[str, Any]:
    return next(c for c in recorded(*EDITS)["cases"] if c["outcome"] == outcome)


# --- terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_no_line_is_wider_than_asked(width: int, long: bool) -> None:
    text = render_run(everything() if long else recorded(*EDITS), width=width)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80])
def test_words_of_a_case_fit_but_for_what_is_to_be_copied(width: int) -> None:
    rerun = "pytest " + "x" * 100
    *lines, last = fitted(failure_text(case_of("failed"), rerun), width).splitlines()
    assert max(map(len, lines)) <= width
    assert last == f"  rerun: {rerun}"
    whole = " ".join(failure_text(case_of("failed"), rerun).split())
    assert " ".join(" ".join(lines).split()) == whole.partition(" rerun:")[0]


@pytest.mark.parametrize("width", [60, 80])
def test_one_line_per_case_keeps_the_width(width: int) -> None:
    lines = [render_case(case, width) for case in everything()["cases"]]
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "\n" in line]


def test_without_colour_there_is_no_code() -> None:
    assert ESCAPE not in render_run(everything(), color=False)
    assert ESCAPE not in render_run(everything())


@pytest.mark.parametrize("width", [60, 80])
def test_colour_changes_nothing_but_colour(width: int) -> None:
    colored = render_run(everything(), width=width, color=True)
    assert ESCAPE in colored
    assert re.sub(r"\033\[\d+m", "", colored) == render_run(everything(), width=width)
    assert all(line.count(ESCAPE) in (0, 2) for line in colored.splitlines()), "a colour runs on"


def test_summary_says_what_was_compared_and_under_which_contracts() -> None:
    text = render_run(recorded("healthy"), width=120)
    for words in ("healthy lora_off", "healthy lora_on", "float64 shadow", "bfloat16 tiny on cpu", "128 tokens",
                  "seed 0", "1 draw,", "bit-identical on both sides: yes", "untrusted 0 of", "substitutes: none",
                  "15 of 15 taps", "15 passed", "by luck"):  # fmt: skip
        assert words in text


def test_substitutes_have_a_row_of_their_own() -> None:
    record = json.loads(json.dumps(recorded("healthy")))
    record["pairs"][0]["substitutes"] = ["one: torch's", "two: left out", "three: empty", "four", "five"]
    lines = [line for line in render_run(record, width=100).splitlines() if "substitutes" in line]
    assert lines[0] == " substitutes  5: one: torch's; two: left out; three: empty; and 2 more, in the record"
    assert lines[1].endswith("substitutes: none"), "the other state has none"


@pytest.mark.parametrize("pair", ["a", "wan", "abcd", "a_long_name_of_a_pair"])
def test_label_and_text_never_touch(pair: str) -> None:
    record = json.loads(json.dumps(recorded("healthy")))
    record["pairs"][1]["pair"] = pair
    assert f" {pair} lora_on  " in render_run(record) + " "


def test_summary_names_what_spoils_it() -> None:
    text = render_run(everything(), width=120)
    for words in ("bit-identical on both sides: no: native at", "untrusted", "weights ", "3 differ", "blind",
                  "7 replayed, 2 flipped, 1 without counterpart", "absent", "starts at", "gone",
                  "1 cases could not be run", "1 cases skipped"):  # fmt: skip
        assert words in text


# --- words for one case -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["failed", "warned"])
def test_case_has_five_lines_at_most(outcome: str) -> None:
    for case in recorded(*EDITS)["cases"]:
        if case["outcome"] == outcome:
            lines = failure_text({**case, "likely": ["one", "two", "three"]}, "pytest x").splitlines()
            assert len(lines) == 5
            assert lines[0].startswith(case["id"])
            assert lines[-1] == "  rerun: pytest x"


def test_failure_gives_numbers_with_their_limits() -> None:
    text = failure_text(case_of("failed"), "pytest x")
    assert re.search(r"logic_error \d\.\de-\d\d \(limit 1e-12\)", text)
    assert re.search(r"impact [\d.]+ \(limit 0\.46\)", text)
    assert re.search(r"worst [\d.e-]+ at \[\d+, \d+, \d+\]", text)


def test_what_is_not_finite_is_said_first() -> None:
    reason = "NaN or Inf on the native: 0 reference, 3 native values"
    assert failure_text({**case_of("failed"), "reasons": [reason]}, "x").splitlines()[1].startswith(f"  {reason}, ")


def test_where_it_starts() -> None:
    case = case_of("failed")
    assert "starts here" in failure_text({**case, "first_different": case["tap"]}, "x")
    assert "first difference of this run: block0.up" in failure_text({**case, "first_different": "block0.up"}, "x")


@pytest.mark.parametrize("lines", [1, 4, 5, 40])
def test_error_has_five_lines_at_most(lines: int) -> None:
    text = "\n".join(f"line {n}" for n in range(lines))
    case = unjudged_record(case_id="gone-t", pair="gone", state="s", tap="t", outcome="error", text=text)
    words = error_text(case, "pytest x").splitlines()
    assert len(words) == min(lines, 4) + 1
    assert words[0] == "gone-t: line 0"
    assert words[-1] == "  rerun: pytest x"
    assert ("more lines" in words[-2]) == (lines > 4)


def test_error_without_words_is_still_one() -> None:
    case = unjudged_record(case_id="gone-t", pair="gone", state="s", tap="t", outcome="error", text="")
    assert error_text(case, "x").startswith("gone-t: no reason was given")
    assert not_judged_text(case) == "not judged: no evidence"


@pytest.mark.parametrize("field", [
    "observer_effect", "weight_differences", "blind_spots", "unmatched_decisions", "compiled_apart",
])
def test_spoilt_evidence_has_four_lines(field: str) -> None:
    words = evidence_text({**everything()["pairs"][0]}, field, "pytest x").splitlines()
    assert len(words) == 4
    assert words[-1] == "  rerun: pytest x"


# --- record -----------------------------------------------------------------------------------------------------------


def test_record_is_strict_json_and_comes_back(tmp_path: Path) -> None:
    record = recorded(*EDITS)
    path = write_record(tmp_path / "parity.json", record)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert plain(read_record(path)) == plain(json.loads(json.dumps(record)))


def plain(value: Any) -> Any:
    """NaN as a word, so that it equals itself."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def test_numbers_that_are_not_finite_come_back_as_numbers(tmp_path: Path) -> None:
    case = next(c for c in recorded("not_finite")["cases"] if c["tap"] == "final_layer")
    assert not math.isfinite(case["metrics"]["max_abs"])
    back = read_record(write_record(tmp_path / "r.json", recorded("not_finite")))
    (found,) = (c for c in back["cases"] if c["id"] == case["id"])
    assert not math.isfinite(found["metrics"]["max_abs"])


def test_summary_counts_every_case_once() -> None:
    record = recorded(*EDITS)
    outcomes = record["summary"]["outcomes"]
    assert sum(outcomes.values()) == record["summary"]["cases"] == len(record["cases"]) == 5 * 30
    assert sum(record["summary"]["verdicts"].values()) == 5 * 30
    assert min(outcomes[name] for name in ("failed", "warned", "passed")) > 0


def test_every_case_has_the_same_fields() -> None:
    shapes = {frozenset(case) for case in everything()["cases"]}
    assert len(shapes) == 1
    assert recorded("healthy")["schema"] == SCHEMA


def test_worst_draw_is_shown_even_when_it_is_nan() -> None:
    (case,) = (c for c in recorded("not_finite")["cases"] if c["id"] == "not_finite-final_layer-lora_off")
    assert case["outcome"] == "failed"


def test_false_alarm_rate_grows_with_tests() -> None:
    rates = [false_alarm_rate(Limits(), tests) for tests in (0, 1, 1000, 10**6)]
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(Limits().false_alarm_per_test)
    assert rates == sorted(rates)
    assert rates[-1] <= 1.0


# --- the sample -------------------------------------------------------------------------------------------------------


def test_sample_has_the_fields_of_a_record_of_today() -> None:
    sample, today = read_record(ROOT / "reports" / "sample" / "parity.json"), recorded("healthy")
    assert sample["schema"] == SCHEMA
    for part in ("pairs", "cases"):
        assert {frozenset(x) for x in sample[part]} == {frozenset(x) for x in today[part]}, "renew it with: make sample"
    assert set(sample) == set(today), "renew it with: make sample"
    assert sample["summary"]["outcomes"].keys() == today["summary"]["outcomes"].keys()
    assert render_run(sample)
