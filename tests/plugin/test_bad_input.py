"""Bad input: each a clear error of five lines at most, and the cases of other pairs go on.

Every project here has the pair `healthy` beside the broken one, `bad`, whose file is made of a line or two.
"""

from __future__ import annotations

import pytest

from fixtures.project import Project, Run

BASE = "p = tiny_pair('bad', depth=1, lora=None)\n"
WITH_TAP = BASE + "more = lambda tap: replace(p, taps=lambda build: (tap, *p.taps(build)))\n"
NATIVE = "def with_native(**changes): return replace(p, native=replace(p.native, **changes))\n"

STOPS: dict[str, tuple[str, list[str]]] = {
    "module_path": (
        WITH_TAP + "PAIR = more(Tap('x', Point('layers.0.act'), Point('blocks.0.geluu')))",
        ["tap x: unknown native module 'blocks.0.geluu'", "did you mean 'blocks.0.gelu'?"],
    ),
    "element": (
        WITH_TAP + "PAIR = more(Tap('x', Point('out', element='sample'), Point('head')))",
        ["tap x: reference out[sample]: there is no element 'sample' in a Tensor"],
    ),
    "key": (
        "from parity.weights.keymap import KeyMap\n" + BASE
        + "PAIR = replace(p, key_map=lambda build: KeyMap(p.key_map(build).rules[:-1]))",
        ["head.bias"],
    ),
    "file": (
        BASE + NATIVE + "PAIR = with_native(build=lambda build: torch.load('missing.safetensors'))",
        ["the native 'the port' does not build: FileNotFoundError", "missing.safetensors"],
    ),
    "no_taps": (BASE + "PAIR = replace(p, taps=lambda build: ())", ["bad: no tap exists on both sides"]),
    "no_tap_on_both_sides": (
        BASE + "PAIR = replace(p, taps=lambda build: (Tap('a', None, Point('head')), Tap('b', Point('out'), None)))",
        ["bad: no tap exists on both sides"],
    ),
    "taps_raise": (
        BASE + "PAIR = replace(p, taps=lambda build: {}[build.size])",
        ["loading the pair 'bad': KeyError: 'tiny'", "raised at pairs/bad.py:"],
    ),
    "no_output": (
        BASE + "PAIR = replace(p, taps=lambda build: p.taps(build)[:-1])",
        ["bad: there is no tap 'final_output'", "add Tap("],
    ),
    "misspelt_known": (
        BASE + "PAIR = replace(p, known=lambda build: {'sinusiod': 'why'})",
        ["unknown tap in `known` of bad 'sinusiod'", "did you mean 'sinusoid'?"],
    ),
    "misspelt_declared": (
        BASE + "PAIR = replace(p, declared={'block0.upp': 'why'})",
        ["unknown tap in `declared` of bad 'block0.upp'", "did you mean 'block0.up'?"],
    ),
    "reached_twice": (
        WITH_TAP + "twice = lambda m: m.blocks.append(m.blocks[0])\n"
        "PAIR = edited(edited(p, twice), lambda m: m.layers.append(m.layers[0]), side='reference')",
        ["is called more than once in a forward"],
    ),
    "shapes": (
        WITH_TAP + "PAIR = more(Tap('x', Point('layers.0.fc1'), Point('blocks.0.ln')))",
        ["tap x: ", "(1, 128, 32)", "(1, 128, 16)"],
    ),
    "layout": (
        BASE + "no = Layout('no', lambda v, s: v.reshape(7, -1), None)\n"
        "PAIR = replace(p, taps=lambda build: (Tap('x', Point('out'), Point('head'), layout=no), p.taps(build)[-1]))",
        ["tap x: layout 'no' cannot take the native's (1, 128, 4) to the reference's (1, 128, 4)"],
    ),
    "reference_does_not_build": (
        BASE + "PAIR = edited(p, lambda model: 1 / 0, side='reference')",
        ["the reference 'the original' does not build: ZeroDivisionError", "raised at pairs/bad.py:"],
    ),
    "reference_raises": (
        BASE + "def fail(y): raise ValueError('no such\\nkernel')\n"
        "PAIR = edited(p, output_of('layers.0.fc1', fail), side='reference')",
        ["the reference raised after", "ValueError: no such kernel", "raised at pairs/bad.py:", "in fail"],
    ),
    "native_raises": (
        BASE + "PAIR = edited(p, output_of('head', lambda y: y @ y))",
        ["the native raised after", "RuntimeError: ", "raised at pairs/bad.py:"],
    ),
    "memory": (
        BASE + "def fail(y): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 40.00 GiB')\n"
        "PAIR = edited(p, output_of('head', fail))",
        ["out of memory", "the native ran out of memory after block0", "Tried to allocate 40.00 GiB", "smaller input"],
    ),
    "memory_of_the_cpu": (
        BASE + "PAIR = edited(p, output_of('head', lambda y: torch.empty(1 << 60)))",
        ["out of memory", "take a smaller"],
    ),
    "memory_while_building": (
        BASE + "def fail(model): raise torch.OutOfMemoryError('CUDA out of memory')\nPAIR = edited(p, fail)",
        ["out of memory", "take a smaller"],
    ),
    "output_no_tensor": (
        BASE + NATIVE + "PAIR = with_native(output=lambda out: None)",
        ["native: the pair's `output` gave a NoneType, not a tensor"],
    ),
    "wrong_class": (
        BASE + NATIVE + "PAIR = with_native(source=Source('diffusers.models.transformer'))",
        ["runs Native of fixtures.tiny, and no class of diffusers.models.transformer"],
    ),
    "wrong_checkout": (
        "import os\nos.environ['BAD_SRC'] = '.'\n" + BASE + NATIVE
        + "PAIR = with_native(source=Source('fixtures.tiny', checkout='BAD_SRC'))",
        ["fixtures.tiny was imported from", "expected below", "PYTHONPATH"],
    ),
    "same_class": (
        BASE + "PAIR = replace(p, native=replace(p.reference, name='the port'))",
        ["bad: both sides are the same class Reference", "a model compared with itself always agrees"],
    ),
    "wraps_the_reference": (
        BASE + "PAIR = edited(p, lambda m: setattr(m, 'original', Reference(1, 16)))",
        ["bad: the native's 'original' is the reference's own class Reference", "check what the native wraps"],
    ),
    "shared_module": (
        BASE + "built = []\ntake = lambda m: built.append(m.x_in)\n"
        "give = lambda m: setattr(m, 'patch_embedding', built[0])\n"
        "PAIR = edited(edited(p, give), take, side='reference')",
        ["bad: both sides share the module 'patch_embedding'"],
    ),
    "lora_without_effect": (
        "from contextlib import nullcontext\np = tiny_pair('bad', depth=1)\nno = lambda model, adapter: nullcontext()\n"
        "PAIR = replace(p, reference=replace(p.reference, apply_lora=no), native=replace(p.native, apply_lora=no))",
        ["the LoRA changes no bit of the reference's output"],
    ),
    "lora_touches_nothing": (
        "from parity.lora.adapter import LoraAdapter\n"
        "PAIR = tiny_pair('bad', depth=1, lora=lambda build, model: LoraAdapter('empty', {}))",
        ["adapter 'empty' has no targets"],
    ),
}  # fmt: skip

