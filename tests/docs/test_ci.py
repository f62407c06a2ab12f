"""The CI recipes: the action's own steps are run, the YAML of the page is read, its shell is run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from fixtures.action import ACTION, ROOT, action_of, run_action
from fixtures.project import HEAD, SUITE
from parity.gate.accept import Acceptance, accept
from parity.gate.baseline import Baseline
from parity.io.baselines import change_baseline
from parity.io.records import read_record
from parity.selection import compile_expression

PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
WORKFLOW, BUILDKITE = (yaml.safe_load(text) for text in FENCES)
PORT = "PAIR = {}(tiny_pair('port', depth=1, lora=None){})"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose port differs since its state was accepted."""
    from fixtures.tiny import tiny_pair
    from parity.case import all_cases
    from parity.engine import Engine, Settings
    from parity.environment import describe_environment
    from parity.pair import Build
    from parity.report.record import run_record

    pair = tiny_pair("port", depth=1, lora=None)
    engine = Engine({"port": pair}, Settings())
    cases = all_cases([(pair, Build())])
    found = [engine.case_record(c) for c in cases]
    record = run_record(describe_environment(), [engine.state_record(cases[0])], found, "2026-06-01T00:00:00+00:00")
    change_baseline(tmp_path / "b.json", lambda before: accept(Baseline(), record, Acceptance(), "2026-06-01").baseline)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "port.py").write_text(HEAD + PORT.format("edited", ", sinusoid_low"), encoding="utf-8")
    (tmp_path / "test_parity.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nparity_pairs = pairs\n", encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("one_thread")
def test_the_action_gates_a_repository(repository: Path) -> None:
    """All of its steps at once: each is a process of its own, and most of the time of this file."""
    given = {
        "select": "sinusoid or final", "pairs": "port", "baseline": "b.json", "tests": "test_parity.py",
        "options": "-q -p no:cacheprovider", "report": "out", "artifact": "parity-port",
    }  # fmt: skip
    ran = run_action(repository, given)
    assert ran.codes == {"Machine": 0, "Gate": 1, "Summary": 0}, ran.log
    assert ran.summary.startswith("## ❌ Parity failed: 1 failed, 2 passed")
    assert "| ❌ new |" in ran.summary
    assert "| failed | port | sinusoid |" in ran.summary
    record = read_record(repository / "out" / "parity.json")
    assert record["gate"]["passed"] is False
    assert {f.name for f in (repository / "out").iterdir()} == {"parity.json", "junit.xml", "summary.md"}
    assert re.match(r"parity-cpu-\S+-torch-\S+-parity-port-0{40}$", ran.used["Reference traces"]["key"])
    assert ran.used["Record"] == {"name": "parity-port", "path": "out", "if-no-files-found": "warn"}


def test_without_a_record_the_summary_says_so(tmp_path: Path) -> None:
    summary = next(step for step in action_of()["runs"]["steps"] if step["name"] == "Summary")
    done = subprocess.run(
        ["bash", "-e", "-c", summary["run"]], cwd=tmp_path, check=False,
        env={**os.environ, "PARITY_REPORT": "reports", "GITHUB_STEP_SUMMARY": str(tmp_path / "s")},
    )  # fmt: skip
    assert done.returncode == 0
    assert "no record was written" in (tmp_path / "s").read_text()


def test_the_action_injects_nothing_into_its_shell() -> None:
    steps = action_of()["runs"]["steps"]
    assert all("${{" not in step.get("run", "") for step in steps)
    assert all(step["shell"] == "bash" for step in steps if "run" in step)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_the_workflow_uses_the_action_as_it_is() -> None:
    job = WORKFLOW["jobs"]["parity"]
    step = next(step for step in job["steps"] if str(step.get("uses", "")).startswith("./"))
    assert (ROOT / step["uses"] / "action.yml") == ROOT / "." / ACTION.relative_to(ROOT)
    assert set(step["with"]) <= set(action_of()["inputs"])
    _selects_one_pair_each([(one["pair"], one["select"]) for one in job["strategy"]["matrix"]["include"]])


def _selects_one_pair_each(chosen: list[tuple[str, str]]) -> None:
    names = [file.stem for file in (ROOT / "fixtures" / "pairs").glob("*.py")]
    for pair, expression in chosen:
        assert [name for name in names if compile_expression(expression)(f"{name}-block0-ffn-lora_on")] == [pair]


STUBS = {
    "pytest": "exit ${FAKE_PYTEST}",
    "parity": 'if [ "$1" = summary ]; then echo "## said"; fi',
    "buildkite-agent": 'echo "$@" >> told; cat >> told',
}


@pytest.mark.parametrize(("code", "style"), [(0, "success"), (1, "error")])
def test_the_buildkite_step_annotates_and_keeps_the_exit_code(code: int, style: str, tmp_path: Path) -> None:
    (step,) = BUILDKITE["steps"]
    _selects_one_pair_each(list(zip(("longcat", "wan"), step["matrix"], strict=True)))
    for name, script in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    command = step["command"].replace("{{matrix}}", "wan")
    around = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "FAKE_PYTEST": str(code)}
    done = subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, env=around, check=False)
    assert done.returncode == code
    assert (tmp_path / "told").read_text() == f"annotate --style {style} --context parity-wan\n## said\n"


def test_the_rehearsal_is_on_the_page() -> None:
    shown = PAGE.partition("<!-- rehearsal: begin -->")[2].partition("<!-- rehearsal: end -->")[0]
    assert all(words in shown for words in ("passes.", "fails.", "Gate failed", "a known difference is gone"))
