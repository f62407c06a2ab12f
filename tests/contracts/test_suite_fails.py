"""Each test of the suite is shown to fail on a planted bug, in five lines that name where, how much, why and what next.

The suite's own files are copied into a project whose only pair has the bug.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from fixtures.project import ROOT, Project, Run, unwrapped

SUITE = ROOT / "tests" / "suite"
LONGCAT = """
from dataclasses import replace
from functools import partial
from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS
from fixtures.plants_named import two_blocks
few = replace(PAIR, name="planted", inputs=partial(inputs_of, tokens={tokens}), lora=None)
PAIR = PLANTS[{plant!r}].apply({base}(few))
"""
COUNTER = """
calls = [0]
def counted(y):
    calls[0] += 1
    return y * calls[0]
PAIR = edited(tiny_pair("planted", lora=None), output_of("blocks.1.up", counted))
"""
CLOCK = """
import time
PAIR = edited(tiny_pair("planted", lora=None), output_of("blocks.1.up", lambda y: y + time.perf_counter_ns() % 1000))
"""
ALTERED = """
from parity.weights.load import load_native
p = tiny_pair("planted", lora=None)
def load(reference, native):
    load_native(native, reference, p.key_map(None))
    with torch.no_grad():
        {edit}
PAIR = replace(p, load=load)
"""
COMPILED = """
def backend(graph, example):
    return lambda *args: tuple(o * 1.01 for o in graph(*args))
p = tiny_pair("planted", lora=None)
PAIR = replace(p, native=replace(p.native, compile=lambda model: model.compile(backend=backend)))
"""
BLIND = """
def neutral(model):
    for name, p in model.named_parameters():
        if {wanted}:
            p.data.fill_({value})
PAIR = edited(tiny_pair("planted", lora=None), neutral, side="reference")
"""
DECIDES = """
PAIR = edited(tiny_pair("planted", lora=None), output_of("blocks.1.up", lambda y: torch.where(y > y.mean(), y, y * 1)))
"""


LORA = """
from parity.lora.adapter import LoraAdapter
from parity.lora.apply import applied
def doubled(model, adapter):
    targets = {path: replace(target, scaling=2 * target.scaling) for path, target in adapter.targets.items()}
    return applied(model, LoraAdapter(adapter.name, targets))
