"""From verdict to outcome: exit codes, warnings, known differences, what is not judged, and the words for each."""

from __future__ import annotations

import shlex

import pytest

from fixtures.project import Project, Run

HEALTHY = "PAIR = tiny_pair('healthy', depth=1, lora=None)"
FAULTY = "PAIR = edited(tiny_pair('faulty', lora=None), gelu_erf)"
DROWNED = "PAIR = edited(tiny_pair('drowned', depth=1, lora=None), sinusoid_low)"
KNOWN = "PAIR = replace(edited(tiny_pair('known', depth=1, lora=None), sinusoid_low), known=lambda build: {known})"
# One rounding more, and too few tokens to tell whether it is a lost island.
UNJUDGED = """
few = lambda build, seed: tiny_inputs(build, seed, size=(1, 2, 3))
PAIR = edited(tiny_pair('unjudged', depth=1, lora=None, inputs=few), down_in_two_parts)
"""
NONDETERMINISTIC = """
calls = [0.0]
def drift(y):
    calls[0] += 1
    return y * (1 + calls[0])
PAIR = edited(tiny_pair('drifting', depth=1, lora=None), output_of('blocks.0.up', drift))
"""


def test_parity_exits_0(project: Project) -> None:
    project.pair("healthy", HEALTHY)
    run = project.run("-q")
    assert run.code == 0
    assert set(run.outcomes.values()) == {"passed"}


def test_difference_exits_1_and_the_other_cases_pass(project: Project) -> None:
    project.pair("faulty", FAULTY)
    run = project.run("-q")
    assert run.code == 1
    assert run.cases("failed") == ["faulty-block1-act-lora_off"]
    assert run.result.parseoutcomes() == {"failed": 1, "passed": 14}


def test_failure_has_five_lines_that_a_person_can_act_on(project: Project) -> None:
    project.pair("faulty", FAULTY)
    lines = project.run("-q", "--parity-dtype", "float32").message("faulty-block1-act-lora_off")
    assert 4 <= len(lines) <= 5
    assert lines[0] == "faulty-block1-act-lora_off: different function, felt"
    for words in ("logic_error 1.", "(limit 1e-12)", "impact", "(limit 0.46)", "worst", "at [0, "):
        assert words in lines[1]
    assert "starts here: no earlier tap differs" in lines[2]
    assert "native: blocks.1.gelu" in lines[2]
    assert "rerun: pytest" in lines[-1]


@pytest.mark.parametrize("ci", [False, True])
def test_a_log_of_80_columns_shows_every_word(project: Project, monkeypatch: pytest.MonkeyPatch, ci: bool) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # pytest cuts the lines of its closing summary at the width of the terminal, save on CI, which these two announce.
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    project.pair("faulty", FAULTY)
    project.pair("drowned", DROWNED)
    lines = project.run("--junit-xml=junit.xml").result.outlines
    ours = lines[next(n for n, line in enumerate(lines) if "FAILURES" in line) :]
    wide = [line for line in ours if len(line) > 80 and str(project.pytester.path) not in line]
    of_pytest = ("FAILED ",) if ci else ()
    assert [line for line in wide if not line.startswith(("  rerun: ", "    rerun: ", *of_pytest))] == []
    summary = "FAILED test_suite.py::test_parity[faulty-block1-act-lora_off] - different function, drowned"
    assert lines[-2] == summary if ci else lines[-2].startswith(summary[:76])
    assert 'message="different function, drowned"' in (project.pytester.path / "junit.xml").read_text()


def test_rerun_command_runs_that_case_with_the_same_options(project: Project) -> None:
    project.pair("faulty", FAULTY)
    first = project.run("-q", "--parity-dtype", "float32", "--parity-seed=3", "--parity-pair", "faulty")
    command = first.message("faulty-block1-act-lora_off")[-1].split("rerun: ")[1]
    again = project.run(*shlex.split(command)[1:])
    assert again.code == 1
    assert list(again.outcomes) == ["faulty-block1-act-lora_off"]
    assert logic_error(again) == logic_error(first)
    assert [again.record["pairs"][0][key] for key in ("dtype", "seed")] == ["float32", 3]


