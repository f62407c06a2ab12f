"""Drawn inputs and sensitivity as tests: what fails is told in five lines, and its line makes it again."""

from __future__ import annotations

import re
import shlex

import pytest

from fixtures.project import Project, Run
from parity.space import Drawn, parse_drawn

SUITE = """
def test_drawn_inputs(drawn_case, parity_drawn):
    parity_drawn(drawn_case)

def test_input_is_read_alike(input_case, parity_sensitivity):
    parity_sensitivity(input_case)
"""
HEALTHY = "from fixtures.tiny_space import *\nPAIR = spacious('roomy', lora=None)\n"
CALLED = """
from fixtures.tiny_space import *
p = spacious('roomy', lora=None)
def call(model, inputs):
    {body}
PAIR = replace(p, native=replace(p.native, call=call))
"""
ROW = CALLED.format(body="return call_native(model, {**inputs, 't': inputs['t'][:1].expand_as(inputs['t'])})")
TEXT_IGNORED = CALLED.format(body="return call_native(model, {**inputs, 'text': torch.ones_like(inputs['text'])})")
DRAWN_ID = "roomy-drawn-lora_off"
NOTED = """
from fixtures.tiny_space import *
from fixtures.tiny_space import tiny_drawn
def drawn(build, one):
    note(f"{one.seed}:{one.batch}x{one.frames}x{one.height}x{one.width}@{one.timesteps[0][0]}")
    return tiny_drawn(build, one)
PAIR = spacious('roomy', lora=None, drawn=drawn)
"""


@pytest.fixture
def roomy(project: Project) -> Project:
    project.suite = SUITE
    return project


def planted(project: Project, text: str, *arguments: str) -> Run:
    project.pair("roomy", text)
    return project.run("-q", "-k", "drawn", "--parity-profile=ci", "--parity-examples=10", *arguments)


def test_healthy_pair_passes_and_cases_have_ids(roomy: Project) -> None:
    roomy.pair("roomy", "from fixtures.tiny_space import *\nPAIR = spacious('roomy')\n")
    run = roomy.run("-q", "--parity-profile=ci")
    run.result.assert_outcomes(passed=5)
    ids = roomy.run("--collect-only", "-q").ids
    assert ids[:2] == [DRAWN_ID, "roomy-drawn-lora_on"]
    assert set(ids[2:]) == {f"roomy-input-{name}-lora_off" for name in ("latents", "t", "text")}


def test_failure_is_five_lines_whose_last_fails_again(roomy: Project) -> None:
    run = planted(roomy, ROW)
    assert run.code == 1
    lines = run.message(DRAWN_ID)
    assert len(lines) <= 5
    assert "logic_error" in lines[0]
    smallest = parse_drawn(lines[1].split(" on ")[1])
    assert (smallest.batch, smallest.frames, smallest.height, smallest.width) == (2, 1, 1, 1)
    again = roomy.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:])
    assert again.code == 1
    assert again.message(DRAWN_ID)[:2] == lines[:2]
    assert "on this input alone" in again.text
    roomy.pair("roomy", HEALTHY)
    assert roomy.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:]).code == 0, "mended, the same line passes"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('only one row') if len(inputs['latents']) > 1 else None; return call_native(model, inputs)",
         "the native raised"),
        ("model.calls = getattr(model, 'calls', 0) + 1; return call_native(model, inputs) * model.calls",
         "a call leaves something behind"),
        ("out = call_native(model, inputs); return out if len(out) == 1 else out[:1]", "final_output: the reference"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(roomy: Project, body: str, words: str) -> None:
    text = CALLED.format(body=body) if "raise" not in body else CALLED.format(
        body="if len(inputs['latents']) > 1: raise ValueError('only one row')\n    return call_native(model, inputs)"
    )  # fmt: skip
    lines = planted(roomy, text).message(DRAWN_ID)
    assert words in lines[0]
    assert "--parity-drawn=" in lines[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("Drawn(", "not a drawn input"),
        ("Drawn(hight=2)", "did you mean 'height'?"),
        ("__import__('os').getcwd()", "it is no Drawn(...)"),
        ("Drawn(batch=2)", "one entry a sample"),
    ],
)
def test_input_that_is_none_is_a_usage_error(roomy: Project, given: str, words: str) -> None:
    roomy.pair("roomy", HEALTHY)
    run = roomy.run(f"--parity-drawn={given}")
    assert run.code == 4
    assert words in run.text