NOT_FINITE = """
def broken(y):
    y = y.clone()
    y[0, 3, 2] = float({value!r})
    return y
PAIR = tiny_pair('bad', depth=1, lora=None)
for side, path in {sides!r}:
    PAIR = edited(PAIR, output_of(path, broken), side=side)
"""
REFERENCE, THE_NATIVE = ("reference", "layers.0.fc1"), ("native", "blocks.0.up")


def run_beside_a_healthy_pair(project: Project, text: str) -> Run:
    project.pair("bad", text)
    project.pair("healthy", "PAIR = tiny_pair('healthy', depth=1, lora=None)")
    run = project.run("-q")
    assert run.code == 1
    healthy = {out for id, out in run.outcomes.items() if id.startswith("healthy")}
    assert healthy == {"passed"}
    assert sum(id.startswith("healthy") for id in run.outcomes) == 10
    assert run.record["complete"] is True
    assert "INTERNALERROR" not in run.text
    return run


@pytest.mark.parametrize("name", list(STOPS))
def test_error_is_clear_and_stops_only_its_own_cases(project: Project, name: str) -> None:
    text, words = STOPS[name]
    run = run_beside_a_healthy_pair(project, text)
    errors = run.cases("error")
    assert errors
    for id in errors[:2]:
        lines = run.message(id)
        message = "\n".join(lines)
        assert not [word for word in words if word not in message], message
        assert len(lines) <= 5
        assert max(map(len, lines)) < 400
        assert "rerun: pytest" in lines[-1]


def test_a_tap_that_is_never_reached_fails_its_own_case_alone(project: Project) -> None:
    run = run_beside_a_healthy_pair(project, WITH_TAP + "PAIR = more(Tap('x', Point('out'), Point('blocks')))")
    assert (run.cases("failed"), run.cases("error")) == (["bad-x-lora_off"], [])
    assert "never reached: the native never calls blocks in this forward" in "\n".join(run.message("bad-x-lora_off"))


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    ("sides", "where"),
    [
        ([THE_NATIVE], "on the native: 0 reference, 1 native values"),
        ([REFERENCE], "on the reference: 1 reference, 0 native values"),
        ([REFERENCE, THE_NATIVE], "on both sides: 1 reference, 1 native values"),
    ],
)
def test_nan_or_inf_fails_where_it_starts(
    project: Project, sides: list[tuple[str, str]], where: str, value: str
) -> None:
    run = run_beside_a_healthy_pair(project, NOT_FINITE.format(sides=sides, value=value))
    lines = run.message("bad-block0-up-lora_off")
    assert f"NaN or Inf {where}" in lines[1]
    assert "starts here" in lines[2]
    assert len(lines) <= 5
    if REFERENCE in sides:  # lockstep goes on from the reference, so NaN of the native ends at its own tap
        assert run.outcomes["bad-final_output-lora_off"] == "failed"


OUT_OF_MEMORY = """
from contextlib import contextmanager
from pathlib import Path
from parity.lora.apply import applied
on = []
@contextmanager
def noted(model, adapter):
    with applied(model, adapter):
        on.append(adapter)
        try:
            yield
        finally:
            on.pop()
def fail(y):
    if on and Path("full").exists():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB")
    return y
p = tiny_pair("bad", variants={"second": tiny_inputs})
PAIR = edited(replace(p, native=replace(p.native, apply_lora=noted)), output_of("blocks.1.up", fail))
"""


def test_out_of_memory_in_one_state_leaves_the_others_as_they_are(project: Project) -> None:
    project.pair("bad", OUT_OF_MEMORY)
    whole = {case["id"]: case for case in project.run("-q").record["cases"]}
    assert len(whole) == 60
    (project.pytester.path / "full").touch()
    run = project.run("-q")
    errors = run.cases("error")
    assert {id.partition("-lora_on")[1] for id in errors} == {"-lora_on"}
    assert len(errors) == 30
    assert "the native ran out of memory after block1.norm" in "".join(run.message(errors[0]))
    others = [case for case in run.record["cases"] if case["outcome"] != "error"]
    assert others == [whole[case["id"]] for case in others]
