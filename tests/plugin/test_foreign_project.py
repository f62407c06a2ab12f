"""A project that only has this package installed runs its own tests as before; pytest's own switches work."""

from __future__ import annotations

import pytest

from fixtures.project import Project

CHECK = """
import sys

def pytest_unconfigure(config):
    loaded = [name for name in ("torch", "numpy", "parity.engine", "parity.report.record") if name in sys.modules]
    print("LOADED", *loaded)
"""
OTHERS = """
import pytest

@pytest.mark.parametrize("case", [1, 2])
def test_own_case(case):
    assert case

def test_plain():
    pass
"""


@pytest.mark.parametrize(("arguments", "passed"), [(("--co", "-q"), 0), (("-q",), 3), (("-q", "-k", "plain"), 1)])
@pytest.mark.parametrize("configured", [True, False], ids=["with_pairs", "without_pairs"])
def test_torch_is_not_imported_for_other_tests(
    project: Project, arguments: tuple[str, ...], passed: int, configured: bool
) -> None:
    project.pair("broken", "raise RuntimeError('imported')")
    if not configured:
        project.pytester.makeini("[pytest]")
    project.pytester.makeconftest(CHECK)
    project.suite = OTHERS
    run = project.run(*arguments, apart=True)
    assert run.code == 0
    assert "LOADED" in run.result.outlines, run.text
    assert run.result.parseoutcomes().get("passed", 0) == passed if passed else "3 tests collected" in run.text
    assert not run.has_record


def test_own_tests_in_workers_are_left_alone(project: Project) -> None:
    project.pytester.makeini("[pytest]")
    project.suite = "import os\ndef test_own(): assert 'OMP_WAIT_POLICY' not in os.environ"
    assert project.run("-q", "-n", "1", apart=True).result.parseoutcomes() == {"passed": 1}


def test_a_worker_that_dies_of_an_own_test_is_told_as_ever(project: Project) -> None:
    project.pytester.makeini("[pytest]")
    project.suite = (
        "import os, pytest, signal\n"
        "@pytest.mark.parametrize('n', ['a-lora_on', 'b'])\n"
        "def test_own(n): n == 'b' or os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = project.run("-q", "-n", "1", apart=True)
    assert run.result.parseoutcomes() == {"passed": 1, "failed": 1}
    assert "crashed while running 'test_suite.py::test_own[a-lora_on]'" in run.text
    assert "INTERNALERROR" not in run.text


@pytest.mark.parametrize(
    "plugin", ["xdist", "cacheprovider", "logging", "warnings", "skipping", "capture", "faulthandler"]
)
def test_runs_without_a_plugin(project: Project, plugin: str) -> None:
    project.pair("small", "PAIR = tiny_pair('small', depth=1, lora=None)")
    run = project.run("-q", "-p", f"no:{plugin}", apart=plugin == "capture")
    assert run.code == 0
    assert set(run.outcomes.values()) == {"passed"}
    assert "verdicts   10 passed" in run.text or plugin == "capture"


def test_runs_without_a_terminal(project: Project) -> None:
    project.pair("faulty", "PAIR = edited(tiny_pair('faulty', lora=None), gelu_erf)")
    run = project.run("-p", "no:terminal")
    assert run.code == 1
    assert run.cases("failed") == ["faulty-block1-act-lora_off"]


@pytest.mark.parametrize("arguments", [("--collect-only",), ("--co", "-q"), ("--fixtures",), ("--markers",)])
def test_looking_is_not_running(project: Project, arguments: tuple[str, ...]) -> None:
    project.pair("small", "PAIR = edited(tiny_pair('small', depth=1), lambda model: note('built'))")
    run = project.run(*arguments)
    assert run.code == 0
    assert not run.has_record
    assert not project.noted


def test_a_rerun_finds_the_same_numbers(project: Project) -> None:
    project.pair("faulty", "PAIR = edited(tiny_pair('faulty'), gelu_erf)")
    plugins = ("-q", "-p", "cacheprovider")
    first = {case["id"]: case for case in project.run(*plugins).record["cases"]}
    again = project.run(*plugins, "--lf").record["cases"]
    assert [case["id"] for case in again] == ["faulty-block1-act-lora_off", "faulty-block1-act-lora_on"]
    assert again == [first[case["id"]] for case in again]