p = tiny_pair("planted")
PAIR = replace(p, native=replace(p.native, apply_lora=doubled))
"""
HEALTHY = "from fixtures.tiny_space import *\nPAIR = spacious('planted')"
CALLED = """
from fixtures.tiny_space import *
p = spacious("planted", lora=None)
call = lambda model, given: call_native(model, {{**given, {edit}}})
PAIR = replace(p, native=replace(p.native, call=call))
"""


def run_suite(project: Project, pair: str, test: str, *arguments: str) -> Run:
    for file in SUITE.glob("test_*.py"):
        shutil.copy(file, project.pytester.path)
    project.pair("planted", pair)
    return project.run("-q", "-k", test, *arguments)


def check_words(lines: list[str], *words: str) -> None:
    text = "\n".join(lines)
    assert len(lines) <= 5, text
    assert not [word for word in words if word not in text], text


def failed_tests(run: Run) -> set[str]:
    return {line.split("::")[1].split("[")[0] for line in run.result.outlines if line.startswith("FAILED ")}


@pytest.mark.parametrize(
    ("test", "plant", "case", "words"),
    [
        ("test_block", "gate_omitted", "planted-block1-lora_off", ["native: blocks.1", "different function, felt"]),
        ("test_layer", "qk_swapped", "planted-block1-self_attn-lora_off",
         ["native: blocks.1.self_attn", "starts here", "likely: weights, not code: ", "holds what should be"]),
        ("test_outside_blocks", "time_embed_low", "planted-time_embed-lora_off",
         ["native: time_embedder", "less precise", "rounding_excess",
          "likely: the reference with `addmm` run in bfloat16", "is bit-exact with the native"]),
        ("test_outside_blocks", "output_sign", "planted-final_output-lora_off", ["different function, felt"]),
    ],
)  # fmt: skip
def test_case_fails_and_its_rerun_fails_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, test: str, plant: str, case: str, words: list[str]
) -> None:
    if not any("likely: " in word for word in words):
        monkeypatch.setattr("parity.diagnose.repair.SECONDS", 0.0)  # no repair is asked for
    base, tokens = ("", 128) if plant.endswith("_low") else ("two_blocks", 32)
    run = run_suite(project, LONGCAT.format(plant=plant, base=base, tokens=tokens), test)
    assert run.code == 1
    assert failed_tests(run) == {test}
    lines = run.message(case)
    check_words(lines, case, "(limit ", "impact", "worst ", *words)
    again = project.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:])
    assert again.code == 1
    assert again.outcomes == {case: "failed"}


@pytest.mark.parametrize(
    ("test", "pair", "words"),
    [
        ("test_shadow_changes_nothing", COUNTER, ["low values differ with and without shadow", "native at block1.up"]),
        ("test_shadow_changes_nothing", CLOCK, ["low values differ with and without shadow", "native at block1.up"]),
        ("test_weights_are_the_references", ALTERED.format(edit="native.head.weight[1, 2] *= 1.01"),
         ["head.weight differs from the mapped reference by"]),
        ("test_weights_are_the_references",
         ALTERED.format(edit="native.blocks[0].down.bias.copy_(native.blocks[0].ln.bias)"),
         ["blocks.0.down.bias holds what should be blocks.0.ln.bias"]),
        ("test_weights_can_show_bugs", BLIND.format(wanted="'norm.weight' in name", value=1.0),
         ["norm gains are exactly 1"]),
        ("test_weights_can_show_bugs", BLIND.format(wanted="'bias' in name", value=0.0), ["biases are exactly 0"]),
        ("test_decisions_are_replayed", DECIDES, ["decides nothing to replay", "1x"]),
        ("test_compiled_is_as_near_as_eager", COMPILED, ["the compiled native is ", "as far from float64 as eager"]),
    ],
)  # fmt: skip
def test_evidence_fails_and_its_rerun_fails_again(project: Project, test: str, pair: str, words: list[str]) -> None:
    run = run_suite(project, pair, test)
    assert run.code == 1
    assert failed_tests(run) == {test}
    lines = run.message("planted-lora_off")
    check_words(lines, "planted-lora_off: ", "likely: ", *words)
    assert project.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:]).code == 1


def test_weights_that_bfloat16_holds_cannot_show_a_down_cast(project: Project) -> None:
    pair = BLIND.format(wanted="True", value=0.5)
    run = run_suite(project, pair, "test_weights_can_show_bugs", "--parity-dtype=float32")
    check_words(run.message("planted-lora_off"), "all float32 weights are exactly representable in bfloat16")


@pytest.mark.parametrize(
    ("test", "edit", "case", "words"),
    [
        ("test_drawn_inputs", "'t': given['t'][:1].expand_as(given['t'])", "planted-drawn-lora_off",
         ["(limit 1e-12) at sinusoid", "on Drawn(batch=2, frames=1, height=1, width=1", "--parity-drawn="]),
        ("test_input_is_read_alike", "'text': given['text'] * 0 + 1", "planted-input-text-lora_off",
         ["the native ignores it: input 'text'", "likely: "]),
    ],
)  # fmt: skip
def test_input_fails_and_its_rerun_fails_again(
    project: Project, test: str, edit: str, case: str, words: list[str]
) -> None:
    run = run_suite(project, CALLED.format(edit=edit), f"{test} and {case}", "--parity-profile=ci")
    assert run.code == 1
    assert failed_tests(run) == {test}
    lines = run.message(case)
    check_words(lines, *words)
    assert project.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:]).code == 1


@pytest.mark.parametrize(
    ("test", "words"),
    [("test_lora_is_what_its_file_says", ["planted-lora_on", "native: scaling off by exactly 2 x in 2", "likely: "])],
)
def test_lora_fails_and_its_rerun_fails_again(project: Project, test: str, words: list[str]) -> None:
    run = run_suite(project, LORA, test)
    assert run.code == 1
    assert failed_tests(run) == {test}
    lines = run.message("planted-lora_on")
    check_words(lines, *words)
    assert project.run(*shlex.split(lines[-1].split("rerun: ")[1])[1:]).code == 1


def test_every_test_of_the_suite_is_shown_to_fail() -> None:
    shown = Path(__file__).read_text(encoding="utf-8")
    written = [line[4:].split("(")[0] for file in SUITE.glob("test_*.py") for line in file.read_text().splitlines()
               if line.startswith("def test_")]  # fmt: skip
    assert not [name for name in written if f'("{name}"' not in shown]


def test_a_drowned_difference_warns_in_the_same_words(project: Project) -> None:
    run = run_suite(project, LONGCAT.format(plant="final_low", base="", tokens=128), "test_outside_blocks")
    assert run.code == 0
    assert "planted-final_layer-lora_off" in run.cases("warned")
    lines = [line.removeprefix("  ") for line in run.result.outlines]  # pytest indents a warning
    start = next(n for n, line in enumerate(lines) if line.startswith("planted-final_layer-lora_off: "))
    end = next(n for n in range(start, len(lines)) if "rerun: " in lines[n])
    check_words(unwrapped(lines[start : end + 1]), "less precise", "impact", "native: final_layer", "rerun: pytest")


def test_the_suite_passes_on_a_healthy_pair(project: Project) -> None:
    project.suite = ""
    run = run_suite(project, HEALTHY, "planted", "--parity-dtype=float32", "--parity-profile=ci")
    assert run.code == 0
    assert run.result.parseoutcomes() == {"passed": 2 * 15 + 2 * 6 + 2 + 3}
