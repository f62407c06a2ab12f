"""`pytest --parity-baseline`: accept, gate, ratchet; what fails a pull request and what it is told."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from fixtures.project import Project, Run
from parity.cli import app
from parity.io.baselines import change_baseline, read_baseline
from parity.io.records import write_record

HEALTHY = "PAIR = tiny_pair('port', depth=1, lora=None)"
DROWNED = "PAIR = edited(tiny_pair('port', depth=1, lora=None), sinusoid_low)"
KNOWN_UNTIL = (
    "from parity.known import Known\n"
    "PAIR = replace(edited(tiny_pair('port', depth=1, lora=None), sinusoid_low),"
    " known=lambda build: {{'sinusoid': Known('memory', 'maintainers', '{day}')}})"
)
GATE = ("-q", "--parity-baseline", "baseline.json")
SAID = ("--reason", "the port saves memory", "--owner", "maintainers", "--expires", "2999-01-31")


@pytest.fixture
def cli(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(project.pytester.path)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def accepted(project: Project, cli: Callable[..., Result]) -> Callable[..., Run]:
    """Accept a run of a pair, then gate another version of it."""

    def gate(before: str, after: str, *options: str, said: tuple[str, ...] = ()) -> Run:
        project.pair("port", before)
        project.run("-q")
        result = cli("baseline", "accept", "reports/parity.json", "-o", "baseline.json", *said)
        assert result.exit_code == 0, result.output
        project.pair("port", after)
        return project.run(*GATE, *options)

    return gate


Gate = Callable[..., Run]


def test_an_unchanged_port_passes(accepted: Gate) -> None:
    run = accepted(HEALTHY, HEALTHY)
    assert run.code == 0
    assert run.record["gate"]["passed"] is True
    assert "bit-exact  10 of 10 taps (baseline 10)" in run.text


def test_a_new_difference_fails_even_where_it_is_drowned(accepted: Gate) -> None:
    run = accepted(HEALTHY, DROWNED)
    assert run.code == 1
    assert run.cases("failed") == ["port-sinusoid-lora_off"]
    lines = run.message("port-sinusoid-lora_off")
    assert lines[0] == (
        "port-sinusoid-lora_off: native less precise than the reference, drowned; "
        "new: the baseline does not know this difference"
    )
    assert len(lines) <= 5
    assert "--parity-baseline=baseline.json" in lines[-1]


def test_the_rerun_command_reproduces_what_the_gate_said(accepted: Gate, project: Project) -> None:
    command = accepted(HEALTHY, DROWNED).message("port-sinusoid-lora_off")[-1].split("rerun: ")[1]
    again = project.run(*shlex.split(command)[1:])
    assert (again.code, again.cases("failed")) == (1, ["port-sinusoid-lora_off"])


def test_a_known_difference_is_an_expected_failure(accepted: Gate) -> None:
    run = accepted(DROWNED, DROWNED, "-rx", said=SAID)
    assert run.code == 0
    assert run.result.parseoutcomes() == {"passed": 9, "xfailed": 1}
    assert "known difference: the port saves memory (owner maintainers, until 2999-01-31)" in run.text


def test_a_mended_difference_is_told(accepted: Gate) -> None:
    run = accepted(DROWNED, HEALTHY, said=SAID)
    assert run.code == 0
    assert "note  mended: 1, a known difference is gone" in run.text
    assert "parity baseline accept" in run.text


def test_fewer_cases_than_the_baseline_fail(accepted: Gate) -> None:
    fewer = f"{HEALTHY}\nPAIR = replace(PAIR, taps=lambda b: tiny_pair(depth=1).taps(b)[1:])"
    run = accepted(HEALTHY, fewer)
    assert run.code == 1
    assert run.result.parseoutcomes() == {"passed": 9}
    assert "missing case: 1, judged in the baseline, there is no such case now port-patch" in " ".join(run.text.split())
    assert "ERROR      the gate failed: 1 findings against baseline.json" in run.text


@pytest.mark.parametrize("words", [("-k", "block0"), ("test_suite.py::test_parity[port-sinusoid-lora_off]",)])
def test_a_selection_misses_nothing(accepted: Gate, words: tuple[str, ...]) -> None:
    assert accepted(HEALTHY, HEALTHY, *words).code == 0


def test_tests_that_are_no_more_are_missed(accepted: Gate, project: Project) -> None:
    accepted(HEALTHY, HEALTHY)
    project.suite = "def test_parity(block_case, parity_check):\n    parity_check(block_case)\n"
    run = project.run(*GATE)
    assert run.code == 1
    assert "judged in the baseline, not run" in " ".join(run.text.split())
    project.suite = "def test_nothing():\n    pass\n"
    run = project.run(*GATE)
    assert run.code == 1
    assert "the gate failed: no case was run, 10 are in the baseline" in run.text
    assert project.run(*GATE, "test_suite.py").code == 0


def test_a_worker_tells_what_it_left_out(accepted: Gate) -> None:
    run = accepted(HEALTHY, DROWNED, "-n", "1", "-k", "sinusoid or final")
    assert run.code == 1
    found = run.record["gate"]["findings"]
    assert [(f["kind"], f["id"]) for f in found] == [("new", "port-sinusoid-lora_off")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--parity-dtype", "float32"), "baseline.json has port as bfloat16 tiny float64, this run is float32"),
        (("--parity-baseline", "nowhere.json"), "cannot read nowhere.json"),
    ],
)
def test_a_baseline_that_does_not_fit_is_a_usage_error(accepted: Gate, options: tuple[str, ...], said: str) -> None:
    run = accepted(HEALTHY, HEALTHY, *options)
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert said in run.text.replace(str(run.folder) + "/", "")


def test_exactness_is_required_of_a_baseline(project: Project) -> None:
    project.pair("port", HEALTHY)
    run = project.run("--parity-require-exact")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert "needs a baseline" in run.text


def test_a_pairs_own_known_difference_expires(project: Project) -> None:
    project.pair("port", KNOWN_UNTIL.format(day="2999-01-01"))
    assert project.run("-q").cases("known") == ["port-sinusoid-lora_off"]
    project.pair("port", KNOWN_UNTIL.format(day="2020-01-01"))
    run = project.run("-q")
    assert run.cases("warned") == ["port-sinusoid-lora_off"]
    assert "no longer accepted: sinusoid: memory (owner maintainers, until 2020-01-01)" in " ".join(run.text.split())


def test_a_junit_file_holds_the_numbers_and_the_finding(accepted: Gate, project: Project) -> None:
    accepted(HEALTHY, DROWNED, "--junit-xml", "junit.xml")
    root = ElementTree.parse(project.pytester.path / "junit.xml").getroot()
    case = next(c for c in root.iter("testcase") if "sinusoid" in c.attrib["name"])
    held = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
    assert held["parity_verdict"] == "different, drowned"
    assert float(held["parity_rounding_excess"]) > 2
    assert held["parity_gate"].startswith("new: the baseline")
    assert {"parity_logic_error", "parity_impact", "parity_finding", "parity_native_path"} <= held.keys()
    assert not {"parity_case", "parity_state"} & held.keys()


def test_check_says_what_the_gate_says(accepted: Gate, cli: Callable[..., Result]) -> None:
    accepted(HEALTHY, DROWNED)
    assert cli("baseline", "check", "reports/parity.json", "-b", "baseline.json").exit_code == 1
    before = Path("baseline.json").read_bytes()
    result = cli("baseline", "accept", "reports/parity.json", "-o", "baseline.json")
    assert (result.exit_code, Path("baseline.json").read_bytes()) == (2, before)
    assert "1 cases differ and nothing says why" in result.stderr
    assert cli("baseline", "accept", "reports/parity.json", "-o", "baseline.json", *SAID).exit_code == 0
    assert cli("baseline", "check", "reports/parity.json", "-b", "baseline.json").exit_code == 0
    shown = cli("baseline", "show", "-b", "baseline.json").stdout
    assert "known, precision, 1 cases: the port saves memory (owner maintainers, until 2999-01-31)" in shown
    assert len(read_baseline("baseline.json").devices) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reason", "x"), "missing: --owner, --expires"),
        ((*SAID[:4], "--expires", "2020-01-01"), "is past"),
        ((*SAID[:4], "--expires", "soon"), "YYYY-MM-DD"),
    ],
)
def test_half_a_reason_is_none(cli: Callable[..., Result], words: tuple[str, ...], said: str) -> None:
    result = cli("baseline", "accept", "reports/parity.json", *words)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("words", [("summary",), ("baseline", "check"), ("baseline", "accept")])
def test_a_record_of_another_shape_is_named_as_that(cli: Callable[..., Result], words: tuple[str, ...]) -> None:
    change_baseline("parity_baseline.json", lambda before: before)
    write_record("foreign.json", {"cases": [{"id": 3}], "complete": True, "pairs": 7})
    result = cli(*words, "foreign.json")
    assert result.exit_code == 2
    assert "foreign.json is no parity record of this project" in result.stderr
    assert "Traceback" not in result.output
