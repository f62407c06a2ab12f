"""The record: written whole, never by two runs at once, and the outcome is shown when it cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.project import ROOT, Project
from parity.io.atomic import locked
from parity.io.records import SCHEMA, SCHEMA_VERSION

SMALL = "PAIR = tiny_pair('small', depth=1, lora=None)"
HOLDER = """
import sys
from parity.io.atomic import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[int]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.stdin.close()


def test_record_holds_environment_pairs_cases_and_summary(project: Project) -> None:
    project.pair("small", SMALL)
    record = project.run("-q").record
    assert {"environment", "pairs", "cases", "summary", "complete", "created", "limits_version"} <= record.keys()
    assert record["complete"] is True
    assert record["summary"]["outcomes"]["passed"] == record["summary"]["cases"] == 10
    (state,) = record["pairs"]
    assert state["reference"]["weights"] != state["native"]["weights"]
    assert state["native"]["source"]["module"] == "fixtures.tiny"
    assert record["environment"]["torch"]


def test_code_that_both_sides_run_is_told(project: Project) -> None:
    project.pair("small", SMALL)
    run = project.run("-q")
    assert run.record["pairs"][0]["shared_code"] == ["fixtures.tiny._TimeEmbedding (native: sinusoid)"]
    assert "shared     the port runs 1 of the original's own classes: fixtures.tiny._TimeEmbedding" in run.text


def test_record_is_strict_json(project: Project) -> None:
    project.pair("small", SMALL)
    project.run("-q")
    text = (project.pytester.path / "reports" / "parity.json").read_text()
    whole = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (whole["schema"], whole["schema_version"]) == (SCHEMA, SCHEMA_VERSION)


def test_cases_are_in_execution_order(project: Project) -> None:
    project.pair("small", SMALL)
    taps = [case["tap"] for case in project.run("-q").record["cases"]]
    assert taps[0] == "patch_embed"
    assert taps[-3:] == ["block0", "final_layer", "final_output"]


def test_only_the_record_is_left_in_the_folder(project: Project) -> None:
    project.pair("small", SMALL)
    project.run("-q", "--parity-report", "elsewhere")
    assert [file.name for file in (project.pytester.path / "elsewhere").iterdir()] == ["parity.json"]
    assert not (project.pytester.path / "reports").exists()


def test_second_run_on_the_same_record_is_told_and_still_shows_its_outcome(project: Project) -> None:
    project.pair("small", SMALL)
    path = project.pytester.path / "reports" / "parity.json"
    project.run("-q")
    before = path.read_bytes()
    with held_by_another_process(path) as pid:
        run = project.run("-q")
    assert run.code == 1
    assert run.result.parseoutcomes() == {"passed": 10}
    assert "verdicts   10 passed" in run.text
    told = f"the record was not written: parity.json is being written by process {pid}"
    assert f"ERROR      {told}" in run.text
    assert run.text.index(f"parity: {told}") < run.text.index("[100%]"), "told only when all is computed"
    assert "--parity-report DIR" in run.text
    assert path.read_bytes() == before


def test_a_run_keeps_the_record_to_itself_from_its_first_case_on(project: Project) -> None:
    project.suite += """
    if case.tap == "final_output":
        from parity.errors import RecordError
        from parity.io.atomic import locked
        try:
            with locked("reports/parity.json"):
                raise AssertionError("another run could write")
        except RecordError:
            pass
"""
    project.pair("small", SMALL)
    assert project.run("-q").code == 0


def test_hold_of_a_dead_run_is_taken_over(project: Project) -> None:
    project.pair("small", SMALL)
    (project.pytester.mkdir("reports") / ".parity.json.lock").write_text('{"pid": 1, "host": "x", "since": "y"}')
    assert project.run("-q").code == 0


def test_unwritable_folder_is_told_after_the_outcome(project: Project) -> None:
    project.pair("small", SMALL)
    project.pytester.makefile("", reports="a file, not a folder")
    run = project.run("-q")
    assert run.code == 1
    assert "verdicts   10 passed" in run.text
    assert "ERROR      the record was not written: no record can be written below" in run.text
    assert "INTERNALERROR" not in run.text


def test_failing_write_keeps_the_old_record(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.pair("small", SMALL)
    path = project.pytester.path / "reports" / "parity.json"
    project.run("-q")
    before = path.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run = project.run("-q")
    assert run.code == 1
    assert "No space left on device" in run.text
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["parity.json"]


def test_stopped_run_says_so(project: Project) -> None:
    project.pair("faulty", "PAIR = edited(tiny_pair('faulty', lora=None), gelu_erf)")
    run = project.run("-q", "-x")
    assert run.record["complete"] is False
    assert len(run.outcomes) < 15


def test_interrupted_run_says_so(project: Project) -> None:
    project.suite += "    if case.tap == 'sinusoid': raise KeyboardInterrupt\n"
    project.pair("small", SMALL)
    run = project.run("-q", apart=True)
    assert run.code == pytest.ExitCode.INTERRUPTED
    assert run.record["complete"] is False
    assert list(run.outcomes) == ["small-patch_embed-lora_off"]


def test_cases_that_could_not_run_are_in_the_record(project: Project) -> None:
    project.pair("raising", "PAIR = edited(tiny_pair('raising', depth=1, lora=None), lambda model: 1 / 0)")
    project.pair("small", SMALL)
    run = project.run("-q")
    assert run.code == 1
    assert len(run.cases("error")) == len(run.cases("passed")) == 10
    shapes = {frozenset(case) for case in run.record["cases"]}
    assert len(shapes) == 1, "cases that could not run have other fields"


def test_no_parity_test_no_record(project: Project) -> None:
    project.suite = "def test_other(): pass"
    run = project.run("-q")
    assert run.code == 0
    assert not run.has_record
    assert "parity" not in run.text


def test_locked_in_this_process_is_seen(tmp_path: Path) -> None:
    from parity.errors import RecordError
    from parity.runs import RunBook

    with locked(tmp_path / "parity.json"), pytest.raises(RecordError, match=f"process {os.getpid()}"):
        RunBook(tmp_path).write()
