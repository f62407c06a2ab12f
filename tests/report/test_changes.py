"""What changed between two runs: new, gone, worse, better, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fixtures.records import recorded
from parity.report.changes import changes, incomparable
from parity.report.shape import well_formed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run() -> dict[str, Any]:
    return well_formed(copy.deepcopy(recorded("another_function")))


def failed(run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in run["cases"] if c["outcome"] == "failed")
    return found


def kinds(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    return {c.case: c.kind for c in changes(earlier, now)}


def test_the_same_run_changed_nothing(run: dict[str, Any]) -> None:
    assert changes(run, copy.deepcopy(run)) == []
    assert incomparable(run, copy.deepcopy(run)) == []


def test_cases_that_one_run_lacks_are_new_or_gone(run: dict[str, Any]) -> None:
    less = {**run, "cases": run["cases"][1:]}
    first = run["cases"][0]["id"]
    assert kinds(less, run) == {first: "new"}
    assert kinds(run, less) == {first: "gone"}


@pytest.mark.parametrize("verdict", ["bit-exact", "same function, as precise", "different, drowned"])
def test_a_verdict_that_was_lighter_is_worse_now(run: dict[str, Any], verdict: str) -> None:
    earlier = copy.deepcopy(run)
    failed(earlier).update(verdict=verdict, outcome="passed")
    assert kinds(earlier, run) == {failed(run)["id"]: "worse"}
    assert kinds(run, earlier) == {failed(run)["id"]: "better"}


def test_a_bit_exact_tap_that_is_lost_is_worse(run: dict[str, Any]) -> None:
    now = copy.deepcopy(run)
    case = next(c for c in now["cases"] if c["verdict"] == "bit-exact")
    case["verdict"] = "same function, as precise"
    assert kinds(run, now) == {case["id"]: "worse"}


@pytest.mark.parametrize(("factor", "kind"), [(1.1, None), (0.9, None), (3.0, "worse"), (0.2, "better")])
def test_a_number_counts_where_it_moved_beyond_noise(run: dict[str, Any], factor: float, kind: str | None) -> None:
    now = copy.deepcopy(run)
    case = failed(now)
    case["logic_error"] *= factor
    found = changes(run, now)
    assert [c.kind for c in found] == ([kind] if kind else [])
    assert all("logic_error" in c.words and "it was" in c.words for c in found)


def test_a_case_that_cannot_be_run_any_more_is_worst(run: dict[str, Any]) -> None:
    now = copy.deepcopy(run)
    failed(now).update(outcome="error", verdict="not judged")
    (change,) = changes(run, now)
    assert (change.kind, change.now) == ("worse", "error")


def test_runs_of_other_settings_say_so(run: dict[str, Any]) -> None:
    now = copy.deepcopy(run)
    now["pairs"][0]["seed"] = 3
    now.update(complete=False, limits_version=9)
    words = " | ".join(incomparable(run, now))
    for part in ("seed is 3, it was 0", "limits are of version 9", "the later run was cut short"):
        assert part in words
