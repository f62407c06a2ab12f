"""Models are loaded once, forwards run once a state, and every case is a look-up."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fixtures.project import Project
from fixtures.synthetic import synthetic_state
from fixtures.tiny import edited, tiny_inputs, tiny_pair
from parity.case import all_cases
from parity.engine import Engine, Settings
from parity.errors import ModelFailed
from parity.pair import Build
from parity.run import Options
from parity.session import PairSession

pytestmark = pytest.mark.usefixtures("one_thread")
COUNTED = """
def counted(side, word):
    return replace(side, build=lambda b: (note(f"build_{word}"), side.build(b))[1],
                   call=lambda m, i: (note(f"call_{word}"), side.call(m, i))[1])

p = tiny_pair("counted", depth=1)
PAIR = replace(p, reference=counted(p.reference, "reference"), native=counted(p.native, "native"))
"""


def test_each_model_is_built_once_and_a_case_costs_no_forward(project: Project) -> None:
    project.pair("counted", COUNTED)
    assert project.run("-q", "-k", "final_output").code == 0
    few = Counter(project.noted)
    project.calls.unlink()
    assert project.run("-q").code == 0
    many = Counter(project.noted)
    assert few == many
    assert many["build_reference"] == many["build_native"] == 1


def test_one_state_costs_what_its_passes_cost(project: Project) -> None:
    project.pair("counted", COUNTED)
    project.run("-q", "-k", "lora_off", "--parity-twins=1")
    # One forward to learn constants, one free-running, in lockstep one shadowed and one plain, and the twin.
    assert Counter(project.noted)["call_reference"] <= 6
    assert Counter(project.noted)["call_native"] <= 5


def test_1470_cases_run_six_states(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[bool, str]] = []

    def counted(session: PairSession, lora: bool, options: Options) -> object:
        ran.append((lora, options.variant))
        return synthetic_state(session, lora, options)

    monkeypatch.setattr("parity.engine.run_state", counted)
    inputs = "variants={'second': tiny_inputs, 'third': tiny_inputs}"
    project.pair("many", f"PAIR = tiny_pair('many', depth=48, width=2, {inputs})")
    run = project.run("-q")
    assert run.result.parseoutcomes()["passed"] == (48 * 5 + 5) * 2 * 3 == 1470
    assert ran == [(lora, variant) for variant in ("", "second", "third") for lora in (False, True)]
    assert len(run.outcomes) == 1470


def test_a_failing_pair_is_loaded_once(project: Project) -> None:
    project.pair("raising", "PAIR = edited(tiny_pair('raising'), lambda model: (note('build'), 1 / 0))")
    assert project.run("-q").result.parseoutcomes() == {"failed": 30}
    assert project.noted == ["build"]


def test_looking_up_needs_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity.engine.run_state", synthetic_state)
    pairs = {name: tiny_pair(name, depth=1, lora=None) for name in ("one", "two")}
    engine = Engine(pairs, Settings())
    cases = all_cases((pair, Build()) for pair in pairs.values())
    before = [engine.case_record(case) for case in cases]
    engine.close()
    monkeypatch.setattr("parity.engine.PairSession", None)
    assert [engine.case_record(case) for case in cases] == before


def test_a_second_load_that_fails_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity.engine.run_state", synthetic_state)
    engine = Engine({"one": tiny_pair("one", depth=1)}, Settings())
    off, on = (next(c for c in all_cases([(engine.pairs["one"], Build())]) if c.lora is lora) for lora in (False, True))
    before = engine.case_record(off)
    engine.close()
    monkeypatch.setattr("parity.engine.PairSession", lambda *args: 1 / 0)
    with pytest.raises(ModelFailed, match="loading the pair 'one': ZeroDivisionError"):
        engine.case_record(on)
    assert engine.case_record(off) == before


def test_what_is_kept_of_an_error_holds_no_activations() -> None:
    def fail(model: torch.nn.Module) -> None:
        raise RuntimeError("no kernel")

    engine = Engine({"raising": edited(tiny_pair("raising"), fail)}, Settings())
    (case, *_) = all_cases([(engine.pairs["raising"], Build())])
    depths = []
    for _ in range(3):
        with pytest.raises(Exception, match="no kernel") as caught:
            engine.case_record(case)
        assert caught.value.__cause__ is None
        depths.append(len(caught.traceback))
    assert depths[1] == depths[2]


def test_variants_get_their_own_inputs() -> None:
    seen: list[str] = []

    def inputs(build: Build, seed: int) -> dict[str, object]:
        seen.append("second")
        return tiny_inputs(build, seed, batch=2)

    pair = tiny_pair("varied", depth=1, lora=None, variants={"second": inputs})
    engine = Engine({"varied": pair}, Settings())
    records = [engine.case_record(case) for case in all_cases([(pair, Build())])]
    assert seen == ["second"]
    assert {tuple(r["rows"]) for r in records if r["tap"] == "patch_embed"} == {(128,), (256,)}