def test_input_outside_the_space_says_what_is_inside(roomy: Project) -> None:
    run = planted(roomy, HEALTHY, "--parity-drawn", repr(Drawn(height=9, width=1, timesteps=((0.5,),))))
    assert run.code == 1
    assert "height 9; valid: 1 to 4" in run.text


def noted(project: Project, *arguments: str) -> list[str]:
    project.calls.unlink(missing_ok=True)
    assert project.run("-q", "-k", "drawn", *arguments).code == 0
    return project.noted


def test_ci_draws_the_same_and_local_from_a_seed(roomy: Project) -> None:
    roomy.pair("roomy", NOTED)
    ci = noted(roomy, "--parity-profile=ci", "--parity-examples=5")
    assert ci == noted(roomy, "--parity-profile=ci", "--parity-examples=5", "--parity-seed=3")
    local = noted(roomy, "--parity-profile=local", "--parity-seed=3")
    assert local == noted(roomy, "--parity-profile=local", "--parity-seed=3")
    assert local != noted(roomy, "--parity-profile=local", "--parity-seed=4")
    assert local != ci


def test_profile_is_ci_where_the_environment_says_so(roomy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy.pair("roomy", NOTED)
    monkeypatch.setenv("CI", "true")
    assert noted(roomy) == noted(roomy, "--parity-profile=ci")
    monkeypatch.delenv("CI")
    assert noted(roomy) != noted(roomy, "--parity-profile=ci")


def test_number_of_examples(roomy: Project) -> None:
    roomy.pair("roomy", NOTED)
    few, many = (noted(roomy, "--parity-profile=ci", f"--parity-examples={n}") for n in (2, 9))
    assert len(set(few)) < len(set(many))
    assert "number of at least 1" in roomy.run("--parity-examples=0").text


def test_local_run_begins_with_what_failed_before(roomy: Project) -> None:
    roomy.pair("roomy", ROW)
    local = ("-q", "-k", "drawn", "--parity-profile=local", "--parity-examples=10")
    first = roomy.run(*local)
    assert first.code == 1
    lines = first.message(DRAWN_ID)
    again = roomy.run(*local, "--parity-examples=1")
    assert again.message(DRAWN_ID)[:2] == lines[:2]
    roomy.pair("roomy", HEALTHY)
    assert roomy.run(*local).code == 0, "mended, and forgotten"
    roomy.pair("roomy", ROW)
    assert roomy.run(*local, "--parity-examples=1").code == 0


def test_lost_precision_is_told_over_all_inputs(roomy: Project) -> None:
    text = "from fixtures.tiny_space import *\nPAIR = edited(spacious('roomy', lora=None), sinusoid_low)\n"
    run = planted(roomy, text)
    lines = run.message(DRAWN_ID) if run.code else run.text.splitlines()
    told = "\n".join(lines)
    assert "drawn inputs together" in told
    assert "sinusoid" in told
    assert re.search(r"--parity-profile=ci", told)


# --- sensitivity ------------------------------------------------------------------------------------------------------


def sensitivity(project: Project, text: str, name: str) -> Run:
    project.pair("roomy", text)
    return project.run("-q", "-rA", "-k", f"input and {name}")


def test_input_that_one_side_ignores_fails(roomy: Project) -> None:
    run = sensitivity(roomy, TEXT_IGNORED, "text")
    lines = run.message("roomy-input-text-lora_off")
    assert run.code == 1
    assert len(lines) <= 5
    assert "the native ignores it: input 'text'" in lines[0]
    assert roomy.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:]).code == 1