def logic_error(run: Run) -> float:
    return next(float(c["logic_error"]) for c in run.record["cases"] if c["id"] == "faulty-block1-act-lora_off")


def test_rerun_command_works_from_the_folder_pytest_was_called_in(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.pair("faulty", FAULTY)
    project.pytester.makepyfile(test_suite=project.suite)
    monkeypatch.chdir(project.pytester.mkdir("below"))
    result = project.pytester.runpytest_inprocess("-p", "no:cacheprovider", "..")
    (command,) = {line.split("rerun: ")[1] for line in result.outlines if "rerun:" in line}
    assert command == 'pytest "../test_suite.py::test_parity[faulty-block1-act-lora_off]"'


def test_drowned_difference_warns(project: Project) -> None:
    project.pair("drowned", DROWNED)
    run = project.run("-q")
    assert run.code == 0
    assert run.cases("warned") == ["drowned-sinusoid-lora_off"]
    run.result.stdout.fnmatch_lines(["*ParityWarning: *", "  drowned-sinusoid-lora_off: native less precise*, drowned"])
    assert run.result.parseoutcomes() == {"passed": 10, "warnings": 1}


def test_warnings_can_be_made_failures(project: Project) -> None:
    project.pair("drowned", DROWNED)
    run = project.run("-q", "-W", "error::parity.plugin.ParityWarning")
    assert run.code == 1
    assert run.result.parseoutcomes() == {"failed": 1, "passed": 9}


def test_known_difference_is_an_expected_failure(project: Project) -> None:
    project.pair("known", KNOWN.format(known="{'sinusoid': 'the port saves memory there'}"))
    run = project.run("-q", "-rx")
    assert run.code == 0
    assert run.cases("known") == ["known-sinusoid-lora_off"]
    assert run.result.parseoutcomes() == {"passed": 9, "xfailed": 1}
    assert "known difference: the port saves memory there" in run.text


def test_known_difference_that_is_none_is_told(project: Project) -> None:
    project.pair("healthy", HEALTHY.replace(")", ", known=lambda build: {'sinusoid': 'once'})"))
    run = project.run("-q")
    assert run.code == 0
    assert run.record["pairs"][0]["known_unused"] == ["sinusoid"]
    assert "known      no longer different, to be dropped from the pair: sinusoid" in run.text


def test_difference_of_logic_is_never_a_known_one(project: Project) -> None:
    known = "known=lambda build: {'block.act': 'we like it so'}"
    project.pair("faulty", f"PAIR = replace(edited(tiny_pair('faulty', lora=None), gelu_erf), {known})")
    run = project.run("-q")
    assert run.code == 1
    assert run.cases("failed") == ["faulty-block1-act-lora_off"]


def test_not_judged_is_counted_apart_and_never_passes(project: Project) -> None:
    project.pair("unjudged", UNJUDGED)
    project.pair("healthy", HEALTHY)
    run = project.run("-q", "-rn")
    assert run.code == 0
    assert run.cases("not judged") == ["unjudged-block0-down-lora_off"]
    assert run.result.outlines[-1].startswith("19 passed, 1 not judged in ")
    assert "not judged 1, first block0.down: no power: 6 tokens a sample" in run.text


def test_run_in_which_nothing_was_judged_fails(project: Project) -> None:
    project.pair("unjudged", UNJUDGED)
    run = project.run("-q", "-k", "block0 and down")
    assert run.result.outlines[-1].startswith("9 deselected, 1 not judged in ")
    assert run.code == 1
    assert "ERROR      no case was judged: this run proves nothing" in run.text
    assert run.has_record


def test_with_an_observer_effect_nothing_passes(project: Project) -> None:
    project.pair("drifting", NONDETERMINISTIC)
    run = project.run("-q")
    assert run.code == 1
    assert not run.cases("passed")
    reasons = {case["reasons"][0] for case in run.record["cases"] if case["outcome"] == "not judged"}
    assert reasons == {"observer effect: low values differ with and without shadow, first native at block0.up"}


def test_gpu_tests_are_skipped_without_one(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    project.suite = "import pytest\n@pytest.mark.parity_gpu\ndef test_on_gpu(): assert False"
    run = project.run("-rs")
    assert run.result.parseoutcomes() == {"skipped": 1}
    assert "needs a GPU" in run.text