def test_constant_in_place_of_an_input_is_found_where_outputs_agree(roomy: Project) -> None:
    fps = """
from fixtures.tiny_space import *
p = tiny_pair('roomy', lora=None, inputs=lambda build, seed: {**tiny_inputs(build, seed), 'fps': 24.0})
def with_fps(fixed):
    call = call_native if fixed else call_reference
    return lambda m, i: call(m, {**i, 't': i['t'] * (24.0 if fixed else i['fps']) / 24})
PAIR = replace(p, reference=replace(p.reference, call=with_fps(False)), native=replace(p.native, call=with_fps(True)))
"""
    roomy.suite += "\ndef test_parity(case, parity_check):\n    parity_check(case)\n"
    roomy.pair("roomy", fps)
    run = roomy.run("-q")
    failed = [line for line in run.result.outlines if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "roomy-input-fps-lora_off" in failed[0]


def test_response_of_another_size_fails(roomy: Project) -> None:
    text = CALLED.format(body="return call_native(model, {**inputs, 'text': inputs['text'] * 0.5})")
    assert "the two sides respond differently: input 'text'" in sensitivity(roomy, text, "text").text


def test_declared_input_is_an_expected_failure_and_warns_where_both_read_it(roomy: Project) -> None:
    declared = "PAIR = replace(PAIR, ignored={'text': 'the port has its own'})\n"
    run = sensitivity(roomy, TEXT_IGNORED + declared, "text")
    run.result.assert_outcomes(xfailed=1)
    run = sensitivity(roomy, HEALTHY + declared, "text")
    run.result.assert_outcomes(passed=1, warnings=1)
    assert "declared ignored, but both sides read it" in run.text


@pytest.mark.parametrize("residency", ["together", "one"])
def test_what_came_of_inputs_is_in_the_record(roomy: Project, residency: str) -> None:
    roomy.suite += "\ndef test_parity(case, parity_check):\n    parity_check(case)\n"
    roomy.pair("roomy", TEXT_IGNORED)
    run = roomy.run("-q", "-k", "drawn or input", "--parity-profile=ci", "--parity-examples=2",
                    f"--parity-residency={residency}")  # fmt: skip
    assert [case["input"] for case in run.record["inputs"]] == ["", "latents", "t", "text"]
    drawn, *_, text = run.record["inputs"]
    assert text["outcome"] == "failed"
    assert text["reasons"] == ["moved by 6%: the native ignores it"]
    assert text["responses"][0]["native"] == 0.0 < text["responses"][0]["reference"]
    assert (drawn["kind"], text["kind"], text["input"]) == ("drawn", "sensitivity", "text")
    if residency == "together":
        assert drawn["outcome"] == "failed"
        assert parse_drawn(drawn["failing"])
        assert drawn["judged"] > 0
    else:
        assert drawn["outcome"] == "not judged"
        assert "roomy inputs  3 failed, 1 not judged (drawn" in run.text
        assert "--parity-residency=together" in " ".join(drawn["reasons"])


def test_input_nobody_reads_is_not_judged(roomy: Project) -> None:
    more = "inputs=lambda build, seed: {**tiny_inputs(build, seed), 'unused': 1, 'note': 'x'}"
    run = sensitivity(roomy, f"PAIR = tiny_pair('roomy', lora=None, {more})", "(unused or note)")
    assert "2 not judged" in run.text


def test_pair_that_cannot_make_inputs_fails_and_says_so(roomy: Project) -> None:
    broken = "def broken(build, seed):\n    raise RuntimeError('no data')\n"
    roomy.pair("roomy", f"{broken}PAIR = tiny_pair('roomy', inputs=broken)")
    run = roomy.run("-q", "-k", "input")
    assert run.code == 1
    assert "its inputs cannot be made: RuntimeError: no data" in " ".join(run.text.split())
    drawn = f"from fixtures.tiny_space import *\n{broken}PAIR = spacious('roomy', lora=None, drawn=broken)\n"
    roomy.pair("roomy", drawn)
    lines = roomy.run("-q", "-k", "drawn").message(DRAWN_ID)
    assert len(lines) <= 5
    assert "its `drawn` raised RuntimeError: no data" in lines[0]
